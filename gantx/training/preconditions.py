"""What a run needs, by names and paths. Imports no torch: a wrong path is reported before that."""

from __future__ import annotations

from pathlib import Path

from gantx.config.schema import RunConfig
from gantx.data.sources import require_source
from gantx.errors import MissingError, UsageError
from gantx.io.file_kinds import recognized
from gantx.training.run_folder import is_used


def require_new_run(settings: RunConfig, out: Path | None, parent: Path | None = None) -> None:
    """Check that a run can be started.

    Args:
        settings: its configuration.
        out: its folder, if that is named.
        parent: the folder in which one is made otherwise.

    Raises:
        UsageError: no data is named, or `out` is in use.
        MissingError: there is no such data.
    """
    if settings.data.source is None:
        raise UsageError("no data: add --data with a folder, a zip, a known data set, or `shapes`")
    if out is not None and out.is_file():
        raise UsageError(f"{out} is a file: name a folder for the run")
    if out is not None and out.exists() and is_used(out):
        go_on = f", or go on with --resume {out}" if (out / "config.yaml").is_file() else ""
        raise UsageError(f"{out} already exists and is not empty: name another folder{go_on}")
    place = out or parent
    places = () if place is None else (place, *place.parents)
    if (file := next((each for each in places if each.is_file()), None)) is not None:
        raise UsageError(f"cannot make a run in {place}: {file} is a file, not a folder")
    require_source(settings.data.source)


def run_of(path: Path) -> Path:
    """The folder of the run that a checkpoint belongs to; UsageError for any other file."""
    path = path.absolute()
    folder = path.parent.parent if path.parent.name == "best" else path.parent
    run = folder.parent
    if folder.name == "checkpoints" and (run / "config.yaml").is_file() and path.suffix == ".safetensors":
        return run
    if path.suffix == ".safetensors" and recognized(path) is None:
        raise UsageError(
            f"{path} is not in the checkpoints folder of a run: start a new run from its weights with --init"
        )
    what = recognized(path) or "is a file, not a run"
    raise UsageError(
        f"{path} {what}; --resume takes the folder that `gantx train` made, or a checkpoint in it"
    )


def require_run(folder: Path) -> None:
    """MissingError if there is no run in the folder."""
    if not (folder / "config.yaml").is_file():
        raise MissingError(f"{folder} is not a run: --resume takes the folder that `gantx train` made")
