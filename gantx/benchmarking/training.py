"""Training speed of a preset: the loop of `gantx train` on random pixels, and each step alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any, cast

import numpy as np
import torch

from gantx.benchmarking.arithmetic import flops_of_stages, matmul_ceiling
from gantx.benchmarking.host_gaps import busy_seconds
from gantx.benchmarking.machine import Machine, measuring, this_machine
from gantx.benchmarking.timing import Stopwatch, durations
from gantx.config.schema import RunConfig
from gantx.data.batches import Batches
from gantx.data.prepare import Prepared
from gantx.runtime import devices
from gantx.training import loop
from gantx.training.compiled_losses import WORTHWHILE
from gantx.training.conditioning import with_assumed_classes
from gantx.training.phase import Phase
from gantx.training.resolve import Log, frozen_garbage, prepared_process, resolve
from gantx.training.state import TrainingState
from gantx.training.steps import Required, Step, build_steps

WARM_UP = 3  # steps of each phase before measuring: compilation, caches, memory allocation
STEPS_ON_GPU, STEPS_ELSEWHERE = 40, 10  # measured iterations by default
ALONE = 10  # largest number of steps of each phase that are measured alone
EPOCH = 8  # batches of random pixels, so that epochs change as they do in a run


@dataclass(frozen=True)
class PhaseFigures:
    """One kind of optimiser step.

    Attributes:
        name: of the phase.
        every: interval in iterations.
        batch: its images.
        milliseconds: of one step, draws and optimiser included.
        gflop: of one step.
        teraflops: TFLOP/s.
        share_of_ceiling: `teraflops` against the fastest matrix product of this machine.
    """

    name: str
    every: int
    batch: int
    milliseconds: float
    gflop: float
    teraflops: float
    share_of_ceiling: float


@dataclass(frozen=True)
class TrainingFigures:
    """Training speed of a preset.

    Attributes:
        preset: its name.
        batch: real images of one iteration.
        precision: `fp32` or `bf16`.
        compiled: whether the losses are.
        replayed: whether steps are replayed as CUDA graphs.
        iterations: number of measured iterations.
        images_per_second: real images shown to D per second, in the whole loop.
        iteration_milliseconds: of the whole loop, mean over a period of its lazy steps.
        stages: each phase; named as in `gantx.bench/1` documents.
        average_milliseconds: of one update of the average of G.
        teraflops: TFLOP/s of the whole loop.
        ceiling_teraflops: of the fastest matrix product of this machine in this precision, measured now.
        share_of_ceiling: `teraflops` against it (MFU).
        peak_memory_gib: of the GPU: all that was reserved at once; on the CPU: of the process.
        warm_up_seconds: additional time of the first steps; compilation if `compiled`.
        idle_share: share of time in which the GPU waited for its host; None if unknown.
        machine: where.
    """

    preset: str
    batch: int
    precision: str
    compiled: bool
    replayed: bool
    iterations: int
    images_per_second: float
    iteration_milliseconds: float
    stages: tuple[PhaseFigures, ...]
    average_milliseconds: float
    teraflops: float
    ceiling_teraflops: float
    share_of_ceiling: float
    peak_memory_gib: float
    warm_up_seconds: float
    idle_share: float | None
    machine: Machine


def measure(settings: RunConfig, device: torch.device, *, steps: int | None, log: Log) -> TrainingFigures:
    """Measure the training speed of a preset.

    Weights and images are random, which does not affect the cost of a step. Learning rates and penalties are
    those of the preset. The attention window is unlimited, as for most of a run.

    Args:
        settings: the run; `training.compile=auto` is resolved as for a long run.
        device: where.
        steps: measured iterations, rounded up to whole periods of the lazy steps; None for the default.
        log: receives a line for each thing that is measured.

    Raises:
        MissingError: the device has too little memory.
    """
    settings = resolve(settings, device, WORTHWHILE, lambda text: None)
    settings = settings.model_copy(
        update={"training": settings.training.model_copy(update={"attention_window": None})}
    )
    training = settings.training
    with measuring(device, training.threads, training.batch), prepared_process(settings, device):
        log(f"{'compiling' if training.compile else 'warming up'} the steps of {settings.name}")
        run = Trainer(settings, device, log)
        first = {
            step.phase.name: durations(partial(run.step, step), device, WARM_UP) for step in run.steps.steps
        }
        with frozen_garbage():
            wanted = steps or (STEPS_ON_GPU if device.type == "cuda" else STEPS_ELSEWHERE)
            alone = max(3, min(wanted, ALONE))
            log(f"measuring each step {alone} times")
            seconds = {
                step.phase.name: median(durations(partial(run.step, step), device, alone))
                for step in run.steps.steps
            }
            average = median(durations(run.average, device, alone))
            warm_up = sum(sum(spans) - WARM_UP * seconds[name] for name, spans in first.items())

            period = math.lcm(*(phase.interval for phase in run.phases))
            iterations = -(-wanted // period) * period
            log(f"measuring {iterations} iterations")
            run.iterate(period)
            spans = run.iterate(iterations)
            whole = [math.fsum(spans[start : start + period]) for start in range(0, iterations, period)]
            iteration = median(whole) / period
            memory = devices.memory_gb(device)
            busy = busy_seconds(partial(run.iterate, period), device)

            log("measuring the ceiling of matrix products")
            gflop = {name: count / 1e9 for name, count in flops_of_stages(settings).items()}
            ceiling = matmul_ceiling(device, training.precision)
            machine = this_machine(device)

    of_phases = tuple(
        PhaseFigures(
            phase.name,
            phase.interval,
            phase.batch,
            1000 * seconds[phase.name],
            gflop[phase.name],
            gflop[phase.name] / seconds[phase.name] / 1000,
            gflop[phase.name] / seconds[phase.name] / 1000 / ceiling,
        )
        for phase in run.phases
    )
    teraflops = sum(gflop[phase.name] / phase.interval for phase in run.phases) / iteration / 1000
    return TrainingFigures(
        preset=settings.name,
        batch=training.batch,
        precision=training.precision,
        compiled=training.compile is True,
        replayed=training.cuda_graphs is True and device.type == "cuda",
        iterations=iterations,
        images_per_second=training.batch / iteration,
        iteration_milliseconds=1000 * iteration,
        stages=of_phases,
        average_milliseconds=1000 * average,
        teraflops=teraflops,
        ceiling_teraflops=ceiling,
        share_of_ceiling=teraflops / ceiling,
        peak_memory_gib=memory,
        warm_up_seconds=max(0.0, warm_up),
        idle_share=None if busy is None else max(0.0, 1 - busy / (iteration * period)),
        machine=machine,
    )


class Trainer:
    """A run of `gantx train` without data and without a logger.

    Args:
        settings: resolved.
        device: where.
        log: receives a warning if an optimisation fails.

    Attributes:
        steps: of one iteration, compiled and replayed where the settings say so.
    """

    def __init__(self, settings: RunConfig, device: torch.device, log: Log) -> None:
        settings = with_assumed_classes(settings)
        self._settings, self._device = settings, device
        self._state = TrainingState(settings, device)
        self._state.set_attention_window(None)
        self._batches = Batches(
            _random_images(settings),
            seed=settings.training.seed,
            mirror=settings.data.mirror,
            device=device,
            resident=settings.data.resident,
        )
        # Without `required`, a step whose optimisation fails would be measured as if it were optimised.
        self.steps = build_steps(settings, self._state, log=log, required=Required(True, True))
        self._iteration = 0

    @property
    def phases(self) -> list[Phase]:
        """The kinds of steps of one iteration."""
        return [step.phase for step in self.steps.steps]

    def step(self, step: Step) -> None:
        """One step of a phase alone."""
        self._iteration += 1
        positions = dict.fromkeys(step.phase.reals, self._iteration * step.phase.batch)
        step.load(self._batches, positions, seed=0, iteration=self._iteration)
        step()

    def average(self) -> None:
        """One update of the average of G."""
        self.steps.average()

    def iterate(self, count: int) -> list[float]:
        """Run `count` iterations of the training loop; returns the seconds of each."""
        state, training = self._state, self._settings.training
        until = {"kimg": (state.images + count * training.batch) / 1000}
        settings = self._settings.model_copy(update={"training": training.model_copy(update=until)})
        watch = Stopwatch(self._device)
        watch.mark()
        loop.train(settings, state, self.steps, self._batches, cast(Any, _Laps(watch)))
        return watch.spans()


class _Laps:
    """Replaces the logger of the training loop; marks the end of every iteration."""

    def __init__(self, watch: Stopwatch) -> None:
        self._watch = watch

    def after_iteration(self, before: int, *, finished: bool) -> None:
        """See RunLogger."""
        self._watch.mark()


def _random_images(settings: RunConfig) -> Prepared:
    """A few batches of random bytes in place of a data set."""
    count = EPOCH * settings.training.batch
    images = np.random.default_rng(0).integers(0, 256, (count, *settings.data.image_shape), np.uint8)
    classes = settings.conditioning.classes
    labels = np.arange(count) % classes if isinstance(classes, int) else None
    return Prepared(images, labels, (), "random", "random", "random", ())
