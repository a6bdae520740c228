"""The generator of ViTGAN."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gantx.config.networks.vitgan import ViTGANGeneratorConfig
from gantx.models import interfaces
from gantx.models.layers.attention_maps import follow
from gantx.models.layers.checkpointing import run_block
from gantx.models.vitgan.blocks import SelfModulatedLayerNorm, StyledBlock
from gantx.models.vitgan.decoder import build_decoder
from gantx.models.vitgan.linear import advance_spectral_norms
from gantx.models.vitgan.mapping import Mapping
from gantx.models.vitgan.positions import SineGrid, TokenTable
from gantx.runtime.precision import widened
from gantx.runtime.random import Draws, Spec


class Generator(interfaces.Generator):
    """ViTGAN generator: a transformer over a token grid, modulated by the latent, and a decoder to pixels.

    Args:
        config: the section `generator:`; gantx.config.networks.vitgan documents its fields.
        image_channels: of the images: 1 (grey), 3 or 4 (RGBA).

    Attributes:
        latent_shape: (dim,).
        image_shape: (C, R, R).
        w_avg: running average [D] of w, for truncation; updated by training.
    """

    w_avg: Tensor

    def __init__(self, config: ViTGANGeneratorConfig, image_channels: int = 3) -> None:
        super().__init__()
        grid = config.resolution // config.patch_size
        self.output = config.output
        self.classes = config.classes
        self.latent_shape = (config.dim,)
        self.image_shape = (image_channels, config.resolution, config.resolution)
        self.mapping_network = Mapping(config.dim, config.mapping_depth, config.mapping_lr, config.classes)
        self.positions = (
            SineGrid(grid, config.dim) if config.positions == "sine" else TokenTable(grid**2, config.dim)
        )
        self.blocks = nn.ModuleList(
            StyledBlock(
                config.dim,
                config.heads,
                config.mlp_ratio,
                config.residual,
                config.attention,
                config.activation,
                config.spectral_norm,
                config.norm_eps,
            )
            for _ in range(config.depth)
        )
        self.norm = SelfModulatedLayerNorm(config.dim, config.norm_eps)
        self.decoder = build_decoder(
            config.decoder,
            config.dim,
            config.decoder_dim,
            grid,
            config.patch_size,
            config.decoder_noise,
            image_channels,
        )
        self.register_buffer("w_avg", torch.zeros(config.dim))

    def noise_spec(self, batch: int) -> Spec:
        """The noise of the decoder; {} without noise."""
        return self.decoder.noise_spec(batch)

    def mapping(self, z: Tensor, labels: Tensor | None = None, noise: Draws | None = None) -> Tensor:
        """Latents [B, D] to styles ws [B, depth + 1, D], one per use; `noise` is not used."""
        w = widened(self.mapping_network(z, labels))
        return w[:, None].expand(-1, len(self.blocks) + 1, -1)

    def synthesis(self, ws: Tensor, noise: Draws | None = None) -> Tensor:
        """Styles to images; no noise means noise of zero.

        Args:
            ws: [B, depth + 1, D], one for each block and one for what follows them.
            noise: of `noise_spec`, or None.

        Returns:
            [B, C, R, R].
        """
        *each, last = ws.unbind(1)
        tokens = self.positions()[None]  # [1, N, D]: the same for all images until a style comes in
        for block, style in zip(self.blocks, each, strict=True):
            tokens = run_block(block, tokens, style)  # [B, N, D]
        images: Tensor = self.decoder(self.norm(tokens, last), last, noise)
        return images.tanh() if self.output == "tanh" else images

    def forward(self, z: Tensor, noise: Draws | None = None, labels: Tensor | None = None) -> Tensor:
        """Latents [B, D], and labels [B] with classes, to images [B, C, R, R]; no noise means zero noise."""
        return self.synthesis(self.mapping(z, labels), noise)

    def follow(
        self,
        given: Tensor,
        query: tuple[float, float],
        noise: Draws | None = None,
        layers: str = "last",
        labels: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Generate images and return the attention map of one query position.

        Args:
            given: styles ws [B, depth + 1, D].
            query: position in the image, (y, x) in [0, 1) from the top left corner.
            noise: as in `synthesis`.
            layers: `last` for the last block, `all` for every block.
            labels: not used; the styles know them.

        Returns:
            Images [B, C, R, R]; for every layer, attention [B, h, S, S] on the grid of S x S tokens, under
            `<S>x<S>.<which block>`.
        """
        attentions = [block.get_submodule("attention") for block in self.blocks]
        return follow(lambda: self.synthesis(given, noise), attentions, query, layers)

    def update_state(self) -> None:
        """Update the singular vectors of `plain` and `improved` spectral normalisation by one power step."""
        advance_spectral_norms(self)
