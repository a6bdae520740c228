"""Modulated convolutions, and the synthesis layers of StyleGAN2 that use them."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gantx.models.layers.convolution import DoublingConvolution, SameConvolution
from gantx.models.layers.equalized import GAIN, SLOPE, EqualLinear
from gantx.models.layers.tokens import from_tokens, to_tokens
from gantx.runtime.precision import to_compute, widened


class ModulatedConvolution(nn.Module):
    """3x3 convolution whose input channels are scaled by a style, its output normalised (section 2.2).

    The kernel of each sample would be W·s / sqrt(sum of (W·s)²). Scaling the features before and after a
    convolution with W is equivalent and needs no kernel per sample.

    Args:
        in_channels: input channels.
        out_channels: output channels.
        style_dim: size of w, or None for a plain convolution without normalisation.
        resolution: height and width S of the input features.
        double: double the resolution: transposed convolution of stride 2, then the low-pass filter.
    """

    compute_dtype: torch.dtype | None = None
    plain_factor: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        style_dim: int | None,
        resolution: int,
        *,
        double: bool = False,
    ) -> None:
        super().__init__()
        self.scale = 1 / math.sqrt(in_channels * 3**2)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, 3, 3))
        self.to_style = style_layer(style_dim, in_channels)
        if style_dim is None:
            self.register_buffer("plain_factor", torch.tensor(self.scale), persistent=False)
        self.convolve = DoublingConvolution(out_channels, resolution) if double else SameConvolution()

    def forward(self, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        """Convolve.

        Args:
            x: features [B, in, S, S].
            w: styles [B, D].

        Returns:
            Features [B, out, S, S], or with twice the resolution, in the compute type; a float32 factor
            [B, out, 1, 1] or [] that they still have to be multiplied with.
        """
        if self.to_style is None:
            return self.convolve(x, self.weight), self.plain_factor
        style, normalizer = self.factors(w)
        x = to_compute(x, self.compute_dtype)
        x = x * style.to(x.dtype)[:, :, None, None]
        return self.convolve(x, self.weight), normalizer[:, :, None, None]

    def factors(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """Factors of the input and output channels, [B, in] and [B, out], for styles w [B, D]."""
        assert self.to_style is not None
        style = self.to_style(w) * self.scale
        # A statistic, and a small product: float32 whatever the compute type.
        energy = style.square() @ self.weight.square().sum((2, 3)).t()
        return style, (energy + 1e-8).rsqrt()


def style_layer(style_dim: int | None, channels: int) -> EqualLinear | None:
    """The layer that maps styles w to factors of the channels; None without styles."""
    return None if style_dim is None else EqualLinear(style_dim, channels, bias=1.0, widen=True)


class StyledLayer(nn.Module):
    """Modulated convolution, optionally a function in between, then noise, bias and leaky ReLU.

    Args:
        in_channels: input channels.
        out_channels: output channels.
        resolution: height and width S of the output features.
        style_dim: size of w, or None for convolutions without style.
        noise: add noise of a learned strength, the same for all channels.
        double: double the resolution.
        gain: an extra factor on the result.
    """

    constant: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        resolution: int,
        style_dim: int | None,
        *,
        noise: bool,
        double: bool = False,
        gain: float = 1.0,
    ) -> None:
        super().__init__()
        self.gain = GAIN * gain
        self.convolution = ModulatedConvolution(
            in_channels, out_channels, style_dim, resolution // 2 if double else resolution, double=double
        )
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.strength = nn.Parameter(torch.zeros(())) if noise else None
        if noise:
            self.register_buffer("constant", torch.randn(resolution, resolution))

    def forward(
        self,
        x: Tensor,
        w: Tensor,
        noise: Tensor | None,
        between: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None,
    ) -> Tensor:
        """Apply the layer.

        Args:
            x: features [B, in, H, W].
            w: styles [B, D].
            noise: [B, 1, S, S], or None for the stored constant.
            between: as in `Synthesis`, the index left out.

        Returns:
            [B, out, S, S], in the compute type.
        """
        x, factor = self.convolution(x, w)
        if between is not None:
            x, factor = between(x, factor)
        bias = (self.gain * self.bias[:, None, None]).to(x.dtype)
        x = torch.addcmul(bias, x, factor.to(x.dtype), value=self.gain)
        if self.strength is not None:
            noise = (self.constant if noise is None else noise) * (self.gain * self.strength)
            x = x.add_(noise.to(x.dtype))
        return F.leaky_relu(x, SLOPE, inplace=True)


class ToRGB(nn.Module):
    """1x1 convolution to the channels of the image, modulated but not normalised, with bias.

    Args:
        channels: input channels.
        style_dim: size of w, or None for a plain convolution.
        image_channels: channels c of the image.
    """

    compute_dtype: torch.dtype | None = None

    def __init__(self, channels: int, style_dim: int | None, image_channels: int = 3) -> None:
        super().__init__()
        self.scale = 1 / math.sqrt(channels)
        self.weight = nn.Parameter(torch.randn(image_channels, channels))
        self.bias = nn.Parameter(torch.zeros(image_channels))
        self.to_style = style_layer(style_dim, channels)

    def forward(self, x: Tensor, ws: Tensor) -> Tensor:
        """Features [B, C, H, W] and styles ws [B, 1, D] to float32 colours [B, c, H, W]."""
        bias, tokens, mixture = (
            to_compute(each, self.compute_dtype) for each in (self.bias, to_tokens(x), self.mixture(ws[:, 0]))
        )
        colours = widened(torch.baddbmm(bias, tokens, mixture.transpose(1, 2)))
        return from_tokens(colours, x.shape[2])

    def mixture(self, w: Tensor) -> Tensor:
        """The modulated kernel [B, c, C] for styles w [B, D]."""
        weight = self.weight * self.scale
        if self.to_style is None:
            return weight.expand(len(w), -1, -1)
        style: Tensor = self.to_style(w)  # [B, C]
        return weight * style[:, None]


class FinalToRGB(nn.Module):
    """A modulated 3x3 convolution without activation and the following `ToRGB`, merged into one convolution.

    GANformer's PyTorch code has this convolution before the last RGB layer of every generator. It costs as
    much as any other at full resolution, while the product of the two maps has few output channels.

    Args:
        channels: input channels.
        style_dim: size of w, or None for plain convolutions.
        resolution: height and width of the features.
        image_channels: channels c of the image.
    """

    compute_dtype: torch.dtype | None = None

    def __init__(
        self, channels: int, style_dim: int | None, resolution: int, image_channels: int = 3
    ) -> None:
        super().__init__()
        self.convolution = ModulatedConvolution(channels, channels, style_dim, resolution)
        self.to_rgb = ToRGB(channels, style_dim, image_channels)

    def forward(self, x: Tensor, ws: Tensor) -> Tensor:
        """Features [B, C, H, W] and styles ws [B, 2, D] to float32 colours [B, c, H, W]."""
        dtype = self.compute_dtype
        mixture = self.to_rgb.mixture(ws[:, 1])  # [B, c, C]
        kernel = to_compute(self.convolution.weight.flatten(1), dtype)  # [C, C·9]
        if self.convolution.to_style is None:
            merged = to_compute(mixture * self.convolution.plain_factor, dtype) @ kernel
        else:
            style, normalizer = self.convolution.factors(ws[:, 0])
            merged = widened(to_compute(mixture * normalizer[:, None], dtype) @ kernel)
            merged = merged * style.repeat_interleave(9, dim=1)[:, None]
        # `fold` scatters from each pixel to its neighbours, so the kernel is flipped.
        taps = merged.unflatten(2, (-1, 9)).flip(3).transpose(2, 3).flatten(1, 2)  # [B, c·9, C]
        shares = to_compute(to_tokens(x), dtype) @ to_compute(taps, dtype).transpose(1, 2)  # [B, H·W, c·9]
        colours = F.fold(widened(shares).transpose(1, 2), x.shape[2:], kernel_size=3, padding=1)
        return colours + self.to_rgb.bias[:, None, None]
