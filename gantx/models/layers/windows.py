"""Partition of a token grid into windows, and its inverse."""

from __future__ import annotations

from torch import Tensor


def to_windows(tokens: Tensor, side: int, window: int) -> Tensor:
    """Reorder tokens [B, side², D] from raster order to window after window, each in raster order."""
    across = side // window
    grouped: Tensor = tokens.unflatten(1, (across, window, across, window))  # [B, Y, y, X, x, D]
    return grouped.transpose(2, 3).flatten(1, 4)


def from_windows(tokens: Tensor, side: int, window: int) -> Tensor:
    """Reorder tokens [B, side², D] from window after window back to raster order."""
    across = side // window
    grouped: Tensor = tokens.unflatten(1, (across, across, window, window))  # [B, Y, X, y, x, D]
    return grouped.transpose(2, 3).flatten(1, 4)
