"""`gantx sample`: generate images from a checkpoint, or those of a picture again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from gantx import api
from gantx.cli import output as output_log
from gantx.cli.options import (
    Best,
    Cutoff,
    Device,
    Force,
    Scale,
    Weights,
    require_checkpoint,
    require_file,
    require_unused,
)
from gantx.cli.path_arguments import file_path
from gantx.cli.status import StatusDisplay, load_torch
from gantx.errors import CheckFailed, Interrupted, Stopped, UsageError
from gantx.io.atomic import require_folder
from gantx.io.escaping import printable
from gantx.runtime.signals import StopNow


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
            help="Grid .png, .jpg, .webp, .pdf or .svg, archive .zip, array .npy, or a folder of PNGs "
            "(grid.png).",
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
    best: Best = None,
    dtype: Annotated[
        str, typer.Option(help="uint8, or float32 for a .npy of the unclamped output of the generator.")
    ] = "uint8",
    grid: Annotated[str | None, typer.Option(help="Columns x rows of a grid: 8x8.")] = None,
    scale: Scale = None,
    class_: Annotated[
        str | None,
        typer.Option(
            "--class",
            help="Class of a conditional model, by name or number; several (0-4, all) are a row each. By "
            "default every seed has its own.",
        ),
    ] = None,
    labels: Annotated[
        bool, typer.Option("--labels/--no-labels", help="Name the seed above each image of a grid.")
    ] = False,
    go_on: Annotated[
        bool,
        typer.Option("--continue", help="Keep the images that a folder has already, and add the others."),
    ] = False,
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

      gantx sample demo --seeds 1,5,9 --labels -o named.png

      gantx sample demo --seeds 0-999 -o shapes.zip

      gantx sample demo -n 2000 -o shapes --continue

      gantx sample demo --truncation 0.7 -o alike.png

      gantx sample demo -n 50000 -o all.npy --dtype float32

      gantx sample RUN --class all -n 8 -o classes.png
    """
    if seeds is not None and (number is not None or seed):
        raise UsageError("--seeds selects every image: omit -n and --seed")
    if latents is not None and (seeds is not None or number is not None or seed):
        raise UsageError("--latents provides every latent: omit -n, --seed and --seeds")
    if source is not None:
        images_told = (number, seed or None, seeds, latents, truncation, cutoff)
        told = (
            *images_told,
            class_,
            best,
            grid,
            scale,
            labels or None,
            go_on or None,
            output,
            compile or None,
            None if weights == "ema" else weights,
            None if dtype == "uint8" else dtype,
            force or None,
        )
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
    if go_on and (output.suffix or latents is not None):
        raise UsageError(
            f"--continue adds the missing seeds to a folder of images, but the output is {output}"
            if output.suffix
            else "--continue tells images apart by their seeds: omit --latents, or --continue"
        )
    require_unused(output, force or go_on)
    require_folder(output)
    require_file(latents, "file of latents")

    from gantx.generation.parsing import parse_seeds, parse_truncation
    from gantx.io import figures, imaging

    imaging.require_format(output)
    picture = figures.is_picture(output)
    if (grid is not None or labels) and not picture:
        name = "--labels" if grid is None else "--grid"
        raise UsageError(f"{name} is for a grid in one picture, such as a .png, but the output is {output}")
    if scale is not None and output.suffix.lower() == ".npy":
        raise UsageError(f"--scale enlarges pictures, but the output is the array {output}")
    if output.suffix:
        imaging.check_output(output)
    parse_truncation(truncation, cutoff)
    chosen = None if seeds is None else parse_seeds(seeds)
    checkpoint = require_checkpoint(checkpoint, best)
    load_torch()

    from gantx.generation import sampling
    from gantx.generation.labels import parse_classes
    from gantx.generation.latents import label_of, latents_for
    from gantx.generation.sampling import fetch
    from gantx.runtime.seeds import Seeds, seeds_of

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
    label: Any = None
    if class_ is None and latents is not None and model.network.classes:
        label = label_of(latents)
    if class_ is not None:
        label = parse_classes(model.config.conditioning, class_)
        if len(label) == 1:
            label = label[0]
        elif latents is not None or not (picture or output.suffix.lower() == ".npy"):
            raise UsageError(
                "several classes are rows of one picture or .npy: name one class, or such an output"
            )
        else:  # every class with the same seeds, 8 unless more are asked for
            each = numbers if chosen is not None or number is not None else numbers[:8]
            what = numbers = seeds_of(seed for _ in label for seed in each)
            grid = grid or (f"{len(each)}x{len(label)}" if picture else None)
            label = [one for one in label for _ in each]
    if scale is None and (not picture or len(numbers) == 1):
        scale = 1  # single images are data
    size = sampling.cropped_shape(model.network, model.config.data.ratio)
    imaging.require_room(output, len(numbers), size, 4 if dtype == "float32" else 1, scale or 1)
    shape = imaging.grid_shape(len(numbers), grid) if picture else None
    origin = "seed" if latents is None else "latent"
    text = model.provenance(truncation, cutoff)
    if label is not None:
        text["gantx:classes"] = str(label if isinstance(label, int) else seeds_of(label))
    if go_on:
        kept = imaging.kept(output, numbers, text, scale or 1)
        output_log.log(f"{len(kept):,} of {len(numbers):,} images are in {output} already")
        what = numbers = seeds_of(each for each in numbers if each not in kept)
        if not numbers:
            print(output)
            return
    with StatusDisplay() as status:
        images: Iterator[Any] = model.generate(
            what, label=label, truncation=truncation, cutoff=cutoff, batch=batch, log=status.log
        )
        if dtype == "uint8":
            images = (sampling.quantise(part) for part in images)
        if compile:
            status.log("compiling the generator: the first images may take minutes")
        status.show("generating", 0, len(numbers))
        shown = _shown(fetch(images), len(numbers), status)
        with _stop_explained(output):
            imaging.save_images(output, shown, numbers, text, shape, origin, scale, labels)
    print(output)


@contextlib.contextmanager
def _stop_explained(output: Path) -> Iterator[None]:
    """Say what was kept when a signal ends the work."""
    try:
        yield
    except (KeyboardInterrupt, StopNow) as stop:
        if output.suffix:
            left = f"{output} was not written; a folder of images can be continued (-o FOLDER --continue)"
        else:
            count = sum(1 for _ in output.glob("*.png")) if output.is_dir() else 0
            left = f"{output} has {count:,} images, go on with the same command and --continue"
        reason = Interrupted if isinstance(stop, KeyboardInterrupt) else Stopped
        raise reason(f"stopped: {left}") from None


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
        conditioning=model.config.conditioning,
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
