"""Anti-aliased resampling of features with the low-pass filter [1, 3, 3, 1] of StyleGAN2."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gantx.runtime.precision import to_compute

SMALL = 65  # resolution up to which matrix products take little more time than a depthwise convolution


class Resample(nn.Module):
    """The low-pass filter [1, 3, 3, 1] / 8 along both axes, zero-padded, with up- or downsampling.

    Rows and columns are multiplied with a band matrix. Large features are filtered by a depthwise convolution
    instead, which takes fewer operations; but its second derivative loops over the channels.

    Args:
        channels: channels C of the features.
        resolution: height and width S of the input features.
        up: 2 inserts a zero after every pixel and scales the filter by 4 to preserve brightness.
        down: 2 keeps every second pixel.
        before: zeros before the first pixel of a row and of a column.
        after: zeros after the last.
        gain: a factor on the result.
        twice: never use the convolution, because the layer is differentiated twice, as by a gradient penalty.
    """

    compute_dtype: torch.dtype | None = None
    matrix: Tensor
    taps: Tensor

    def __init__(
        self,
        channels: int,
        resolution: int,
        *,
        up: int = 1,
        down: int = 1,
        before: int,
        after: int,
        gain: float = 1.0,
        twice: bool = False,
    ) -> None:
        super().__init__()
        self.up, self.down, self.before = up, down, before
        row = low_pass(up * math.sqrt(gain))
        self.by_matrix = twice or resolution <= SMALL
        # These constants follow from the arguments, so they are not saved.
        if self.by_matrix:
            matrix = filter_matrix(row, resolution, up, down, before, after)
            self.register_buffer("matrix", matrix, persistent=False)
        else:
            self.register_buffer("taps", row.outer(row).repeat(channels, 1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, S, S] to [B, C, S', S'] in the compute type, S' = (up·S + before + after - 4) / down + 1."""
        x = to_compute(x, self.compute_dtype)
        if self.by_matrix:
            matrix = self.matrix.to(x.dtype)  # its entries are exact in half precision
            x = x.permute(0, 2, 3, 1)  # [B, S, S, C]
            x = (matrix @ x.flatten(2)).unflatten(2, x.shape[2:])  # [B, S', S, C]
            return (matrix @ x).permute(0, 3, 1, 2)
        taps = self.taps.to(x.dtype)
        if self.up == 2:
            padding = 3 - self.before
            return F.conv_transpose2d(x, taps, stride=2, padding=padding, groups=x.shape[1])
        return F.conv2d(x, taps, stride=self.down, padding=self.before, groups=x.shape[1])


def filter_matrix(row: Tensor, resolution: int, up: int, down: int, before: int, after: int) -> Tensor:
    """The matrix [S', S] that resamples a row or a column; arguments as in `Resample`.

    Args:
        row: the filter, [taps].
        resolution: height and width S of the input.
        up: upsampling factor; `up` - 1 zeros are inserted after each pixel.
        down: downsampling factor; every `down`-th pixel is kept.
        before: zeros before the first pixel.
        after: zeros after the last.
    """
    count = (up * resolution + before + after - len(row)) // down + 1
    # Index of the upsampled input that tap t of output i is multiplied with.
    index = down * torch.arange(count)[:, None] + torch.arange(len(row)) - before  # [S', taps]
    hits = index[:, :, None] == up * torch.arange(resolution)  # [S', taps, S]
    return (hits * row[:, None]).sum(1)


def low_pass(gain: float = 1.0) -> Tensor:
    """The filter along one axis, [4]; its sum is `gain`."""
    return torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=torch.float32) * (gain / 8)
