"""What lies in a folder of runs: how far each is, its scores, its size, whether its files are sound."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gantx import checkpoint
from gantx.config import presets
from gantx.errors import GantxError, MissingError
from gantx.io import lock
from gantx.io.decoding import open_image
from gantx.training import best, changes, metrics_file
from gantx.training.loop import target_images

State = Literal["running", "done", "stopped", "new", "damaged"]


@dataclass(frozen=True)
class Best:
    """The best checkpoint of a run by one score."""

    kimg: float
    value: float


@dataclass(frozen=True)
class RunSummary:
    """What a run has come to.

    Attributes:
        path: the run's folder.
        state: `running` while a process trains it; `done` at its whole length; `stopped` before; `new`
            without a checkpoint; `damaged` if its newest checkpoint or its configuration cannot be read.
        preset: name of the configuration.
        data: name of the images.
        kimg: thousand real images in the newest checkpoint.
        target_kimg: length of the run.
        scores: of the last evaluation, by name.
        best: kimg and value of the best checkpoints, by the name of the score.
        bytes: on the disk; several names of one file count once.
        problem: why it is damaged.
    """

    path: Path
    state: State
    preset: str = ""
    data: str = ""
    kimg: float = 0.0
    target_kimg: float = 0.0
    scores: dict[str, float] | None = None
    best: dict[str, Best] | None = None
    bytes: int = 0
    problem: str | None = None


def runs_in(folder: Path) -> list[RunSummary]:
    """The runs of a folder in the order of their names; the folder may be a run itself.

    Raises:
        MissingError: there is no such folder.
    """
    if not folder.is_dir():
        raise MissingError(f"there is no folder {folder}: name the folder that holds the runs")
    found = [folder] if _is_run(folder) else sorted(path for path in folder.iterdir() if _is_run(path))
    return [summary(path) for path in found]


def _is_run(path: Path) -> bool:
    return path.is_dir() and ((path / "config.yaml").is_file() or (path / "checkpoints").is_dir())


def summary(run: Path) -> RunSummary:
    """What one run has come to; never an error of its files."""
    size = _size(run)
    running = _is_running(run)
    newest = checkpoint.latest_in(run / "checkpoints")
    try:
        if newest is None:
            config = presets.load(None, [run / "config.yaml"], [], {})
            return RunSummary(
                run,
                "running" if running else "new",
                preset=config.name,
                data=str(config.data.source),
                target_kimg=config.training.kimg,
                bytes=size,
            )
        header = checkpoint.read_header(newest)
    except GantxError as problem:
        return RunSummary(run, "running" if running else "damaged", bytes=size, problem=str(problem))
    config = header.config
    done = header.images >= target_images(config)
    return RunSummary(
        run,
        "running" if running else "done" if done else "stopped",
        preset=config.name,
        data=str(header.data.get("name", "")),
        kimg=header.images / 1000,
        target_kimg=config.training.kimg,
        scores=_last_scores(run / "metrics.jsonl"),
        best=_best(run),
        bytes=size,
    )


def _size(run: Path) -> int:
    facts = [path.lstat() for path in run.rglob("*") if path.is_file()]
    return sum({(each.st_dev, each.st_ino): each.st_size for each in facts}.values())


def _best(run: Path) -> dict[str, Best] | None:
    found = best.values(run, _scored(run / "metrics.jsonl"))
    return {name: Best(images / 1000, value) for name, (images, value) in found.items()} or None


def _is_running(run: Path) -> bool:
    if not (run / ".lock").exists():
        return False
    try:
        with lock.claim(run / ".lock"):
            return False
    except lock.LockedError:
        return True
    except OSError:
        return False


def _last_scores(metrics: Path) -> dict[str, float] | None:
    """The scores in the last line of metrics.jsonl that has any."""
    scored = _scored(metrics)
    return {name: float(value) for name, value in scored[-1]["scores"].items()} if scored else None


def _scored(metrics: Path) -> list[dict[str, Any]]:
    """The lines of scores in metrics.jsonl."""
    return [line for line in _lines(metrics) if isinstance(line, dict) and metrics_file.is_score(line)]


def _lines(metrics: Path) -> Iterator[Any]:
    """The documents in metrics.jsonl; None for a line that is no document."""
    try:
        text = metrics.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    for line in text.splitlines():
        try:
            yield json.loads(line)
        except (ValueError, RecursionError):
            yield None


@dataclass(frozen=True)
class Verified:
    """A file of a run and what is wrong with it, or None if nothing is."""

    path: Path
    problem: str | None


def verify(run: Path, progress: Callable[[int, int], None] | None = None) -> list[Verified]:
    """Read every file of a run: digests of checkpoints, configuration, metrics, changes and pictures.

    Args:
        run: the run's folder.
        progress: called with (done, total) files.

    Raises:
        MissingError: it is no run.
    """
    if not _is_run(run):
        raise MissingError(f"{run} is not a run: name a folder that `gantx train` made")
    checks: list[tuple[Path, Callable[[Path], str | None]]] = [(run / "config.yaml", _config_problem)]
    checks += [(path, _checkpoint_problem) for path in sorted((run / "checkpoints").rglob("*.safetensors"))]
    if (run / "metrics.jsonl").exists():
        checks.append((run / "metrics.jsonl", _metrics_problem))
    if (run / changes.FILE).exists():
        checks.append((run / changes.FILE, _changes_problem))
    checks += [(path, _picture_problem) for path in sorted((run / "samples").glob("*.png"))]
    found = []
    for number, (path, problem_of) in enumerate(checks, 1):
        found.append(Verified(path, problem_of(path)))
        if progress is not None:
            progress(number, len(checks))
    return found


def _config_problem(path: Path) -> str | None:
    try:
        presets.load(None, [path], [], {})
    except GantxError as problem:
        return f"{problem}; to write it again: gantx info CHECKPOINT --config > {path}"
    return None


def _checkpoint_problem(path: Path) -> str | None:
    try:
        header = checkpoint.read_header(path)
        for part in header.digests:
            checkpoint.read_part(header, part)
    except GantxError as problem:
        return str(problem)
    return None


def _metrics_problem(path: Path) -> str | None:
    images = -1
    for number, line in enumerate(_lines(path), 1):
        if not isinstance(line, dict) or not isinstance(line.get("images"), int):
            return f"line {number} is no report of a run; a resumed run drops it"
        if line["images"] < images:
            return f"line {number} is of {line['images']:,} images, the line before of {images:,}"
        images = line["images"]
    return None


def _changes_problem(path: Path) -> str | None:
    unreadable = len(list(_lines(path))) - len(changes.entries(path.parent))
    return f"{unreadable:,} of its lines are no changes of values" if unreadable else None


def _picture_problem(path: Path) -> str | None:
    try:
        with open_image(path.read_bytes()) as image:
            image.load()
    except Exception as problem:  # decoders may raise anything for a broken file
        return f"cannot be decoded: {problem}"
    return None
