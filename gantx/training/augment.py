"""DiffAugment (Zhao et al. 2020, arXiv 2006.10738) as TransGAN and ViTGAN apply it to every image D sees.

Every operation is a pure function of images [B, C, H, W] and of the draws of `spec`, twice differentiable.
Definitions follow TransGAN's released code, version 2 of which adds erasing, hue and filtering; cutout and
erasing are applied to whole batches or not at all. ViTGAN's code adds flips, and applies every operation to
each image with a given probability. Nothing is clamped, so images may leave [-1, 1].

What changes colours leaves alpha as it is, and grey images have neither saturation nor hue; everything else
applies to all channels. The draws do not depend on the channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from gantx.runtime.random import Draw, Draws, Spec

TRANSLATION_RATIO = 0.2  # largest shift relative to the image's width
STRONG_TRANSLATION_RATIO = 0.125  # the same for strong_translation, which is weaker
CUTOUT_RATIO = 0.5  # width of the box relative to the image's width
CUTOUT_PROBABILITY = 0.3  # that a batch is cut or erased; the original DiffAugment always cuts
HUE_PROBABILITY = 0.5  # of an image
FLIP_PROBABILITY = 0.5  # of an image
FILTER_PROBABILITY = 0.25  # of an image and a band
SYM2 = (-0.12940952255092145, 0.22414386804185735, 0.836516303737469, 0.48296291314469025)  # low pass
LOWEST_BAND, OTHER_BANDS = (
    10 / 13,
    1 / 13,
)  # shares of the lowest and of each other band in an average image


Probabilities: TypeAlias = Mapping[str, float]
Constants: TypeAlias = Mapping[str, Mapping[str, Tensor]]
ALWAYS: Probabilities = {}  # every operation is applied as it is defined
NO_CONSTANTS: Constants = {}


def spec(policy: Sequence[str], batch: int, resolution: int, probabilities: Probabilities = ALWAYS) -> Spec:
    """The draws of `augment`.

    Args:
        policy: names of operations, as in `AugmentConfig.policy`.
        batch: number of images.
        resolution: height and width of the images in pixels.
        probabilities: as in `AugmentConfig.chances`.

    Returns:
        One entry per operation, under its name.
    """
    wanted: Spec = {}
    for name in _expand(policy):
        gate: Spec = {"gate": Draw("uniform", (batch,))} if name in probabilities else {}
        wanted[name] = {**_OPERATIONS[name].spec(batch, resolution), **gate}
    return wanted


def constants(policy: Sequence[str], resolution: int, device: torch.device) -> Constants:
    """Constant tensors of the operations, computed once: a compiled step would compute them in every step.

    Args:
        policy: names of operations.
        resolution: height and width of the images in pixels.
        device: of the tensors.

    Returns:
        Tensors by operation and name.
    """
    return {
        name: {"operators": band_operators(resolution, device)}
        for name in _expand(policy)
        if _OPERATIONS[name].apply is filter_bands
    }


def augment(
    images: Tensor,
    draws: Draws,
    policy: Sequence[str],
    probabilities: Probabilities = ALWAYS,
    constants: Constants = NO_CONSTANTS,
) -> Tensor:
    """Apply the operations of `policy` in its order.

    Args:
        images: [B, C, H, W] with 1, 3 or 4 channels, nominally in [-1, 1].
        draws: of `spec` for the same policy and probabilities.
        policy: names of operations; without any the images are unchanged.
        probabilities: with which an operation is applied to an image, by its name; they replace the
            probability of operations that have their own.
        constants: of the function of this name, for square images; computed if they are missing.

    Returns:
        [B, C, H, W], of the same type as `images`.
    """
    for name in _expand(policy):
        operation = _OPERATIONS[name]
        if operation.changes == "hues" and images.shape[1] == 1:
            continue
        apply = operation.apply
        if operation.changes != "all" and images.shape[1] == 4:
            apply = partial(_without_alpha, apply)
        drawn: Any = draws[name]
        q = {**drawn, **constants.get(name, {})}
        if name in probabilities:
            always = {"coin": torch.zeros_like(q["coin"])} if "coin" in q else {}
            applied = _per_image(q["gate"] < probabilities[name])
            images = torch.where(applied, apply(images, {**q, **always}), images)
        else:
            images = apply(images, q)
    return images


def _without_alpha(apply: Callable[[Tensor, Any], Tensor], images: Tensor, q: Any) -> Tensor:
    """Apply an operation to the colours of RGBA images."""
    return torch.cat([apply(images[:, :3], q), images[:, 3:]], 1)


# --- operations; q contains the draws of the operation -----------------------------------------------------


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
    is deterministic although it scatters. The frame of zeros is read more often, but its gradient is not
    used.
    """
    height, width = images.shape[2:]
    padded = F.pad(images, (1, 1, 1, 1))  # [B, C, H + 2, W + 2]
    rows = _shifted(height, q["rows"], images.device)  # [B, H]
    columns = _shifted(width, q["columns"], images.device)  # [B, W]
    source = rows[:, :, None] * (width + 2) + columns[:, None, :]  # [B, H, W]
    source = source.flatten(1)[:, None].expand(-1, images.shape[1], -1)  # [B, C, H·W]
    return padded.flatten(2).gather(2, source).view_as(images)


def _shifted(side: int, shifts: Tensor, device: torch.device) -> Tensor:
    """Source of each pixel in a padded row of side + 2 pixels, [B, side]."""
    return (torch.arange(1, side + 1, device=device) + shifts[:, None]).clamp(0, side + 1)


def cutout(images: Tensor, q: Any) -> Tensor:
    """Set one box per image, half as wide as the image, to zero in three batches of ten."""
    height, width = (_rounded(CUTOUT_RATIO, side) for side in images.shape[2:])
    return _zero_boxes(images, q["coin"], (height, q["rows"]), (width, q["columns"]))


def erase(images: Tensor, q: Any) -> Tensor:
    """Set one box per image, of a height and width drawn for the batch, to zero in three batches of ten."""
    spans = [(q["height"], q["rows"]), (q["width"], q["columns"])]
    rows, columns = (
        # The number of positions, as for cutout's centre; here it depends on the size that was drawn.
        (size, (u * (side + 1 - size % 2)).long())
        for side, (size, u) in zip(images.shape[2:], spans, strict=True)
    )
    return _zero_boxes(images, q["coin"], rows, columns)


_Span: TypeAlias = tuple[int | Tensor, Tensor]  # size of a box along one axis, and its centres [B]


def _zero_boxes(images: Tensor, u: Tensor, rows: _Span, columns: _Span) -> Tensor:
    """Set one box per image to zero with probability `CUTOUT_PROBABILITY`; u is uniform in [0, 1)."""
    height, width = images.shape[2:]
    in_rows = _covered(height, *rows)  # [B, H]
    in_columns = _covered(width, *columns)  # [B, W]
    box = in_rows[:, :, None] & in_columns[:, None, :] & (u < CUTOUT_PROBABILITY)  # [B, H, W]
    return images.masked_fill(box[:, None], 0.0)


def _covered(side: int, size: int | Tensor, centres: Tensor) -> Tensor:
    """Which pixels of a row a box of `size` pixels covers, boolean [B, side].

    As in the released code, a box that exceeds the image is clamped pixel by pixel: it covers the pixel at
    the border even if it lies outside.
    """
    first = centres[:, None] - size // 2
    pixels = torch.arange(side, device=centres.device)
    return (pixels >= first.clamp(0, side - 1)) & (pixels <= (first + size - 1).clamp(0, side - 1))


def flip(images: Tensor, q: Any) -> Tensor:
    """Mirror an image left to right with probability 1/2."""
    return torch.where(_per_image(q["coin"] < FLIP_PROBABILITY), images.flip(3), images)


def hue(images: Tensor, q: Any) -> Tensor:
    """Rotate the colours of an image about the grey axis with probability 1/2, by any angle in [−π, π).

    Rodrigues' formula: v cos θ + (k x v) sin θ + k (k·v)(1 − cos θ), k the unit vector of grey.
    """
    angle = math.pi * (2 * q["u"] - 1) * (q["coin"] < HUE_PROBABILITY)  # [B]
    cosine, sine = _per_image(angle.cos()), _per_image(angle.sin())
    grey = images.mean(1, keepdim=True)  # [B, 1, H, W]: each channel of k (k·v)
    crossed = (images.roll(1, dims=1) - images.roll(-1, dims=1)) / math.sqrt(3)  # k x v
    return images * cosine + crossed * sine + grey * (1 - cosine)


def filter_bands(images: Tensor, q: Any) -> Tensor:
    """Amplify or damp frequency bands (image-space filtering of Karras et al. 2020, arXiv 2006.06676).

    With probability 1/4 for each image and each of four bands, the band's amplitude is multiplied by
    2^normal; afterwards
    the image is scaled so that its expected power stays the same. Images reflect at their borders.
    """
    changed = q["coin"] < FILTER_PROBABILITY  # [B, 4]
    gains = torch.where(changed, q["normal"].exp2(), 1.0)  # [B, 4]
    surplus = gains.square() - 1
    power = (1 + LOWEST_BAND * surplus[:, :1]) * (1 + OTHER_BANDS * surplus[:, 1:]).prod(1, keepdim=True)
    gains = (gains * power.rsqrt()).to(images.dtype)
    operators: list[Tensor] = [
        q["operators"] if "operators" in q else band_operators(side, images.device)
        for side in images.shape[2:]
    ]
    down, across = (
        torch.einsum("bk,kij->bij", gains, along.to(images.dtype))[:, None] for along in operators
    )  # [B, 1, H, H], [B, 1, W, W]
    filtered: Tensor = down @ images @ across.mT  # in float32: bf16 is too coarse for sums of 43 products
    return filtered


@cache
def band_operators(side: int, device: torch.device) -> Tensor:
    """Matrices [4, side, side] that pass one band each of a row of pixels, reflected at both ends.

    As matrices, because the backward pass of reflecting padding is not deterministic on CUDA.
    """
    bank = filter_bank()
    reach = bank.shape[1] // 2
    pixels = torch.arange(side, device="cpu")
    sources = pixels[:, None] + torch.arange(-reach, reach + 1, device="cpu")  # [side, taps]
    period = max(2 * (side - 1), 1)
    sources = sources % period
    sources = torch.minimum(sources, period - sources).expand(len(bank), -1, -1)
    operators = torch.zeros(len(bank), side, side, dtype=bank.dtype, device="cpu")
    operators.scatter_add_(2, sources, bank[:, None].expand(-1, side, -1))
    return operators.float().to(device)


def filter_bank() -> Tensor:
    """Symmetric filters [4, 43] of octave bands from low to high; their sum is the identity.

    Each octave splits the low band of the one before by the low- and high-pass filters of the sym2 wavelet.
    """
    wavelet = torch.tensor(SYM2, dtype=torch.double, device="cpu")
    signs = torch.tensor((1, -1, 1, -1), device="cpu")
    low, high = (F.conv1d(h[None, None], h[None, None], padding=3) / 2 for h in (wavelet, wavelet * signs))
    bank = torch.zeros(4, 1, dtype=torch.double, device="cpu")
    bank[0] = 1
    for band in (1, 2, 3):
        stretched = F.pad(bank[:, :, None], (0, 1)).flatten(1)[:, :-1]  # a zero between neighbouring taps
        bank = F.conv1d(stretched[:, None], low, padding=6)[:, 0]
        middle = bank.shape[1] // 2
        bank[band, middle - 3 : middle + 4] += high[0, 0]
    return bank


def _per_image(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


def _rounded(ratio: float, side: int) -> int:
    """A share of `side` in whole pixels, halves rounded up."""
    return int(ratio * side + 0.5)


# --- draws of the operations ------------------------------------------------------------------------------


def _color_spec(batch: int, resolution: int) -> Spec:
    return {"u": Draw("uniform", (batch,))}


def _translation_spec(ratio: float, batch: int, resolution: int) -> Spec:
    largest = _rounded(ratio, resolution)
    shift = Draw("integers", (batch,), low=-largest, high=largest + 1)
    return {"rows": shift, "columns": shift}


def _cutout_spec(batch: int, resolution: int) -> Spec:
    # A box of odd size is centred on a pixel, one of even size on a corner between pixels: one position more.
    positions = resolution + 1 - _rounded(CUTOUT_RATIO, resolution) % 2
    centre = Draw("integers", (batch,), low=0, high=positions)
    return {"coin": Draw("uniform", (), per="batch"), "rows": centre, "columns": centre}


def _erase_spec(sizes: Callable[[int], tuple[int, int]], batch: int, resolution: int) -> Spec:
    smallest, largest = sizes(resolution)
    size = Draw("integers", (), per="batch", low=smallest, high=largest + 1)
    centre = Draw("uniform", (batch,))  # in units of the number of positions, which depends on the size
    u = Draw("uniform", (), per="batch")
    return {"height": size, "width": size, "coin": u, "rows": centre, "columns": centre}


def _shares_of(side: int) -> tuple[int, int]:
    return int(0.2 * side), int(0.7 * side)


def _from_20(side: int) -> tuple[int, int]:
    return 20, side // 2 + 20  # made for STL-10 at 48 pixels; on small images it may take all


def _hue_spec(batch: int, resolution: int) -> Spec:
    return {"u": Draw("uniform", (batch,)), "coin": Draw("uniform", (batch,))}


def _flip_spec(batch: int, resolution: int) -> Spec:
    return {"coin": Draw("uniform", (batch,))}


def _filter_spec(batch: int, resolution: int) -> Spec:
    return {"normal": Draw("normal", (batch, 4)), "coin": Draw("uniform", (batch, 4))}


class _Operation(NamedTuple):
    spec: Callable[[int, int], Spec]
    apply: Callable[[Tensor, Any], Tensor]
    changes: Literal["all", "colours", "hues"] = "all"  # colours: not alpha; hues: what grey has not


_OPERATIONS = {
    "translation": _Operation(partial(_translation_spec, TRANSLATION_RATIO), translation),
    "strong_translation": _Operation(partial(_translation_spec, STRONG_TRANSLATION_RATIO), translation),
    "cutout": _Operation(_cutout_spec, cutout),
    "erase_ratio": _Operation(partial(_erase_spec, _shares_of), erase),
    "stl_erase_ratio": _Operation(partial(_erase_spec, _from_20), erase),
    "filter": _Operation(_filter_spec, filter_bands),
    "hue": _Operation(_hue_spec, hue, "hues"),
    "flip": _Operation(_flip_spec, flip),
    "brightness": _Operation(_color_spec, brightness, "colours"),
    "saturation": _Operation(_color_spec, saturation, "hues"),
    "contrast": _Operation(_color_spec, contrast, "colours"),
}
_SHORTHANDS = {"color": ("brightness", "saturation", "contrast")}


def _expand(policy: Sequence[str]) -> list[str]:
    return [name for entry in policy for name in _SHORTHANDS.get(entry, (entry,))]
