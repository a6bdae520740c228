"""Running averages: of the generator, the network that is sampled and scored, and of its styles."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


def averaged(network: nn.Module) -> nn.Module:
    """A copy of `network` that starts as its average: same weights, no gradients."""
    return copy.deepcopy(network).requires_grad_(False).eval()


@torch.no_grad()
def update(average: nn.Module, network: nn.Module, beta: float) -> None:
    """average ← beta·average + (1 − beta)·network, parameter by parameter; buffers are copied."""
    olds: list[Tensor] = list(average.parameters())
    news: list[Tensor] = list(network.parameters())
    torch._foreach_lerp_(olds, news, 1 - beta)
    current = dict(network.named_buffers())
    for name, buffer in average.named_buffers():
        buffer.copy_(current[name])


@torch.no_grad()
def follow_styles(w_avg: Tensor, styles: Tensor) -> None:
    """Let `w_avg` [D] go 0.005 of its way to `styles` [D], the mean of a step's, in place (StyleGAN2)."""
    w_avg.lerp_(styles.to(w_avg.dtype), 0.005)
