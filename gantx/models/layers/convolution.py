"""Convolutions in the network's compute type, and the resampling 3x3 convolutions of StyleGAN2."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gantx.models.layers.resampling import Resample
from gantx.runtime.precision import to_compute, widened


class Convolution(nn.Conv2d):
    """`nn.Conv2d` that multiplies in `compute_dtype` and returns float32, with the same parameters."""

    compute_dtype: torch.dtype | None = None

    def forward(self, input: Tensor) -> Tensor:
        """[B, in, H, W] to [B, out, H', W']."""
        return widened(
            convolve(
                input,
                self.weight,
                self.bias,
                dtype=self.compute_dtype,
                stride=self.stride,
                padding=self.padding,
            )
        )


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    dtype: torch.dtype | None,
    stride: int | tuple[int, ...] = 1,
    padding: int | tuple[int, ...] | str = 0,
) -> Tensor:
    """`F.conv2d` with its operands cast to `dtype`, which is the type of the result; None casts nothing."""
    bias = None if bias is None else to_compute(bias, dtype)
    return F.conv2d(to_compute(x, dtype), to_compute(weight, dtype), bias, stride=stride, padding=padding)


def convolve_transposed(x: Tensor, weight: Tensor, *, dtype: torch.dtype | None, stride: int) -> Tensor:
    """`F.conv_transpose2d` by a kernel [out, in, K, K] with its operands cast, as in `convolve`."""
    kernel = to_compute(weight, dtype).transpose(0, 1)
    return F.conv_transpose2d(to_compute(x, dtype), kernel, stride=stride)


class SameConvolution(nn.Module):
    """3x3 convolution with zero padding; the kernel is an argument."""

    compute_dtype: torch.dtype | None = None

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        """[B, in, S, S] and a kernel [out, in, 3, 3] to [B, out, S, S], in the compute type."""
        return convolve(x, weight, dtype=self.compute_dtype, padding=1)


class HalvingConvolution(nn.Module):
    """Low-pass filter, then a 3x3 convolution of stride 2; the kernel is an argument.

    Args:
        in_channels: input channels.
        resolution: height and width S of the input features.
    """

    compute_dtype: torch.dtype | None = None

    def __init__(self, in_channels: int, resolution: int) -> None:
        super().__init__()
        self.blur = Resample(in_channels, resolution, before=2, after=2, twice=True)

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        """[B, in, S, S] and a kernel [out, in, 3, 3] to [B, out, S/2, S/2], in the compute type."""
        return convolve(self.blur(x), weight, dtype=self.compute_dtype, stride=2)


class DoublingConvolution(nn.Module):
    """Transposed 3x3 convolution of stride 2, then the low-pass filter; the kernel is an argument.

    Args:
        out_channels: output channels.
        resolution: height and width S of the input features.
    """

    compute_dtype: torch.dtype | None = None

    def __init__(self, out_channels: int, resolution: int) -> None:
        super().__init__()
        # The transposed convolution inserts zeros between pixels, which the gain of 4 compensates.
        self.blur = Resample(out_channels, 2 * resolution + 1, before=1, after=1, gain=4.0)

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        """[B, in, S, S] and a kernel [out, in, 3, 3] to [B, out, 2S, 2S], in the compute type."""
        blurred: Tensor = self.blur(convolve_transposed(x, weight, dtype=self.compute_dtype, stride=2))
        return blurred
