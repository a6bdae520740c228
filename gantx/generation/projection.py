"""Projection: find the latent whose image is closest to a given one.

Adam optimizes several latents at once, starting from the best of many random ones. The distance compares
pixels at every scale from a few coarse pixels to the full image, so no feature network is needed; one can be
added. Noise has its stored value, so the latent alone determines the image.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from gantx.data.pixels import converted
from gantx.errors import MissingError, UsageError
from gantx.evaluation import inception_weights
from gantx.evaluation.assets import ASSETS, locate
from gantx.evaluation.resizing import clean_by_matrix
from gantx.generation import sampling
from gantx.generation.latents import LABEL, style_shape, whole_number
from gantx.generation.truncation import require_styles
from gantx.io import sealed
from gantx.io.atomic import replacing
from gantx.io.channels import to_rgb
from gantx.io.decoding import decoded
from gantx.models import interfaces
from gantx.runtime.precision import full_precision
from gantx.runtime.random import Draw, Spec, for_seeds

Space = Literal["z", "w", "w+"]
Features = Callable[[Tensor], Tensor]
Progress = Callable[[int, int], None]

CANDIDATES = 256  # random latents from which the starts are chosen
_COARSEST = 4  # resolution of the coarsest scale that is compared
_PRIOR = 1e-3  # weight of the squared distance from the start, in units of the standard deviation


class Projection(NamedTuple):
    """Result of a projection.

    Attributes:
        latents: [1, *latent_shape] in z, styles [1, *style_shape] in w and w+: for `sampling.from_latents`.
        image: generated from them, uint8 [3, H, W].
        distance: mean absolute difference of its pixels from the target, in grey levels; at most `at_start`.
        at_start: the same for the best random latent.
    """

    latents: Tensor
    image: Tensor
    distance: float
    at_start: float


def read_target(path: Path, image_shape: tuple[int, int, int]) -> Tensor:
    """Read an image, resized and centre-cropped to the size of a generator: uint8 [C, H, W].

    Args:
        path: of the image.
        image_shape: (C, H, W); see `sampling.cropped_shape`.

    Raises:
        MissingError: there is no such file.
        DataError: the file is not an image.
    """
    if not path.is_file():
        raise MissingError(f"there is no image at {path}")
    channels, height, width = image_shape
    convert = partial(converted, channels=channels)
    try:
        content = path.read_bytes()
    except OSError as problem:
        raise MissingError(f"cannot read {path}: {problem.strerror or problem}") from problem
    image, _ = decoded(content, str(path), convert)
    fitted = convert(ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS))
    return torch.from_numpy(np.array(fitted).reshape(height, width, channels)).permute(2, 0, 1)


def inception_features(weights: Path | None, device: torch.device) -> Features:
    """Inception's pooled features of images [B, C, H, W] in [-1, 1] as a function with gradients.

    Args:
        weights: file of NVIDIA's TorchScript Inception; None to look in the usual places.
        device: where to compute.

    Raises:
        MissingError: the weights are not found.
        DataError: the file is something else.
    """
    located = locate(ASSETS["inception"], weights, allow_unverified=False)
    network = inception_weights.load(located.path, "clean", digest=located.digest).to(device)

    def features(images: Tensor) -> Tensor:
        pixels = clean_by_matrix(to_rgb((images + 1) * 127.5)).clamp(0, 255)
        found: Tensor = network(pixels)[0]  # [B, 2048]
        return found

    return features


@full_precision()
def project(
    generator: interfaces.Generator,
    target: Tensor,
    *,
    device: torch.device,
    space: str | None = None,
    steps: int = 400,
    starts: int = 4,
    seed: int = 0,
    rate: float = 0.05,
    features: Features | None = None,
    feature_weight: float = 1.0,
    ratio: float = 1.0,
    progress: Progress | None = None,
) -> Projection:
    """Find the latent whose image is closest to the target.

    Args:
        generator: a network of `gantx.models`, on `device`, whose parameters require no gradients.
        target: uint8 [C, H, W] of the size of the generator's cropped images.
        device: where the generator is.
        space: `z`; `w`, one style for all layers; `w+`, one per layer; None for w+ if the network has styles,
            else z.
        steps: of Adam.
        starts: number of latents that are optimized in parallel.
        seed: of the first candidate.
        rate: learning rate in units of the latents' standard deviation; with warm-up and decay to zero.
        features: a differentiable function of images [B, C, H, W] in [-1, 1]; None for pixels alone.
        feature_weight: weight of the feature distance, relative to the pixel distance of the starts.
        ratio: height / width to which images are cropped for the comparison; see `sampling.crop`.
        progress: receives (done, steps).

    Raises:
        UsageError: the space is unknown, the network has no styles, the target is of another size, there
            are fewer than one start or no steps at all, or the rate is negative or not finite.
    """
    whole_number(steps, "steps", 1)
    whole_number(starts, "starts", 1)
    if not 0 <= rate < math.inf:
        raise UsageError(f"rate {rate}: give a finite number, such as 0.05")
    if tuple(target.shape) != (size := sampling.cropped_shape(generator, ratio)):
        raise UsageError(f"the target is {list(target.shape)}, but images of this generator are {list(size)}")
    chosen = _space(generator, space)
    wanted = target.to(device)[None] / 127.5 - 1  # [1, C, H, W]
    aim = None if features is None else features(wanted).detach()
    network: Callable[[Tensor], Tensor] = generator
    if chosen != "z":
        network = require_styles(generator, f"projection into {chosen}").synthesis

    def generate(latents: Tensor) -> Tensor:
        return sampling.crop(network(_widened(generator, latents, chosen)), ratio)

    candidates, spread = _candidates(generator, chosen, seed, device)
    with torch.no_grad():
        images = torch.cat([generate(part) for part in candidates.split(32)])
        best = pixel_distance(images, wanted).argsort()[:starts]
        centre = candidates[best]  # [S, ...]
        scale = 1.0
        if features is not None and aim is not None:
            distances = (features(images[best]) - aim).square().mean(1)
            scale = feature_weight * float(pixel_distance(images[best], wanted).mean() / distances.mean())

    offsets = torch.zeros_like(centre, requires_grad=True)
    optimizer = torch.optim.Adam([offsets], betas=(0.9, 0.99))
    lowest = torch.full((len(centre),), math.inf, dtype=torch.float32, device=device)
    kept = centre
    at_start = torch.zeros((), dtype=torch.float32, device=device)
    for step in range(steps + 1):
        point = centre + spread * offsets
        images = generate(point)
        distance = pixel_distance(images, wanted)  # [S]
        if features is not None and aim is not None:
            distance = distance + scale * (features(images) - aim).square().mean(1)
        levels = _grey_levels(images.detach(), wanted)
        if step == 0:
            at_start = levels.min()
        # The loss can fall while the reported pixel difference grows beyond that of the start.
        better = (distance.detach() < lowest) & (levels <= at_start)
        lowest = torch.where(better, distance.detach(), lowest)
        kept = torch.where(better.view(-1, *[1] * (kept.ndim - 1)), point.detach(), kept)
        if step == steps:
            break
        loss = distance + _PRIOR * offsets.square().flatten(1).mean(1)
        optimizer.param_groups[0]["lr"] = rate * _schedule(step / steps)
        (offsets.grad,) = torch.autograd.grad(loss.sum(), [offsets])
        optimizer.step()
        if progress is not None:
            progress(step + 1, steps)

    found = _widened(generator, kept[lowest.argmin()][None], chosen).contiguous()
    with torch.no_grad():
        (image,) = sampling.from_latents(generator, found, batch=1, device=device, ratio=ratio)
    return Projection(
        found.cpu(), sampling.quantise(image)[0].cpu(), float(_grey_levels(image, wanted)), float(at_start)
    )


def pixel_distance(images: Tensor, target: Tensor) -> Tensor:
    """Mean squared difference of images [B, C, H, W] from a target [1, C, H, W], averaged over scales: [B].

    Every scale has half the resolution of the one before. Where shapes do not overlap yet, only coarse scales
    have a useful gradient.
    """
    scales = []
    while True:
        scales.append((images - target).square().flatten(1).mean(1))
        if min(images.shape[2:]) < 2 * _COARSEST:
            return torch.stack(scales).mean(0)
        images, target = F.avg_pool2d(images, 2), F.avg_pool2d(target, 2)


def save_latents(path: Path, latents: Tensor, label: int | None = None) -> None:
    """Write latents as the one tensor of a .safetensors file, which `gantx sample --latents` reads.

    Args:
        path: of the file.
        latents: [N, ...].
        label: class of their images; None for an unconditional generator.
    """
    about = {} if label is None else {LABEL: str(label)}
    with replacing(path) as beside:
        sealed.save(beside, {"latents": latents.contiguous()}, about)


def _space(generator: interfaces.Generator, space: str | None) -> Space:
    if space is None:
        return "w+" if isinstance(generator, interfaces.StyleBased) else "z"
    if space not in ("z", "w", "w+"):
        raise UsageError(f"no space '{space}': use z, w or w+")
    if space != "z":
        require_styles(generator, f"projection into {space}")
    return "z" if space == "z" else "w" if space == "w" else "w+"


def _candidates(
    generator: interfaces.Generator, space: Space, seed: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Random latents [CANDIDATES, ...] of a space and their standard deviation; in w of one layer."""
    latent: Spec = {"z": Draw("normal", (1, *generator.latent_shape))}
    q: Any = for_seeds(latent, range(seed, seed + CANDIDATES), device)
    z: Tensor = q["z"]
    if space == "z":
        return z, torch.ones((), dtype=torch.float32, device=device)
    assert isinstance(generator, interfaces.StyleBased)
    with torch.no_grad():
        ws = generator.mapping(z)
    ws = ws[..., :1, :] if space == "w" else ws.contiguous()
    return ws, ws.std(0).mean()


def _widened(generator: interfaces.Generator, latents: Tensor, space: Space) -> Tensor:
    """Latents as input of the generator: in w, the one layer is expanded to all L."""
    if space != "w":
        return latents
    return latents.expand(*latents.shape[:-2], style_shape(generator)[-2], -1)


def _grey_levels(images: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference from the target in grey levels, [B]."""
    return (images.clamp(-1, 1) - target).abs().flatten(1).mean(1) * 127.5


def _schedule(progress: float) -> float:
    """Factor of the learning rate: linear warm-up for 5 % of the steps, cosine decay in the last quarter."""
    return min(1.0, 20 * progress + 0.05) * 0.5 * (1 - math.cos(math.pi * min(1.0, 4 * (1 - progress))))
