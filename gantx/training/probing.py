"""What a run will take on this machine, found by trying some steps: for `gantx train --dry-run`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

import torch

from gantx import models
from gantx.config.schema import RunConfig
from gantx.runtime import devices
from gantx.training.loop import target_images
from gantx.training.microbatch import ladder, rehearse
from gantx.training.phases import micro_batch_size, phases
from gantx.training.plan import needed
from gantx.training.progress import duration
from gantx.training.resolve import Log, prepared_process, resolve
from gantx.training.state import TrainingState

ITERATIONS = 20  # that are timed, unless they take longer than
PATIENCE = 15.0  # seconds; larger micro-batches are tried for as long again
ROOM = 0.9  # of the free memory may be taken


@dataclass(frozen=True)
class Probe:
    """What was found.

    Attributes:
        device: where.
        memory: bytes in use at the peak, by the samples that were computed at once; 0: between the steps.
        limit: bytes that the process may take in all; None where that is not known.
        sizes: every micro-batch that the run could have, the last for whole batches.
        timed: samples computed at once when the time was taken.
        iterations: that were timed.
        seconds: of one iteration of the run; None when not even one sample fits.
    """

    device: torch.device
    memory: Mapping[int, int]
    limit: int | None
    sizes: tuple[int, ...]
    timed: int
    iterations: int
    seconds: float | None

    def expected(self, size: int) -> int:
        """Bytes at the peak with so many samples at once: measured, or on a line through what was."""
        if size in self.memory or len(self.memory) < 2:
            return self.memory.get(size, self.memory[0])
        first, then = sorted(self.memory)[-2:]
        each = max(0, self.memory[then] - self.memory[first]) / (then - first)
        return round(self.memory[then] + each * (size - then))

    def fits(self, size: int) -> bool:
        """Whether so many samples fit."""
        return self.limit is None or self.expected(size) <= ROOM * self.limit


def probe(settings: RunConfig, device: torch.device, log: Log) -> dict[str, str]:
    """Try steps of a run on random weights and empty images; labels and values that say what they took.

    Micro-batches of ever more samples are tried, as long as memory and patience last; the steps of the
    largest are timed. Losses are not compiled.

    Args:
        settings: the run.
        device: where it would train.
        log: receives what was chosen for this machine.
    """
    batch = settings.training.batch
    settings = resolve(settings, device, target_images(settings) // batch, log)
    with prepared_process(settings, device):
        found = _try(settings, device)
    figures = {"fits": _fits(found)}
    if found.seconds is not None:
        training, total = settings.training, target_images(settings)
        how: list[str] = [training.precision]
        if device.type == "cpu":
            how.append(_count(int(training.threads), "thread"))
        if training.compile:
            how.append("not compiled, which would be quicker")
        if found.timed != found.sizes[-1]:
            how.append(f"{_count(found.timed, 'sample')} at once")
        rate = batch / found.seconds
        figures["speed"] = (
            f"{rate:{',.0f' if rate >= 100 else '.3g'}} images/s on {device} ({', '.join(how)}) in "
            f"{_count(found.iterations, 'iteration')}"
        )
        length = duration(total / batch * found.seconds)
        figures["time"] = f"{length} for {total / 1000:g} kimg, beside pictures, checkpoints and scores"
    return figures


def _fits(found: Probe) -> str:
    """What fits into the memory of the device."""

    def gib(size: int) -> str:
        about = "" if size in found.memory else "about "
        return f"{about}{found.expected(size) / 2**30:.2f}"

    whole, room = found.sizes[-1], "" if found.limit is None else f" of {found.limit / 2**30:.2f}"
    where = f"{room} GiB on {found.device}"
    most = max((size for size in found.sizes if found.fits(size)), default=None)
    if most is None:
        return (
            f"not even one sample at once ({gib(found.sizes[0])}{where}): choose a smaller preset or "
            "training.recompute=true"
        )
    if most == whole:
        return f"whole batches, {gib(whole)}{where} at the peak"
    return (
        f"{_count(most, 'sample')} at once, {gib(most)}{where} at the peak; whole batches would take "
        f"{gib(whole)} GiB (training.micro_batch)"
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number != 1 else ''}"


def _try(settings: RunConfig, device: torch.device) -> Probe:
    """Climb from the smallest micro-batch to the largest, and time the steps of the run's own, or below."""
    climb = {_samples(tried): tried for tried in reversed(ladder(settings))}
    sizes = tuple(climb)
    devices.forget_peak(device)
    used, free = _in_use(device), devices.free_memory(device)
    limit = None if free is None else used + free
    least = used + _estimate(climb[sizes[0]])
    if limit is not None and least > ROOM * limit:
        return Probe(device, {0: least}, limit, sizes, 0, 0, None)

    state = TrainingState(settings, device)
    _update(settings, state)
    devices.forget_peak(device)
    memory, tried, seconds = {0: _in_use(device)}, [], 0.0
    for size, smaller in climb.items():
        if 8 * seconds > PATIENCE or not Probe(device, memory, limit, sizes, 0, 0, None).fits(size):
            break
        devices.forget_peak(device)
        began = devices.moment(device)
        try:
            rehearse(smaller, state)
        except torch.OutOfMemoryError:
            memory[size] = limit or 0  # all of it, and more
            break
        seconds = devices.moment(device) - began
        memory[size] = _in_use(device)
        tried.append(size)
    if not tried:
        return Probe(device, memory, limit, sizes, 0, 0, None)
    wanted = micro_batch_size(settings.training, sizes[-1])
    timed = max((size for size in tried if size <= wanted), default=tried[0])
    spans = _time(climb[timed], state)
    return Probe(device, memory, limit, sizes, timed, len(spans), median(spans))


def _time(settings: RunConfig, state: TrainingState) -> list[float]:
    """Seconds of iterations: lazy phases count with their share."""
    plan = phases(settings, state.generator, state.discriminator, state.path_length)
    spans: list[float] = []
    began = time.perf_counter()
    while len(spans) < ITERATIONS and (not spans or time.perf_counter() - began < PATIENCE):
        spent = rehearse(settings, state)
        spans.append(sum(spent[phase.name] / phase.interval for phase in plan) + _update(settings, state))
    return spans


def _update(settings: RunConfig, state: TrainingState) -> float:
    """Seconds that the optimisers and the average of G take in an iteration; gradients are empty."""
    spent = 0.0
    for phase in phases(settings, state.generator, state.discriminator, state.path_length):
        began = devices.moment(state.device)
        phase.trained.step()
        if phase.trained is state.generator:
            state.average.update()
        spent += (devices.moment(state.device) - began) / phase.interval
    return spent


def _estimate(settings: RunConfig) -> int:
    """Bytes that the run takes at its peak, worked out without trying."""
    with torch.device("meta"):
        networks = models.build(settings.generator), models.build(settings.discriminator)
    lasting, on_top = needed(settings, *networks)
    return lasting + max(size for _, size in on_top)


def _samples(settings: RunConfig) -> int:
    """Samples that a run computes at once, at most."""
    whole = max(settings.training.batch, settings.generator_batch)
    return micro_batch_size(settings.training, whole)


def _in_use(device: torch.device) -> int:
    """Bytes of the process at its peak so far."""
    return round(devices.memory_gb(device) * 2**30)
