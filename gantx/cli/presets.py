"""`gantx presets`: list, show and copy the recipes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gantx.cli.options import AsJson
from gantx.cli.path_arguments import file_path

app = typer.Typer(help="List, show and copy the recipes.", no_args_is_help=True)


@app.command("ls")
def ls(as_json: AsJson = False) -> None:
    """List all presets."""
    from gantx.config import presets

    loaded = {name: presets.load(name) for name in presets.preset_names()}
    if as_json:
        rows = [
            {
                "name": name,
                "summary": preset.summary,
                "family": preset.generator.family,
                "resolution": preset.data.resolution,
                "reported": preset.reported,
            }
            for name, preset in loaded.items()
        ]
        print(json.dumps({"schema": "gantx.presets/1", "presets": rows}))
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("preset", "family", "px", "paper", "summary"):
        table.add_column(heading, no_wrap=heading != "summary")
    for name, preset in loaded.items():
        scores = {label: preset.reported.get(key) for key, label in _SCORES.items()}
        reported = ", ".join(
            f"{label} {value}" for label, value in scores.items() if isinstance(value, float)
        )
        side = str(preset.data.resolution)
        table.add_row(name, preset.generator.family, side, reported, escape(preset.summary))
    # In a pipe each preset is one line, for grep.
    Console(highlight=False, width=None if sys.stdout.isatty() else 200).print(table)


_SCORES = {"inception_score": "IS", "fid": "FID"}


@app.command("show")
def show(name: Annotated[str, typer.Argument(help="Name of a preset.")]) -> None:
    """Print a preset with the sources of its values."""
    from gantx.config import presets

    print(presets.preset_path(name).read_text(encoding="utf-8"), end="")


@app.command("cp")
def cp(
    name: Annotated[str, typer.Argument(help="Name of a preset.")],
    destination: Annotated[Path, typer.Argument(parser=file_path, help="File or folder to copy it to.")],
) -> None:
    """Copy a preset for editing; train with it by `--config FILE`."""
    from gantx.config import presets

    print(presets.copy_preset(name, destination))
