"""`gantx presets`: list, show and copy the recipes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from gantx.cli.help import Command, Group
from gantx.cli.options import AsJson
from gantx.cli.path_arguments import file_path
from gantx.cli.tables import print_table, terminal_width
from gantx.io.atomic import require_folder

app = typer.Typer(help="List, show and copy the recipes.", cls=Group, no_args_is_help=True)


@app.command("ls", cls=Command)
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
    wide = (terminal_width() or _WIDE) >= _WIDE
    lines = []
    for name, preset in loaded.items():
        scores = {label: preset.reported.get(key) for key, label in _SCORES.items()}
        reported = ", ".join(
            f"{label} {value}" for label, value in scores.items() if isinstance(value, float)
        )
        resolution = str(preset.data.resolution)
        facts = (preset.generator.family, resolution, reported) if wide else (resolution,)
        lines.append((name, *facts, preset.summary))
    headings = ("preset", "family", "px", "paper", "summary") if wide else ("preset", "px", "summary")
    print_table(headings, lines, right={"px"})


_SCORES = {"inception_score": "IS", "fid": "FID"}
_WIDE = 110  # columns of a terminal in which the family and the scores of the papers fit as well


@app.command("show", cls=Command)
def show(name: Annotated[str, typer.Argument(help="Name of a preset.")]) -> None:
    """Print a preset with the sources of its values."""
    from gantx.config import presets

    print(presets.preset_path(name).read_text(encoding="utf-8"), end="")


@app.command("cp", cls=Command)
def cp(
    name: Annotated[str, typer.Argument(help="Name of a preset.")],
    destination: Annotated[Path, typer.Argument(parser=file_path, help="File or folder to copy it to.")],
) -> None:
    """Copy a preset for editing; train with it by `--config FILE`."""
    from gantx.config import presets

    if not destination.is_dir():
        require_folder(destination)
    print(presets.copy_preset(name, destination))
