"""What ViTGAN's authors plot of a discriminator: how steep its layers and itself are, where it looks."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from gantx.training.regularizers import input_gradient


@torch.no_grad()
def diagnose(discriminator: nn.Module, images: Tensor) -> dict[str, float]:
    """Figures of a discriminator, under names for metrics.jsonl.

    Args:
        discriminator: a network of `gantx.models`; judges without noise and without augmentation.
        images: real images [B, 3, H, W].

    Returns:
        `spectral_norm/<layer>` of every weight matrix, as it multiplies or as it is stored; `input_gradient`,
        the mean norm of the slope of D at the images; `attention_entropy/<layer>`, the mean entropy of
        attention in units of its largest value, for a discriminator that shows its attention.
    """
    gradient = input_gradient(discriminator, images).square().sum((1, 2, 3)).sqrt().mean()
    found = {
        **{f"spectral_norm/{name}": value for name, value in spectral_norms(discriminator).items()},
        "input_gradient": gradient,
        **{f"attention_entropy/{name}": value for name, value in entropies(discriminator, images).items()},
    }
    values = torch.stack([value.float() for value in found.values()]).tolist()  # one copy from the device
    return {f"diagnostics/{name}": float(f"{value:.6g}") for name, value in zip(found, values, strict=True)}


def spectral_norms(network: nn.Module) -> dict[str, Tensor]:
    """The largest singular value (0-d) of every weight of two axes or more, by the name of its layer.

    Layers that scale or normalise their weight tell it by `effective_weight`; kernels count as matrices
    [out, in·k·k].
    """
    found = {}
    for name, module in network.named_modules():
        layer: Any = module
        weight = layer.effective_weight() if hasattr(layer, "effective_weight") else None
        if weight is None:
            weight = getattr(layer, "weight", None)
        if isinstance(weight, Tensor) and weight.ndim >= 2:
            found[name] = torch.linalg.matrix_norm(weight.flatten(1).float(), 2)
    return found


def entropies(discriminator: Any, images: Tensor) -> dict[str, Tensor]:
    """Mean entropy (0-d) of attention over n keys, in units of ln n, by layer; {} where none is shown."""
    if not hasattr(discriminator, "attention"):
        return {}
    maps: dict[str, Tensor] = discriminator.attention(images)  # each [B, h, N, n]
    return {
        name: torch.special.entr(shares.float()).sum(3).mean() / math.log(shares.shape[3])
        for name, shares in maps.items()
    }
