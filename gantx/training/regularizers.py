"""Penalties on the slope of D, as pure functions.

`critic` maps images [B, 3, H, W] to logits [B]; it includes the augmentation, so a slope is taken with
respect to the images before augmentation. The slope is a `torch.func.grad` of a closure, which the compiler
can differentiate once more.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

Critic = Callable[[Tensor], Tensor]


def slope(critic: Critic, images: Tensor) -> Tensor:
    """Gradient [B, 3, H, W] of each image's logit with respect to the image, itself differentiable."""
    with sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
        gradient: Tensor = torch.func.grad(lambda x: critic(x).sum())(images)
    return gradient


def gradient_penalty(critic: Critic, real: Tensor, fake: Tensor, alpha: Tensor, target: float) -> Tensor:
    """WGAN-GP (Gulrajani et al. 2017, eq. 3), unweighted: mean of (‖slope‖ − target)² / target².

    Args:
        critic: images to logits.
        real: real images [B, 3, H, W].
        fake: generated images [B, 3, H, W], without graph.
        alpha: share of the real image in each mixture, uniform [B].
        target: the norm that costs nothing (φ in TransGAN's code).
    """
    mixed = fake + alpha.view(-1, 1, 1, 1) * (real - fake)
    squared = slope(critic, mixed).square().sum((1, 2, 3))  # [B]
    # The tiny constant keeps the derivative of the root finite where a slope is exactly zero.
    return ((squared + 1e-12).sqrt() - target).square().mean() / target**2


def zero_centered_penalty(critic: Critic, images: Tensor) -> Tensor:
    """R1 at real images or R2 at fakes (Mescheder et al. 2018, eq. 9), unweighted: mean of ‖slope‖² / 2."""
    return slope(critic, images).square().sum((1, 2, 3)).mean() / 2
