"""`training.micro_batch: auto`: the largest micro-batch that the memory of a GPU allows, found by trying."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch

from gantx.config import presets
from gantx.config.schema import RunConfig
from gantx.errors import MissingError, UsageError
from gantx.runtime import devices, memory
from gantx.runtime.random import draw, take
from gantx.training.phase import differentiate
from gantx.training.phases import phases
from gantx.training.resolve import Log
from gantx.training.state import TrainingState

USABLE_SHARE = 0.9  # of the free memory


def resolve_micro_batch(settings: RunConfig, state: TrainingState, log: Log) -> RunConfig:
    """Replace a micro-batch of `auto` by a number, so that a resumed run repeats it.

    On a GPU the losses of every phase are computed without compiling them, which takes at least as much
    memory as compiled code. A CPU takes whole batches: if its memory runs out, the system kills the process.

    Args:
        settings: resolved, except for the micro-batch.
        state: of the run; unchanged.
        log: receives what was chosen.

    Raises:
        MissingError: not even one sample at once fits.
    """
    if settings.training.micro_batch != "auto":
        return settings
    if state.device.type != "cuda":
        return _with_micro_batch(settings, None)

    usable = torch.cuda.memory_allocated(state.device) + (devices.free_memory(state.device) or 0)

    def fits(candidate: RunConfig) -> bool:
        devices.free_unused(state.device)  # by a candidate that did not fit
        try:
            return peak_of(candidate, state) <= USABLE_SHARE * usable
        except RuntimeError as problem:
            if not memory.ran_out(problem):
                raise
            return False

    log(f"trying which micro-batch fits into the memory of {state.device}")
    resolved = largest(settings, fits)
    if resolved is None:
        raise MissingError(
            f"{state.device} has too little memory for one sample of this run: choose a smaller preset or "
            "training.recompute=true"
        )
    size = resolved.training.micro_batch
    log(f"micro-batch: {size or 'whole batches'}, what fits into the memory of {state.device}")
    return resolved


def largest(settings: RunConfig, fits: Callable[[RunConfig], bool]) -> RunConfig | None:
    """The first candidate of `ladder` that fits, or None.

    Args:
        settings: the run.
        fits: whether the run fits with the micro-batch of a candidate.
    """
    return next((candidate for candidate in ladder(settings) if fits(candidate)), None)


def ladder(settings: RunConfig) -> list[RunConfig]:
    """The run with whole batches, then with smaller micro-batches, each at most half of the one before."""
    batches = settings.training.batch, settings.generator_batch
    candidates, last = [_with_micro_batch(settings, None)], max(batches)
    for size in range(min(batches), 0, -1):
        if 2 * size <= last and not any(batch % size for batch in batches):
            # A size that does not divide the batch of the path lengths is skipped.
            with contextlib.suppress(UsageError):
                candidates.append(_with_micro_batch(settings, size))
                last = size
    return candidates


def peak_of(settings: RunConfig, state: TrainingState) -> int:
    """Bytes in use at the peak of an iteration, measured without compiling or capturing anything.

    With CUDA graphs a phase also runs beside the memory that the graph of another keeps.

    Raises:
        torch.OutOfMemoryError: the micro-batch does not fit.
    """
    device = state.device
    devices.forget_peak(device)
    before = devices.peak_memory(device)
    peaks = []
    for _ in rehearse(settings, state):
        peaks.append(devices.peak_memory(device) - before)
        devices.forget_peak(device)
    graphs = device.type == "cuda" and settings.training.cuda_graphs is True
    return before + sum(sorted(peaks)[-2 if graphs else -1 :])


def rehearse(settings: RunConfig, state: TrainingState) -> Iterator[tuple[str, float]]:
    """Compute every loss of an iteration and its gradient on one micro-batch, and discard them.

    Yields:
        After each phase, its name and the seconds it took, scaled to its whole batch; without the
        optimiser's step.

    Raises:
        torch.OutOfMemoryError: the micro-batch does not fit.
    """
    image_shape, device = settings.data.image_shape, state.device
    for phase in phases(settings, state.generator, state.discriminator, state.path_length):
        phase.select_parameters()
        draws = draw(phase.spec, seed=0, stream=phase.name, step=0, device=device)
        seconds = 0.0
        for loss, size, _ in phase.passes:
            reals = phase.empty_reals(size, image_shape, device)
            started = devices.moment(device)
            q = take(draws, phase.spec, slice(0, size))
            differentiate(loss, phase.trained.parameters, reals, q, size / phase.batch)
            seconds += (devices.moment(device) - started) * phase.batch / size
        yield phase.name, seconds


def _with_micro_batch(settings: RunConfig, size: int | None) -> RunConfig:
    return presets.load(base=settings, settings={"training.micro_batch": size})
