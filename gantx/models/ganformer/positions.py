"""Position codes of a token grid."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def directions_of(side: int, count: int) -> Tensor:
    """Coordinate of every token along `count` directions between 0 and 180 degrees, [count, side²].

    Columns and rows run from -1 to 1; direction 0 is that of the columns.
    """
    line = torch.linspace(-1, 1, side)
    columns, rows = line.repeat(side), line.repeat_interleave(side)
    angles = torch.arange(count)[:, None] * (math.pi / count)
    return columns * angles.cos() + rows * angles.sin()


def sine_grid(side: int, dim: int, directions: int) -> Tensor:
    """Sines and cosines of every token's coordinates, [side², dim], direction by direction.

    Args:
        side: side of the grid of tokens.
        dim: size of the code; 2·directions divides it.
        directions: how many directions share it.
    """
    count = dim // (2 * directions)
    frequencies = 10_000.0 ** (-torch.arange(count) / count)
    phases = directions_of(side, directions)[:, :, None] * frequencies  # [directions, side², count]
    return torch.cat([phases.sin(), phases.cos()], dim=2).transpose(0, 1).flatten(1)


class GridCode(nn.Module):
    """Position codes of the tokens of a grid.

    Args:
        side: side of the grid of tokens.
        dim: size p of the code.
        kind: `sine`, fixed; `linear`, coordinates times a learned vector per direction; `trainable`, a
            learned half for each column and one for each row; `trainable2d`, learned for each token.
        directions: directions of `sine` and `linear`.
    """

    def __init__(self, side: int, dim: int, kind: str, directions: int) -> None:
        super().__init__()
        self.kind = kind
        self.table: Tensor
        self.along: Tensor
        if kind == "sine":
            self.register_buffer("table", sine_grid(side, dim, directions), persistent=False)
        elif kind == "linear":
            self.register_buffer("along", directions_of(side, directions), persistent=False)
            self.vectors = nn.Parameter(torch.rand(directions, dim // directions))
        elif kind == "trainable":
            self.columns = nn.Parameter(torch.rand(side, dim // 2))
            self.rows = nn.Parameter(torch.rand(side, dim // 2))
        else:
            self.table = nn.Parameter(torch.rand(side**2, dim))

    def forward(self) -> Tensor:
        """The codes of all tokens in raster order, [side², p]."""
        if self.kind == "linear":
            return (self.along.t()[:, :, None] * self.vectors).flatten(1)
        if self.kind == "trainable":
            side = len(self.rows)
            columns, rows = self.columns.repeat(side, 1), self.rows.repeat_interleave(side, dim=0)
            return torch.cat([columns, rows], dim=1)
        return self.table
