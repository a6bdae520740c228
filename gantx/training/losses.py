"""Adversarial losses: plain functions of logits.

`on_real` and `on_fake` are D's logits [B] for real and generated images. Every loss is a mean over the batch,
in nats where it is a logarithm. Formulas as in TransGAN's code (wgangp, hinge, lsgan), Goodfellow et al. 2014
(non-saturating) and Jolicoeur-Martineau 2019 / Huang et al. 2024 (relativistic pairing, RpGAN).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def discriminator_loss(name: str, on_real: Tensor, on_fake: Tensor, drift: float) -> Tensor:
    """What D minimises, penalties aside.

    Args:
        name: one of `ObjectiveConfig.loss`.
        on_real: logits [B].
        on_fake: logits [B]; the relativistic loss pairs them with `on_real` by index.
        drift: weight of (mean D(real))² in `wgangp-eps`: the square of the mean, not the mean of squares.

    Returns:
        A scalar.
    """
    match name:
        case "wgangp-eps":
            # A product: the derivative of a square saves one more number, and Triton 3.6 rejects the kernel
            # that the compiler then generates for this loss on a GPU.
            mean = on_real.mean()
            return on_fake.mean() - mean + drift * (mean * mean)
        case "wgangp":
            return on_fake.mean() - on_real.mean()
        case "hinge":
            return F.relu(1 - on_real).mean() + F.relu(1 + on_fake).mean()
        case "lsgan":
            return (on_real - 1).square().mean() + on_fake.square().mean()
        case "non-saturating":
            return F.softplus(-on_real).mean() + F.softplus(on_fake).mean()
        case "relativistic":
            return F.softplus(on_fake - on_real).mean()
    raise ValueError(f"unknown loss {name}")


def generator_loss(name: str, on_fake: Tensor, on_real: Tensor | None = None) -> Tensor:
    """What G minimises: a scalar. Only the relativistic loss uses `on_real` [B]."""
    match name:
        case "wgangp-eps" | "wgangp" | "hinge":
            return -on_fake.mean()
        case "lsgan":
            return (on_fake - 1).square().mean()
        case "non-saturating":
            return F.softplus(-on_fake).mean()
        case "relativistic":
            assert on_real is not None
            return F.softplus(on_real - on_fake).mean()
    raise ValueError(f"unknown loss {name}")
