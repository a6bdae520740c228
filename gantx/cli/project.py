"""`gantx project`: find the latent of an image."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

import typer

from gantx import api
from gantx.cli.options import (
    Best,
    Checkpoint,
    Device,
    Labels,
    Scale,
    Weights,
    require_checkpoint,
    require_file,
    require_unused,
)
from gantx.cli.path_arguments import file_path
from gantx.cli.status import StatusDisplay, load_torch
from gantx.errors import UsageError
from gantx.io.atomic import require_folder


def project(
    image: Annotated[
        Path, typer.Argument(parser=file_path, help="The image; cropped in the middle and resized as needed.")
    ],
    checkpoint: Checkpoint,
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", parser=file_path, help="A .png: the image and its projection, side by side."
        ),
    ] = Path("projection.png"),
    latents: Annotated[
        Path | None,
        typer.Option(
            parser=file_path, help="File of the latent; by default the output's name with .safetensors."
        ),
    ] = None,
    space: Annotated[
        str | None,
        typer.Option(help="z; w, one style for all layers; w+, one for each (where the network has styles)."),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps of the optimiser.")] = 400,
    starts: Annotated[int, typer.Option(min=1, max=256, help="Latents optimised in parallel.")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the initial latents.")] = 0,
    rate: Annotated[
        float, typer.Option(min=0, help="Learning rate, in standard deviations of latents.")
    ] = 0.05,
    features: Annotated[
        str | None, typer.Option(help="inception: compare its features in addition to pixels.")
    ] = None,
    feature_file: Annotated[
        Path | None, typer.Option(parser=file_path, help="File of the Inception weights; see `gantx assets`.")
    ] = None,
    scale: Scale = None,
    labels: Labels = True,
    class_: Annotated[
        str | None,
        typer.Option(
            "--class",
            help="Class of a conditional model, by name or number; of several, cat,dog, and by default of "
            "all, the one that fits best is searched.",
        ),
    ] = None,
    weights: Weights = "ema",
    best: Best = None,
    device: Device = "auto",
    force: Annotated[bool, typer.Option("--force", "-f", help="Write over existing outputs.")] = False,
) -> None:
    """Find the latent, and the class, whose image is closest to a given image.

    Examples:

      gantx sample demo --seeds 3 -o target.png

      gantx project target.png demo -o found.png

      gantx sample demo --latents found.safetensors -o again.png

      gantx project target.png RUN --class cat -o cat.png
    """
    from gantx.io import figures

    figures.check(output)
    latents = latents or output.with_suffix(".safetensors")
    if latents.suffix != ".safetensors":
        raise UsageError(f"the latent is written as .safetensors, not as {latents}")
    for path in (output, latents):
        require_unused(path, force)
    for path in (output, latents):
        require_folder(path)
    if features not in (None, "inception"):
        raise UsageError(f"no features '{features}': use inception, or omit --features")
    if feature_file is not None and features is None:
        raise UsageError("--feature-file is for Inception's weights: add --features inception")

    require_file(image, "image")
    require_file(feature_file, "file of Inception weights")
    checkpoint = require_checkpoint(checkpoint, best)
    load_torch()

    from gantx.generation import class_search, projection, sampling
    from gantx.generation.labels import name_of, parse_classes
    from gantx.io import imaging, sheets

    for path in (output, latents):
        imaging.check_output(path)
    model = api.load(checkpoint, weights=cast(Any, weights), device=device)
    ratio, conditioning = model.config.data.ratio, model.config.conditioning
    among: list[int] = []
    if class_ is not None:
        among = parse_classes(conditioning, class_)
    elif isinstance(conditioning.classes, int):
        among = list(range(conditioning.classes))
    target = projection.read_target(image, sampling.cropped_shape(model.network, ratio))
    network = projection.inception_features(feature_file, model.device) if features else None
    with StatusDisplay() as status:
        label = among[0] if among else None
        if len(among) > 1:
            status.show("searching the class", 0, 1)
            search = class_search.search_class(
                model.network,
                target,
                among,
                device=model.device,
                steps=steps,
                seed=seed,
                rate=rate,
                features=network,
                ratio=ratio,
                progress=lambda done, total: status.show("searching the class", done, total),
            )
            label = search.label
            nearest = ", ".join(
                f"{name_of(conditioning, each)} {distance:.1f}"
                for each, distance in list(search.distances.items())[:3]
            )
            status.log(
                f"class: {name_of(conditioning, label)}, the closest of {search.searched} after "
                f"{search.steps} steps ({nearest} grey levels); others with --class"
            )
        if label is not None:
            model = model.of_class(label)
        status.show("optimising", 0, steps)
        found = projection.project(
            model.network,
            target,
            device=model.device,
            space=space,
            steps=steps,
            starts=starts,
            seed=seed,
            rate=rate,
            features=network,
            ratio=ratio,
            progress=lambda done, total: status.show("optimising", done, total),
        )
        status.log(
            f"mean difference of a pixel: {found.distance:.1f} grey levels, {found.at_start:.1f} at the start"
        )
    projection.save_latents(latents, found.latents, label)
    text = model.provenance() | {"gantx:projection": image.name}
    factor = scale or sheets.enlargement(target.shape[1], target.shape[2], columns=2)
    text |= {"gantx:scale": str(factor)} if factor > 1 else {}
    captions = ("target", f"projection, {found.distance:.1f} grey levels apart") if labels else ("", "")
    cells = [sheets.Cell(target, captions[0]), sheets.Cell(found.image, captions[1])]
    figures.save(output, sheets.lay_out(sheets.Sheet(cells, 2, factor)), text)
    print(output)
    print(latents)
