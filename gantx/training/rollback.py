"""Going back to the last healthy checkpoint after a run has diverged."""

from __future__ import annotations

from pathlib import Path

from gantx import checkpoint
from gantx.checkpoint import Header
from gantx.config.schema import TrainingConfig
from gantx.errors import CheckpointError, DivergedError, MissingError
from gantx.training import best
from gantx.training.health import Unhealthy
from gantx.training.run_folder import create_folder

REJECTED = "rejected"  # the folder for checkpoints that are not healthy, inside that of the checkpoints


def go_back(folder: Path, training: TrainingConfig, problem: DivergedError) -> tuple[Header, int, str]:
    """Find the checkpoint to go on from, and set newer ones aside in a folder in `checkpoints/rejected`.

    Args:
        folder: the run.
        training: its settings.
        problem: why it goes back.

    Returns:
        The header of the checkpoint, the number of rollbacks with this one, and a sentence for the log.

    Raises:
        DivergedError: there is no healthy checkpoint, or the run went back `training.max_rollbacks` times.
        MissingError: checkpoints cannot be set aside.
    """
    folder = folder / "checkpoints"
    latest = None
    for path in reversed(checkpoint.all_in(folder)):
        try:
            header = checkpoint.read_header(path)
        except CheckpointError:
            continue
        if not isinstance(problem, Unhealthy) or header.images < problem.images:
            latest = header
            break
    if latest is None:
        raise DivergedError(f"{problem}; no healthy checkpoint was written before, so the run cannot go back")
    rollbacks = int(latest.progress.get("rollbacks", 0)) + 1
    if rollbacks > training.max_rollbacks:
        raise DivergedError(
            f"{problem}; the run went back {training.max_rollbacks} times (training.max_rollbacks) and does "
            "not go back again"
        )
    newer = [path for path in checkpoint.all_in(folder) if path.name > latest.path.name]
    newer = [*best.newer(folder, latest.images), *newer]
    # A folder for each rollback: the next one may reject checkpoints of the same names.
    aside = create_folder(folder / REJECTED, f"after-{latest.path.stem}") if newer else folder
    for path in newer:
        try:
            path.rename(aside / path.name)
        except OSError as trouble:
            raise MissingError(f"cannot move {path}: {trouble.strerror or trouble}") from trouble
    sentence = (
        f"{problem}: going back to {latest.path.name} with {0.5**rollbacks:g} times the learning rate "
        f"(rollback {rollbacks} of at most {training.max_rollbacks})"
    )
    return latest, rollbacks, sentence
