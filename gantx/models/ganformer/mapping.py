"""The mapping network: latents to styles."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gantx.models.ganformer.attention import LatentAttention, LatentStage
from gantx.models.layers.conditioning import LabelEmbedding
from gantx.models.layers.equalized import EqualLinear
from gantx.models.layers.normalization import rms_norm
from gantx.runtime.random import Draws


class Mapping(nn.Module):
    """Latents z to latents w of the same size; local ones share their layers and may attend to each other.

    Args:
        dim: size d of a latent.
        layers: linear layers that each latent passes, with `residual` an odd number.
        residual: connections around every two layers; the last layer has none.
        heads: heads of the self-attention of local latents before each stage, 0 for none.
        position_dim: size of the local latents' position codes, or None when they have none.
        latent_norm: `joint` divides the local z by the root mean square of all of them, `component` each by
            its own.
        normalize_global: divide the global z as well.
        classes: number of classes, 0 for none. As in StyleGAN2, the normalised embedding of the label stands
            beside each latent; ours is the layer that joins the two, because stages keep the size of a
            latent.
    """

    def __init__(
        self,
        dim: int,
        layers: int,
        *,
        residual: bool,
        heads: int,
        position_dim: int | None,
        latent_norm: str,
        normalize_global: bool,
        classes: int = 0,
    ) -> None:
        super().__init__()
        self.latent_norm = latent_norm
        self.normalize_global = normalize_global
        stages = (layers - 1) // 2 if residual else layers - 1

        def local_stage() -> LatentStage:
            reading = LatentAttention(dim, dim, position_dim, position_dim, heads) if heads else None
            return LatentStage(dim, 0.01, residual, reading)

        self.local = nn.ModuleList(local_stage() for _ in range(stages))
        self.local_out = EqualLinear(dim, dim, lr_multiplier=0.01, leaky=True, widen=True)
        self.overall = nn.ModuleList(LatentStage(dim, 0.01, residual, attention=None) for _ in range(stages))
        self.overall_out = EqualLinear(dim, dim, lr_multiplier=0.01, leaky=True, widen=True)
        self.embedding = LabelEmbedding(classes, dim) if classes else None
        if classes:
            self.join_local = EqualLinear(2 * dim, dim, lr_multiplier=0.01, leaky=True, widen=True)
            self.join_overall = EqualLinear(2 * dim, dim, lr_multiplier=0.01, leaky=True, widen=True)

    def forward(
        self,
        z: Tensor,
        positions: Tensor | None,
        mask: Tensor | None,
        noise: Draws | None,
        dropout: float,
        labels: Tensor | None = None,
    ) -> Tensor:
        """Latents z to latents w.

        Args:
            z: local latents, then the global one, [B, m + 1, d].
            positions: position codes of the local latents, [m, d], or None.
            mask: added to the scores of local latents, [B, m], or None.
            noise: draws of the dropout by `mapping<stage>`, or None.
            dropout: probability of a dropped entry.
            labels: int64 [B], with classes.

        Returns:
            w, [B, m + 1, d].
        """
        local = rms_norm(z[:, :-1], (1, 2) if self.latent_norm == "joint" else 2)
        overall = rms_norm(z[:, -1:]) if self.normalize_global else z[:, -1:]
        if self.embedding is not None:
            label = self.embedding(labels)[:, None]  # [B, 1, d]
            local = self.join_local(torch.cat([local, label.expand_as(local)], dim=2))
            overall = self.join_overall(torch.cat([overall, label], dim=2))
        for index, stage in enumerate(self.local):
            draws = None if noise is None else noise.get(f"mapping{index}")
            local = stage(local, local, positions, positions, mask, draws, dropout)
        for stage in self.overall:
            overall = stage(overall)
        return torch.cat([self.local_out(local), self.overall_out(overall)], dim=1)
