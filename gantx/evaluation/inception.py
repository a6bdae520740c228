"""The Inception network of 2015 by which FID, KID and Inception Score are defined.

Notable in it:
- 23.9 M parameters, 2048 features and 1008 class scores of an image, both from one pass
- unlike later Inception-v3s: average pools leave padding out of the count, and the last block has a maximum
  pool in its pooling branch
- batch normalisation is folded into the convolutions, and tensors are channels-last: on a CPU 1.7 times as
  fast as the published form (benchmarks/inception_throughput.py), and equal to it within 1e-4 of the size of
  a feature

Weights come from gantx.evaluation.inception_weights.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEATURES, CLASSES = 2048, 1008


class Convolution(nn.Conv2d):
    """Convolution with bias, then ReLU."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, D, H', W']."""
        return super().forward(x).relu_()


class AverageConvolution(Convolution):
    """Convolution of 1×1 over the averages of 3×3 neighbours, then ReLU.

    The averages are taken after the convolution, of its fewer channels: the two commute, the bias included,
    because neighbours beyond the border do not count.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, D, H, W]."""
        convolved = F.conv2d(x, self.weight, self.bias)
        return F.avg_pool2d(convolved, 3, 1, 1, count_include_pad=False).relu_()


class Branches(nn.Module):
    """Sends its input through several branches and concatenates their channels, in order."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, sum of the branches' channels, H', W']."""
        return torch.cat([branch(x) for branch in self.branches], 1)


def _same(channels: int, out: int, kernel: int | tuple[int, int]) -> Convolution:
    """A convolution that keeps the size of the grid."""
    sides = kernel if isinstance(kernel, tuple) else (kernel, kernel)
    return Convolution(channels, out, sides, padding=(sides[0] // 2, sides[1] // 2))


def _valid(channels: int, out: int, kernel: int, stride: int = 1) -> Convolution:
    """A convolution without padding."""
    return Convolution(channels, out, kernel, stride)


def _average(channels: int, out: int) -> AverageConvolution:
    """The pooling branch of a block."""
    return AverageConvolution(channels, out, 1)


def _stem() -> nn.Sequential:
    """[B, 3, 299, 299] -> [B, 192, 35, 35]."""
    return nn.Sequential(
        _valid(3, 32, 3, stride=2),
        _valid(32, 32, 3),
        _same(32, 64, 3),
        nn.MaxPool2d(3, 2),
        _valid(64, 80, 1),
        _valid(80, 192, 3),
        nn.MaxPool2d(3, 2),
    )


def _block35(channels: int, pooled: int) -> Branches:
    return Branches(
        _same(channels, 64, 1),
        nn.Sequential(_same(channels, 48, 1), _same(48, 64, 5)),
        nn.Sequential(_same(channels, 64, 1), _same(64, 96, 3), _same(96, 96, 3)),
        _average(channels, pooled),
    )


def _reduce35(channels: int) -> Branches:
    return Branches(
        _valid(channels, 384, 3, stride=2),
        nn.Sequential(_same(channels, 64, 1), _same(64, 96, 3), _valid(96, 96, 3, stride=2)),
        nn.MaxPool2d(3, 2),
    )


def _block17(channels: int, middle: int) -> Branches:
    return Branches(
        _same(channels, 192, 1),
        nn.Sequential(_same(channels, middle, 1), _same(middle, middle, (1, 7)), _same(middle, 192, (7, 1))),
        nn.Sequential(
            _same(channels, middle, 1),
            _same(middle, middle, (7, 1)),
            _same(middle, middle, (1, 7)),
            _same(middle, middle, (7, 1)),
            _same(middle, 192, (1, 7)),
        ),
        _average(channels, 192),
    )


def _reduce17(channels: int) -> Branches:
    return Branches(
        nn.Sequential(_same(channels, 192, 1), _valid(192, 320, 3, stride=2)),
        nn.Sequential(
            _same(channels, 192, 1),
            _same(192, 192, (1, 7)),
            _same(192, 192, (7, 1)),
            _valid(192, 192, 3, stride=2),
        ),
        nn.MaxPool2d(3, 2),
    )


def _block8(channels: int, pooling: nn.Module) -> Branches:
    def cross() -> Branches:
        return Branches(_same(384, 384, (1, 3)), _same(384, 384, (3, 1)))

    return Branches(
        _same(channels, 320, 1),
        nn.Sequential(_same(channels, 384, 1), cross()),
        nn.Sequential(_same(channels, 448, 1), _same(448, 384, 3), cross()),
        pooling,
    )


class Inception(nn.Module):
    """Images of 299×299 to features and class scores.

    Args:
        centred: pixels become (x - 128) / 128, as in TensorFlow; otherwise 2 · x / 255 - 1, as in
            pytorch-fid; the features differ accordingly.
    """

    def __init__(self, *, centred: bool) -> None:
        super().__init__()
        self.centred = centred
        self.stem = _stem()
        self.blocks = nn.Sequential(
            _block35(192, 32),
            _block35(256, 64),
            _block35(288, 64),
            _reduce35(288),
            _block17(768, 128),
            _block17(768, 160),
            _block17(768, 160),
            _block17(768, 192),
            _reduce17(768),
            _block8(1280, _average(1280, 192)),
            _block8(2048, nn.Sequential(nn.MaxPool2d(3, 1, 1), _same(2048, 192, 1))),
        )
        self.output = nn.Linear(FEATURES, CLASSES)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Compute features and class scores.

        Args:
            pixels: float32 [B, 3, 299, 299] in 0..255, from `gantx.evaluation.resizing.resize`.

        Returns:
            Features of the last pool [B, 2048] and class scores [B, 1008]. The scores leave out
            `output.bias`, as the Inception Score of Salimans et al. (2016) was computed.
        """
        x = (pixels - 128) / 128 if self.centred else 2 * (pixels / 255) - 1
        # Convolutions on a CPU are much faster in channels-last.
        x = x.contiguous(memory_format=torch.channels_last)
        x = self.blocks(self.stem(x))  # [B, 2048, 8, 8]
        features = x.mean((2, 3))
        return features, features @ self.output.weight.T
