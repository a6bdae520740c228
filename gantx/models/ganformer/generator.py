"""The generator of GANformer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gantx.config.networks.ganformer import GANformerGeneratorConfig
from gantx.models import interfaces
from gantx.models.ganformer.attention import (
    AttentionLayer,
    ImageAttention,
    LatentAttention,
    LatentStage,
    dropout_spec,
)
from gantx.models.ganformer.mapping import Mapping
from gantx.models.ganformer.positions import GridCode
from gantx.models.ganformer.scores import MASKED, CentroidScores, SimplexScores
from gantx.models.layers.synthesis import Synthesis, channels_at
from gantx.runtime.random import Draw, Draws, Spec


class Generator(interfaces.Generator):
    """GANformer generator: a StyleGAN2 generator whose features attend to local latents.

    Args:
        config: the section `generator:`; gantx.config.networks.ganformer documents its fields.
        image_channels: of the images: 1 (grey), 3 or 4 (RGBA).

    Attributes:
        latent_shape: (m + 1, d): the local latents, then the global one.
        image_shape: (C, R, R).
        w_avg: running average [d] of all w, local and global, for truncation.
    """

    w_avg: Tensor

    def __init__(self, config: GANformerGeneratorConfig, image_channels: int = 3) -> None:
        kmeans_iterations = config.kmeans_iterations
        update_latents = config.update_latents
        super().__init__()
        self.classes = config.classes
        self.latent_shape = (config.components + 1, config.latent_dim)
        self.image_shape = (image_channels, config.resolution, config.resolution)
        self.heads = config.heads
        self.attention_dropout = config.attention_dropout
        self.component_dropout = config.component_dropout
        if kmeans_iterations is None:
            kmeans_iterations = 2 if config.attention == "duplex" else 1
        if update_latents is None:
            update_latents = config.attention == "duplex"
        code_dim = config.latent_dim if config.grid_dim is None else config.grid_dim
        position_dim = config.latent_dim if config.positions else None
        read = (
            config.mapping_attention or config.attention == "simplex" or update_latents or config.latent_gate
        )

        self.positions = (
            nn.Parameter(torch.rand(config.components, config.latent_dim))
            if config.positions and read
            else None
        )
        self.mapping_network = Mapping(
            config.latent_dim,
            config.mapping_layers,
            residual=config.mapping_residual,
            heads=config.heads if config.mapping_attention else 0,
            position_dim=position_dim,
            latent_norm=config.latent_norm,
            normalize_global=config.normalize_global,
            classes=config.classes,
        )
        self.synthesis_network = Synthesis(
            config.resolution,
            config.latent_dim,
            config.channel_base,
            config.channel_max,
            config.architecture,
            config.style,
            config.noise,
            config.final_convolution,
            image_channels,
        )

        def attention_layer(size: int, followed: bool) -> AttentionLayer:
            channels = channels_at(size, config.channel_base, config.channel_max)
            scores: SimplexScores | CentroidScores
            if config.attention == "simplex":
                scores = SimplexScores(channels, config.latent_dim, code_dim, position_dim, config.heads)
            else:
                scores = CentroidScores(
                    channels, config.components, code_dim, config.heads, kmeans_iterations
                )
            look = ImageAttention(
                channels,
                config.latent_dim,
                code_dim,
                position_dim,
                config.heads,
                scores,
                normalization=config.normalization,
                integration=config.integration,
                latent_gate=config.latent_gate,
                image_gate=config.image_gate,
            )
            update = None
            if update_latents and followed:
                reading = LatentAttention(config.latent_dim, channels, position_dim, code_dim, config.heads)
                update = LatentStage(config.latent_dim, 1.0, residual=True, attention=reading)
            return AttentionLayer(GridCode(size, code_dim, config.grid, config.grid_directions), look, update)

        resolutions = self.synthesis_network.resolutions
        self.attention_layers = nn.ModuleDict()
        for index, size in enumerate(resolutions):
            if config.attention_from <= size <= config.attention_to:
                # Only the next layer attends to updated latents, and only if it has attention.
                followed = any(after <= config.attention_to for after in resolutions[index + 1 : index + 2])
                self.attention_layers[f"layer{index}"] = attention_layer(size, followed)
        self.register_buffer("w_avg", torch.zeros(config.latent_dim))

    def noise_spec(self, batch: int) -> Spec:
        """One map of noise per layer; in training mode, draws of dropout as well."""
        spec = self.synthesis_network.noise_spec(batch)
        components = self.latent_shape[0] - 1
        if self.training and self.component_dropout:
            spec["components"] = Draw("uniform", (batch, components))
        if self.training and self.attention_dropout:
            for index, stage in enumerate(self.mapping_network.local):
                if stage.attention is not None:
                    spec[f"mapping{index}"] = dropout_spec(batch, components, self.heads, components)
            for index, size in enumerate(self.synthesis_network.resolutions):
                if (name := f"layer{index}") in self.attention_layers:
                    of_layer: Spec = {"look": dropout_spec(batch, size**2, self.heads, components)}
                    if self.attention_layers[name].update is not None:
                        of_layer["update"] = dropout_spec(batch, components, self.heads, size**2)
                    spec[f"attention{index}"] = of_layer
        return spec

    def mapping(self, z: Tensor, labels: Tensor | None = None, noise: Draws | None = None) -> Tensor:
        """Latents to styles.

        Args:
            z: [B, m + 1, d], standard normal.
            labels: int64 [B] with classes, otherwise not used.
            noise: of `noise_spec`, or None for no dropout.

        Returns:
            ws, [B, m + 1, L, d]: a copy of every w for each of L uses.
        """
        w: Tensor = self.mapping_network(
            z, self.positions, self._mask(noise), noise, self.attention_dropout, labels
        )
        return w[:, :, None].expand(-1, -1, self.synthesis_network.styles, -1)

    def synthesis(self, ws: Tensor, noise: Draws | None = None) -> Tensor:
        """Styles ws [B, m + 1, L, d] to images [B, C, R, R]; without noise, with the stored constants."""
        return self._generate(ws, noise)[0]

    def forward(self, z: Tensor, noise: Draws | None = None, labels: Tensor | None = None) -> Tensor:
        """Latents [B, m + 1, d], and labels [B] with classes, to images [B, C, R, R]."""
        return self.synthesis(self.mapping(z, labels, noise), noise)

    def observe(
        self, ws: Tensor, noise: Draws | None = None, layers: str = "last"
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Generate images and return the attention of each position over the latents.

        Args:
            ws: styles [B, m + 1, L, d].
            noise: as in `synthesis`.
            layers: `last` for the last layer with attention, `all` for all of them, from coarse to fine.

        Returns:
            Images [B, C, R, R]; for every layer, attention [B, h, m, S, S] at its own resolution S, under
            `<S>x<S>.<index among the layers of this resolution>`.
        """
        images, weights = self._generate(ws, noise)
        resolutions = self.synthesis_network.resolutions
        maps = {}
        for index, attention in weights.items() if layers == "all" else list(weights.items())[-1:]:
            size = resolutions[index]
            of_latents = attention.permute(0, 2, 3, 1).unflatten(3, (size, size))
            maps[f"{size}x{size}.{resolutions[:index].count(size)}"] = of_latents.contiguous()
        return images, maps

    def attention(self, z: Tensor, noise: Draws | None = None, layers: str = "last") -> dict[str, Tensor]:
        """The attention of each position over the latents, for latents z [B, m + 1, d]; see `observe`."""
        return self.observe(self.mapping(z, noise=noise), noise, layers)[1]

    def _mask(self, noise: Draws | None) -> Tensor | None:
        """The mask that keeps tokens from attending to dropped components, [B, m]; None without dropout."""
        uniform: Any = None if noise is None else noise.get("components")
        return None if uniform is None else MASKED * (uniform < self.component_dropout)

    def _generate(self, ws: Tensor, noise: Draws | None) -> tuple[Tensor, dict[int, Tensor]]:
        """Images [B, C, R, R] from ws [B, m + 1, L, d], and by layer the attention [B, n, h, m]."""
        mask = self._mask(noise)
        weights: dict[int, Tensor] = {}
        updated: Tensor | None = None

        def between(index: int, x: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
            nonlocal updated
            if f"layer{index}" not in self.attention_layers:
                updated = None
                return x, factor
            layer = self.attention_layers[f"layer{index}"]
            assert isinstance(layer, AttentionLayer)
            latents = ws[:, :-1, index] if updated is None else updated
            draws = None if noise is None else noise.get(f"attention{index}")
            x, factor, latents, weights[index] = layer(
                x, factor, latents, self.positions, mask, draws, self.attention_dropout
            )
            updated = None if layer.update is None else latents
            return x, factor

        images: Tensor = self.synthesis_network(ws[:, -1], noise, between)
        return images, weights
