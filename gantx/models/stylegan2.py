"""StyleGAN2 (Karras et al., arXiv 1912.04958), as GANformer's released code builds it.

Notable in it:
- equalised learning rate: weights are stored with variance 1 and scaled to 1/sqrt(fan_in) where they are used
- a mapping network turns z into one style w; every layer reads a copy of its own, so styles can be mixed
- modulated convolution as input scaling, one shared convolution, output scaling: no weights per sample
- resampling with the filter [1, 3, 3, 1] as products with band matrices, without a compiled extension
- the released GANformer code adds a linear 3x3 convolution before the pixels: both linear maps are multiplied
  together before they meet the features, which saves more than a third of the generator's work
- other families may put something `between` a layer's convolution and its activation: GANformer is that
- features travel as channels_last, between the generator's layers in the type that is multiplied in; styles,
  colours and sums of the discriminator's branches are float32

Sizes, order of operations and initialisation follow the released code.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gantx.config.networks.stylegan2 import StyleGAN2DiscriminatorConfig, StyleGAN2GeneratorConfig
from gantx.models import interfaces
from gantx.models.layers.checkpointing import run_block
from gantx.models.layers.convolution import DoublingConvolution, HalvingConvolution, SameConvolution
from gantx.models.layers.normalization import rms_norm
from gantx.models.layers.resampling import Resample
from gantx.runtime.precision import to_compute, widened
from gantx.runtime.random import Draw, Draws, Spec

Between = Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]]
"""What happens between a layer's convolution and its activation, see `Synthesis`."""

SLOPE = 0.2  # of the leaky ReLU for negative input
GAIN = math.sqrt(2)  # keeps the variance that the leaky ReLU takes
HALF = math.sqrt(0.5)  # keeps the variance of a sum of two branches

# --- layers with an equalised learning rate ----------------------------------------------------------------


class EqualLinear(nn.Module):
    """Linear layer with an equalised learning rate (Karras et al. 2018, arXiv 1710.10196, section 4.1).

    Args:
        in_dim: input channels.
        out_dim: output channels.
        bias: what the bias starts at, or None for no bias.
        rate: learning rate in units of the optimiser's; weight and bias are stored divided by it.
        leaky: follow with a leaky ReLU of gain sqrt(2).
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
        rate: float = 1.0,
        leaky: bool = False,
        gain: float = 1.0,
        widen: bool = False,
        exact: bool = False,
    ) -> None:
        super().__init__()
        self.leaky = leaky
        self.widen = widen
        self.exact = exact
        self.bias_scale = rate * gain * (GAIN if leaky else 1.0)  # as good before the leaky ReLU as after
        self.weight_scale = self.bias_scale / math.sqrt(in_dim)
        self.weight = nn.Parameter(torch.randn(out_dim, in_dim) / rate)
        self.bias = None if bias is None else nn.Parameter(torch.full((out_dim,), bias / rate))

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
        """What is added then, [out_dim], in the type of the parameters."""
        assert self.bias is not None
        return self.bias * self.bias_scale


class EqualConvolution(nn.Module):
    """3x3 convolution with an equalised learning rate, bias and leaky ReLU of gain sqrt(2).

    Args:
        in_channels: input channels.
        out_channels: output channels.
        side: side S of the features that come in.
        halve: low-pass filter and halve the side.
        gain: an extra factor on the result.
    """

    def __init__(
        self, in_channels: int, out_channels: int, side: int, *, halve: bool = False, gain: float = 1.0
    ) -> None:
        super().__init__()
        self.gain = gain * GAIN
        self.scale = self.gain / math.sqrt(in_channels * 3**2)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.convolve = HalvingConvolution(in_channels, side) if halve else SameConvolution()

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, S, S] to [B, out, S, S], or to half the side; in the compute type."""
        x = self.convolve(x, self.weight)
        bias = (self.gain * self.bias[:, None, None]).to(x.dtype)
        x = torch.add(bias, x, alpha=self.scale)
        return F.leaky_relu(x, SLOPE, inplace=True)


# --- modulated convolution ----------------------------------------------------------------------------------


class ModulatedConvolution(nn.Module):
    """3x3 convolution whose input channels are scaled by a style, its output normalised (section 2.2).

    The kernel of each sample would be W·s / sqrt(sum of (W·s)²). Scaling the features before and after a
    convolution with W itself is the same and needs no kernel per sample.

    Args:
        in_channels: input channels.
        out_channels: output channels.
        style_dim: size of w, or None for a plain convolution without normalisation.
        side: side S of the features that come in.
        double: double the side: transposed convolution of stride 2, then the low-pass filter.
    """

    compute_dtype: torch.dtype | None = None
    plain_factor: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        style_dim: int | None,
        side: int,
        *,
        double: bool = False,
    ) -> None:
        super().__init__()
        self.scale = 1 / math.sqrt(in_channels * 3**2)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, 3, 3))
        self.to_style = style_layer(style_dim, in_channels)
        if style_dim is None:
            self.register_buffer("plain_factor", torch.tensor(self.scale), persistent=False)
        self.convolve = DoublingConvolution(out_channels, side) if double else SameConvolution()

    def forward(self, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        """Convolve.

        Args:
            x: features [B, in, S, S].
            w: styles [B, D].

        Returns:
            Features [B, out, S, S], or with twice the side, in the compute type; a float32 factor
            [B, out, 1, 1] or [] that they still have to be multiplied with.
        """
        if self.to_style is None:
            return self.convolve(x, self.weight), self.plain_factor
        style, normalizer = self.factors(w)
        x = to_compute(x, self.compute_dtype)
        x = x * style.to(x.dtype)[:, :, None, None]
        return self.convolve(x, self.weight), normalizer[:, :, None, None]

    def factors(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """What input and output channels are multiplied with, [B, in] and [B, out], for styles w [B, D]."""
        assert self.to_style is not None
        style = self.to_style(w) * self.scale
        # A statistic, and a small product: float32 whatever the compute type.
        energy = style.square() @ self.weight.square().sum((2, 3)).t()
        return style, (energy + 1e-8).rsqrt()


def style_layer(style_dim: int | None, channels: int) -> EqualLinear | None:
    """What makes factors for channels of styles w; None without them."""
    return None if style_dim is None else EqualLinear(style_dim, channels, bias=1.0, widen=True)


class StyledLayer(nn.Module):
    """Modulated convolution, then something in between, then noise, bias and leaky ReLU.

    Args:
        in_channels: input channels.
        out_channels: output channels.
        side: side S of the features it makes.
        style_dim: size of w, or None for convolutions without style.
        noise: add noise of a learned strength, the same for all channels.
        double: double the side.
        gain: an extra factor on the result.
    """

    constant: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        side: int,
        style_dim: int | None,
        *,
        noise: bool,
        double: bool = False,
        gain: float = 1.0,
    ) -> None:
        super().__init__()
        self.gain = GAIN * gain
        self.convolution = ModulatedConvolution(
            in_channels, out_channels, style_dim, side // 2 if double else side, double=double
        )
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.strength = nn.Parameter(torch.zeros(())) if noise else None
        if noise:
            self.register_buffer("constant", torch.randn(side, side))

    def forward(
        self,
        x: Tensor,
        w: Tensor,
        noise: Tensor | None,
        between: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None,
    ) -> Tensor:
        """One layer.

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
    """1x1 convolution to the three colours, modulated but not normalised, with bias.

    Args:
        channels: input channels.
        style_dim: size of w, or None for a plain convolution.
    """

    compute_dtype: torch.dtype | None = None

    def __init__(self, channels: int, style_dim: int | None) -> None:
        super().__init__()
        self.scale = 1 / math.sqrt(channels)
        self.weight = nn.Parameter(torch.randn(3, channels))
        self.bias = nn.Parameter(torch.zeros(3))
        self.to_style = style_layer(style_dim, channels)

    def forward(self, x: Tensor, ws: Tensor) -> Tensor:
        """Features [B, C, H, W] and styles ws [B, 1, D] to float32 colours [B, 3, H, W]."""
        bias, cells, mixture = (
            to_compute(each, self.compute_dtype) for each in (self.bias, to_cells(x), self.mixture(ws[:, 0]))
        )
        colours = widened(torch.baddbmm(bias, cells, mixture.transpose(1, 2)))
        return from_cells(colours, x.shape[2])

    def mixture(self, w: Tensor) -> Tensor:
        """What each channel adds to each colour, [B, 3, C], for styles w [B, D]."""
        weight = self.weight * self.scale
        if self.to_style is None:
            return weight.expand(len(w), -1, -1)
        style: Tensor = self.to_style(w)  # [B, C]
        return weight * style[:, None]


class FinalToRGB(nn.Module):
    """A modulated 3x3 convolution without activation, and the step to the three colours, multiplied into one.

    GANformer's PyTorch code has this convolution in front of every network's pixels. It costs as much as any
    other at full resolution, while the product of the two linear maps has three output channels.

    Args:
        channels: input channels.
        style_dim: size of w, or None for plain convolutions.
        side: side of the features.
    """

    compute_dtype: torch.dtype | None = None

    def __init__(self, channels: int, style_dim: int | None, side: int) -> None:
        super().__init__()
        self.convolution = ModulatedConvolution(channels, channels, style_dim, side)
        self.to_rgb = ToRGB(channels, style_dim)

    def forward(self, x: Tensor, ws: Tensor) -> Tensor:
        """Features [B, C, H, W] and styles ws [B, 2, D] to float32 colours [B, 3, H, W]."""
        dtype = self.compute_dtype
        mixture = self.to_rgb.mixture(ws[:, 1])  # [B, 3, C]
        kernel = to_compute(self.convolution.weight.flatten(1), dtype)  # [C, C·9]
        if self.convolution.to_style is None:
            merged = to_compute(mixture * self.convolution.plain_factor, dtype) @ kernel
        else:
            style, normalizer = self.convolution.factors(ws[:, 0])
            merged = widened(to_compute(mixture * normalizer[:, None], dtype) @ kernel)
            merged = merged * style.repeat_interleave(9, dim=1)[:, None]
        # As `fold` adds every pixel's share to its neighbours, the kernel turns round.
        taps = merged.unflatten(2, (-1, 9)).flip(3).transpose(2, 3).flatten(1, 2)  # [B, 3·9, C]
        shares = to_compute(to_cells(x), dtype) @ to_compute(taps, dtype).transpose(1, 2)  # [B, H·W, 3·9]
        colours = F.fold(widened(shares).transpose(1, 2), x.shape[2:], kernel_size=3, padding=1)
        return colours + self.to_rgb.bias[:, None, None]


def pointwise(layer: nn.Module, x: Tensor) -> Tensor:
    """Apply a layer for vectors to every pixel of channels_last features: [B, C, H, W] to [B, C', H, W]."""
    made: Tensor = layer(x.permute(0, 2, 3, 1))
    return made.permute(0, 3, 1, 2)


def to_cells(x: Tensor) -> Tensor:
    """Features [B, C, H, W] as [B, H·W, C]; a view of channels_last features."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def from_cells(cells: Tensor, height: int) -> Tensor:
    """The inverse of `to_cells`: [B, H·W, C] as channels_last features [B, C, H, W]."""
    rows: Tensor = cells.unflatten(1, (height, -1))
    return rows.permute(0, 3, 1, 2)


# --- generator ----------------------------------------------------------------------------------------------


class Block(nn.Module):
    """The layers of one resolution: two, or one at 4x4.

    Args:
        in_channels: channels of the block before, or of the constant.
        out_channels: channels C of this block.
        side: side of its features.
        first: index of its first layer among all layers.
        style_dim: size of w, or None for convolutions without style.
        noise: add noise in every layer.
        residual: add a 1x1 convolution of the block's input to its output.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        side: int,
        first: int,
        style_dim: int | None,
        *,
        noise: bool,
        residual: bool,
    ) -> None:
        super().__init__()
        self.first = first
        layer = functools.partial(StyledLayer, side=side, style_dim=style_dim, noise=noise)
        self.layers = nn.ModuleList()
        doubles = side > 4
        if doubles:
            self.layers.append(layer(in_channels, out_channels, double=True))
        residual = residual and doubles
        self.layers.append(
            layer(out_channels if doubles else in_channels, out_channels, gain=HALF if residual else 1.0)
        )
        self.shortcut = EqualLinear(in_channels, out_channels, bias=None, gain=HALF) if residual else None
        if residual:
            self.upsample = Resample(out_channels, side // 2, up=2, before=2, after=1)

    def forward(self, x: Tensor, ws: Tensor, noise: Draws | None, between: Between | None) -> Tensor:
        """Features of the block before to [B, C, side, side]; arguments as in `Synthesis`."""
        y = x
        for index, layer in enumerate(self.layers, start=self.first):
            drawn = None if noise is None else noise.get(f"layer{index}")
            y = layer(y, ws[:, index], drawn, None if between is None else functools.partial(between, index))
        if self.shortcut is not None:
            y = y + self.upsample(pointwise(self.shortcut, x))
        return y


class Synthesis(nn.Module):
    """Styles to images: a learned 4x4 constant, then blocks of ever finer features.

    Args:
        resolution: side R of the images, a power of two from 8.
        style_dim: size of w.
        channel_base: a layer of side r has channel_base/r channels, ...
        channel_max: ... but no more than this.
        architecture: `skip` adds up the colours of all blocks, `resnet` adds each block's input to its
            output, `orig` does neither.
        style: modulate the convolutions.
        noise: add noise in every layer.
        final_convolution: one more convolution, without activation, before the last colours.

    Attributes:
        styles: how many copies L of w it reads: one per layer, one for the final convolution, one for the
            last colours. Colours of a block before share the style of the layer that follows them.
        sides: the side of every layer's features.
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
    ) -> None:
        super().__init__()
        dim = style_dim if style else None
        sides = [2**power for power in range(2, resolution.bit_length())]
        channels = [channels_at(side, channel_base, channel_max) for side in sides]
        self.sides = [4, *(side for side in sides[1:] for _ in range(2))]
        self.styles = len(self.sides) + 1 + final_convolution
        self.noise = noise
        self.skip = architecture == "skip"
        self.constant = nn.Parameter(torch.randn(channels[0], 4, 4))
        self.blocks = nn.ModuleList(
            Block(
                channels[max(0, level - 1)],
                channels[level],
                side,
                first=max(0, 2 * level - 1),
                style_dim=dim,
                noise=noise,
                residual=architecture == "resnet",
            )
            for level, side in enumerate(sides)
        )
        early = channels[:-1] if self.skip else []
        self.to_rgb = nn.ModuleList(ToRGB(count, dim) for count in early)
        last = FinalToRGB(channels[-1], dim, resolution) if final_convolution else ToRGB(channels[-1], dim)
        self.to_rgb.append(last)
        doubling = sides[:-1] if self.skip else []
        self.upsample = nn.ModuleList(Resample(3, side, up=2, before=2, after=1) for side in doubling)

    def noise_spec(self, batch: int) -> Spec:
        """One map per layer."""
        if not self.noise:
            return {}
        return {
            f"layer{index}": Draw("normal", (batch, 1, side, side)) for index, side in enumerate(self.sides)
        }

    def forward(self, ws: Tensor, noise: Draws | None = None, between: Between | None = None) -> Tensor:
        """Paint.

        Args:
            ws: styles [B, L, D].
            noise: maps by layer, as in `noise_spec`; without them, the stored constants.
            between: called in every layer with its index, the convolved features [B, C, S, S] and a
                factor that they still have to be multiplied with; returns two such tensors, whose product
                goes on to noise, bias and activation.

        Returns:
            Images [B, 3, R, R], float32.
        """
        x = self.constant.expand(len(ws), -1, -1, -1).contiguous(memory_format=torch.channels_last)
        image: Tensor | None = None
        for level, block in enumerate(self.blocks):
            x = block(x, ws, noise, between)
            if self.skip:
                colours = self.to_rgb[level](x, ws[:, 2 * level + 1 :])
                image = colours if image is None else colours + widened(self.upsample[level - 1](image))
        if image is None:
            image = self.to_rgb[0](x, ws[:, len(self.sides) :])
        return image


def channels_at(side: int, base: int, most: int) -> int:
    """Channels of features of this side."""
    return min(base // side, most)


class Mapping(nn.Module):
    """z to w: normalised to root mean square 1, then linear layers with leaky ReLU.

    Args:
        dim: size D of z and w.
        layers: number of linear layers.
    """

    def __init__(self, dim: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(EqualLinear(dim, dim, rate=0.01, leaky=True, widen=True) for _ in range(layers))
        )

    def forward(self, z: Tensor) -> Tensor:
        """[B, D] to [B, D]."""
        w: Tensor = self.layers(rms_norm(z))
        return w


class Generator(interfaces.Generator):
    """Latents to images by way of styles (StyleGAN2).

    Built from its section of the configuration, whose fields gantx.config.networks.stylegan2 documents.

    Attributes:
        latent_shape: (D,).
        image_shape: (3, R, R).
        w_avg: running average [D] of w, for truncation; moved by training.
    """

    w_avg: Tensor

    def __init__(self, config: StyleGAN2GeneratorConfig) -> None:
        super().__init__()
        self.latent_shape = (config.latent_dim,)
        self.image_shape = (3, config.resolution, config.resolution)
        self.mapping_network = Mapping(config.latent_dim, config.mapping_layers)
        self.synthesis_network = Synthesis(
            config.resolution,
            config.latent_dim,
            config.channel_base,
            config.channel_max,
            config.architecture,
            style=True,
            noise=config.noise,
            final_convolution=config.final_convolution,
        )
        self.register_buffer("w_avg", torch.zeros(config.latent_dim))

    def noise_spec(self, batch: int) -> Spec:
        """One map of noise per layer; {} without noise."""
        return self.synthesis_network.noise_spec(batch)

    def mapping(self, z: Tensor, labels: Tensor | None = None, noise: Draws | None = None) -> Tensor:
        """Latents [B, D] to styles ws [B, L, D], one per use; `labels` and `noise` are not used."""
        w: Tensor = self.mapping_network(z)
        return w[:, None].expand(-1, self.synthesis_network.styles, -1)

    def synthesis(self, ws: Tensor, noise: Draws | None = None) -> Tensor:
        """Styles ws [B, L, D] to images [B, 3, R, R]; without noise, with the stored constants."""
        painted: Tensor = self.synthesis_network(ws, noise)
        return painted

    def forward(self, z: Tensor, noise: Draws | None = None, labels: Tensor | None = None) -> Tensor:
        """Latents [B, D] to images [B, 3, R, R]; `labels` are not used."""
        return self.synthesis(self.mapping(z), noise)


# --- discriminator ------------------------------------------------------------------------------------------


class DownBlock(nn.Module):
    """Residual block of the discriminator: two convolutions, the second halves the side.

    Args:
        in_channels: input channels.
        out_channels: output channels.
        side: side S of the features that come in.
    """

    compute_dtype: torch.dtype | None = None

    def __init__(self, in_channels: int, out_channels: int, side: int) -> None:
        super().__init__()
        self.first = EqualConvolution(in_channels, in_channels, side)
        self.second = EqualConvolution(in_channels, out_channels, side, halve=True, gain=HALF)
        self.downsample = Resample(in_channels, side, down=2, before=1, after=1, twice=True)
        self.shortcut = EqualLinear(in_channels, out_channels, bias=None, gain=HALF, widen=True)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, S, S] to [B, out, S/2, S/2], float32."""
        x = to_compute(x, self.compute_dtype)  # once for both branches
        return widened(self.second(self.first(x))) + pointwise(self.shortcut, self.downsample(x))


class Epilogue(nn.Module):
    """The end of the discriminator: 4x4 features to one vector.

    Args:
        channels: channels C of the features.
        group_size: samples that are compared with each other.
        deviations: channels that say how much a group differs.
    """

    def __init__(self, channels: int, group_size: int, deviations: int) -> None:
        super().__init__()
        self.group_size = group_size
        self.deviations = deviations
        self.convolution = EqualConvolution(channels + deviations, channels, 4)
        self.linear = EqualLinear(channels * 4**2, channels, leaky=True, widen=True)

    def forward(self, x: Tensor, parts: int = 1) -> Tensor:
        """Float32 features [B, C, 4, 4] to float32 [B, C]; `parts` as in `group_deviation`."""
        differing = group_deviation(x, self.group_size, self.deviations, parts)  # [B, F]
        x = torch.cat([x, differing[:, :, None, None].expand(-1, -1, *x.shape[2:])], dim=1)
        vector: Tensor = self.linear(self.convolution(x).flatten(1))
        return vector


def group_deviation(x: Tensor, group_size: int, count: int, parts: int) -> Tensor:
    """How much the samples of a group differ (minibatch standard deviation, arXiv 1710.10196, section 3).

    In a batch of B samples, B/G apart make a group. A group is as large as `group_size` unless the batch is
    smaller or not divisible by it.

    Args:
        x: features [B, C, ...].
        group_size: most samples of a group.
        count: number F of channel groups, each with a deviation of its own; divides C.
        parts: the batch consists of this many batches that are to be kept apart, one after the other.

    Returns:
        Standard deviation over the group, averaged over the channel group and all that follows, [B, F];
        float32.
    """
    x = widened(x)
    batch = len(x) // parts
    group = next(size for size in range(min(group_size, batch), 0, -1) if batch % size == 0)
    grouped = x.reshape(parts, group, batch // group, count, -1)  # [parts, G, B/G, F, ...]
    # Written out: the derivatives of torch.var are less exact.
    variance = (grouped - grouped.mean(1, keepdim=True)).square().mean(1)  # [parts, B/G, F, ...]
    deviation = (variance + 1e-8).sqrt().mean(3)  # [parts, B/G, F]
    return deviation[:, None].expand(-1, group, -1, -1).flatten(0, 2)


class Discriminator(interfaces.Discriminator):
    """Images to logits: residual blocks of convolutions (StyleGAN2).

    Built from its section of the configuration, whose fields gantx.config.networks.stylegan2 documents.

    Attributes:
        group_size: as above; a network that has it takes `parts`.
    """

    def __init__(self, config: StyleGAN2DiscriminatorConfig) -> None:
        super().__init__()
        self.group_size = config.group_size
        self.classes = config.classes
        sides = [2**power for power in range(config.resolution.bit_length() - 1, 1, -1)]  # R, ..., 8, 4
        channels = [channels_at(side, config.channel_base, config.channel_max) for side in sides]
        self.from_rgb = EqualLinear(3, channels[0], leaky=True)
        self.blocks = nn.ModuleList(map(DownBlock, channels[:-1], channels[1:], sides))
        self.epilogue = Epilogue(channels[-1], config.group_size, config.group_channels)
        self.out = EqualLinear(channels[-1], max(config.classes, 1), exact=True)

    def noise_spec(self, batch: int) -> Spec:
        """Nothing is random."""
        return {}

    def forward(
        self, images: Tensor, noise: Draws | None = None, labels: Tensor | None = None, parts: int = 1
    ) -> Tensor:
        """Judge.

        Args:
            images: [B, 3, R, R].
            noise: not used.
            labels: one-hot [B, classes] when there are classes, otherwise not used.
            parts: the batch consists of this many equal batches, one after the other, that must not be
                compared with each other, such as real and generated images.

        Returns:
            Logits [B].
        """
        x = pointwise(self.from_rgb, images.contiguous(memory_format=torch.channels_last))
        for block in self.blocks:
            x = run_block(block, x)
        return for_labels(self.out(self.epilogue(x, parts)), self.classes, labels)


def for_labels(logits: Tensor, classes: int, labels: Tensor | None) -> Tensor:
    """Pick each sample's logit: logits [B, max(classes, 1)] and one-hot labels [B, classes] to [B]."""
    if not classes:
        return logits.squeeze(1)
    if labels is None:
        raise ValueError(f"this discriminator tells {classes} classes apart: it needs labels")
    return (logits * labels).sum(1)
