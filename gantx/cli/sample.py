"""`gantx sample`: paint images from a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress

from gantx.errors import UsageError


def sample(
    checkpoint: Annotated[
        Path, typer.Argument(help="A run, a folder of checkpoints, or a .safetensors file.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Grid .png, archive .zip, array .npy, or a folder of PNGs.")
    ] = Path("grid.png"),
    number: Annotated[int | None, typer.Option("-n", min=1, help="How many images (64).")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first image; the others follow.")] = 0,
    seeds: Annotated[str | None, typer.Option(help="Seeds instead of -n and --seed: 0-63 or 1,5,9.")] = None,
    latents: Annotated[
        Path | None, typer.Option(help="Latents instead of seeds: [N, ...] as .npy or .safetensors.")
    ] = None,
    weights: Annotated[
        str, typer.Option(help="ema for the running average, raw for what is trained.")
    ] = "ema",
    dtype: Annotated[
        str, typer.Option(help="uint8, or float32 for a .npy of what the generator gives, unclamped.")
    ] = "uint8",
    grid: Annotated[str | None, typer.Option(help="Columns x rows of a grid: 8x8.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Images computed at once (64).")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    force: Annotated[
        bool,
        typer.Option("--force", "-f", help="Write over an existing output; other files in a folder stay."),
    ] = False,
) -> None:
    """Paint images: one per seed, always the same image for a seed.

    Examples:

      gantx sample runs/0001-transgan-tiny-shapes -n 64 -o grid.png

      gantx sample ckpt.safetensors --seeds 0-999 -o faces.zip

      gantx sample ckpt.safetensors --latents z.npy -o images.npy --dtype float32
    """
    if seeds is not None and (number is not None or seed):
        raise UsageError("--seeds names every image: leave -n and --seed away")
    if latents is not None and (seeds is not None or number is not None or seed):
        raise UsageError("--latents holds every latent: leave -n, --seed and --seeds away")
    if weights not in ("ema", "raw"):
        raise UsageError(f"no weights '{weights}': use ema or raw")
    if dtype not in ("uint8", "float32"):
        raise UsageError(f"no type '{dtype}': use uint8 or float32")
    if dtype == "float32" and output.suffix.lower() != ".npy":
        raise UsageError(f"only a .npy file holds float32 images, but the output is {output}")
    if grid is not None and output.suffix.lower() != ".png":
        raise UsageError(f"--grid arranges a .png, but the output is {output}")
    if output.exists() and not force and (output.is_file() or any(output.iterdir())):
        raise UsageError(f"{output} already exists: name another output, or add --force to replace it")

    from gantx import devices, imaging, sampling

    place = devices.pick_device(device)
    generator: Any
    generator, header = sampling.open_generator(checkpoint, place, "ema" if weights == "ema" else "raw")
    images: Iterator[Any]
    size = batch or sampling.BATCH
    if latents is not None:
        given = sampling.read_latents(latents, generator.latent_shape)
        chosen: Sequence[int] = range(len(given))
        images = sampling.from_latents(generator, given, batch=size, device=place)
    else:
        chosen = sampling.parse_seeds(seeds) if seeds is not None else range(seed, seed + (number or 64))
        if grid is not None and seeds is None and number is None:
            columns, rows = imaging.grid_shape(0, grid)
            chosen = range(seed, seed + columns * rows)
        images = sampling.generate(generator, chosen, batch=size, device=place)
    shape = imaging.grid_shape(len(chosen), grid) if output.suffix.lower() == ".png" else None
    if dtype == "uint8":
        images = (sampling.quantise(batch) for batch in images)
    text = {
        "Software": "gantx",
        "gantx:preset": header.config.name,
        "gantx:images": str(header.images),
        "gantx:digest": header.digests["generator_ema" if weights == "ema" else "generator"],
    }
    origin = "seed" if latents is None else "latent"
    imaging.save_images(
        output, _shown((batch.cpu() for batch in images), len(chosen)), chosen, text, shape, origin
    )
    print(output)


def _shown(batches: Iterator[Any], total: int) -> Iterator[Any]:
    """Pass batches on, with a bar on stderr while a person waits in a terminal."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("painting", total=total)
        for batch in batches:
            yield batch
            bar.advance(task, len(batch))
