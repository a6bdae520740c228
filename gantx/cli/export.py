"""`gantx export`: a generator for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gantx.cli.status import StatusDisplay
from gantx.errors import UsageError
from gantx.io.atomic import require_folder


def export(
    checkpoint: Annotated[
        Path, typer.Argument(help="A run, a folder of checkpoints, or a .safetensors file.")
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="model.onnx, model.pt2, g.safetensors, or a folder for Hugging Face."
        ),
    ] = None,
    form: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="onnx, pt2, safetensors, hf, or web for a page; by default the output's name tells.",
        ),
    ] = None,
    pixels: Annotated[
        str,
        typer.Option(help="What onnx and pt2 give: float (-1..1, unclamped), unit (0..1), uint8 (0..255)."),
    ] = "float",
    truncation: Annotated[
        float | None, typer.Option(help="Draw styles towards their average: 0.7; built into onnx and pt2.")
    ] = None,
    cutoff: Annotated[int | None, typer.Option(min=1, help="Truncate only the first so many layers.")] = None,
    license_: Annotated[
        str, typer.Option("--license", help="Of the weights, as the Hugging Face Hub names it: cc-by-4.0.")
    ] = "unknown",
    scores: Annotated[
        list[Path] | None,
        typer.Option(
            help="Result of `gantx eval` for the card; by default those found beside the checkpoint."
        ),
    ] = None,
    onnxruntime_web: Annotated[
        Path | None,
        typer.Option(help="The npm package for the page, folder or .tgz; by default npm is asked for it."),
    ] = None,
    force: Annotated[
        bool,
        typer.Option("--force", "-f", help="Write over an existing output; other files of a folder stay."),
    ] = False,
) -> None:
    """Turn the averaged generator into files for other programs; checked to generate the same images.

    Exit code 1: the other runtime generates something else; nothing is written.

    Examples:

      gantx export runs/0001-transgan-tiny-shapes -o model.onnx --pixels uint8

      gantx export ckpt.safetensors -o g.safetensors

      gantx export ckpt.safetensors -o hub --license cc-by-4.0 --scores eval.json

      gantx export ckpt.safetensors -o demo --format web
    """
    if output is None:
        raise UsageError("no output: add -o with model.onnx, model.pt2, g.safetensors or a folder")
    require_folder(output)

    from gantx.exporting import export as exporting
    from gantx.exporting.generator import pixels_named
    from gantx.generation.truncation import parse_truncation

    request = exporting.Request(
        output=output,
        kind=exporting.kind_of(output, form),
        pixels=pixels_named(pixels),
        truncation=parse_truncation(truncation, cutoff),
        license=license_,
        scores=tuple(scores or ()),
        runtime=onnxruntime_web,
        force=force,
    )
    with StatusDisplay() as status:
        record = exporting.export(checkpoint, request, status.log)
        status.log(f"checks noted in {record}")
    if request.kind == "web":
        status.log(f"to see the page: python -m http.server --directory {output}")
    elif request.kind == "hf":
        status.log(f"to publish it, a step of its own: hf upload USER/NAME {output}")
    print(output)
