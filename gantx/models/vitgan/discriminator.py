"""The discriminator of ViTGAN."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gantx.config.networks.vitgan import ViTGANDiscriminatorConfig
from gantx.models import interfaces
from gantx.models.layers.checkpointing import run_block
from gantx.models.layers.conditioning import for_labels
from gantx.models.layers.normalization import LayerNorm
from gantx.models.vitgan.blocks import Block
from gantx.models.vitgan.linear import EqualizedLinear, LogitHead, advance_spectral_norms
from gantx.models.vitgan.patches import overlapping_patches
from gantx.runtime.random import Draws, Spec


class Discriminator(interfaces.Discriminator):
    """ViTGAN discriminator: a ViT over overlapping patches whose class token gives the logit.

    Args:
        config: the section `discriminator:`; gantx.config.networks.vitgan documents its fields.
        image_channels: of the images: 1 (grey), 3 or 4 (RGBA).

    Attributes:
        patch_size: height and width of the patches before they are extended by `overlap`.
        overlap: pixels by which a patch extends into its neighbours on each side.
        padding: how images are padded, `zeros` or `reflect`.
    """

    def __init__(self, config: ViTGANDiscriminatorConfig, image_channels: int = 3) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        self.overlap = config.overlap
        self.padding = config.padding
        side = config.resolution // config.patch_size
        pixels = image_channels * (config.patch_size + 2 * config.overlap) ** 2
        self.from_patches = EqualizedLinear(pixels, config.dim, spectral=config.spectral_norm, widen=True)
        self.class_token = nn.Parameter(0.02 * torch.randn(1, 1, config.dim))
        self.positions = nn.Parameter(0.02 * torch.randn(1, 1 + side**2, config.dim))
        self.blocks = nn.ModuleList(
            Block(
                config.dim,
                config.heads,
                config.mlp_ratio,
                config.attention,
                config.qk_std,
                config.spectral_norm,
            )
            for _ in range(config.depth)
        )
        self.norm = LayerNorm(config.dim, eps=1e-6)
        self.head = LogitHead(config.dim, 1, spectral=config.spectral_norm)
        self.classes = config.classes
        # Ours: projection (Miyato and Koyama 2018), its vectors normalised like every matrix of this network.
        self.projection = (
            LogitHead(config.dim, config.classes, bias=False, spectral=config.spectral_norm)
            if config.classes
            else None
        )

    def noise_spec(self, batch: int) -> Spec:
        """{}: the discriminator is deterministic."""
        return {}

    def forward(self, images: Tensor, noise: Draws | None = None, labels: Tensor | None = None) -> Tensor:
        """Images [B, C, R, R], and their labels [B] with classes, to logits [B]; `noise` is not used."""
        tokens = self.tokens(images)
        *blocks, last = self.blocks
        for block in blocks:
            tokens = run_block(block, tokens)
        # The head uses only the class token, so the last block computes no other.
        class_token = last(tokens, keep=1)[:, 0]  # [B, D]
        features = self.norm(class_token)
        logits: Tensor = self.head(features)  # [B, 1]
        if self.projection is not None:
            return logits.squeeze(1) + for_labels(self.projection(features), self.classes, labels)
        return logits.squeeze(1)

    def tokens(self, images: Tensor) -> Tensor:
        """Input tokens of the first block for images [B, C, R, R]: [B, 1 + N, D], the class token first."""
        patches = overlapping_patches(images, self.patch_size, self.overlap, self.padding)
        tokens = self.from_patches(patches)
        class_token = self.class_token.expand(len(images), -1, -1)
        return torch.cat([class_token, tokens], dim=1) + self.positions

    def attention(self, images: Tensor) -> dict[str, Tensor]:
        """Attention maps of all blocks, `blocks.<i>` to [B, h, 1 + N, 1 + N]; rows sum to one."""
        maps: dict[str, Tensor] = {}
        tokens = self.tokens(images)
        for index, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            maps[f"blocks.{index}"] = block.attention.weights(block.norm1(tokens))
            tokens = block(tokens)
        return maps

    def update_state(self) -> None:
        """Update the singular vectors of spectral normalisation by one power step."""
        advance_spectral_norms(self)
