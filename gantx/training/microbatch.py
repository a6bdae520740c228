"""`training.micro_batch: auto`: as many samples at once as the memory of a GPU holds, found by trying."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch

from gantx.config import presets
from gantx.config.schema import RunConfig
from gantx.errors import MissingError, UsageError
from gantx.runtime import devices
from gantx.runtime.random import draw, take
from gantx.training.phase import differentiate
from gantx.training.phases import phases
from gantx.training.state import TrainingState


def fit(settings: RunConfig, state: TrainingState, log: Callable[[str], None]) -> RunConfig:
    """Settle a micro-batch of `auto`, so that a resumed run repeats it; other settings stay as they are.

    On a GPU every step is rehearsed, eagerly, which takes at least as much memory as compiled code. A CPU
    takes whole batches: too little memory there ends a process without a word.

    Raises:
        MissingError: not even one sample at once fits.
    """
    if settings.training.micro_batch != "auto":
        return settings
    if state.device.type != "cuda":
        return _with_micro_batch(settings, None)

    def fits(tried: RunConfig) -> bool:
        torch.cuda.empty_cache()  # of what did not fit
        try:
            rehearse(tried, state)
        except torch.OutOfMemoryError:
            return False
        return True

    found = largest(settings, fits)
    if found is None:
        raise MissingError(
            f"{state.device} has too little memory for one sample of this run: choose a smaller preset or "
            "training.recompute=true"
        )
    size = found.training.micro_batch
    log(f"micro-batch: {size or 'whole batches'}, what fits into the memory of {state.device}")
    return found


def largest(settings: RunConfig, fits: Callable[[RunConfig], bool]) -> RunConfig | None:
    """The first of `ladder` that fits.

    Args:
        settings: the run.
        fits: whether a run with a given micro-batch, null for whole batches, does.

    Returns:
        None when none fits.
    """
    return next((tried for tried in ladder(settings) if fits(tried)), None)


def ladder(settings: RunConfig) -> list[RunConfig]:
    """The run with whole batches, then with smaller micro-batches, each at most half of the one before."""
    batches = settings.training.batch, settings.generator_batch
    found, last = [_with_micro_batch(settings, None)], max(batches)
    for size in range(min(batches), 0, -1):
        if 2 * size <= last and not any(batch % size for batch in batches):
            # One that does not divide the batch of the path lengths is passed over.
            with contextlib.suppress(UsageError):
                found.append(_with_micro_batch(settings, size))
                last = size
    return found


def rehearse(settings: RunConfig, state: TrainingState) -> dict[str, float]:
    """Compute every loss of an iteration and its gradient once, on one micro-batch, and forget them.

    Returns:
        Seconds by phase, for all micro-batches of its batch; without the step of the optimiser.

    Raises:
        torch.OutOfMemoryError: that did not fit.
    """
    networks = state.generator, state.discriminator
    side, device = settings.data.resolution, state.device
    seconds: dict[str, float] = {}
    for phase in phases(settings, *networks, state.path_length):
        for other in phase.frozen:
            other.train_parameters(False)
        phase.trained.train_parameters(True)
        draws = draw(phase.spec, seed=0, stream=phase.name, step=0, device=device)
        seconds[phase.name] = 0.0
        for loss, samples, _ in phase.passes:
            reals = {name: torch.zeros(samples, 3, side, side, device=device) for name in phase.reals}
            began = devices.moment(device)
            part = take(draws, phase.spec, slice(0, samples))
            differentiate(loss, phase.trained.parameters, reals, part, samples / phase.batch)
            seconds[phase.name] += (devices.moment(device) - began) * phase.batch / samples
    return seconds


def _with_micro_batch(settings: RunConfig, size: int | None) -> RunConfig:
    return presets.load(base=settings, settings={"training.micro_batch": size})
