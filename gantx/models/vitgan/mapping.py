"""The mapping network: latents to styles."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gantx.models.vitgan.linear import EqualizedLinear


class Mapping(nn.Module):
    """Mapping network: latents, normalised to unit mean square, through leaky linear layers (StyleGAN).

    Args:
        dim: channels in and out.
        depth: number of layers.
        lr_multiplier: relative rate at which they learn.
    """

    def __init__(self, dim: int, depth: int, lr_multiplier: float = 0.01) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            EqualizedLinear(dim, dim, lr_multiplier=lr_multiplier, gain=math.sqrt(2)) for _ in range(depth)
        )

    def forward(self, latents: Tensor) -> Tensor:
        """Latents [B, D] to styles [B, D], in the compute type."""
        styles = latents * torch.rsqrt(latents.square().mean(-1, keepdim=True) + 1e-8)
        for layer in self.layers:
            styles = F.leaky_relu(layer(styles), 0.2)
        return styles
