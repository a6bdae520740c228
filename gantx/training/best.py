"""The best checkpoints of a run: for each score a file `checkpoints/best-<score>.safetensors`.

Such a file is another name of a numbered checkpoint and stays when that is pruned. Runs of earlier versions
have one best checkpoint, by the first score, in the folder `checkpoints/best`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from gantx import checkpoint
from gantx.checkpoint import best_in, best_name
from gantx.config.schema import RunConfig
from gantx.errors import CheckpointError, MissingError, UsageError, closest
from gantx.evaluation.scores import SCORES_OF, is_score, name_of
from gantx.io.atomic import link_or_copy

EARLIER = "best"  # the folder of earlier versions


def find(target: Path, score: str) -> Path:
    """The best checkpoint of a run, or of its folder of checkpoints, by a score.

    Args:
        target: the run.
        score: such as `fid`.

    Raises:
        UsageError: there is no score of this name.
        MissingError: the run does not exist or has no such checkpoint.
    """
    if not is_score(score):
        known = [name for names in SCORES_OF.values() for name in names]
        raise UsageError(f"no score '{score}'{closest(score, known)}: there are {', '.join(known)}")
    if not target.is_dir():
        raise MissingError(f"--best is for a run that `gantx train` made, but {target} is not a folder")
    folder = target / "checkpoints" if (target / "checkpoints").is_dir() else target
    found = best_in(folder)
    if (earlier := checkpoint.latest_in(folder / EARLIER)) is not None:
        config = checkpoint.read_header(earlier).config
        found = {first_score(config): earlier, **found}
    if score in found:
        return found[score]
    if found:
        raise MissingError(f"{target} has no best checkpoint by {score}, but by {', '.join(found)}")
    raise MissingError(
        f"{target} has no best checkpoint: runs with training.evaluate_every keep one for each score; "
        "without --best, the newest checkpoint is taken"
    )


def first_score(config: RunConfig) -> str:
    """The score by which earlier versions kept the best checkpoint."""
    features, shapes = config.evaluation.features, config.data.source == "shapes"
    metric = next((each for each in config.evaluation.metrics if shapes or each != "modes"), "fid")
    score = SCORES_OF[metric][0]
    network = features if features in ("inception", "random") else Path(features).stem
    return score if metric == "modes" else name_of(score, network)


def available(checkpoints: Path) -> dict[int, Path]:
    """The checkpoints of a run, the best ones included, by their numbers of images."""
    numbered = (*checkpoint.all_in(checkpoints / EARLIER), *checkpoint.all_in(checkpoints))
    found = {images_of(path): path for path in (*best_in(checkpoints).values(), *numbered)}
    return {images: path for images, path in found.items() if images is not None}


def images_of(path: Path) -> int | None:
    """Number of images of a checkpoint by its name or its header; None if that cannot be read."""
    if (named := checkpoint.images_in_name(path)) is not None:
        return named
    try:
        return checkpoint.read_header(path).images
    except (CheckpointError, MissingError):
        return None


def keep(source: Path, scores: Iterable[str], checkpoints: Path) -> None:
    """Make a checkpoint the best one of its run by some scores.

    Args:
        source: the checkpoint.
        scores: their names.
        checkpoints: the folder of the run.

    Raises:
        MissingError: the disk is full or the folder cannot be written.
    """
    for score in scores:
        link_or_copy(source, checkpoints / best_name(score))


def restore(checkpoints: Path, best: Mapping[str, int]) -> None:
    """Make the best checkpoints complete after a stop, and take over that of an earlier version.

    Args:
        checkpoints: of the run.
        best: images at the best evaluation, by score. A best checkpoint of later images is left alone.

    Raises:
        MissingError: the disk is full or the folder cannot be written.
    """
    present, sources = best_in(checkpoints), available(checkpoints)
    for score, images in best.items():
        kept = images_of(present[score]) if score in present else None
        if images in sources and (kept is None or kept < images):
            keep(sources[images], [score], checkpoints)
    for path in checkpoint.all_in(checkpoints / EARLIER):
        if images_of(path) in best.values():
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # there is something else in it
                (checkpoints / EARLIER).rmdir()


def newer(checkpoints: Path, images: int) -> list[Path]:
    """The best checkpoints that were made after `images`, and those that cannot be read."""
    return [path for path in best_in(checkpoints).values() if _is_newer(path, images)]


def _is_newer(path: Path, images: int) -> bool:
    own = images_of(path)
    return own is None or own > images


def values(run: Path, lines: Iterable[Mapping[str, object]]) -> dict[str, tuple[int, float]]:
    """Images and value of the best checkpoints of a run, by score, without those that are not in `lines`.

    Args:
        run: the run.
        lines: of metrics.jsonl, those with scores.
    """
    at: dict[tuple[str, int], float] = {}
    for line in lines:
        scores, images = line.get("scores"), line.get("images")
        if isinstance(scores, dict) and isinstance(images, int):
            numbers = {name: value for name, value in scores.items() if isinstance(value, int | float)}
            at |= {(name, images): float(value) for name, value in numbers.items()}
    made = ((score, images_of(path)) for score, path in best_in(run / "checkpoints").items())
    return {
        score: (images, at[score, images])
        for score, images in made
        if images is not None and (score, images) in at
    }
