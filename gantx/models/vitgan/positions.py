"""Initial tokens of the generator: sine features of coordinates, or a learned table."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class SineGrid(nn.Module):
    """Learned sine features of a square grid's coordinates: sin(A(x, y) + a), coordinates from −1 to 1.

    Args:
        side: points along each side.
        dim: number of features D.
    """

    coordinates: Tensor

    def __init__(self, side: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim, 2).uniform_(-1, 1) * math.sqrt(9 / 2))
        self.bias = nn.Parameter(torch.empty(dim).uniform_(-1, 1) * math.sqrt(1 / 2))
        line = torch.linspace(-1, 1, side)
        y, x = torch.meshgrid(line, line, indexing="ij")
        self.register_buffer("coordinates", torch.stack([x, y], dim=2).flatten(0, 1), persistent=False)

    def forward(self) -> Tensor:
        """Features [side², D] in raster order."""
        # No matrix product: phases and their sines are float32 for every compute type.
        phases = (self.coordinates[:, None] * self.weight).sum(2) + self.bias
        return phases.sin()


class TokenTable(nn.Module):
    """A learned vector for every position of a grid.

    Args:
        count: number of positions N.
        dim: channels D.
    """

    def __init__(self, count: int, dim: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(count, dim))

    def forward(self) -> Tensor:
        """The table, [N, D]."""
        return self.table
