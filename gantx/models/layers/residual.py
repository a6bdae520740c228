"""The residual block and the epilogue of StyleGAN2's discriminator."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from gantx.models.layers.equalized import EqualConvolution, EqualLinear
from gantx.models.layers.minibatch_std import minibatch_standard_deviation
from gantx.models.layers.resampling import Resample
from gantx.models.layers.tokens import pointwise
from gantx.runtime.precision import to_compute, widened

HALF = math.sqrt(0.5)  # keeps the variance of a sum of two branches


class DownBlock(nn.Module):
    """Residual block of the discriminator: two convolutions, the second of which halves the resolution.

    Args:
        in_channels: input channels.
        out_channels: output channels.
        resolution: height and width S of the input features.
    """

    compute_dtype: torch.dtype | None = None

    def __init__(self, in_channels: int, out_channels: int, resolution: int) -> None:
        super().__init__()
        self.first = EqualConvolution(in_channels, in_channels, resolution)
        self.second = EqualConvolution(in_channels, out_channels, resolution, halve=True, gain=HALF)
        self.downsample = Resample(in_channels, resolution, down=2, before=1, after=1, twice=True)
        self.shortcut = EqualLinear(in_channels, out_channels, bias=None, gain=HALF, widen=True)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, S, S] to [B, out, S/2, S/2], float32."""
        x = to_compute(x, self.compute_dtype)  # once for both branches
        return widened(self.second(self.first(x))) + pointwise(self.shortcut, self.downsample(x))


class Epilogue(nn.Module):
    """The end of the discriminator: minibatch standard deviation, a convolution and a linear layer.

    Args:
        channels: channels C of the features.
        group_size: samples in a group of the minibatch standard deviation.
        std_channels: channels of the minibatch standard deviation.
    """

    def __init__(self, channels: int, group_size: int, std_channels: int) -> None:
        super().__init__()
        self.group_size = group_size
        self.std_channels = std_channels
        self.convolution = EqualConvolution(channels + std_channels, channels, 4)
        self.linear = EqualLinear(channels * 4**2, channels, leaky=True, widen=True)

    def forward(self, x: Tensor, parts: int = 1) -> Tensor:
        """Float32 features [B, C, 4, 4] to float32 [B, C]; `parts` as in `minibatch_standard_deviation`."""
        deviation = minibatch_standard_deviation(x, self.group_size, self.std_channels, parts)  # [B, F]
        x = torch.cat([x, deviation[:, :, None, None].expand(-1, -1, *x.shape[2:])], dim=1)
        vector: Tensor = self.linear(self.convolution(x).flatten(1))
        return vector
