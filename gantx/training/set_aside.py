"""Goes back to an earlier checkpoint: what is newer is moved to `set-aside/`, nothing is deleted."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from gantx.checkpoint import Header, checkpoint_name
from gantx.errors import MissingError
from gantx.io.atomic import link_or_copy
from gantx.training import best, changes, metrics_file
from gantx.training.run_folder import create_folder

FOLDER = "set-aside"
_NUMBERED = re.compile(r"kimg-(\d{6}\.\d{3})\.(png|safetensors)")


def set_newer_aside(folder: Path, header: Header) -> str | None:
    """Make a checkpoint the newest of its run.

    If this is interrupted, the run can be resumed from what was not moved yet, or the call repeated. The
    newer lines of metrics are copied here; RunLogger.rewind removes them.

    Args:
        folder: the run, claimed.
        header: of a checkpoint in it, a numbered or a best one.

    Returns:
        The line of log that says what was moved where; None if there was nothing.

    Raises:
        MissingError: the folder cannot be changed.
    """
    images, checkpoints = header.images, folder / "checkpoints"
    try:
        own = checkpoints / checkpoint_name(images)
        if not own.exists():  # pruned since, but the best
            link_or_copy(header.path, own)
        newer = _newer(checkpoints, images)
        better = best.newer(checkpoints, images) + _newer(checkpoints / best.EARLIER, images)
        pictures = _newer(folder / "samples", images)
        lines = _newer_lines(folder / "metrics.jsonl", images)
        undone = [entry for entry in changes.entries(folder) if entry["images"] >= images]
        if not (newer or better or pictures or lines or undone):
            return None
        aside = create_folder(folder / FOLDER, f"after-kimg-{images / 1000:g}")
        if (folder / "config.yaml").is_file():
            shutil.copyfile(folder / "config.yaml", aside / "config.yaml")
        if lines:
            (aside / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        if undone:
            changes.write(aside / changes.FILE, undone)
            kept = [entry for entry in changes.entries(folder) if entry["images"] < images]
            changes.write(folder / changes.FILE, kept)
        for path in [*pictures, *better, *reversed(newer)]:  # the newest checkpoint stays until the end
            target = aside / path.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.rename(target)
    except OSError as problem:
        raise MissingError(f"cannot set files of {folder} aside: {problem.strerror or problem}") from problem
    counted = (len(newer) + len(better), "checkpoint"), (len(pictures), "picture"), (len(lines), "line")
    moved = ", ".join(f"{n} {what}{'' if n == 1 else 's'}" for n, what in counted)
    return f"going back to {images / 1000:g} kimg: {moved} of metrics set aside in {aside}"


def _newer(folder: Path, images: int) -> list[Path]:
    """Files of a folder that are numbered by progress beyond `images`, oldest first."""
    found = [(path, _NUMBERED.fullmatch(path.name)) for path in folder.glob("kimg-*")]
    return sorted(path for path, match in found if match and round(float(match[1]) * 1000) > images)


def _newer_lines(metrics: Path, images: int) -> list[str]:
    if not metrics.is_file():
        return []
    text = metrics.read_text(encoding="utf-8", errors="replace")
    kept = {line for line, _ in metrics_file.kept_lines(text.splitlines(), images)}
    return [line for line in text.splitlines() if line not in kept]
