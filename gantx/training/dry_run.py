"""The report of `gantx train --dry-run`: sizes computed from the settings, measurements of trial steps."""

from __future__ import annotations

import time
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from gantx import models
from gantx.config.schema import RunConfig
from gantx.models.interfaces import Discriminator, Generator
from gantx.runtime import devices, memory
from gantx.runtime.activity import duration
from gantx.runtime.random import Draw, Draws, Spec, take
from gantx.training.conditioning import with_assumed_classes
from gantx.training.loop import target_images
from gantx.training.microbatch import USABLE_SHARE, ladder, peak_of, rehearse
from gantx.training.optimized_network import OptimizedNetwork
from gantx.training.phase import Phase, differentiate
from gantx.training.phases import micro_batch_size, phases
from gantx.training.resolve import Log, prepared_process, resolve
from gantx.training.schedules import window_scale
from gantx.training.state import TrainingState

ITERATIONS = 20  # timed, unless they take longer than
PATIENCE = 15.0  # seconds; the search for the largest micro-batch may take as long again


# --- sizes ------------------------------------------------------------------------------------------------


def sizes(settings: RunConfig) -> dict[str, str]:
    """Labels and values that describe a run: parameters, arithmetic, steps, memory, files.

    The networks are built on the meta device: nothing is allocated.
    """
    settings = with_assumed_classes(settings)
    generator, discriminator = _networks_without_memory(settings)
    training, images = settings.training, target_images(settings)
    iterations = images // training.batch
    parameters = parameter_count(generator), parameter_count(discriminator)
    # In float32: G, its average and two moments; D and two moments.
    checkpoint_gb = (4 * parameters[0] + 3 * parameters[1]) * 4 / 2**30
    each = f"{checkpoint_gb:.2f} GiB" if checkpoint_gb >= 0.1 else f"{1024 * checkpoint_gb:.1f} MiB"
    gflop = (
        forward_gflop(generator, (1, *generator.latent_shape)),
        forward_gflop(discriminator, (1, *settings.data.image_shape)),
    )
    generator_steps = -(-iterations // settings.objective.n_critic)
    figures = {
        "generator": f"{parameters[0]:,} parameters, {gflop[0]:.2f} GFLOP a forward pass",
        "discriminator": f"{parameters[1]:,} parameters, {gflop[1]:.2f} GFLOP a forward pass",
        "length": f"{images / 1000:,g} kimg = {iterations:,} D steps of {training.batch} images",
        "generator steps": f"{generator_steps:,} of {settings.generator_batch} images",
        "micro-batch": micro_batch_figure(settings),
        "memory": _memory_figure(settings, generator, discriminator),
        "checkpoints": (
            f"every {training.checkpoint_kimg:g} kimg, the last {training.keep_checkpoints} kept, {each} each"
        ),
        "pictures": f"every {training.sample_kimg:g} kimg, {training.samples} images",
    }
    if (schedule := training.attention_window) is not None:
        scale = window_scale(schedule, training.kimg)
        figures["attention window"] = ", ".join(
            f"{window} until {until * scale:g} kimg" for until, window in schedule.steps
        )
    return figures


def micro_batch_figure(settings: RunConfig) -> str:
    """How many samples are computed at once, and which terms of the losses depend on that."""
    size = settings.training.micro_batch
    if size is None:
        return "whole batches"
    if size == "auto":
        return "auto: on a GPU the largest that fits, found when the run starts; elsewhere whole batches"
    # Terms of several samples together.
    shared = []
    if settings.objective.loss == "wgangp-eps":
        shared.append("the drift of the loss")
    if getattr(settings.discriminator, "group_size", 1) > 1:
        shared.append("the spread across a batch that D sees")
    if settings.objective.path_length is not None:
        shared.append("the mean path length")
    return f"{size} samples" + (f"; {', '.join(shared)}: taken from each micro-batch" if shared else "")


def parameter_count(network: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


def forward_gflop(network: Generator | Discriminator, shape: tuple[int, ...]) -> float:
    """GFLOP of one forward pass on an input of `shape`, two per multiply-add; on the meta device."""
    network.requires_grad_(False)  # FlopCounterMode cannot tell a parameter that is a module's input
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        labels = torch.zeros(shape[0], dtype=torch.int64, device="meta")
        given: dict[str, Any] = {"labels": labels} if network.classes else {}
        network(torch.empty(shape, device="meta"), **given)
    return int(counter.get_total_flops()) / 1e9


def _networks_without_memory(settings: RunConfig) -> tuple[Generator, Discriminator]:
    with torch.device("meta"):
        channels = settings.data.channels
        return models.build(settings.generator, channels), models.build(settings.discriminator, channels)


# --- memory, estimated on the meta device -----------------------------------------------------------------


def _memory_figure(settings: RunConfig, generator: Generator, discriminator: Discriminator) -> str:
    permanent, peaks = estimated_bytes(settings, generator, discriminator)
    passes = ", ".join(f"{name} {size / 2**30:.2f}" for name, size in peaks)
    return (
        f"{permanent / 2**30:.2f} GiB throughout, and at the peak, in fp32 with attention written out, "
        f"about: {passes} GiB"
    )


def estimated_bytes(
    settings: RunConfig, generator: Generator, discriminator: Discriminator
) -> tuple[int, list[tuple[str, int]]]:
    """Bytes that a run in float32 occupies permanently, and the peak of each pass in addition.

    Args:
        settings: the run.
        generator: G on the meta device.
        discriminator: D on the meta device.
    """
    optimizers = settings.optimizer
    of_generator: OptimizedNetwork[Generator] = OptimizedNetwork(generator, optimizers.generator)
    of_discriminator: OptimizedNetwork[Discriminator] = OptimizedNetwork(
        discriminator, optimizers.discriminator
    )
    # Weights, gradient and two moments of both; the average of G.
    permanent = 4 * (5 * parameter_count(generator) + 4 * parameter_count(discriminator))
    peaks = [
        (phase.name if index == 0 else "its penalty", size)
        for phase in phases(settings, of_generator, of_discriminator)
        for index, size in enumerate(peak_bytes(phase, settings.data.image_shape))
    ]
    return permanent, peaks


def peak_bytes(phase: Phase, image_shape: tuple[int, ...]) -> list[int]:
    """Bytes that each pass of a phase allocates at its peak, in float32.

    Args:
        phase: of networks on the meta device.
        image_shape: (C, H, W).
    """
    phase.select_parameters()
    peaks = []
    for loss, size, _ in phase.passes:
        with PeakMeter() as meter:
            draws = take(_meta_draws(phase.spec), phase.spec, slice(0, size))
            reals = phase.empty_reals(size, image_shape, "meta")
            differentiate(loss, phase.trained.parameters, reals, draws, 1.0)
        peaks.append(meter.peak)
    return peaks


class PeakMeter(TorchDispatchMode):
    """Counts the bytes of the tensors that are made inside the context and alive at the same time.

    Works on the meta device, where tensors have shapes and lifetimes but no memory.

    Attributes:
        peak: the most bytes that were alive at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.peak = 0
        self._counted: set[int] = set()
        self._earlier: dict[int, torch.UntypedStorage] = {}  # parameters and the like

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation and count its results."""
        for value in tree_leaves((args, kwargs)):
            if isinstance(value, Tensor) and id(storage := value.untyped_storage()) not in self._counted:
                self._earlier[id(storage)] = storage
        results = func(*args, **(kwargs or {}))
        for value in tree_leaves(results):
            if isinstance(value, Tensor):
                self._count(value.untyped_storage())
        return results

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self._counted or key in self._earlier:
            return
        self._counted.add(key)
        self.alive += size
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._counted.discard(key)
        self.alive -= size


def _meta_draws(spec: Spec) -> Draws:
    return {
        name: torch.empty(
            wanted.shape, device="meta", dtype=torch.int64 if wanted.kind == "integers" else torch.float32
        )
        if isinstance(wanted, Draw)
        else _meta_draws(wanted)
        for name, wanted in spec.items()
    }


# --- measurements of trial steps --------------------------------------------------------------------------


@dataclass(frozen=True)
class Measurements:
    """Measurements of trial steps.

    Attributes:
        device: where.
        peaks: bytes in use at the peak by micro-batch size; size 0 stands for the time between steps.
        limit: bytes that the process may use in all; None if that is unknown.
        sizes: every possible micro-batch size in ascending order; the last computes whole batches.
        timed_size: micro-batch size of the timed steps.
        iterations: how many were timed.
        seconds: of one iteration of the run; None if not even one sample fits.
    """

    device: torch.device
    peaks: Mapping[int, int]
    limit: int | None
    sizes: tuple[int, ...]
    timed_size: int
    iterations: int
    seconds: float | None

    def expected(self, size: int) -> int:
        """Bytes at the peak with this micro-batch size: measured, or extrapolated linearly."""
        if size in self.peaks or len(self.peaks) < 2:
            return self.peaks.get(size, self.peaks[0])
        smaller, larger = sorted(self.peaks)[-2:]
        per_sample = max(0, self.peaks[larger] - self.peaks[smaller]) / (larger - smaller)
        return round(self.peaks[larger] + per_sample * (size - larger))

    def fits(self, size: int) -> bool:
        """Whether steps with this micro-batch size fit."""
        return self.limit is None or self.expected(size) <= USABLE_SHARE * self.limit


def measured(settings: RunConfig, device: torch.device, log: Log) -> dict[str, str]:
    """Try steps of a run on random weights and empty images; labels and values of their time and memory.

    Larger and larger micro-batches are tried, within the memory and `PATIENCE`; then the steps of the largest
    are timed. Losses are not compiled.

    Args:
        settings: the run.
        device: where it would train.
        log: receives what was chosen for this machine.
    """
    batch = settings.training.batch
    settings = with_assumed_classes(settings)
    settings = resolve(settings, device, target_images(settings) // batch, log)
    with prepared_process(settings, device):
        results = _try_steps(settings, device)
    figures = {"fits": _fits_figure(results)}
    if results.seconds is not None:
        training, total = settings.training, target_images(settings)
        conditions: list[str] = [training.precision]
        if device.type == "cpu":
            conditions.append(_plural(int(training.threads), "thread"))
        if training.compile:
            conditions.append("not compiled, which would be quicker")
        if results.timed_size != results.sizes[-1]:
            conditions.append(f"{_plural(results.timed_size, 'sample')} at once")
        speed = batch / results.seconds
        figures["speed"] = (
            f"{speed:{',.0f' if speed >= 100 else '.3g'}} images/s on {device} ({', '.join(conditions)}) in "
            f"{_plural(results.iterations, 'iteration')}"
        )
        length = duration(total / batch * results.seconds)
        figures["time"] = f"{length} for {total / 1000:g} kimg, beside pictures, checkpoints and scores"
    return figures


def _fits_figure(results: Measurements) -> str:
    """What fits into the memory of the device."""

    def gib(size: int) -> str:
        about = "" if size in results.peaks else "about "
        return f"{about}{results.expected(size) / 2**30:.2f}"

    whole = results.sizes[-1]
    limit = "" if results.limit is None else f" of {results.limit / 2**30:.2f}"
    available = f"{limit} GiB on {results.device}"
    largest = max((size for size in results.sizes if results.fits(size)), default=None)
    if largest is None:
        return (
            f"not even one sample at once ({gib(results.sizes[0])}{available}): choose a smaller preset or "
            "training.recompute=true"
        )
    if largest == whole:
        return f"whole batches, {gib(whole)}{available} at the peak"
    return (
        f"{_plural(largest, 'sample')} at once, {gib(largest)}{available} at the peak; whole batches would "
        f"take {gib(whole)} GiB (training.micro_batch)"
    )


def _plural(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number != 1 else ''}"


def _try_steps(settings: RunConfig, device: torch.device) -> Measurements:
    """Try micro-batches from the smallest to the largest, and time the run's own, or the largest below it."""
    by_size = {_samples_at_once(candidate): candidate for candidate in reversed(ladder(settings))}
    sizes = tuple(by_size)
    devices.forget_peak(device)
    used, free = devices.peak_memory(device), devices.free_memory(device)
    limit = None if free is None else used + free
    least = used + _estimated_peak(by_size[sizes[0]])
    if limit is not None and least > USABLE_SHARE * limit:
        return Measurements(device, {0: least}, limit, sizes, 0, 0, None)

    state = TrainingState(settings, device)
    _update_seconds(settings, state)
    devices.forget_peak(device)
    peaks, tried, seconds = {0: devices.peak_memory(device)}, [], 0.0
    for size, candidate in by_size.items():
        if 8 * seconds > PATIENCE or not Measurements(device, peaks, limit, sizes, 0, 0, None).fits(size):
            break
        started = devices.moment(device)
        try:
            peaks[size] = peak_of(candidate, state)
        except RuntimeError as problem:
            if not memory.ran_out(problem):
                raise
            peaks[size] = limit or 0  # all of it, and more
            break
        seconds = devices.moment(device) - started
        tried.append(size)
    if not tried:
        return Measurements(device, peaks, limit, sizes, 0, 0, None)
    wanted = micro_batch_size(settings.training, sizes[-1])
    timed_size = max((size for size in tried if size <= wanted), default=tried[0])
    spans = _iteration_seconds(by_size[timed_size], state)
    return Measurements(device, peaks, limit, sizes, timed_size, len(spans), median(spans))


def _iteration_seconds(settings: RunConfig, state: TrainingState) -> list[float]:
    """Seconds of iterations; a phase that is not due in each of them counts with its share."""
    intervals = {phase.name: phase.interval for phase in _phases_of(settings, state)}
    spans: list[float] = []
    started = time.perf_counter()
    while len(spans) < ITERATIONS and (not spans or time.perf_counter() - started < PATIENCE):
        seconds = dict(rehearse(settings, state))
        losses = sum(seconds[name] / interval for name, interval in intervals.items())
        spans.append(losses + _update_seconds(settings, state))
    return spans


def _update_seconds(settings: RunConfig, state: TrainingState) -> float:
    """Seconds that the optimisers and the average of G take in an iteration; gradients are zero."""
    seconds = 0.0
    for phase in _phases_of(settings, state):
        started = devices.moment(state.device)
        phase.trained.step()
        if phase.trained is state.generator:
            state.average.update()
        seconds += (devices.moment(state.device) - started) / phase.interval
    return seconds


def _phases_of(settings: RunConfig, state: TrainingState) -> list[Phase]:
    return phases(settings, state.generator, state.discriminator, state.path_length)


def _estimated_peak(settings: RunConfig) -> int:
    """Bytes that the run takes at its peak, estimated before anything is allocated."""
    permanent, peaks = estimated_bytes(settings, *_networks_without_memory(settings))
    return permanent + max(size for _, size in peaks)


def _samples_at_once(settings: RunConfig) -> int:
    """Samples that a run computes at once, at most."""
    return micro_batch_size(settings.training, max(settings.training.batch, settings.generator_batch))
