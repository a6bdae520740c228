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
    ClassName,
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
        str | None, typer.Option(help="Seeds of the walk: 1,5,9 or 0-3. By default 4 for each walk.")
    ] = None,
    frames: Annotated[
        int | None, typer.Option(min=1, help="Frames of the whole walk (60; of a film strip 10).")
    ] = None,
    fps: Annotated[int, typer.Option(min=1, max=240, help="Frames per second.")] = 30,
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
    class_: ClassName = None,
    weights: Weights = "ema",
    best: Best = None,
    batch: Batch = None,
    device: Device = "auto",
    force: Force = False,
) -> None:
    """Walk through latent space; the frame of a seed is its image in `gantx sample`.

    Examples:

      gantx interpolate demo --seeds 1,5,9 --loop -o walk.gif

      gantx interpolate demo --seeds 0-31 --grid 4x2 --frames 600 --loop -o walks.webp

      gantx interpolate demo --seeds 7 --truncation 0:1 -o sweep.webp
    """
    require_unused(output, force)
    require_folder(output)

    from gantx.generation.parsing import parse_seeds
    from gantx.io import animations, imaging

    animations.check(output, fps)
    columns, rows = imaging.grid_shape(1 if grid is None else 0, grid)
    paths = columns * rows
    chosen = range(4 * paths) if seeds is None else parse_seeds(seeds)
    if len(chosen) == paths and ":" not in (truncation or ""):
        raise UsageError(
            f"--seeds {seeds} leaves each walk one seed, so that nothing would move: name two or more for "
            "each, or sweep the truncation of a network with styles, --truncation 0:1"
        )
    strip = output.suffix.lower() in animations.STRIPS
    checkpoint = require_checkpoint(checkpoint, best)
    load_torch()
    model = api.load(checkpoint, weights=cast(Any, weights), device=device).of_class(class_, seed=chosen[0])
    walk = model.walk(
        chosen,
        frames or (10 if strip else 60),
        paths=paths,
        space=space,
        loop=loop,
        easing=easing,
        truncation=truncation,
        cutoff=cutoff,
    )
    with StatusDisplay() as status:
        if model.of_one_class is not None and class_ is None:
            status.log(f"class: {model.of_one_class} (others with --class)")

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
            captions=walk.captions() if labels and strip else (),
        )
    print(output)
