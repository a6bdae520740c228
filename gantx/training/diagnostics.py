"""Figures of a discriminator as in ViTGAN's paper: spectral norms, input gradient, attention entropy."""

from __future__ import annotations

import math
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from gantx.models.interfaces import Discriminator
from gantx.training.regularizers import input_gradient


@runtime_checkable
class _ExposesAttention(Protocol):
    def attention(self, images: Tensor) -> dict[str, Tensor]: ...


@torch.no_grad()
def diagnose(discriminator: Discriminator, images: Tensor, labels: Tensor | None = None) -> dict[str, float]:
    """Figures of a discriminator, under names for metrics.jsonl.

    Args:
        discriminator: a network of `gantx.models`; it gets no noise and no augmented images.
        images: real images [B, C, H, W].
        labels: their labels [B], for a conditional discriminator.

    Returns:
        `spectral_norm/<layer>` of every weight matrix, as it is used or as it is stored; `input_gradient`,
        the mean norm of the gradient of D at the images; `attention_entropy/<layer>`, the mean entropy of
        attention relative to its maximum, for a discriminator that exposes its attention.
    """
    gradient = (
        input_gradient(lambda x: discriminator(x, labels=labels), images)
        .square()
        .sum((1, 2, 3))
        .sqrt()
        .mean()
    )
    figures = {
        **{f"spectral_norm/{name}": value for name, value in spectral_norms(discriminator).items()},
        "input_gradient": gradient,
        **{f"attention_entropy/{name}": value for name, value in entropies(discriminator, images).items()},
    }
    values = torch.stack([value.float() for value in figures.values()]).tolist()  # one copy from the device
    return {f"diagnostics/{name}": float(f"{value:.6g}") for name, value in zip(figures, values, strict=True)}


def spectral_norms(network: nn.Module) -> dict[str, Tensor]:
    """The largest singular value (0-d) of every weight of two axes or more, by the name of its layer.

    Layers that scale or normalise their weight return it from `effective_weight`; convolution kernels are
    flattened to matrices [out, in·k·k].
    """
    norms = {}
    for name, module in network.named_modules():
        layer: Any = module
        weight = layer.effective_weight() if hasattr(layer, "effective_weight") else None
        if weight is None:
            weight = getattr(layer, "weight", None)
        if isinstance(weight, Tensor) and weight.ndim >= 2:
            norms[name] = torch.linalg.matrix_norm(weight.flatten(1).float(), 2)
    return norms


def entropies(discriminator: Discriminator, images: Tensor) -> dict[str, Tensor]:
    """Mean entropy (0-d) of attention over n keys, divided by ln n, by layer; {} without `attention`."""
    if not isinstance(discriminator, _ExposesAttention):
        return {}
    maps = discriminator.attention(images)  # each [B, h, N, n]
    return {
        name: torch.special.entr(weights.float()).sum(3).mean() / math.log(weights.shape[3])
        for name, weights in maps.items()
    }
