"""The discriminator of GANformer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gantx.config.networks.ganformer import GANformerDiscriminatorConfig
from gantx.models import interfaces
from gantx.models.ganformer.attention import LatentAttention, dropout_spec
from gantx.models.ganformer.positions import GridCode
from gantx.models.layers.checkpointing import run_block
from gantx.models.layers.conditioning import MappedLabels, for_labels
from gantx.models.layers.equalized import EqualLinear
from gantx.models.layers.minibatch_std import minibatch_standard_deviation
from gantx.models.layers.residual import DownBlock, Epilogue
from gantx.models.layers.synthesis import channels_at
from gantx.models.layers.tokens import pointwise, to_tokens
from gantx.runtime.random import Draws, Spec


class Discriminator(interfaces.Discriminator):
    """GANformer discriminator: a StyleGAN2 discriminator with latents that attend to its features.

    Before every block, m aggregators attend to the features without changing them. At the end each is mapped
    to one number, and these are appended to the vector that the convolutions compute.

    Args:
        config: the section `discriminator:`; gantx.config.networks.ganformer documents its fields.
        image_channels: of the images: 1 (grey), 3 or 4 (RGBA).

    Attributes:
        group_size: samples in a group of the minibatch standard deviation; see `MinibatchDependent`.
        classes: number of classes, 0 for an unconditional discriminator.
    """

    def __init__(self, config: GANformerDiscriminatorConfig, image_channels: int = 3) -> None:
        super().__init__()
        self.group_size = config.group_size
        self.classes = config.classes
        self.heads = config.heads
        self.attention_dropout = config.attention_dropout
        code_dim = config.latent_dim if config.grid_dim is None else config.grid_dim
        resolutions = [2**power for power in range(config.resolution.bit_length() - 1, 1, -1)]  # R, ..., 8, 4
        channels = [channels_at(size, config.channel_base, config.channel_max) for size in resolutions]

        self.from_rgb = EqualLinear(image_channels, channels[0], leaky=True)
        self.blocks = nn.ModuleList(map(DownBlock, channels[:-1], channels[1:], resolutions))
        self.epilogue = Epilogue(channels[-1], config.group_size, config.group_channels)
        mapped = config.classes > 0 and config.label_head == "mapped"
        logits = channels[-1] if mapped else max(config.classes, 1)
        self.out = EqualLinear(channels[-1] + config.components, logits, exact=True)

        self.aggregators = nn.Parameter(torch.rand(config.components, config.latent_dim))
        self.positions = (
            nn.Parameter(torch.rand(config.components, config.latent_dim)) if config.positions else None
        )
        read = [size for size in resolutions[:-1] if config.attention_from <= size <= config.attention_to]
        self.codes = nn.ModuleDict(
            {str(size): GridCode(size, code_dim, config.grid, config.grid_directions) for size in read}
        )
        position_dim = config.latent_dim if config.positions else None
        self.reading = nn.ModuleDict(
            {
                str(size): LatentAttention(
                    config.latent_dim,
                    channels_at(size, config.channel_base, config.channel_max),
                    position_dim,
                    code_dim,
                    config.heads,
                )
                for size in read
            }
        )
        self.component_linear = EqualLinear(config.latent_dim + 1, config.latent_dim, leaky=True)
        self.component_out = EqualLinear(config.latent_dim, 1, widen=True)
        self.mapped_labels = MappedLabels(config.classes, channels[-1]) if mapped else None

    def noise_spec(self, batch: int) -> Spec:
        """Draws of dropout in training mode; {} otherwise."""
        if not (self.training and self.attention_dropout):
            return {}
        return {
            f"reading{size}": dropout_spec(batch, len(self.aggregators), self.heads, int(size) ** 2)
            for size in self.reading
        }

    def forward(
        self, images: Tensor, noise: Draws | None = None, labels: Tensor | None = None, parts: int = 1
    ) -> Tensor:
        """Images [B, C, R, R] to logits [B]; arguments as in `stylegan2.Discriminator`."""
        x = pointwise(self.from_rgb, images.contiguous(memory_format=torch.channels_last))
        latents = self.aggregators.expand(len(images), -1, -1)
        for block in self.blocks:
            size = str(x.shape[2])
            if size in self.reading:
                draws = None if noise is None else noise.get(f"reading{size}")
                latents = self.reading[size](
                    latents,
                    to_tokens(x),
                    self.positions,
                    self.codes[size](),
                    None,
                    draws,
                    self.attention_dropout,
                )
            x = run_block(block, x)
        deviation = minibatch_standard_deviation(latents, self.group_size, 1, parts)  # [B, 1]
        deviation = deviation[:, None].expand(-1, latents.shape[1], -1)  # [B, m, 1]
        each = self.component_linear(torch.cat([latents, deviation], dim=2))
        vector = torch.cat([self.epilogue(x, parts), self.component_out(each).flatten(1)], dim=1)
        out = self.out(vector)
        if self.mapped_labels is not None:
            logits: Tensor = self.mapped_labels(out, labels)
            return logits
        return for_labels(out, self.classes, labels)
