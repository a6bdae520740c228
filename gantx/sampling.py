"""From seeds to images.

The image of a seed depends on the seed and the weights alone: its latent is drawn from the seed, and images
are computed in whole tiles, because matrix products of very few rows round differently from larger ones.
Another device or another number of threads may still round the last bit of a pixel the other way.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from gantx import checkpoint, models
from gantx.checkpoint import Header
from gantx.data.framing import rectangle
from gantx.draws import Draw, Spec, for_seeds
from gantx.errors import DataError, MissingError, UsageError

BATCH = 64  # images painted at once unless the user says otherwise


Weights = Literal["ema", "raw"]
Item = TypeVar("Item")


class Truncation(NamedTuple):
    """How far styles are drawn towards their average (StyleGAN, section B): less variety, fewer failures.

    Attributes:
        psi: 1 leaves styles alone, 0 makes all of them the average; beyond, and below, they are extrapolated.
        cutoff: only the first so many layers, or None for all.
    """

    psi: float
    cutoff: int | None = None


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


def parse_truncation(psi: float | None, cutoff: int | None = None) -> Truncation | None:
    """Truncation as a user asks for it; None for none. UsageError when it makes no sense."""
    if psi is None:
        if cutoff is not None:
            raise UsageError("a cutoff says which layers are truncated: give the truncation too")
        return None
    if not math.isfinite(psi):
        raise UsageError(f"truncation {psi}: give a number, 1 for none, 0.7 for fewer failures")
    return Truncation(psi, cutoff)


def require_styles(generator: Any, what: str) -> None:
    """UsageError unless the network maps latents to styles; `what` is the subject of the sentence."""
    if not isinstance(generator, models.StyleBased):
        raise UsageError(
            f"{what} needs a network with styles (vitgan, ganformer, stylegan2): this one paints from its "
            "latents directly"
        )


def style_shape(generator: Any) -> tuple[int, ...]:
    """Shape of the styles ws of one image: (L, D), or (K, L, D) where K latents meet in an image."""
    latent = torch.zeros(1, *generator.latent_shape, device=next(generator.parameters()).device)
    with torch.no_grad():
        return tuple(generator.mapping(latent).shape[1:])


def truncate(network: Any, ws: Tensor, psi: float | Tensor, cutoff: int | None = None) -> Tensor:
    """Draw styles towards their average: w_avg + psi·(ws − w_avg).

    Args:
        network: where `w_avg` [D] is.
        ws: styles [B, L, D] or [B, K, L, D].
        psi: one number, or one per image [B]. Exactly 1 returns the same bits, exactly 0 the average.
        cutoff: only layers 0..cutoff-1; None for all L.

    Returns:
        Styles of the shape of `ws`.

    Raises:
        UsageError: the network has no such layers.
    """
    layers = ws.shape[-2]
    if cutoff is not None and not 1 <= cutoff <= layers:
        raise UsageError(f"a truncation of {cutoff} layers: give 1 to {layers}, what this network has")
    weight = psi.to(ws).view(-1, *[1] * (ws.ndim - 1)) if isinstance(psi, Tensor) else psi
    drawn = torch.lerp(network.w_avg.expand_as(ws), ws, weight)
    if cutoff is None or cutoff == layers:
        return drawn
    return torch.cat([drawn[..., :cutoff, :], ws[..., cutoff:, :]], dim=-2)


def paint(
    generator: Any,
    seeds: Sequence[int],
    *,
    batch: int,
    device: torch.device,
    truncation: Truncation | None = None,
    ratio: float = 1.0,
) -> Iterator[Tensor]:
    """Paint one image per seed.

    Args:
        generator: a network of `gantx.models`, on `device`.
        seeds: one per image.
        batch: images computed at once, rounded up to whole tiles.
        device: where the generator is.
        truncation: draw styles towards their average.
        ratio: height / width to which images are cropped; see `crop`.

    Yields:
        uint8 [n, 3, H, W] on the CPU, in the order of the seeds.

    Raises:
        UsageError: truncation of a network without styles.
    """
    for images in generate(generator, seeds, batch=batch, device=device, truncation=truncation, ratio=ratio):
        yield quantise(images).cpu()


@torch.no_grad()
def generate(
    generator: Any,
    seeds: Sequence[int],
    *,
    batch: int,
    device: torch.device,
    truncation: Truncation | None = None,
    ratio: float = 1.0,
) -> Iterator[Tensor]:
    """As `paint`, but yields what the generator gives: float [n, 3, H, W], nominally [-1, 1], on `device`."""
    for filled, count in in_tiles(seeds, batch):
        q: Any = for_seeds(spec_of_one(generator), filled, device)
        yield crop(render(generator, q["z"], q["noise"], truncation)[:count], ratio)


@torch.no_grad()
def from_latents(
    generator: Any,
    latents: Tensor,
    *,
    batch: int,
    device: torch.device,
    truncation: Truncation | None = None,
    ratio: float = 1.0,
) -> Iterator[Tensor]:
    """Images of given latents: float [n, 3, H, W], nominally [-1, 1], on `device`; noise at its stored value.

    Args:
        generator: a network of `gantx.models`, on `device`.
        latents: [N, *latent_shape], or styles [N, *style_shape], taken as they are.
        batch: images computed at once, rounded up to whole tiles.
        device: where the generator is.
        truncation: draw styles towards their average.
        ratio: height / width to which images are cropped; see `crop`.
    """
    styles = tuple(latents.shape[1:]) != tuple(generator.latent_shape)
    for filled, count in in_tiles(range(len(latents)), batch):
        chunk = latents[filled].to(device)
        if styles:
            ws = chunk if truncation is None else truncate(generator, chunk, *truncation)
            yield crop(generator.synthesis(ws)[:count], ratio)
        else:
            yield crop(render(generator, chunk, None, truncation)[:count], ratio)


def crop(images: Tensor, ratio: float) -> Tensor:
    """The part of painted squares that holds the image, where that is not square itself; copies nothing.

    Args:
        images: [..., H, W].
        ratio: height / width of the image, `data.ratio` of the run.

    Returns:
        A view of the largest rectangle of this ratio in the middle; see `gantx.data.framing`.
    """
    rows, columns = rectangle(images.shape[-2], images.shape[-1], ratio)
    return images[..., rows, columns]


def cropped_shape(generator: Any, ratio: float) -> tuple[int, int, int]:
    """(3, H, W) of a generator's images once they are cropped."""
    channels, height, width = generator.image_shape
    rows, columns = rectangle(height, width, ratio)
    return channels, rows.stop - rows.start, columns.stop - columns.start


def render(generator: Any, z: Tensor, noise: Any, truncation: Truncation | None) -> Tensor:
    """Latents [B, *latent_shape] to float images [B, 3, H, W], by way of truncated styles if asked for."""
    if truncation is None:
        images: Tensor = generator(z, noise)
        return images
    require_styles(generator, "truncation")
    ws = truncate(generator, generator.mapping(z, noise=noise), *truncation)
    images = generator.synthesis(ws, noise)
    return images


def spec_of_one(generator: Any) -> Spec:
    """Everything that is random in one image: its latent `z`, and the generator's `noise`."""
    return {"z": Draw("normal", (1, *generator.latent_shape)), "noise": generator.noise_spec(1)}


def in_tiles(items: Iterable[Item], batch: int) -> Iterator[tuple[list[Item], int]]:
    """Cut a sequence of any length into batches of whole tiles, the last one filled up with its last item.

    Args:
        items: one per image.
        batch: images computed at once, rounded up to whole tiles.

    Yields:
        The items of a batch, and how many of them are no filling.
    """
    tile = max(8, 4 * torch.get_num_threads())  # every thread gets at least four rows
    remaining = iter(items)
    while chunk := list(itertools.islice(remaining, -(-batch // tile) * tile)):
        yield chunk + chunk[-1:] * (-len(chunk) % tile), len(chunk)


def latents_for(generator: Any, path: Path) -> Tensor:
    """Read latents, or styles where the generator has them: what `from_latents` takes; see `read_latents`."""
    shapes = [tuple(generator.latent_shape)]
    if isinstance(generator, models.StyleBased):
        shapes.append(style_shape(generator))
    return read_latents(path, *shapes)


def read_latents(path: Path, *shapes: tuple[int, ...]) -> Tensor:
    """Read latents from a .npy array or the one tensor of a .safetensors file.

    Args:
        path: the file.
        shapes: of one latent; any of these.

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
    if tuple(latents.shape[1:]) not in shapes or not latents.ndim or not len(latents):
        known = " or styles ".join(f"[N, {', '.join(map(str, shape))}]" for shape in shapes)
        raise DataError(f"{path} holds {list(latents.shape)}, but this generator takes latents {known}")
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
