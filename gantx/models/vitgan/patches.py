"""Overlapping patches of images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def overlapping_patches(images: Tensor, side: int, overlap: int, padding: str = "zeros") -> Tensor:
    """Cut images into patches, each extended on all sides into its neighbours.

    Args:
        images: [B, C, H, W].
        side: height and width P of the patches; divides H and W.
        overlap: pixels o by which a patch is extended on each side.
        padding: what lies outside the image: `zeros` or its mirror image, `reflect`.

    Returns:
        [B, (H/P)(W/P), C·(P + 2o)²], patches in raster order, each as (channel, row, column).
    """
    if padding == "reflect" and overlap:
        images = reflected(reflected(images, overlap).transpose(2, 3), overlap).transpose(2, 3)
        overlap_padding = 0
    else:
        overlap_padding = overlap
    patches = F.unfold(images, side + 2 * overlap, padding=overlap_padding, stride=side)  # [B, C·K², N]
    return patches.transpose(1, 2)


def reflected(images: Tensor, margin: int) -> Tensor:
    """Extend rows [..., W] by `margin` mirrored pixels at both ends; the border itself is not repeated.

    Unlike the library's padding, its backward pass gives the same bits in every run on a GPU.
    """
    left, right = images[..., 1 : margin + 1], images[..., -margin - 1 : -1]
    return torch.cat([left.flip(-1), images, right.flip(-1)], dim=-1)
