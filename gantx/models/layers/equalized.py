"""Layers with an equalised learning rate (Karras et al. 2018, section 4.1)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gantx.models.layers.convolution import HalvingConvolution, SameConvolution
from gantx.runtime.precision import to_compute, widened

SLOPE = 0.2  # of the leaky ReLU for negative input
GAIN = math.sqrt(2)  # of the leaky ReLU, which preserves variance


class EqualLinear(nn.Module):
    """Linear layer with an equalised learning rate (Karras et al. 2018, arXiv 1710.10196, section 4.1).

    Args:
        in_dim: input channels.
        out_dim: output channels.
        bias: initial value of the bias, or None for no bias.
        lr_multiplier: learning rate in units of the optimiser's; weight and bias are stored divided by it.
        leaky: apply a leaky ReLU of gain sqrt(2) to the result.
        gain: an extra factor on the result.
        widen: return float32, for styles, latents, gates and sums.
        exact: multiply in the type of the parameters whatever the compute type, for logits.
    """

    compute_dtype: torch.dtype | None = None

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        bias: float | None = 0.0,
        lr_multiplier: float = 1.0,
        leaky: bool = False,
        gain: float = 1.0,
        widen: bool = False,
        exact: bool = False,
    ) -> None:
        super().__init__()
        self.leaky = leaky
        self.widen = widen
        self.exact = exact
        self.bias_scale = (
            lr_multiplier * gain * (GAIN if leaky else 1.0)
        )  # equivalent before and after the leaky ReLU
        self.weight_scale = self.bias_scale / math.sqrt(in_dim)
        self.weight = nn.Parameter(torch.randn(out_dim, in_dim) / lr_multiplier)
        self.bias = None if bias is None else nn.Parameter(torch.full((out_dim,), bias / lr_multiplier))

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_dim] to [..., out_dim]."""
        dtype = None if self.exact else self.compute_dtype
        rows = to_compute(x, dtype).reshape(-1, x.shape[-1])
        if self.bias is None:
            made = rows @ to_compute(self.weight * self.weight_scale, dtype).t()
        else:
            weight, bias = to_compute(self.weight, dtype), to_compute(self.bias, dtype)
            made = torch.addmm(bias, rows, weight.t(), beta=self.bias_scale, alpha=self.weight_scale)
        made = made.view(*x.shape[:-1], -1)
        made = widened(made) if self.widen else made
        return F.leaky_relu(made, SLOPE, inplace=True) if self.leaky else made

    def matrix(self) -> Tensor:
        """The matrix [out_dim, in_dim] that inputs are multiplied with, in the compute type."""
        return to_compute(self.weight * self.weight_scale, self.compute_dtype)

    def offset(self) -> Tensor:
        """The effective bias [out_dim], in the type of the parameters."""
        assert self.bias is not None
        return self.bias * self.bias_scale


class EqualConvolution(nn.Module):
    """3x3 convolution with an equalised learning rate, bias and leaky ReLU of gain sqrt(2).

    Args:
        in_channels: input channels.
        out_channels: output channels.
        resolution: height and width S of the input features.
        halve: low-pass filter and halve the resolution.
        gain: an extra factor on the result.
    """

    def __init__(
        self, in_channels: int, out_channels: int, resolution: int, *, halve: bool = False, gain: float = 1.0
    ) -> None:
        super().__init__()
        self.gain = gain * GAIN
        self.scale = self.gain / math.sqrt(in_channels * 3**2)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.convolve = HalvingConvolution(in_channels, resolution) if halve else SameConvolution()

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, S, S] to [B, out, S, S], or to half the resolution; in the compute type."""
        x = self.convolve(x, self.weight)
        bias = (self.gain * self.bias[:, None, None]).to(x.dtype)
        x = torch.add(bias, x, alpha=self.scale)
        return F.leaky_relu(x, SLOPE, inplace=True)
