"""StyleGAN2 (Karras et al., arXiv 1912.04958), as GANformer's released code builds it.

Notable in it:
- equalised learning rate: weights are stored with variance 1 and scaled to 1/sqrt(fan_in) where they are used
- a mapping network turns z into one style w; every layer reads a copy of its own, so styles can be mixed
- modulated convolution as input scaling, one shared convolution, output scaling: no weights per sample
- resampling with the filter [1, 3, 3, 1] as products with band matrices, without a compiled extension
- the released GANformer code adds a linear 3x3 convolution before the pixels: both linear maps are multiplied
  together before they are applied to the features, which saves more than a third of the generator's work
- a function can be called `between` a layer's convolution and its activation: GANformer attends there
- features are channels_last, and of the compute type between the generator's layers; styles, colours and sums
  of the discriminator's branches are float32

Sizes, order of operations and initialisation follow the released code.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gantx.config.networks.stylegan2 import StyleGAN2DiscriminatorConfig, StyleGAN2GeneratorConfig
from gantx.models import interfaces
from gantx.models.layers.checkpointing import run_block
from gantx.models.layers.conditioning import LabelEmbedding, MappedLabels, for_labels
from gantx.models.layers.equalized import EqualLinear
from gantx.models.layers.normalization import rms_norm
from gantx.models.layers.residual import DownBlock, Epilogue
from gantx.models.layers.synthesis import Synthesis, channels_at
from gantx.models.layers.tokens import pointwise
from gantx.runtime.random import Draws, Spec


class Mapping(nn.Module):
    """Mapping network, z to w: normalisation to root mean square 1, then linear layers with leaky ReLU.

    With classes, the normalised embedding of the label stands beside the normalised z, as in StyleGAN2.

    Args:
        dim: size D of z and w.
        layers: number of linear layers.
        classes: number of classes, 0 for none.
    """

    def __init__(self, dim: int, layers: int, classes: int = 0) -> None:
        super().__init__()
        inputs = [2 * dim if classes else dim] + [dim] * (layers - 1)
        self.layers = nn.Sequential(
            *(EqualLinear(size, dim, lr_multiplier=0.01, leaky=True, widen=True) for size in inputs)
        )
        self.embedding = LabelEmbedding(classes, dim) if classes else None

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Latents [B, D], and labels [B] with classes, to [B, D]."""
        x = rms_norm(z)
        if self.embedding is not None:
            x = torch.cat([x, self.embedding(labels)], dim=1)
        w: Tensor = self.layers(x)
        return w


class Generator(interfaces.Generator):
    """StyleGAN2 generator: a mapping network turns latents into styles, which modulate a synthesis network.

    Args:
        config: the section `generator:`; gantx.config.networks.stylegan2 documents its fields.
        image_channels: of the images: 1 (grey), 3 or 4 (RGBA).

    Attributes:
        latent_shape: (D,).
        image_shape: (C, R, R).
        w_avg: running average [D] of w, for truncation; updated by training.
    """

    w_avg: Tensor

    def __init__(self, config: StyleGAN2GeneratorConfig, image_channels: int = 3) -> None:
        super().__init__()
        self.latent_shape = (config.latent_dim,)
        self.image_shape = (image_channels, config.resolution, config.resolution)
        self.classes = config.classes
        self.mapping_network = Mapping(config.latent_dim, config.mapping_layers, config.classes)
        self.synthesis_network = Synthesis(
            config.resolution,
            config.latent_dim,
            config.channel_base,
            config.channel_max,
            config.architecture,
            style=True,
            noise=config.noise,
            final_convolution=config.final_convolution,
            image_channels=image_channels,
        )
        self.register_buffer("w_avg", torch.zeros(config.latent_dim))

    def noise_spec(self, batch: int) -> Spec:
        """One map of noise per layer; {} without noise."""
        return self.synthesis_network.noise_spec(batch)

    def mapping(self, z: Tensor, labels: Tensor | None = None, noise: Draws | None = None) -> Tensor:
        """Latents [B, D] to styles ws [B, L, D], one per use; `noise` is not used."""
        w: Tensor = self.mapping_network(z, labels)
        return w[:, None].expand(-1, self.synthesis_network.styles, -1)

    def synthesis(self, ws: Tensor, noise: Draws | None = None) -> Tensor:
        """Styles ws [B, L, D] to images [B, C, R, R]; without noise, with the stored constants."""
        images: Tensor = self.synthesis_network(ws, noise)
        return images

    def forward(self, z: Tensor, noise: Draws | None = None, labels: Tensor | None = None) -> Tensor:
        """Latents [B, D], and labels [B] with classes, to images [B, C, R, R]."""
        return self.synthesis(self.mapping(z, labels), noise)


class Discriminator(interfaces.Discriminator):
    """StyleGAN2 discriminator: residual blocks that halve the resolution down to 4x4, then an epilogue.

    Args:
        config: the section `discriminator:`; gantx.config.networks.stylegan2 documents its fields.
        image_channels: of the images: 1 (grey), 3 or 4 (RGBA).

    Attributes:
        group_size: samples in a group of the minibatch standard deviation; see `MinibatchDependent`.
        classes: number of classes, 0 for an unconditional discriminator.
    """

    def __init__(self, config: StyleGAN2DiscriminatorConfig, image_channels: int = 3) -> None:
        super().__init__()
        self.group_size = config.group_size
        self.classes = config.classes
        resolutions = [2**power for power in range(config.resolution.bit_length() - 1, 1, -1)]  # R, ..., 8, 4
        channels = [channels_at(size, config.channel_base, config.channel_max) for size in resolutions]
        self.from_rgb = EqualLinear(image_channels, channels[0], leaky=True)
        self.blocks = nn.ModuleList(map(DownBlock, channels[:-1], channels[1:], resolutions))
        self.epilogue = Epilogue(channels[-1], config.group_size, config.group_channels)
        mapped = config.classes > 0 and config.label_head == "mapped"
        logits = channels[-1] if mapped else max(config.classes, 1)
        self.out = EqualLinear(channels[-1], logits, exact=True)
        self.mapped_labels = MappedLabels(config.classes, channels[-1]) if mapped else None

    def noise_spec(self, batch: int) -> Spec:
        """{}: the discriminator is deterministic."""
        return {}

    def forward(
        self, images: Tensor, noise: Draws | None = None, labels: Tensor | None = None, parts: int = 1
    ) -> Tensor:
        """Compute logits.

        Args:
            images: [B, C, R, R].
            noise: not used.
            labels: int64 [B] when there are classes, otherwise not used.
            parts: the batch consists of this many equal batches, one after the other, that must not be
                compared with each other, such as real and generated images.

        Returns:
            Logits [B].
        """
        x = pointwise(self.from_rgb, images.contiguous(memory_format=torch.channels_last))
        for block in self.blocks:
            x = run_block(block, x)
        out = self.out(self.epilogue(x, parts))
        if self.mapped_labels is not None:
            logits: Tensor = self.mapped_labels(out, labels)
            return logits
        return for_labels(out, self.classes, labels)
