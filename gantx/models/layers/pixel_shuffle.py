"""Pixel shuffle of tokens."""

from __future__ import annotations

from torch import Tensor


def pixel_shuffle(tokens: Tensor, side: int, factor: int) -> Tensor:
    """Turn every token into factor x factor tokens with factor² times fewer channels.

    Input channel c·factor² + factor·dy + dx becomes channel c at offset (dy, dx).

    Args:
        tokens: [B, side², C], in raster order.
        side: side of the token grid.
        factor: how many times finer the grid becomes.

    Returns:
        [B, (side·factor)², C/factor²], in raster order.
    """
    grouped: Tensor = tokens.unflatten(2, (-1, factor, factor))  # [B, y·x, c, dy, dx]
    grouped = grouped.unflatten(1, (side, side))
    return grouped.permute(0, 1, 4, 2, 5, 3).flatten(1, 4)  # [B, y·dy·x·dx, c]
