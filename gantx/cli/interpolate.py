"""`gantx interpolate`: walk through latent space from seed to seed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

import typer

from gantx import api
from gantx.cli.options import (
    Batch,
    Best,
    Checkpoint,
    Cutoff,
    Device,
    Force,
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


def interpolate(
    checkpoint: Checkpoint,
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            parser=file_path,
            help="A .gif, .webp, .apng or .mp4; a film strip .png, .jpg, .pdf or .svg; or a folder of "
            "frames.",
        ),
    ] = Path("walk.gif"),
    seeds: Annotated[
        str | None,
        typer.Option(
            help="Seeds of the walk: 1,5,9 or 0-3. 4 for each walk by default, 1 if --class has several."
        ),
    ] = None,
    frames: Annotated[
        int | None, typer.Option(min=1, help="Frames of the whole walk (60; of a film strip 10).")
    ] = None,
    fps: Annotated[
        int | None, typer.Option(min=1, max=240, help="Frames per second of an animation (30).")
    ] = None,
    loop: Annotated[bool, typer.Option("--loop", help="Return to the first seed.")] = False,
    space: Annotated[
        str | None,
        typer.Option(help="z: arcs between latents; w: lines between styles, where there are styles."),
    ] = None,
    easing: Annotated[str, typer.Option(help="linear, or smooth to slow down at every seed.")] = "linear",
    grid: Annotated[
        str | None,
        typer.Option(help="Several walks side by side that share the seeds, columns x rows: 4x2."),
    ] = None,
    truncation: Annotated[
        str | None, typer.Option(help="Truncation psi, such as 0.7, or a sweep along the walk: 0:1.")
    ] = None,
    cutoff: Cutoff = None,
    scale: Scale = None,
    labels: Labels = True,
    class_: Annotated[
        str | None,
        typer.Option(
            "--class",
            help="Class of a conditional model, or several to walk through: cat,dog or 0-3 (that of the "
            "first seed).",
        ),
    ] = None,
    weights: Weights = "ema",
    best: Best = None,
    batch: Batch = None,
    device: Device = "auto",
    force: Force = False,
) -> None:
    """Walk through latent space, and through classes; the frame of a seed is its image in `gantx sample`.

    Examples:

      gantx interpolate demo --seeds 1,5,9 --loop -o walk.gif

      gantx interpolate demo --seeds 0-31 --grid 4x2 --frames 600 --loop -o walks.webp

      gantx interpolate demo --seeds 7 --truncation 0:1 -o sweep.webp

      gantx interpolate RUN --class cat,dog --seeds 7 --loop -o morph.gif
    """
    require_unused(output, force)
    require_folder(output)

    from gantx.generation.parsing import parse_seeds
    from gantx.io import animations, imaging

    strip = output.suffix.lower() in animations.STRIPS
    if fps is not None and (strip or not output.suffix):
        raise UsageError(f"--fps is for an animation, such as a .gif, but the output is {output}")
    fps = fps or 30
    animations.check(output, fps)
    columns, rows = imaging.grid_shape(1 if grid is None else 0, grid)
    paths = columns * rows
    chosen = None if seeds is None else parse_seeds(seeds)
    sweeps = ":" in (truncation or "")
    if chosen is not None and len(chosen) == paths and not sweeps and class_ is None:
        raise _nothing_moves(seeds)
    checkpoint = require_checkpoint(checkpoint, best)
    load_torch()
    from gantx.generation.labels import name_of, parse_classes

    model = api.load(checkpoint, weights=cast(Any, weights), device=device)
    conditioning = model.config.conditioning
    through = 1 if class_ is None else len(parse_classes(conditioning, class_))
    if chosen is not None and len(chosen) == paths and not sweeps and through == 1:
        raise _nothing_moves(seeds)
    walk = model.walk(
        chosen or range(paths if through > 1 else 4 * paths),
        frames or (10 if strip else 60),
        paths=paths,
        space=space,
        loop=loop,
        easing=easing,
        truncation=truncation,
        cutoff=cutoff,
        label=class_,
    )
    with StatusDisplay() as status:
        if walk.classes and class_ is None:
            status.log(f"class: {name_of(conditioning, walk.classes[0])} (others with --class)")

        def shown() -> Any:
            status.show("generating frames", 0, walk.frames)
            for done, frame in enumerate(model.interpolate(walk, batch=batch), 1):
                status.show("generating frames", done, walk.frames)
                yield frame

        text = model.provenance() | walk.text()
        animations.save(
            output,
            shown(),
            walk.frames,
            shape=(columns, rows),
            fps=fps,
            text=text,
            scale=scale,
            captions=walk.captions(lambda label: name_of(conditioning, label)) if labels and strip else (),
        )
    print(output)


def _nothing_moves(seeds: str | None) -> UsageError:
    return UsageError(
        f"--seeds {seeds} leaves each walk one seed, so that nothing would move: name two or more for each, "
        "walk through classes of a conditional model, --class 0,1, or sweep the truncation of a network with "
        "styles, --truncation 0:1"
    )
