"""Penalties as pure functions: on the input gradient of D, on its inconsistency, on path lengths of G.

`discriminate` maps images [B, C, H, W] to logits [B]; it includes the augmentation, so input gradients are
taken with respect to the images before augmentation. They are `torch.func.grad` of a closure, which the
compiler can differentiate again.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from gantx.models.layers.attention import twice_differentiable
from gantx.runtime.precision import widened

Discriminate = Callable[[Tensor], Tensor]
Synthesis = Callable[[Tensor], Tensor]


def input_gradient(discriminate: Discriminate, images: Tensor) -> Tensor:
    """Gradient [B, C, H, W] of each image's logit with respect to the image, itself differentiable."""
    with twice_differentiable():
        gradient: Tensor = torch.func.grad(lambda x: discriminate(x).sum())(images)
    return gradient


def gradient_penalty(
    discriminate: Discriminate, real: Tensor, fake: Tensor, alpha: Tensor, target: float
) -> Tensor:
    """WGAN-GP (Gulrajani et al. 2017, eq. 3), unweighted: mean of (‖∇D‖ − target)² / target².

    Args:
        discriminate: images to logits.
        real: real images [B, C, H, W].
        fake: generated images [B, C, H, W], without graph.
        alpha: weight of the real image in each mixture, uniform [B].
        target: the norm without penalty (φ in TransGAN's code).
    """
    mixed = fake + alpha.view(-1, 1, 1, 1) * (real - fake)
    squared = input_gradient(discriminate, mixed).square().sum((1, 2, 3))  # [B]
    # The constant makes the derivative of the root finite at a gradient of zero.
    return ((squared + 1e-12).sqrt() - target).square().mean() / target**2


def zero_centered_penalty(discriminate: Discriminate, images: Tensor) -> Tensor:
    """R1 at real images or R2 at fakes (Mescheder et al. 2018, eq. 9), unweighted: mean of ‖∇D‖² / 2."""
    return input_gradient(discriminate, images).square().sum((1, 2, 3)).mean() / 2


def inconsistency(on_view: Tensor, on_other: Tensor) -> Tensor:
    """Mean squared difference of the logits [B] of two views of the same images (bCR, arXiv 2002.04724)."""
    return (on_view - on_other).square().mean()


def path_lengths(synthesis: Synthesis, ws: Tensor, direction: Tensor) -> Tensor:
    """Change of an image per unit change of a style, root mean square over the styles (StyleGAN2).

    Args:
        synthesis: styles to images.
        ws: styles [B, L, D] or [B, K, L, D].
        direction: standard normal, of the shape of the images [B, C, H, W]: samples all directions.

    Returns:
        [B], differentiable.
    """
    unit = direction / math.sqrt(direction.shape[2] * direction.shape[3])
    ws = widened(ws)  # lengths are sums of squares, for which bf16 is too coarse
    with twice_differentiable():
        gradient: Tensor = torch.func.grad(lambda s: (synthesis(s) * unit).sum())(ws)
    # The constant makes the derivative of the root finite at a gradient of zero.
    return (gradient.square().sum(-1).flatten(1).mean(1) + 1e-12).sqrt()


def path_length_penalty(lengths: Tensor, mean: Tensor, decay: float) -> tuple[Tensor, Tensor]:
    """Squared deviation of path lengths from their running mean, unweighted (StyleGAN2, eq. 4).

    Args:
        lengths: [B], of `path_lengths`.
        mean: the running mean before this step, 0-d.
        decay: weight of the mean of `lengths` in the new running mean.

    Returns:
        The penalty (0-d), and the running mean after this step (0-d).
    """
    new_mean = mean.lerp(lengths.mean(), decay)
    return (lengths - new_mean).square().mean(), new_mean
