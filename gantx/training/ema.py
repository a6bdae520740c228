"""Exponential moving averages: of the generator's weights, for sampling and scores, and of its styles."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from gantx.models.interfaces import Generator
from gantx.runtime.flat import flatten_buffers, flatten_parameters
from gantx.training.optimized_network import OptimizedNetwork


class Average:
    """The running average of a generator's parameters; saved buffers are copied.

    Args:
        of: the generator that is averaged. The average starts with the same weights.

    Attributes:
        network: the average, without gradients; computes in float32.
        weights: all its parameters [n]; they are views of it.
        buffers: all its saved buffers; they are views of it.
    """

    def __init__(self, of: OptimizedNetwork[Generator]) -> None:
        self.network = copy.deepcopy(of.network).requires_grad_(False).eval()
        for parameter in self.network.parameters():
            parameter.grad = None
        self.weights = flatten_parameters(self.network)
        self.buffers = flatten_buffers(self.network)
        self._of = of
        # A tensor on the device: the schedule writes it, and a captured update reads it.
        self._share = torch.zeros((), device=self.weights.device)
        self._beta = 1.0

    def set_beta(self, beta: float) -> None:
        """Set the weight of the old average in the updates that follow."""
        if beta != self._beta:
            self._beta = beta
            self._share.fill_(1 - beta)

    @torch.no_grad()
    def update(self) -> None:
        """average ← beta·average + (1 − beta)·network; buffers are copied."""
        self.weights.lerp_(self._of.weights, self._share)
        self.buffers.copy_(self._of.buffers)


@torch.no_grad()
def follow_styles(w_avg: Tensor, styles: Tensor) -> None:
    """w_avg ← 0.995·w_avg + 0.005·styles, in place (StyleGAN2); both [D], `styles` the mean of a step's."""
    w_avg.lerp_(styles.to(w_avg.dtype), 0.005)
