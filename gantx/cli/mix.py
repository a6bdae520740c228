"""`gantx mix`: a table of style mixing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

import typer

from gantx import api
from gantx.cli.options import Batch, Checkpoint, Device, Weights, require_checkpoint
from gantx.cli.path_arguments import file_path
from gantx.cli.status import StatusDisplay, load_torch
from gantx.errors import UsageError
from gantx.io.atomic import require_folder


def mix(
    checkpoint: Checkpoint,
    output: Annotated[Path, typer.Option("--output", "-o", parser=file_path, help="A .png.")] = Path(
        "mix.png"
    ),
    rows: Annotated[str, typer.Option(help="Seeds of the images whose styles are replaced: 0-3.")] = "0-3",
    columns: Annotated[str, typer.Option(help="Seeds of the images that provide the styles: 4-7.")] = "4-7",
    layers: Annotated[
        str | None,
        typer.Option(help="Layers to replace: 0-3 for coarse layers; all if only components are given."),
    ] = None,
    components: Annotated[
        str | None,
        typer.Option(help="Latents to replace (GANformer); the last is the global one. All by default."),
    ] = None,
    truncation: Annotated[float | None, typer.Option(help="Truncation psi; 1 for none.")] = None,
    weights: Weights = "ema",
    batch: Batch = None,
    device: Device = "auto",
    force: Annotated[bool, typer.Option("--force", "-f", help="Write over an existing output.")] = False,
) -> None:
    """Mix styles: a table of row images with styles of column images, which are shown left and above.

    Examples:

      gantx mix demo --rows 1-4 --columns 5-8 --layers 3

      gantx mix demo --rows 1-4 --columns 5-8 --layers 0-2 -o outlines.png
    """
    if output.suffix.lower() != ".png":
        raise UsageError(f"a table is a .png, but the output is {output}")
    if output.exists() and not force:
        raise UsageError(f"{output} already exists: name another output, or add --force to replace it")
    require_folder(output)

    from gantx.generation.parsing import parse_seeds, parse_truncation

    changed, taken = parse_seeds(rows), parse_seeds(columns)
    of_layers = None if layers is None else parse_seeds(layers)
    of_components = None if components is None else parse_seeds(components)
    require_checkpoint(checkpoint)
    load_torch()

    from gantx.generation import sampling, style_mixing
    from gantx.io import imaging

    model = api.load(checkpoint, weights=cast(Any, weights), device=device)
    with StatusDisplay() as status, status.working("generating", noted=False):
        images = style_mixing.table(
            model.network,
            changed,
            taken,
            layers=of_layers,
            components=of_components,
            batch=batch or sampling.BATCH,
            device=model.device,
            truncation=parse_truncation(truncation),
            ratio=model.config.data.ratio,
        )
    text = model.provenance(truncation) | {"gantx:rows": rows, "gantx:columns": columns}
    text |= {"gantx:layers": layers} if layers else {}
    text |= {"gantx:components": components} if components else {}
    imaging.write_png(output, imaging.grid(images, 1 + len(taken), 1 + len(changed)), text)
    print(output)
