"""Arguments and options that several subcommands share, and the check of an output's name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gantx.errors import UsageError

Checkpoint = Annotated[
    Path, typer.Argument(help="A run, a folder of checkpoints, a .safetensors file, or demo.")
]
Weights = Annotated[str, typer.Option(help="ema for the running average, raw for the trained weights.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
Batch = Annotated[int | None, typer.Option(min=1, help="Images computed at once (64).")]
Cutoff = Annotated[
    int | None, typer.Option("--truncation-cutoff", min=1, help="Number of leading layers to truncate (all).")
]
ConfigFiles = Annotated[list[Path] | None, typer.Option(help="YAML file of settings; may be repeated.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Force = Annotated[
    bool,
    typer.Option("--force", "-f", help="Write over an existing output; other files in a folder stay."),
]


def require_unused(output: Path, force: bool) -> None:
    """UsageError if `output` is a file or a folder that is not empty, unless it may be overwritten."""
    if output.exists() and not force and (output.is_file() or any(output.iterdir())):
        raise UsageError(f"{output} already exists: name another output, or add --force to replace it")
