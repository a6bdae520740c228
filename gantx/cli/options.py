"""Arguments and options that several subcommands share, and the check of an output's name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gantx.cli.path_arguments import file_path
from gantx.errors import MissingError, UsageError
from gantx.runtime.device_names import require_device_name

Checkpoint = Annotated[
    Path,
    typer.Argument(parser=file_path, help="A run, a folder of checkpoints, a .safetensors file, or demo."),
]


def require_weights_name(name: str) -> str:
    """The name, if it is `ema` or `raw`; UsageError otherwise."""
    if name not in ("ema", "raw"):
        raise UsageError(f"no weights '{name}': use ema or raw")
    return name


Weights = Annotated[
    str,
    typer.Option(
        callback=require_weights_name, help="ema for the running average, raw for the trained weights."
    ),
]
Best = Annotated[
    str | None,
    typer.Option(metavar="SCORE", help="The best checkpoint of a run by a score, such as fid, not its last."),
]


def require_channels(channels: int | None) -> int | None:
    """The number of channels, if images can have it; UsageError otherwise."""
    if channels not in (None, 1, 3, 4):
        raise UsageError(f"--channels {channels}: use 1, 3 or 4")
    return channels


Channels = Annotated[
    int | None,
    typer.Option(
        callback=require_channels,
        help="Channels of the images: 1 (grey), 3 (RGB) or 4 (RGB and transparency).",
    ),
]
Device = Annotated[str, typer.Option(callback=require_device_name, help="auto, cpu, cuda, cuda:N or mps.")]
Batch = Annotated[int | None, typer.Option(min=1, help="Images computed at once (64).")]
Cutoff = Annotated[
    int | None, typer.Option("--truncation-cutoff", min=1, help="Number of leading layers to truncate (all).")
]
ConfigFiles = Annotated[
    list[Path] | None, typer.Option(parser=file_path, help="YAML file of settings; may be repeated.")
]
Scale = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=64,
        help="Enlarge every pixel to N x N; 1 for raw pixels. By default pictures of small images are "
        "enlarged to 128 pixels or more an image, but not files of single images.",
    ),
]
Labels = Annotated[
    bool, typer.Option("--labels/--no-labels", help="Name seeds and settings beside the images.")
]
ClassName = Annotated[
    str | None,
    typer.Option("--class", help="Class of a conditional model, by name or number (that of the first seed)."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Force = Annotated[
    bool,
    typer.Option("--force", "-f", help="Write over an existing output; other files in a folder stay."),
]


def require_unused(output: Path, force: bool) -> None:
    """UsageError if `output` is a file or a folder that is not empty, unless it may be overwritten."""
    if output.exists() and not force and (output.is_file() or any(output.iterdir())):
        raise UsageError(f"{output} already exists: name another output, or add --force to replace it")


def require_file(path: Path | None, what: str) -> None:
    """MissingError if `path` is given and no file is there; `what` says which file it is."""
    if path is not None and not path.is_file():
        raise MissingError(f"there is no {what} at {path}")


def require_checkpoint(target: Path, best: str | None = None) -> Path:
    """The file of a checkpoint, before torch is imported.

    Args:
        target: a run, a folder of checkpoints, a file, or demo.
        best: name of a score: the best checkpoint of the run by it.

    Raises:
        MissingError, CheckpointError: no readable checkpoint is there.
    """
    from gantx import checkpoint

    if best is None:
        return checkpoint.read_header(checkpoint.find(target)).path

    from gantx.training.best import find

    return checkpoint.read_header(find(target, best)).path
