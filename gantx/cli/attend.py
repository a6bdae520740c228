"""`gantx attend`: the attention with which an image was generated, as pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

import typer

from gantx import api
from gantx.cli.options import (
    Best,
    Checkpoint,
    ClassName,
    Device,
    Force,
    Scale,
    Weights,
    require_checkpoint,
    require_unused,
)
from gantx.cli.path_arguments import file_path
from gantx.cli.status import StatusDisplay, load_torch
from gantx.errors import UsageError
from gantx.io.atomic import require_folder


def attend(
    checkpoint: Checkpoint,
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            parser=file_path,
            help="Sheet .png, .jpg, .webp, .pdf or .svg, or a folder of bare PNGs.",
        ),
    ] = Path("maps.png"),
    seed: Annotated[int, typer.Option(min=0, help="Seed of the image.")] = 0,
    seeds: Annotated[str | None, typer.Option(help="Several seeds, a row each: 0-7 or 1,5,9.")] = None,
    layer: Annotated[
        str, typer.Option(help="last, all (coarse to fine), or a name such as 16x16.1.")
    ] = "last",
    head: Annotated[
        str | None, typer.Option(help="A number, mean, or all (GANformer: 0, others: mean).")
    ] = None,
    kind: Annotated[
        list[str] | None,
        typer.Option(
            help="argmax (largest weight), soft (all weights), blend, softblend (over the image); repeatable."
        ),
    ] = None,
    query: Annotated[
        str | None,
        typer.Option(
            metavar="ROW,COLUMN",
            help="Query pixel, for TransGAN and ViTGAN (the one whose attention varies most).",
        ),
    ] = None,
    truncation: Annotated[
        float | None,
        typer.Option(help="Truncation psi; 1 for none (GANformer: 0.7)."),
    ] = None,
    noise: Annotated[
        str, typer.Option(help="const for the noise stored in the network, random for noise of the seed.")
    ] = "const",
    ratio: Annotated[
        float | None, typer.Option(help="Crop to height / width, for padded images (data.ratio of the run).")
    ] = None,
    alpha: Annotated[float, typer.Option(min=0, max=1, help="Share of the image in a blend.")] = 0.3,
    scale: Scale = None,
    class_: ClassName = None,
    weights: Weights = "ema",
    best: Best = None,
    device: Device = "auto",
    force: Force = False,
) -> None:
    """Show attention maps: of image positions to latents, or of one query position to all positions.

    GANformer: a colour for each latent. TransGAN, ViTGAN: the attention map of one query position.

    Examples:

      gantx attend demo --seed 7 -o maps.png

      gantx attend demo --seeds 0-7 --layer all --kind soft -o maps/
    """
    if seeds is not None and seed:
        raise UsageError("--seeds selects every image: omit --seed")
    if noise not in ("const", "random"):
        raise UsageError(f"no noise '{noise}': use const or random")
    if ratio is not None and not 0.1 <= ratio <= 10:
        raise UsageError(f"ratio {ratio}: give height / width, from 0.1 to 10")
    require_unused(output, force)
    require_folder(output)
    pixel = None if query is None else _pixel(query)

    from gantx.generation.parsing import parse_seeds, parse_truncation
    from gantx.io import figures, imaging

    if output.suffix:
        figures.check(output, "or a folder name")
    chosen = parse_seeds(seeds) if seeds is not None else [seed]
    imaging.require_distinct(output, chosen)
    checkpoint = require_checkpoint(checkpoint, best)
    load_torch()

    from gantx.generation import attention_visualization, provenance
    from gantx.models import interfaces

    model = api.load(checkpoint, weights=cast(Any, weights), device=device).of_class(class_, seed=chosen[0])
    view = attention_visualization.completed(
        model.network,
        attention_visualization.View(
            layer=layer,
            head=head or "",
            kinds=tuple(part.strip() for text in kind or () for part in text.split(",")),
            query=pixel,
            truncation=parse_truncation(truncation),
            stored_noise=noise == "const",
            ratio=model.config.data.ratio if ratio is None else ratio,
            share=alpha,
        ),
    )
    text = provenance.describe(model.header, model.weights, view.truncation) | {"gantx:noise": noise}
    text |= {key: value for key, value in model.provenance().items() if key == "gantx:classes"}
    notes = []
    if view.query is None and not isinstance(model.network, interfaces.ShowsAttention):
        notes.append("query (row,column): the position whose attention varies most")
    if view.truncation is not None and view.truncation.psi != 1:
        notes.append(f"styles truncated, psi {view.truncation.psi:g}")
    note = "\n".join(notes)
    with StatusDisplay() as status:
        if model.of_one_class is not None and class_ is None:
            status.log(f"class: {model.of_one_class} (others with --class)")

        def pictures() -> Any:
            status.show("drawing", 0, len(chosen))
            for done, each in enumerate(chosen, 1):
                yield attention_visualization.pictures(model.network, each, view, model.device)
                status.show("drawing", done, len(chosen))

        names = attention_visualization.save(output, chosen, pictures(), text, scale=scale, note=note)
        status.log("columns: " + ", ".join(names))
    print(output)


def _pixel(text: str) -> tuple[int, int]:
    """`12,20` as row and column; UsageError otherwise."""
    row, comma, column = (part.strip() for part in text.partition(","))
    if not (comma and row.isdecimal() and column.isdecimal()):
        raise UsageError(f"query '{text}': write row,column of a pixel, for example 16,16")
    return int(row), int(column)
