"""Resizing of images of any size to the 299×299 pixels of Inception's input, by the three rules in use.

The rules give different pixels and therefore different scores: features of one are never compared with
features of another. None of them rounds its result back to whole grey levels.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from gantx.errors import UsageError
from gantx.runtime.precision import full_precision

SIZE = 299  # height and width of Inception's input
Resize = Literal["clean", "legacy-tensorflow", "legacy-pytorch"]
RULES: tuple[Resize, ...] = get_args(Resize)


def resize(images: Tensor, rule: str) -> Tensor:
    """Resize images to 299×299; height and width of an image that is not square change by different factors.

    Args:
        images: uint8 or float [B, 3, H, W], nominally 0..255.
        rule: `clean`: bicubic with antialiasing, as Pillow does it (Parmar et al. 2022, the rule of
            clean-fid); `legacy-tensorflow`: the bilinear rule of TensorFlow 1, shifted by half a pixel
            and without antialiasing; `legacy-pytorch`: bilinear without antialiasing.

    Returns:
        float32 [B, 3, 299, 299] on the same device, within 0..255.

    Raises:
        UsageError: there is no such rule.
    """
    if rule not in RULES:
        raise UsageError(f"unknown way of resizing '{rule}': use one of {', '.join(RULES)}")
    pixels = images.float().contiguous()
    if rule == "clean":
        resized = _clean_on_cpu(pixels) if pixels.device.type == "cpu" else clean_by_matrix(pixels)
    elif rule == "legacy-tensorflow":
        resized = _tensorflow(pixels)
    else:
        resized = F.interpolate(pixels, (SIZE, SIZE), mode="bilinear", align_corners=False)
    return resized.clamp_(0, 255)


def clean_by_matrix(pixels: Tensor) -> Tensor:
    """The clean rule as two matrix products, for devices other than the CPU; not clamped.

    Agrees with Pillow to the rounding of float32, about 6e-5 of a grey level.

    Args:
        pixels: float32 [B, 3, H, W].

    Returns:
        float32 [B, 3, 299, 299].
    """
    rows, columns = (_bicubic_matrix(size, pixels.device) for size in pixels.shape[2:])
    with full_precision():
        return rows @ (pixels @ columns.T)


def _clean_on_cpu(pixels: Tensor) -> Tensor:
    """clean-fid's own resizer, bit for bit; Pillow releases the GIL, so threads share the images."""
    from cleanfid.resize import build_resizer

    one: Callable[[NDArray[np.float32]], NDArray[np.float32]] = build_resizer("clean")
    arrays = list(pixels.permute(0, 2, 3, 1).numpy())  # B times [H, W, 3]
    if (threads := min(torch.get_num_threads(), len(arrays))) > 1:
        with ThreadPoolExecutor(threads) as pool:
            resized = list(pool.map(one, arrays))
    else:
        resized = [one(array) for array in arrays]
    return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2)  # channels-last, as the network uses


def _tensorflow(pixels: Tensor) -> Tensor:
    """TF1's resize_bilinear with its default corners: output i reads around i·n/299, computed in float32."""
    top, bottom, down = _two_taps(pixels.shape[2], pixels.device)
    left, right, across = _two_taps(pixels.shape[3], pixels.device)
    # Columns first, then rows, as TensorFlow interpolates; rows that no output reads are never interpolated.
    mixed = torch.lerp(pixels[..., left], pixels[..., right], across)  # [B, 3, H, 299]
    return torch.lerp(mixed[..., top, :], mixed[..., bottom, :], down[:, None])


@lru_cache(maxsize=16)
def _two_taps(size: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """For each output position the lower and upper input position, and the weight of the upper one."""
    source = torch.arange(SIZE, dtype=torch.float32) * (torch.tensor(size, dtype=torch.float32) / SIZE)
    lower = source.long()
    upper = (lower + 1).clamp_(max=size - 1)
    return lower.to(device), upper.to(device), (source - lower).to(device)


@lru_cache(maxsize=16)
def _bicubic_matrix(size: int, device: torch.device) -> Tensor:
    """Pillow's bicubic weights (a = -1/2) for `size` -> 299 along one axis: float32 [299, size].

    Scaled down, the kernel is stretched by the factor, which is what antialiasing means here.
    """
    scale = size / SIZE
    stretch = max(scale, 1.0)
    reach = 2 * stretch
    matrix = np.zeros((SIZE, size))
    for position in range(SIZE):
        centre = (position + 0.5) * scale
        first, last = max(int(centre - reach + 0.5), 0), min(int(centre + reach + 0.5), size)
        distance = np.abs((np.arange(first, last) + 0.5 - centre) / stretch)
        near = (1.5 * distance - 2.5) * distance**2 + 1
        far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
        weights = np.where(distance < 1, near, np.where(distance < 2, far, 0.0))
        matrix[position, first:last] = weights / weights.sum()
    return torch.from_numpy(matrix).float().to(device)
