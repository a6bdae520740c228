"""`training.micro_batch: auto`: as many samples at once as the memory of a GPU holds, found by trying."""

from __future__ import annotations

from collections.abc import Callable

import torch

from gantx import config
from gantx.config import RunConfig
from gantx.draws import draw, take
from gantx.errors import MissingError, UsageError
from gantx.training.recipes import stages
from gantx.training.state import TrainingState


def fit(settings: RunConfig, state: TrainingState, say: Callable[[str], None]) -> RunConfig:
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
    say(f"micro-batch: {size or 'whole batches'}, what fits into the memory of {state.device}")
    return found


def largest(settings: RunConfig, fits: Callable[[RunConfig], bool]) -> RunConfig | None:
    """The settings with the largest micro-batch that fits, halved, at least, from one try to the next.

    Args:
        settings: the run.
        fits: whether a run with a given micro-batch, null for whole batches, does.

    Returns:
        None when none fits.
    """
    batches = settings.training.batch, settings.generator_batch
    sizes = [n for n in range(min(batches), 0, -1) if not any(batch % n for batch in batches)]
    tried = _with_micro_batch(settings, None)
    last = max(batches)
    while not fits(tried):
        for size in sizes:
            if 2 * size <= last:
                try:
                    tried, last = _with_micro_batch(settings, size), size
                except UsageError:  # does not divide the batch of the path lengths
                    continue
                break
        else:
            return None
    return tried


def rehearse(settings: RunConfig, state: TrainingState) -> None:
    """Compute every loss of an iteration and its gradient once, and forget them.

    Beside the step there is what training keeps: the optimisers' moments, where they do not exist yet.

    Raises:
        torch.OutOfMemoryError: that did not fit.
    """
    players = state.generator, state.discriminator
    moments = [
        torch.empty_like(player.gradient)
        for player in players
        if not player.optimizer.state
        for _ in range(2)
    ]
    side, device = settings.data.resolution, state.device
    bf16 = settings.training.precision == "bf16"
    for stage in stages(settings, *players, state.path_length):
        for other in stage.holds:
            other.network.requires_grad_(stage.spills)
        stage.moves.network.requires_grad_(True)
        draws = draw(stage.spec, seed=0, stream=stage.name, step=0, device=device)
        for loss, samples in stage.passes:
            reals = {name: torch.zeros(samples, 3, side, side, device=device) for name in stage.reals}
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16, cache_enabled=False):
                outcome = loss(reals, take(draws, stage.spec, slice(0, samples)))
            outcome.loss.backward()
    for player in players:
        player.gradient.zero_()
    del moments


def _with_micro_batch(settings: RunConfig, size: int | None) -> RunConfig:
    return config.load(base=settings, settings={"training.micro_batch": size})
