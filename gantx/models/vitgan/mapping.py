"""The mapping network: latents to styles."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gantx.models.layers.conditioning import LabelEmbedding
from gantx.models.vitgan.linear import EqualizedLinear


class Mapping(nn.Module):
    """Mapping network: latents, normalised to unit mean square, through leaky linear layers (StyleGAN).

    With classes, the normalised embedding of the label stands beside the latent as in StyleGAN2; ours, the
    paper has no classes.

    Args:
        dim: channels in and out.
        depth: number of layers.
        lr_multiplier: relative rate at which they learn.
        classes: number of classes, 0 for none.
    """

    def __init__(self, dim: int, depth: int, lr_multiplier: float = 0.01, classes: int = 0) -> None:
        super().__init__()
        inputs = [2 * dim if classes else dim] + [dim] * (depth - 1)
        self.layers = nn.ModuleList(
            EqualizedLinear(size, dim, lr_multiplier=lr_multiplier, gain=math.sqrt(2)) for size in inputs
        )
        self.embedding = LabelEmbedding(classes, dim) if classes else None

    def forward(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        """Latents [B, D], and labels [B] with classes, to styles [B, D] in the compute type."""
        styles = latents * torch.rsqrt(latents.square().mean(-1, keepdim=True) + 1e-8)
        if self.embedding is not None:
            styles = torch.cat([styles, self.embedding(labels)], dim=1)
        for layer in self.layers:
            styles = F.leaky_relu(layer(styles), 0.2)
        return styles
