"""Resampling of token grids: averaging, bicubic interpolation, blur and pixel shuffle."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gantx.models.layers.pixel_shuffle import pixel_shuffle
from gantx.runtime.precision import to_compute, widened


def halve(tokens: Tensor, side: int) -> Tensor:
    """Average squares of 2x2 tokens: [B, side², D] to [B, side²/4, D]."""
    grouped: Tensor = tokens.unflatten(1, (side // 2, 2, side // 2, 2))  # [B, y, dy, x, dx, D]
    return grouped.mean((2, 4)).flatten(1, 2)


def doubling(side: int) -> Tensor:
    """The matrix [2·side, side] that doubles a row of `side` values bicubically."""
    return _bicubic(side, 2)


def blurring(side: int) -> Tensor:
    """The matrix [side, side] that scales a row up four times bicubically and averages fours again."""
    return _bicubic(side, 4).view(side, 4, side).mean(1)


def _bicubic(side: int, factor: int) -> Tensor:
    """The matrix [factor·side, side] of bicubic interpolation."""
    scaled = F.interpolate(
        torch.eye(side, dtype=torch.float32)[None, None], (factor * side, side), mode="bicubic"
    )
    return scaled[0, 0]


class Resample(nn.Module):
    """Apply a linear map to the rows and to the columns of a token grid.

    A matrix product, because the backward pass of PyTorch's own bicubic scaling is not deterministic on CUDA.

    Args:
        matrix: [M, N], applied to every row and every column.
    Shapes: tokens [B, N², D] in raster order -> [B, M², D].
    """

    compute_dtype: torch.dtype | None = None
    matrix: Tensor

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.register_buffer("matrix", matrix, persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Resample tokens [B, N², D] to [B, M², D]."""
        before = self.matrix.shape[1]
        tokens = to_compute(tokens, self.compute_dtype)
        matrix = self.matrix.to(tokens.dtype)
        rows = matrix @ tokens.unflatten(1, (before, before)).flatten(2)  # [B, M, N·D]
        grid: Tensor = matrix @ rows.unflatten(2, (before, -1))  # [B, M, M, D]
        return widened(grid.flatten(1, 2))


class PixelShuffle(nn.Module):
    """Turn every token into 2x2 tokens with a quarter of the channels; `side` is that of the input grid."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens [B, side², D] to [B, 4·side², D/4]."""
        return pixel_shuffle(tokens, self.side, 2)


def build_upsampling(kind: str, side: int) -> nn.Module:
    """Build the upsampling between two stages of the generator, which doubles the side of the token grid.

    Args:
        kind: `bicubic` keeps the channels; `shuffle` divides them by four; `blur-shuffle` blurs before that.
        side: side of the input grid.
    """
    match kind:
        case "bicubic":
            return Resample(doubling(side))
        case "shuffle":
            return PixelShuffle(side)
        case "blur-shuffle":
            return nn.Sequential(Resample(blurring(side)), PixelShuffle(side))
    raise ValueError(f"unknown upsampling {kind}")
