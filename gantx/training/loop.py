"""The training loop: the algorithm of the papers, with explicit random inputs and progress."""

from __future__ import annotations

from gantx.config.schema import RunConfig
from gantx.data.batches import Batches
from gantx.training import schedules
from gantx.training.phase import Phase
from gantx.training.run_logger import RunLogger
from gantx.training.state import TrainingState
from gantx.training.steps import Steps


def train(config: RunConfig, state: TrainingState, steps: Steps, batches: Batches, logger: RunLogger) -> None:
    """Train until `training.kimg`, or until the logger raises because a stop was requested.

    An iteration runs every phase that is due, in order. Random inputs are a function of (seed, phase,
    iteration), images a function of (seed, progress): a run can stop after any iteration and be resumed.

    Raises:
        DivergedError: a loss or gradient is no longer finite.
        Stopped: a signal asked to stop; the state is saved.
    """
    settings, total = config.training, target_images(config)
    while state.images < total:
        before = state.images
        state.set_learning_rates(
            schedules.learning_rate_factor(config.optimizer, before, settings.kimg, settings.batch)
        )
        window = schedules.attention_window(settings.attention_window, before, settings.kimg)
        if state.set_attention_window(window):
            steps.forget()
        due = [step for step in steps.steps if state.iteration % step.phase.interval == 0]
        for step in due:
            positions = {stream: _position(step.phase, stream, state) for stream in step.phase.reals}
            step.load(batches, positions, seed=settings.seed, iteration=state.iteration)
            step()
        if any(step.phase.trained is state.generator for step in due):
            state.average.set_beta(schedules.ema_beta(config.ema, before, settings.batch))
            steps.average()
        state.iteration += 1
        for step in steps.steps:
            if state.iteration % step.phase.interval == 0:
                for stream in step.phase.reals:
                    batches.prefetch(stream, _position(step.phase, stream, state), step.phase.batch)
        logger.after_iteration(before, finished=state.images >= total)


def _position(phase: Phase, stream: str, state: TrainingState) -> int:
    """Index of the first image that a phase reads from a stream: `real` is shared, others are its own."""
    return state.images if stream == "real" else state.iteration // phase.interval * phase.batch


def target_images(config: RunConfig) -> int:
    """Real images D has seen when the run is over: whole iterations that reach `training.kimg`."""
    batch = config.training.batch
    return max(1, -(-round(config.training.kimg * 1000) // batch)) * batch
