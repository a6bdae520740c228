"""`gantx sample`: generate images from a checkpoint, or those of a picture again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from gantx import api
from gantx.cli.options import (
    Cutoff,
    Device,
    Force,
    Weights,
    require_checkpoint,
    require_file,
    require_unused,
)
from gantx.cli.path_arguments import file_path
from gantx.cli.status import StatusDisplay, load_torch
from gantx.errors import CheckFailed, UsageError
from gantx.io.atomic import require_folder
from gantx.io.escaping import printable


def sample(
    checkpoint: Annotated[
        Path | None,
        typer.Argument(
            parser=file_path,
            help="A run, a folder of checkpoints, a .safetensors file, or demo; --from searches ./runs.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            parser=file_path,
            help="Grid .png, archive .zip, array .npy, or a folder of PNGs (grid.png).",
        ),
    ] = None,
    number: Annotated[int | None, typer.Option("-n", min=1, help="How many images (64).")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first image; the others follow.")] = 0,
    seeds: Annotated[str | None, typer.Option(help="Seeds instead of -n and --seed: 0-63 or 1,5,9.")] = None,
    latents: Annotated[
        Path | None,
        typer.Option(
            parser=file_path, help="Latents or styles instead of seeds, [N, ...], .npy or .safetensors."
        ),
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(
            "--from",
            parser=file_path,
            help="Generate this picture, or a folder or .zip of them, again and compare.",
        ),
    ] = None,
    truncation: Annotated[
        float | None,
        typer.Option(help="Truncation psi; 1 for none, 0.7 for fewer failures."),
    ] = None,
    cutoff: Cutoff = None,
    weights: Weights = "ema",
    dtype: Annotated[
        str, typer.Option(help="uint8, or float32 for a .npy of the unclamped output of the generator.")
    ] = "uint8",
    grid: Annotated[str | None, typer.Option(help="Columns x rows of a grid: 8x8.")] = None,
    batch: Annotated[
        int | None,
        typer.Option(min=1, help="Images computed at once (64; on CUDA chosen by its memory)."),
    ] = None,
    device: Device = "auto",
    compile: Annotated[
        bool,
        typer.Option(
            "--compile/--no-compile",
            help="Compile the generator: faster for many images; pixels may differ by one grey level from "
            "those of the uncompiled generator.",
        ),
    ] = False,
    force: Force = False,
) -> None:
    """Generate images, one per seed; a seed always gives the same image.

    Examples:

      gantx sample demo -n 64 -o grid.png

      gantx sample demo --from grid.png

      gantx sample demo --seeds 0-999 -o shapes.zip

      gantx sample demo --truncation 0.7 -o alike.png

      gantx sample demo -n 50000 -o all.npy --dtype float32
    """
    if seeds is not None and (number is not None or seed):
        raise UsageError("--seeds selects every image: omit -n and --seed")
    if latents is not None and (seeds is not None or number is not None or seed):
        raise UsageError("--latents provides every latent: omit -n, --seed and --seeds")
    if source is not None:
        told = (number, seed or None, seeds, latents, truncation, cutoff, grid, output, compile or None)
        if any(option is not None for option in told):
            raise UsageError(
                "--from takes the settings from the picture and only compares: name nothing else"
            )
        _compare(source, checkpoint, batch, device)
        return
    if checkpoint is None:
        raise UsageError("name a run or a checkpoint to sample from")
    output = output or Path("grid.png")
    if dtype not in ("uint8", "float32"):
        raise UsageError(f"no type '{dtype}': use uint8 or float32")
    if dtype == "float32" and output.suffix.lower() != ".npy":
        raise UsageError(f"only a .npy file can store float32 images, but the output is {output}")
    if grid is not None and output.suffix.lower() != ".png":
        raise UsageError(f"--grid arranges a .png, but the output is {output}")
    require_unused(output, force)
    require_folder(output)
    require_file(latents, "file of latents")

    from gantx.generation.parsing import parse_seeds, parse_truncation
    from gantx.io import imaging

    imaging.require_format(output)
    if output.suffix:
        imaging.check_output(output)
    parse_truncation(truncation, cutoff)
    chosen = None if seeds is None else parse_seeds(seeds)
    require_checkpoint(checkpoint)
    load_torch()

    from gantx.generation import sampling
    from gantx.generation.latents import latents_for
    from gantx.generation.sampling import fetch
    from gantx.runtime.seeds import Seeds

    model = api.load(checkpoint, weights=cast(Any, weights), device=device, compile=compile)
    what: Any
    if latents is not None:
        what = latents_for(model.network, latents)
        numbers: Sequence[int] = range(len(what))
    elif chosen is not None:
        what = numbers = chosen
        imaging.require_distinct(output, numbers)
    else:
        columns, rows = imaging.grid_shape(0, grid) if grid is not None else (8, 8)
        what = numbers = Seeds([range(seed, seed + (number or columns * rows))])
    size = sampling.cropped_shape(model.network, model.config.data.ratio)
    imaging.require_room(output, len(numbers), size, 4 if dtype == "float32" else 1)
    shape = imaging.grid_shape(len(numbers), grid) if output.suffix.lower() == ".png" else None
    origin = "seed" if latents is None else "latent"
    text = model.provenance(truncation, cutoff)
    with StatusDisplay() as status:
        images: Iterator[Any] = model.generate(
            what, truncation=truncation, cutoff=cutoff, batch=batch, log=status.log
        )
        if dtype == "uint8":
            images = (sampling.quantise(part) for part in images)
        if compile:
            status.log("compiling the generator: the first images may take minutes")
        status.show("generating", 0, len(numbers))
        shown = _shown(fetch(images), len(numbers), status)
        imaging.save_images(output, shown, numbers, text, shape, origin)
    print(output)


def _compare(source: Path, target: Path | None, batch: int | None, device: str) -> None:
    """Generate pictures again; one line for each, CheckFailed when one differs."""
    load_torch()
    from gantx.generation import provenance, sampling

    pictures = provenance.read_pictures(source)
    file, weights = provenance.find_weights(pictures, target, Path("runs"))
    model = api.load(file, weights=weights, device=device)
    different = 0
    for found in provenance.regenerate(
        model.network,
        pictures,
        batch=batch or sampling.BATCH,
        device=model.device,
        ratio=model.config.data.ratio,
    ):
        if found.largest:
            different += found.largest > 1
            share = f"{100 * found.differing:.2g}%"
            print(f"{printable(found.name)}: {share} of the values differ, by {found.largest} at most")
        else:
            print(f"{printable(found.name)}: the same to the last bit")
    print(f"generated again by {printable(str(file))} ({weights})")
    if different:
        raise CheckFailed(
            f"{different} of {len(pictures)} pictures differ by more than the rounding of one grey level "
            "from what these weights generate"
        )


def _shown(batches: Iterator[Any], total: int, status: StatusDisplay) -> Iterator[Any]:
    """Pass batches on and show progress."""
    done = 0
    for batch in batches:
        yield batch
        done += len(batch)
        status.show("generating", done, total)
