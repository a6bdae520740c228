"""Conversion between feature maps and sequences of tokens."""

from __future__ import annotations

from torch import Tensor, nn


def pointwise(layer: nn.Module, x: Tensor) -> Tensor:
    """Apply a linear layer to every pixel of channels_last features: [B, C, H, W] to [B, C', H, W]."""
    made: Tensor = layer(x.permute(0, 2, 3, 1))
    return made.permute(0, 3, 1, 2)


def to_tokens(x: Tensor) -> Tensor:
    """Features [B, C, H, W] as [B, H·W, C]; a view of channels_last features."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def from_tokens(tokens: Tensor, height: int) -> Tensor:
    """The inverse of `to_tokens`: [B, H·W, C] as channels_last features [B, C, H, W]."""
    rows: Tensor = tokens.unflatten(1, (height, -1))
    return rows.permute(0, 3, 1, 2)
