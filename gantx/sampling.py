"""From seeds to images.

The image of a seed depends on the seed and the weights alone: its latent is drawn from the seed, and images
are computed in whole tiles, because matrix products of very few rows round differently from larger ones.
Another device or another number of threads may still round the last bit of a pixel the other way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from gantx import checkpoint, models
from gantx.checkpoint import Header
from gantx.draws import Draw, Spec, for_seeds
from gantx.errors import DataError, MissingError, UsageError

BATCH = 64  # images painted at once unless the user says otherwise


Weights = Literal["ema", "raw"]


def open_generator(target: Path, device: torch.device, weights: Weights = "ema") -> tuple[nn.Module, Header]:
    """Load the generator of a run, a checkpoint folder or a .safetensors file.

    Args:
        target: any of these.
        device: where to.
        weights: the running average, or the weights that are trained themselves.

    Raises:
        MissingError: there is no such checkpoint.
        CheckpointError: the file is corrupt, foreign or of an unknown version, or lacks these weights.
    """
    header = checkpoint.read_header(checkpoint.find(target))
    network = models.build(header.config.generator).to(device)
    part = "generator_ema" if weights == "ema" else "generator"
    checkpoint.load_into(network, checkpoint.read_part(header, part, device), header.path)
    return network.eval().requires_grad_(False), header


def parse_seeds(text: str) -> list[int]:
    """Read `7`, `1,5,9` or `0-63` (ends included), and mixtures of them; UsageError otherwise."""
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise UsageError(f"seeds '{text}': write numbers and ranges, for example 0-63 or 1,5,9")
        if dash and int(last) < int(first):
            raise UsageError(f"seeds '{part}': the range ends before it begins")
        seeds.extend(range(int(first), int(last) + 1) if dash else [int(first)])
    return seeds


def paint(generator: Any, seeds: Sequence[int], *, batch: int, device: torch.device) -> Iterator[Tensor]:
    """Paint one image per seed.

    Args:
        generator: a network of `gantx.models`, on `device`.
        seeds: one per image.
        batch: images computed at once, rounded up to whole tiles.
        device: where the generator is.

    Yields:
        uint8 [n, 3, H, W] on the CPU, in the order of the seeds.
    """
    for images in generate(generator, seeds, batch=batch, device=device):
        yield quantise(images).cpu()


@torch.no_grad()
def generate(generator: Any, seeds: Sequence[int], *, batch: int, device: torch.device) -> Iterator[Tensor]:
    """As `paint`, but yields what the generator gives: float [n, 3, H, W], nominally [-1, 1], on `device`."""
    spec: Spec = {"z": Draw("normal", (1, *generator.latent_shape)), "noise": generator.noise_spec(1)}
    tile = max(8, 4 * torch.get_num_threads())  # every thread gets at least four rows
    size = -(-batch // tile) * tile
    for start in range(0, len(seeds), size):
        chunk = list(seeds[start : start + size])
        filled = chunk + chunk[-1:] * (-len(chunk) % tile)
        q: Any = for_seeds(spec, filled, device)
        yield generator(q["z"], q["noise"])[: len(chunk)]


@torch.no_grad()
def from_latents(generator: Any, latents: Tensor, *, batch: int, device: torch.device) -> Iterator[Tensor]:
    """Images of given latents: float [n, 3, H, W], nominally [-1, 1], on `device`; noise at its stored value.

    Args:
        generator: a network of `gantx.models`, on `device`.
        latents: [N, *latent_shape], taken as they are.
        batch: images computed at once.
        device: where the generator is.
    """
    for chunk in latents.split(batch):
        yield generator(chunk.to(device))


def read_latents(path: Path, shape: tuple[int, ...]) -> Tensor:
    """Read latents from a .npy array or the one tensor of a .safetensors file.

    Args:
        path: the file.
        shape: of one latent.

    Returns:
        float32 [N, *shape], finite.

    Raises:
        MissingError: there is no such file.
        DataError: it cannot be read, or holds something else.
    """
    if not path.is_file():
        raise MissingError(f"there are no latents at {path}")
    try:
        if path.suffix == ".safetensors":
            (latents,) = load_file(path).values()
        else:
            latents = torch.from_numpy(np.load(path, allow_pickle=False))
    except (SafetensorError, OSError, ValueError, TypeError, EOFError) as problem:
        raise DataError(
            f"cannot read latents from {path} ({problem}): give a .npy array, or a .safetensors file of one "
            "tensor"
        ) from problem
    if latents.ndim != 1 + len(shape) or tuple(latents.shape[1:]) != shape or not len(latents):
        raise DataError(
            f"{path} holds {list(latents.shape)}, but this generator takes latents "
            f"[N, {', '.join(map(str, shape))}]"
        )
    if not latents.is_floating_point() or not bool(latents.isfinite().all()):
        raise DataError(f"{path} holds values that are no finite floating-point numbers")
    return latents.float()


Rounding = Literal["round", "truncate", "none"]


def quantise(images: Tensor, rule: Rounding = "round") -> Tensor:
    """Images in [-1, 1] as grey levels 0..255.

    Args:
        images: float [B, 3, H, W].
        rule: `round` to the nearest level, halves upwards, as StyleGAN and most others do; `truncate`
            towards zero, as TransGAN's test script does, which darkens by half a level; `none` leaves
            float values between the levels.

    Returns:
        uint8 [B, 3, H, W], or float32 for `none`.
    """
    images = images.float()
    if rule == "none":
        return ((images + 1) * 127.5).clamp(0, 255)
    offset = 128 if rule == "round" else 127.5
    return (images * 127.5 + offset).clamp(0, 255).to(torch.uint8)
