"""`gantx import`: convert an official checkpoint."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gantx.cli.options import ConfigFiles, require_file, require_unused
from gantx.cli.output import log
from gantx.cli.path_arguments import file_path
from gantx.cli.status import StatusDisplay, load_torch
from gantx.cli.tables import table_lines, terminal_width
from gantx.errors import MissingError, UsageError
from gantx.io.atomic import require_folder
from gantx.io.escaping import printable

if TYPE_CHECKING:
    from gantx.importing.layouts import Conversion


def import_checkpoint(
    file: Annotated[
        Path,
        typer.Argument(
            parser=file_path,
            help="The official file: a .pth of TransGAN, a network-snapshot-*.pkl of GANformer; "
            "of ViTGAN a .pt, or the folder of its .pt files.",
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Settings that differ from the preset's."),
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="The preset whose networks the file contains; see `gantx presets ls`.")
    ] = None,
    config: ConfigFiles = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", parser=file_path, help="The .safetensors to write.")
    ] = None,
    check: Annotated[
        Path | None,
        typer.Option(
            parser=file_path,
            help="Recorded inputs and outputs (.safetensors) that the networks must reproduce.",
        ),
    ] = None,
    keys: Annotated[bool, typer.Option("--keys", help="List every key and how it was converted.")] = False,
    force: Annotated[bool, typer.Option("--force", "-f", help="Write over an existing file.")] = False,
) -> None:
    """Convert an official checkpoint. No code of the file is run.

    Examples:

      gantx import cifar_checkpoint --preset transgan2-cifar10 -o cifar.safetensors

      gantx import network-snapshot-010000.pkl --config mine.yaml -o mine.safetensors

      gantx import small.pth --preset transgan2-cifar10 generator.dim=64 --check outputs.safetensors
    """
    if preset is None and not config:
        raise UsageError("no recipe: add --preset NAME, the one the file was trained with, or --config FILE")
    if output is None and check is None and not keys:
        raise UsageError("nothing to do: add -o FILE.safetensors, --check or --keys")
    if output is not None and output.suffix != ".safetensors":
        raise UsageError(f"cannot write {output}: a checkpoint is a .safetensors file")
    if output is not None:
        require_unused(output, force)
        require_folder(output)
    require_file(check, "recorded outputs")
    if not file.exists():
        raise MissingError(f"there is no official checkpoint at {file}")
    from gantx.config import presets

    settings = presets.load(preset, config or [], overrides or [])
    load_torch()
    from gantx.importing import files

    with StatusDisplay() as status, status.working(f"reading {file}", noted=False):
        conversion = files.convert(file, settings)
    for line in _coverage(conversion):
        log(line)
    for part, imported in conversion.parts.items():
        for reason, count in Counter(imported.computed.values()).items():
            log(f"{part}: {count} × {reason}")
    if keys:
        for part, imported in conversion.parts.items():
            for official, ours in imported.names.items():
                print(printable(f"{part}\t{official}\t{ours}", lines=True))
            for official, reason in imported.ignored.items():
                print(printable(f"{part}\t{official}\tignored: {reason}", lines=True))
            for ours, reason in imported.computed.items():
                print(f"{part}\t-\t{ours}: {reason}")
    if check is not None:
        with StatusDisplay() as status, status.working("comparing with the recorded outputs", noted=False):
            differences = files.compare(conversion, check)
        for difference in differences:
            largest, scale = f"{difference.largest:.2e}", f"{difference.scale:.3g}"
            print(f"{difference.name}: largest difference {largest}, values to {scale}")
        files.require_close(differences, check)
    if output is not None:
        files.write(output, conversion, settings)
        print(output)


def _coverage(conversion: Conversion) -> list[str]:
    """How many keys of each network were mapped, and how many ignored for which reason; none is missing."""
    rows = []
    for part, imported in conversion.parts.items():
        reasons = Counter(imported.ignored.values())
        why = "; ".join(f"{count} × {reason}" for reason, count in reasons.items())
        mapped, ignored = len(imported.names), len(imported.ignored)
        rows.append((part, str(mapped + ignored), str(mapped), str(ignored), "0", why))
    if conversion.skipped:
        why = printable("no weights of a network: " + ", ".join(conversion.skipped))
        rows.append(("the rest", "", "", "all", "", why))
    headings = ("part", "keys", "mapped", "ignored", "missing", "why ignored")
    return table_lines(headings, rows, width=terminal_width(sys.stderr))
