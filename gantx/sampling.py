"""From seeds to images.

The image of a seed depends on the seed and the weights alone: its latent is drawn from the seed, and images
are computed in whole tiles, because matrix products of very few rows round differently from larger ones.
Another device or another number of threads may still round the last bit of a pixel the other way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gantx import checkpoint, models
from gantx.checkpoint import Header
from gantx.draws import Draw, Spec, for_seeds
from gantx.errors import UsageError

BATCH = 64  # images painted at once unless the user says otherwise


def open_generator(target: Path, device: torch.device) -> tuple[nn.Module, Header]:
    """Load the averaged generator of a run, a checkpoint folder or a .safetensors file.

    Raises:
        MissingError: there is no such checkpoint.
        CheckpointError: the file is corrupt, foreign or of an unknown version.
    """
    header = checkpoint.read_header(checkpoint.find(target))
    network = models.build(header.config.generator).to(device)
    checkpoint.load_into(network, checkpoint.read_part(header, "generator_ema", device), header.path)
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


@torch.no_grad()
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
    spec: Spec = {"z": Draw("normal", (1, *generator.latent_shape)), "noise": generator.noise_spec(1)}
    tile = max(8, 4 * torch.get_num_threads())  # every thread gets at least four rows
    size = -(-batch // tile) * tile
    for start in range(0, len(seeds), size):
        chunk = list(seeds[start : start + size])
        filled = chunk + chunk[-1:] * (-len(chunk) % tile)
        q: Any = for_seeds(spec, filled, device)
        images = to_uint8(generator(q["z"], q["noise"]))
        yield images[: len(chunk)].cpu()


def to_uint8(images: Tensor) -> Tensor:
    """Images in [-1, 1] to uint8 0..255: clamped, rounded to the nearest."""
    return (images.float() * 127.5 + 127.5).clamp(0, 255).round().to(torch.uint8)
