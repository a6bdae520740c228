"""The synthesis network of StyleGAN2, shared by StyleGAN2 and GANformer."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from gantx.models.layers.equalized import EqualLinear
from gantx.models.layers.modulation import FinalToRGB, StyledLayer, ToRGB
from gantx.models.layers.resampling import Resample
from gantx.models.layers.residual import HALF
from gantx.models.layers.tokens import pointwise
from gantx.runtime.precision import widened
from gantx.runtime.random import Draw, Draws, Spec

# What happens between a layer's convolution and its activation: (index of the layer, features [B, C, S, S],
# factor that the features still have to be multiplied with) to (features, factor). GANformer attends there.
Between = Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]]


class Block(nn.Module):
    """The layers of one resolution: two, or one at 4x4.

    Args:
        in_channels: channels of the previous block, or of the constant.
        out_channels: channels C of this block.
        resolution: height and width S of its features.
        first: index of its first layer among all layers.
        style_dim: size of w, or None for convolutions without style.
        noise: add noise in every layer.
        residual: add a 1x1 convolution of the block's input to its output.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        resolution: int,
        first: int,
        style_dim: int | None,
        *,
        noise: bool,
        residual: bool,
    ) -> None:
        super().__init__()
        self.first = first
        layer = functools.partial(StyledLayer, resolution=resolution, style_dim=style_dim, noise=noise)
        self.layers = nn.ModuleList()
        doubles = resolution > 4
        if doubles:
            self.layers.append(layer(in_channels, out_channels, double=True))
        residual = residual and doubles
        self.layers.append(
            layer(out_channels if doubles else in_channels, out_channels, gain=HALF if residual else 1.0)
        )
        self.shortcut = EqualLinear(in_channels, out_channels, bias=None, gain=HALF) if residual else None
        if residual:
            self.upsample = Resample(out_channels, resolution // 2, up=2, before=2, after=1)

    def forward(self, x: Tensor, ws: Tensor, noise: Draws | None, between: Between | None) -> Tensor:
        """Features of the previous block to [B, C, S, S]; arguments as in `Synthesis`."""
        y = x
        for index, layer in enumerate(self.layers, start=self.first):
            drawn = None if noise is None else noise.get(f"layer{index}")
            y = layer(y, ws[:, index], drawn, None if between is None else functools.partial(between, index))
        if self.shortcut is not None:
            y = y + self.upsample(pointwise(self.shortcut, x))
        return y


class Synthesis(nn.Module):
    """Styles to images: a learned 4x4 constant, then blocks that double the resolution.

    Args:
        resolution: height and width R of the images, a power of two from 8.
        style_dim: size of w.
        channel_base: a layer of resolution r has channel_base/r channels, ...
        channel_max: ... but no more than this.
        architecture: `skip` adds up the colours of all blocks, `resnet` adds each block's input to its
            output, `orig` does neither.
        style: modulate the convolutions.
        noise: add noise in every layer.
        final_convolution: one more convolution, without activation, before the last colours.
        image_channels: of the images.

    Attributes:
        styles: number L of styles that it uses: one per layer, one for the final convolution, one for the
            last RGB layer. Every other RGB layer shares the style of the layer after it.
        resolutions: resolution of every layer's features.
    """

    def __init__(
        self,
        resolution: int,
        style_dim: int,
        channel_base: int,
        channel_max: int,
        architecture: str,
        style: bool,
        noise: bool,
        final_convolution: bool,
        image_channels: int = 3,
    ) -> None:
        super().__init__()
        dim = style_dim if style else None
        resolutions = [2**power for power in range(2, resolution.bit_length())]
        channels = [channels_at(size, channel_base, channel_max) for size in resolutions]
        self.resolutions = [4, *(size for size in resolutions[1:] for _ in range(2))]
        self.styles = len(self.resolutions) + 1 + final_convolution
        self.noise = noise
        self.skip = architecture == "skip"
        self.constant = nn.Parameter(torch.randn(channels[0], 4, 4))
        self.blocks = nn.ModuleList(
            Block(
                channels[max(0, level - 1)],
                channels[level],
                size,
                first=max(0, 2 * level - 1),
                style_dim=dim,
                noise=noise,
                residual=architecture == "resnet",
            )
            for level, size in enumerate(resolutions)
        )
        early = channels[:-1] if self.skip else []
        self.to_rgb = nn.ModuleList(ToRGB(count, dim, image_channels) for count in early)
        self.to_rgb.append(
            FinalToRGB(channels[-1], dim, resolution, image_channels)
            if final_convolution
            else ToRGB(channels[-1], dim, image_channels)
        )
        doubling = resolutions[:-1] if self.skip else []
        self.upsample = nn.ModuleList(
            Resample(image_channels, size, up=2, before=2, after=1) for size in doubling
        )

    def noise_spec(self, batch: int) -> Spec:
        """One noise map per layer; {} without noise."""
        if not self.noise:
            return {}
        return {
            f"layer{index}": Draw("normal", (batch, 1, size, size))
            for index, size in enumerate(self.resolutions)
        }

    def forward(self, ws: Tensor, noise: Draws | None = None, between: Between | None = None) -> Tensor:
        """Generate images.

        Args:
            ws: styles [B, L, D].
            noise: maps by layer, as in `noise_spec`; without them, the stored constants.
            between: called in every layer with its index, the convolved features [B, C, S, S] and a
                factor that they still have to be multiplied with; returns two such tensors, to whose
                product noise, bias and activation are applied.

        Returns:
            Images [B, image_channels, R, R], float32.
        """
        x = self.constant.expand(len(ws), -1, -1, -1).contiguous(memory_format=torch.channels_last)
        image: Tensor | None = None
        for level, block in enumerate(self.blocks):
            x = block(x, ws, noise, between)
            if self.skip:
                colours = self.to_rgb[level](x, ws[:, 2 * level + 1 :])
                image = colours if image is None else colours + widened(self.upsample[level - 1](image))
        if image is None:
            image = self.to_rgb[0](x, ws[:, len(self.resolutions) :])
        return image


def channels_at(resolution: int, base: int, most: int) -> int:
    """Number of channels of features of this resolution."""
    return min(base // resolution, most)
