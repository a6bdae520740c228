"""Decoders from tokens to pixels: an implicit neural representation of patches, or convolutions."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gantx.models.layers.convolution import convolve, convolve_transposed
from gantx.models.layers.linear import linear
from gantx.models.vitgan.linear import EqualizedLinear
from gantx.models.vitgan.mapping import Mapping
from gantx.models.vitgan.positions import SineGrid
from gantx.runtime.precision import to_compute, widened
from gantx.runtime.random import Draw, Spec


class ModulatedLinear(nn.Module):
    """Linear layer whose input channels are scaled by a style (Karras et al. 2020, section 2.2).

    Scaling the inputs and, to demodulate, the outputs gives what modulated weights would give, without
    weights for every style.

    Args:
        in_dim: channels in.
        out_dim: channels out.
        style_dim: channels S of the style.
        demodulate: scale the outputs back to unit variance; without, `gain` and `noisy` have no effect.
        gain: factor on the output, bias and noise included.
        noisy: add noise of a learned strength, which starts at zero.
    """

    compute_dtype: torch.dtype | None = None

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        style_dim: int,
        *,
        demodulate: bool = True,
        gain: float = 1.0,
        noisy: bool = False,
    ) -> None:
        super().__init__()
        self.demodulate = demodulate
        self.gain = gain
        self.modulation = EqualizedLinear(style_dim, in_dim, bias_start=1.0, gain=in_dim**-0.5, widen=True)
        self.weight = nn.Parameter(torch.randn(out_dim, in_dim))
        self.bias = nn.Parameter(torch.zeros(out_dim))
        self.noise_strength = nn.Parameter(torch.zeros(())) if noisy else None

    def forward(self, features: Tensor, style: Tensor, noise: Tensor | None = None) -> Tensor:
        """Apply the layer to all points of every style.

        Args:
            features: [T or 1, P, in_dim], P points for every style.
            style: [T, S].
            noise: [T, P], or None for none.

        Returns:
            [T, P, out_dim], in the compute type.
        """
        dtype = self.compute_dtype
        scale = self.modulation(style)  # float32 [T, in_dim], the equalising constant of `weight` included
        scaled = to_compute(features, dtype) * to_compute(scale, dtype)[:, None]
        if not self.demodulate:
            return linear(scaled, self.weight, self.bias, dtype=dtype)
        product = linear(scaled, self.weight, dtype=dtype)
        energy = F.linear(scale.square(), self.weight.square())  # float32 [T, out_dim]
        strength = torch.rsqrt(energy + 1e-8) * self.gain
        shift = to_compute(self.bias * self.gain, dtype)  # [out_dim]
        if noise is not None and self.noise_strength is not None:
            added = to_compute(noise * (self.noise_strength * self.gain), dtype)  # [T, P]
            shift = shift + added[:, :, None]  # [T, P, out_dim]
        return torch.addcmul(shift, product, to_compute(strength, dtype)[:, None])


class ModulatedConv(nn.Module):
    """3x3 convolution whose input channels are scaled by a style, demodulated; as `ModulatedLinear`.

    Args:
        in_dim: channels in.
        out_dim: channels out.
        style_dim: channels S of the style.
        upsample: double the resolution, by a transposed convolution and a blur.
        gain: factor on the output, bias and noise included.
        noisy: add noise of a learned strength, which starts at zero.
    """

    compute_dtype: torch.dtype | None = None

    def __init__(
        self, in_dim: int, out_dim: int, style_dim: int, *, upsample: bool, gain: float, noisy: bool
    ) -> None:
        super().__init__()
        self.upsample = upsample
        self.gain = gain
        self.modulation = EqualizedLinear(
            style_dim, in_dim, bias_start=1.0, gain=(9 * in_dim) ** -0.5, widen=True
        )
        self.weight = nn.Parameter(torch.randn(out_dim, in_dim, 3, 3))
        self.bias = nn.Parameter(torch.zeros(out_dim))
        self.noise_strength = nn.Parameter(torch.zeros(())) if noisy else None

    def forward(self, images: Tensor, style: Tensor, noise: Tensor | None = None) -> Tensor:
        """Apply the layer.

        Args:
            images: [B, in_dim, H, W].
            style: [B, S].
            noise: [B, 1, H', W'], or None for none.

        Returns:
            [B, out_dim, H', W'] in the compute type, twice as large when upsampling.
        """
        dtype = self.compute_dtype
        scale = self.modulation(style)  # float32 [B, in_dim]
        scaled = to_compute(images, dtype) * to_compute(scale, dtype)[:, :, None, None]
        if self.upsample:
            product = blur(convolve_transposed(scaled, self.weight, dtype=dtype, stride=2))
        else:
            product = convolve(scaled, self.weight, dtype=dtype, padding=1)
        energy = F.linear(scale.square(), self.weight.square().sum((2, 3)))  # float32 [B, out_dim]
        strength = torch.rsqrt(energy + 1e-8) * self.gain
        shift = to_compute(self.bias * self.gain, dtype)[:, None, None]
        if noise is not None and self.noise_strength is not None:
            shift = shift + to_compute(noise * (self.noise_strength * self.gain), dtype)
        return torch.addcmul(shift, product, to_compute(strength, dtype)[:, :, None, None])


def blur(images: Tensor) -> Tensor:
    """Filter images [B, C, H + 1, W + 1] by [1, 3, 3, 1]/4 in both directions: [B, C, H, W].

    The last step of StyleGAN2's upsampling; the factor compensates for the zeros between pixels.
    """
    x = F.pad(images, (1, 1, 1, 1))
    x = torch.add(x[:, :, :-3] + x[:, :, 3:], x[:, :, 1:-2] + x[:, :, 2:-1], alpha=3)
    x = torch.add(x[..., :-3] + x[..., 3:], x[..., 1:-2] + x[..., 2:-1], alpha=3)
    return x / 16


class PatchDecoder(nn.Module):
    """Implicit neural decoder: the patch of each token as a modulated function of the pixel's coordinates.

    Args:
        dim: channels D of the tokens.
        hidden: width of the layers.
        grid: side of the token grid.
        patch: side P of the patches.
        image_channels: channels C of a pixel.
        mapping_depth: layers of the mapping network between token and style; 0 for the token as it is.
        layers: hidden layers.
        sine: sines between the layers, in place of leaky ReLUs.
        noisy: add noise to every hidden layer.
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        grid: int,
        patch: int,
        image_channels: int,
        *,
        mapping_depth: int,
        layers: int,
        sine: bool,
        noisy: bool,
    ) -> None:
        super().__init__()
        self.grid = grid
        self.patch = patch
        self.sine = sine
        self.noisy = noisy
        self.mapping = Mapping(dim, mapping_depth) if mapping_depth else nn.Identity()
        self.coordinates = SineGrid(patch, dim)
        gain = 1.0 if sine else math.sqrt(2)
        self.layers = nn.ModuleList(
            ModulatedLinear(dim if layer == 0 else hidden, hidden, dim, gain=gain, noisy=noisy)
            for layer in range(layers)
        )
        self.to_rgb = ModulatedLinear(hidden, image_channels, dim, demodulate=False)

    def noise_spec(self, batch: int) -> Spec:
        """One number per pixel and hidden layer, by the layer's index; {} without noise."""
        shape = (batch, self.grid**2, self.patch**2)
        return {str(layer): Draw("normal", shape) for layer in range(len(self.layers)) if self.noisy}

    def forward(self, tokens: Tensor, style: Tensor, noise: Any = None) -> Tensor:
        """Tokens [B, N, D] to images [B, C, R, R]; the style of the whole image is not used."""
        styles = self.mapping(tokens.flatten(0, 1))  # [T, D], T = B·N
        features = self.coordinates()[None]  # [1, P², D]
        for index, layer in enumerate(self.layers):
            added = noise[str(index)].flatten(0, 1) if noise else None  # [T, P²]
            features = layer(features, styles, added)  # [T, P², hidden]
            features = features.sin() if self.sine else F.leaky_relu(features, 0.2)
        pixels = widened(self.to_rgb(features, styles))  # [T, P², C]
        return fold(pixels.unflatten(0, (len(tokens), -1)), self.patch)


def fold(patches: Tensor, side: int) -> Tensor:
    """Lay patches [B, N, side², C], both axes in raster order, side by side: [B, C, √N·side, √N·side]."""
    grid = math.isqrt(patches.shape[1])
    grid_of_patches = patches.unflatten(2, (side, side)).unflatten(1, (grid, grid))  # [B, y, x, dy, dx, C]
    images: Tensor = grid_of_patches.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
    return images


class ConvDecoder(nn.Module):
    """Convolutional decoder of the released code: two modulated 3x3 layers per doubling of the resolution.

    Args:
        dim: channels D of tokens and style.
        hidden: width of the layers.
        grid: side of the token grid.
        patch: side of the patches, the factor by which the grid grows; a power of two.
        image_channels: channels C of a pixel.
        noisy: add noise to every layer.
    """

    def __init__(
        self, dim: int, hidden: int, grid: int, patch: int, image_channels: int, *, noisy: bool
    ) -> None:
        super().__init__()
        self.grid = grid
        self.noisy = noisy
        gain = math.sqrt(2)
        self.layers = nn.ModuleList()
        for level in range(int(math.log2(patch))):
            first = dim if level == 0 else hidden
            self.layers.append(ModulatedConv(first, hidden, dim, upsample=True, gain=gain, noisy=noisy))
            self.layers.append(ModulatedConv(hidden, hidden, dim, upsample=False, gain=gain, noisy=noisy))
        self.to_rgb = ModulatedLinear(hidden if self.layers else dim, image_channels, dim, demodulate=False)

    def noise_spec(self, batch: int) -> Spec:
        """One number per pixel and layer, by the layer's index; {} without noise."""
        sides = [self.grid << (layer // 2 + 1) for layer in range(len(self.layers))]
        return {
            str(layer): Draw("normal", (batch, 1, side, side))
            for layer, side in enumerate(sides)
            if self.noisy
        }

    def forward(self, tokens: Tensor, style: Tensor, noise: Any = None) -> Tensor:
        """Tokens [B, N, D] under the styles [B, D] of their images: images [B, C, R, R]."""
        features = tokens.transpose(1, 2).unflatten(2, (self.grid, self.grid))  # [B, D, y, x]
        for index, layer in enumerate(self.layers):
            features = F.leaky_relu(layer(features, style, noise[str(index)] if noise else None), 0.2)
        pixels = widened(self.to_rgb(features.flatten(2).transpose(1, 2), style))  # [B, R², C]
        images: Tensor = pixels.transpose(1, 2).unflatten(2, features.shape[2:])
        return images


def build_decoder(
    kind: str, dim: int, hidden: int, grid: int, patch: int, noisy: bool, image_channels: int = 3
) -> PatchDecoder | ConvDecoder:
    """`inr`, `inr-sine` or `conv`: a module from tokens, styles and noise to images; see `Generator`."""
    sizes = (dim, hidden, grid, patch, image_channels)
    match kind:
        case "inr":
            return PatchDecoder(*sizes, mapping_depth=4, layers=3, sine=False, noisy=noisy)
        case "inr-sine":
            return PatchDecoder(*sizes, mapping_depth=0, layers=1, sine=True, noisy=noisy)
        case "conv":
            return ConvDecoder(*sizes, noisy=noisy)
    raise ValueError(f"unknown decoder {kind}")
