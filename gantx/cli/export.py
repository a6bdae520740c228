"""`gantx export`: convert a generator for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gantx.cli.options import Best, Checkpoint, require_checkpoint
from gantx.cli.path_arguments import file_path
from gantx.cli.status import StatusDisplay, load_torch
from gantx.errors import MissingError, UsageError
from gantx.io.atomic import require_folder


def export(
    checkpoint: Checkpoint,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            parser=file_path,
            help="model.onnx, model.pt2, g.safetensors, or a folder for Hugging Face.",
        ),
    ] = None,
    format_: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="onnx, pt2, safetensors, hf, or web for a page; by default from the name of the output.",
        ),
    ] = None,
    pixels: Annotated[
        str,
        typer.Option(help="Output of onnx and pt2: float (-1..1, unclamped), unit (0..1), uint8 (0..255)."),
    ] = "float",
    truncation: Annotated[
        float | None, typer.Option(help="Truncation psi, such as 0.7; built into onnx and pt2.")
    ] = None,
    cutoff: Annotated[
        int | None, typer.Option(min=1, help="Number of leading layers to truncate (all).")
    ] = None,
    class_: Annotated[
        str | None,
        typer.Option(
            "--class",
            help="The one class, by name or number, that onnx, pt2 and web generate of a conditional model; "
            "by default the label is a second input, and the page has a list of the classes.",
        ),
    ] = None,
    license_: Annotated[
        str | None,
        typer.Option(
            "--license",
            help="License of the weights by its name on the Hugging Face Hub: cc-by-4.0. By default that of "
            "an exported file, else unknown.",
        ),
    ] = None,
    scores: Annotated[
        list[Path] | None,
        typer.Option(
            parser=file_path,
            help="Result of `gantx eval` for the card; by default those found next to the checkpoint.",
        ),
    ] = None,
    onnxruntime_web: Annotated[
        Path | None,
        typer.Option(
            parser=file_path, help="npm package for the page, folder or .tgz; by default downloaded with npm."
        ),
    ] = None,
    best: Best = None,
    force: Annotated[
        bool,
        typer.Option("--force", "-f", help="Write over an existing output; other files of a folder stay."),
    ] = False,
) -> None:
    """Convert the averaged generator for other programs, and verify that it generates the same images.

    Exit code 1: the other runtime generates different images; nothing is written.

    Examples:

      gantx export demo -o model.onnx --pixels uint8

      gantx export demo -o g.safetensors

      gantx export demo -o hub --license apache-2.0

      gantx export demo -o page --format web
    """
    if output is None:
        raise UsageError("no output: add -o with model.onnx, model.pt2, g.safetensors or a folder")
    require_folder(output)

    from gantx.evaluation.results import read_result
    from gantx.exporting.request import Request, kind_of, pixels_named, require_valid
    from gantx.generation.parsing import parse_truncation

    request = Request(
        output=output,
        kind=kind_of(output, format_),
        pixels=pixels_named(pixels),
        truncation=parse_truncation(truncation, cutoff),
        class_=class_,
        license=license_,
        scores=tuple(scores or ()),
        runtime=onnxruntime_web,
        force=force,
    )
    require_valid(request)
    for path in request.scores:
        read_result(path)
    if onnxruntime_web is not None and not onnxruntime_web.exists():
        raise MissingError(f"there is no npm package at {onnxruntime_web}")
    checkpoint = require_checkpoint(checkpoint, best)
    load_torch()

    from gantx.exporting import export as exporting

    with StatusDisplay() as status:
        record = exporting.export(checkpoint, request, status.log, status.working)
        status.log(f"checks recorded in {record}")
    if request.kind == "web":
        status.log(f"to see the page: python -m http.server --directory {output}")
    elif request.kind == "hf":
        status.log(f"to publish it, run: hf upload USER/NAME {output}")
    print(output)
