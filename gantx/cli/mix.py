"""`gantx mix`: a table of style mixing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

import typer

from gantx import api
from gantx.cli.options import (
    Batch,
    Best,
    Checkpoint,
    Device,
    Labels,
    Scale,
    Weights,
    require_checkpoint,
    require_unused,
)
from gantx.cli.path_arguments import file_path
from gantx.cli.status import StatusDisplay, load_torch
from gantx.errors import UsageError
from gantx.io.atomic import require_folder


def mix(
    checkpoint: Checkpoint,
    output: Annotated[
        Path, typer.Option("--output", "-o", parser=file_path, help="A .png, .jpg, .webp, .pdf or .svg.")
    ] = Path("mix.png"),
    rows: Annotated[str, typer.Option(help="Seeds of the images whose styles are replaced: 0-3.")] = "0-3",
    columns: Annotated[str, typer.Option(help="Seeds of the images that provide the styles: 4-7.")] = "4-7",
    layers: Annotated[
        str | None,
        typer.Option(
            help="Layers to replace: 0-3 for coarse ones (the first half; all if components are given)."
        ),
    ] = None,
    components: Annotated[
        str | None,
        typer.Option(help="Latents to replace (GANformer); the last is the global one. All by default."),
    ] = None,
    truncation: Annotated[float | None, typer.Option(help="Truncation psi; 1 for none.")] = None,
    class_: Annotated[
        str | None,
        typer.Option(
            "--class",
            help="Class of a conditional model, or two: cat,dog are those of the rows and of the columns "
            "(that of the first row).",
        ),
    ] = None,
    weights: Weights = "ema",
    best: Best = None,
    scale: Scale = None,
    labels: Labels = True,
    batch: Batch = None,
    device: Device = "auto",
    force: Annotated[bool, typer.Option("--force", "-f", help="Write over an existing output.")] = False,
) -> None:
    """Mix styles: a table of row images with styles of column images, which are shown left and above.

    Examples:

      gantx mix demo

      gantx mix demo --rows 1-4 --columns 5-8 --layers 3 -o colours.png

      gantx mix demo --rows 1-4 --columns 5-8 --layers 0-2 -o outlines.png

      gantx mix RUN --class cat,dog -o pets.png
    """
    require_unused(output, force)
    require_folder(output)

    from gantx.generation.parsing import parse_seeds, parse_truncation
    from gantx.io import figures

    figures.check(output)
    changed, taken = parse_seeds(rows), parse_seeds(columns)
    of_layers = None if layers is None else parse_seeds(layers)
    of_components = None if components is None else parse_seeds(components)
    checkpoint = require_checkpoint(checkpoint, best)
    load_torch()

    from gantx.generation import sampling, style_mixing
    from gantx.generation.labels import drawn_labels, name_of, parse_classes
    from gantx.io import sheets
    from gantx.runtime.seeds import seeds_of

    model = api.load(checkpoint, weights=cast(Any, weights), device=device)
    conditioning = model.config.conditioning
    classes = (
        drawn_labels(conditioning, changed[:1]) or []
        if class_ is None
        else parse_classes(conditioning, class_)
    )
    if len(classes) > 2:
        raise UsageError(
            f"'{class_}' is {len(classes)} classes: name one, or one for rows and one for columns"
        )
    if of_layers is None and of_components is None:
        of_layers = seeds_of(style_mixing.coarse_layers(model.network))
    with StatusDisplay() as status, status.working("generating", noted=False):
        if classes and class_ is None:
            status.log(f"class: {name_of(conditioning, classes[0])} (others with --class)")
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
            classes=(classes[0], classes[-1]) if classes else None,
        )
    text = model.provenance(truncation) | {"gantx:rows": rows, "gantx:columns": columns}
    text |= {"gantx:classes": ",".join(map(str, classes))} if classes else {}
    text |= {"gantx:layers": str(of_layers)} if of_layers is not None else {}
    text |= {"gantx:components": components} if components else {}
    sheet = style_mixing.sheet(
        images,
        changed,
        taken,
        layers=of_layers,
        components=of_components,
        factor=scale,
        labels=labels,
        classes=(name_of(conditioning, classes[0]), name_of(conditioning, classes[1]))
        if len(classes) == 2
        else ("", ""),
    )
    text |= {"gantx:scale": str(sheet.factor)} if sheet.factor > 1 else {}
    figures.save(output, sheets.lay_out(sheet), text)
    print(output)
