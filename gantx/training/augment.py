"""DiffAugment (Zhao et al. 2020, arXiv 2006.10738) as TransGAN applies it to every image D sees.

Every operation is a pure function of images [B, 3, H, W] and of numbers drawn beforehand, differentiable
twice, with the draws of `spec`. Definitions follow TransGAN's released code, where cutout hits a whole batch
or spares it; nothing is clamped, so images may leave [-1, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gantx.draws import Draw, Draws, Spec

TRANSLATION_RATIO = 0.2  # largest shift, as a share of the side
CUTOUT_RATIO = 0.5  # side of the box, as a share of the side of the image
CUTOUT_PROBABILITY = 0.3  # of a batch; the original DiffAugment always cuts


def spec(policy: Sequence[str], batch: int, resolution: int) -> Spec:
    """What `augment` needs drawn.

    Args:
        policy: names of operations, as in `AugmentConfig.policy`.
        batch: number of images.
        resolution: side of the images in pixels.

    Returns:
        One entry per operation, under its name.
    """
    return {name: _OPERATIONS[name].spec(batch, resolution) for name in _expand(policy)}


def augment(images: Tensor, draws: Draws, policy: Sequence[str]) -> Tensor:
    """Apply the operations of `policy` in its order.

    Args:
        images: [B, 3, H, W], nominally in [-1, 1].
        draws: drawn from `spec` for the same policy.
        policy: names of operations; none leave the images as they are.

    Returns:
        [B, 3, H, W], of the same type as `images`.
    """
    for name in _expand(policy):
        images = _OPERATIONS[name].apply(images, draws[name])
    return images


# --- operations; q holds what the operation draws ---------------------------------------------------------


def brightness(images: Tensor, q: Any) -> Tensor:
    """Add u − 1/2 to each image."""
    return images + (_per_image(q["u"]) - 0.5)


def saturation(images: Tensor, q: Any) -> Tensor:
    """Scale each pixel's distance from its grey value, the mean over channels, by 2u."""
    grey = images.mean(1, keepdim=True)  # [B, 1, H, W]
    return (images - grey) * (2 * _per_image(q["u"])) + grey


def contrast(images: Tensor, q: Any) -> Tensor:
    """Scale each value's distance from the image's mean by u + 1/2."""
    mean = images.mean((1, 2, 3), keepdim=True)  # [B, 1, 1, 1]
    return (images - mean) * (_per_image(q["u"]) + 0.5) + mean


def translation(images: Tensor, q: Any) -> Tensor:
    """Shift each image: pixel (i, j) comes from (i + rows, j + columns), zero from outside.

    Every pixel inside is read at most once, so its gradient is one number and not a sum: the backward pass
    is the same in every run, although it scatters. The frame of zeros is read more often, but its gradient
    is thrown away.
    """
    height, width = images.shape[2:]
    framed = F.pad(images, (1, 1, 1, 1))  # [B, 3, H + 2, W + 2]
    rows = _shifted(height, q["rows"], images.device)  # [B, H]
    columns = _shifted(width, q["columns"], images.device)  # [B, W]
    source = rows[:, :, None] * (width + 2) + columns[:, None, :]  # [B, H, W]
    source = source.flatten(1)[:, None].expand(-1, images.shape[1], -1)  # [B, 3, H·W]
    return framed.flatten(2).gather(2, source).view_as(images)


def _shifted(side: int, shifts: Tensor, device: torch.device) -> Tensor:
    """Where in a framed row of side + 2 pixels each pixel comes from, [B, side]."""
    return (torch.arange(1, side + 1, device=device) + shifts[:, None]).clamp(0, side + 1)


def cutout(images: Tensor, q: Any) -> Tensor:
    """Black out one box per image, in three batches of ten."""
    height, width = images.shape[2:]
    rows = _covered(height, q["rows"], images.device)  # [B, H]
    columns = _covered(width, q["columns"], images.device)  # [B, W]
    box = rows[:, :, None] & columns[:, None, :] & (q["coin"] < CUTOUT_PROBABILITY)  # [B, H, W]
    return images.masked_fill(box[:, None], 0.0)


def _covered(side: int, centres: Tensor, device: torch.device) -> Tensor:
    """Which pixels of a row the box covers, boolean [B, side].

    As in the released code, a box that sticks out is clamped pixel by pixel: it covers the border's pixel
    even when it lies beyond.
    """
    size = _rounded(CUTOUT_RATIO, side)
    first = centres[:, None] - size // 2
    pixels = torch.arange(side, device=device)
    return (pixels >= first.clamp(0, side - 1)) & (pixels <= (first + size - 1).clamp(0, side - 1))


def _per_image(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


def _rounded(ratio: float, side: int) -> int:
    """A share of `side` in whole pixels, halves rounded up."""
    return int(ratio * side + 0.5)


# --- what each operation draws ----------------------------------------------------------------------------


def _color_spec(batch: int, resolution: int) -> Spec:
    return {"u": Draw("uniform", (batch,))}


def _translation_spec(batch: int, resolution: int) -> Spec:
    largest = _rounded(TRANSLATION_RATIO, resolution)
    shift = Draw("integers", (batch,), low=-largest, high=largest + 1)
    return {"rows": shift, "columns": shift}


def _cutout_spec(batch: int, resolution: int) -> Spec:
    # A box of odd side has a pixel in its middle, one of even side a corner between pixels: one more place.
    places = resolution + 1 - _rounded(CUTOUT_RATIO, resolution) % 2
    centre = Draw("integers", (batch,), low=0, high=places)
    return {"coin": Draw("uniform", (), per="batch"), "rows": centre, "columns": centre}


class _Operation(NamedTuple):
    spec: Callable[[int, int], Spec]
    apply: Callable[[Tensor, Any], Tensor]


_OPERATIONS = {
    "translation": _Operation(_translation_spec, translation),
    "cutout": _Operation(_cutout_spec, cutout),
    "brightness": _Operation(_color_spec, brightness),
    "saturation": _Operation(_color_spec, saturation),
    "contrast": _Operation(_color_spec, contrast),
}
_SHORTHANDS = {"color": ("brightness", "saturation", "contrast")}


def _expand(policy: Sequence[str]) -> list[str]:
    return [name for entry in policy for name in _SHORTHANDS.get(entry, (entry,))]
