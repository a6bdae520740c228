"""The training loop: the algorithm box of the papers, with randomness and progress made explicit."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from gantx.config import RunConfig
from gantx.data.batches import Batches
from gantx.draws import draw
from gantx.training import ema, schedules
from gantx.training.journal import Journal
from gantx.training.recipes import in_order
from gantx.training.stage import Stage, run_stage
from gantx.training.state import TrainingState


def train(
    config: RunConfig, state: TrainingState, stages: list[Stage], batches: Batches, journal: Journal
) -> None:
    """Train until `training.kimg`, or until the journal is asked to stop.

    An iteration runs every stage that is due, in order. Everything random is a function of (seed, stage,
    iteration), the images a function of (seed, progress): a run can stop after any iteration and go on.

    Raises:
        DivergedError: a loss or gradient is no longer finite.
        Stopped: a signal asked to stop; the state is saved.
    """
    settings, total = config.training, target_images(config)
    autocast = torch.autocast(
        state.device.type, dtype=torch.bfloat16, enabled=settings.precision == "bf16", cache_enabled=False
    )
    fetched: dict[tuple[str, int, int], Tensor] = {}  # stages of one iteration share their images

    def step(stage: Stage, inner: Stage | None) -> None:
        """One optimiser step of a stage, and one of `inner` within it."""
        reals = {}
        for stream in stage.reals:
            place = (stream, _position(stage, stream, state), stage.batch)
            if place not in fetched:
                fetched[place] = batches.at(*place)
            reals[stream] = fetched[place]
        run_stage(
            stage,
            reals,
            draw(
                stage.spec, seed=settings.seed, stream=stage.name, step=state.iteration, device=state.device
            ),
            autocast=autocast,
            statistics=state.statistics,
            meanwhile=partial(step, inner, None) if inner is not None else None,
        )

    while state.images < total:
        before = state.images
        state.set_rates(
            schedules.learning_rate_factor(config.optimizer, before, settings.kimg, settings.batch)
        )
        state.set_attention_window(
            schedules.attention_window(settings.attention_window, before, settings.kimg)
        )
        due = [stage for stage in stages if state.iteration % stage.every == 0]
        for stage, inner in in_order(due):
            step(stage, inner)
        if any(stage.moves is state.generator for stage in due):
            beta = schedules.ema_beta(config.ema, before, settings.batch)
            ema.update(state.average, state.generator.network, beta)
        fetched.clear()
        state.iteration += 1
        for stage in stages:
            if state.iteration % stage.every == 0:
                for stream in stage.reals:
                    batches.prefetch(stream, _position(stage, stream, state), stage.batch)
        journal.after_iteration(before, finished=state.images >= total)


def _position(stage: Stage, stream: str, state: TrainingState) -> int:
    """Number of the first image a stage reads from a stream: `real` is shared, others are its own."""
    return state.images if stream == "real" else state.iteration // stage.every * stage.batch


def target_images(config: RunConfig) -> int:
    """Real images D has seen when the run is over: whole iterations that reach `training.kimg`."""
    batch = config.training.batch
    return max(1, -(-round(config.training.kimg * 1000) // batch)) * batch
