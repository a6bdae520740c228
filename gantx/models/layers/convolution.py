"""3x3 convolutions of features, as StyleGAN2 has them: of the same side, halving and doubling it.

The libraries under torch convolve on a CPU with 9 multiplications per pixel and pair of channels, close to
what the machine can do, and form the weight gradient of strided convolutions at a fraction of that. With
tiles of 4x4 results, Winograd's way (Lavin and Gray 2015, arXiv 1509.09308) needs 2.25: pixels and kernels
go to 6x6 points, are multiplied there, a matrix product over the channels, and come back. Convolutions that
halve or double the side need 6.25 instead of 9, their low-pass filter included.

Everything but the products of points is a matrix product with constants, so all of it can be differentiated
any number of times. In single precision it is as exact as the direct sum. In half precision it would not be,
and on a GPU the libraries are quicker: there, the convolutions of torch do the work.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gantx.models.layers.resampling import Resample, filter_matrix, low_pass

CHANNELS = 256  # with fewer, going to the points and back costs what the products save


class SameConvolution(nn.Module):
    """3x3 convolution with zeros outside, by a kernel that is given.

    Args:
        in_channels: input channels.
        out_channels: output channels.
        side: side S of the features.
    """

    def __init__(self, in_channels: int, out_channels: int, side: int) -> None:
        super().__init__()
        worthwhile = side in (32, 64) and min(in_channels, out_channels) >= CHANNELS
        self.points = PointConvolution(*same_points(side)) if worthwhile else None

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        """[B, in, S, S] and a kernel [out, in, 3, 3] to [B, out, S, S]."""
        if self.points is not None and by_points(x, weight):
            made: Tensor = self.points(x, weight)
            return made
        return F.conv2d(x, weight, padding=1)


class HalvingConvolution(nn.Module):
    """Low-pass filter, then a 3x3 convolution of stride 2, with zeros outside, by a kernel that is given.

    Args:
        in_channels: input channels.
        out_channels: output channels.
        side: side S of the features that come in.
    """

    def __init__(self, in_channels: int, out_channels: int, side: int) -> None:
        super().__init__()
        self.blur = Resample(in_channels, side, before=2, after=2, twice=True)
        worthwhile = side == 64 and min(in_channels, out_channels) >= CHANNELS
        self.points = PointConvolution(*halving_points(side)) if worthwhile else None

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        """[B, in, S, S] and a kernel [out, in, 3, 3] to [B, out, S/2, S/2]."""
        if self.points is not None and by_points(x, weight):
            made: Tensor = self.points(x, weight)
            return made
        return F.conv2d(self.blur(x), weight, stride=2)


class DoublingConvolution(nn.Module):
    """Transposed 3x3 convolution of stride 2, then the low-pass filter, by a kernel that is given.

    Args:
        in_channels: input channels.
        out_channels: output channels.
        side: side S of the features that come in.
    """

    def __init__(self, in_channels: int, out_channels: int, side: int) -> None:
        super().__init__()
        # The transposed convolution leaves zeros between pixels: a quarter of the brightness.
        self.blur = Resample(out_channels, 2 * side + 1, before=1, after=1, gain=4.0)
        worthwhile = side == 32 and min(in_channels, out_channels) >= CHANNELS
        self.points = PointConvolution(*doubling_points(side)) if worthwhile else None

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        """[B, in, S, S] and a kernel [out, in, 3, 3] to [B, out, 2S, 2S]."""
        if self.points is not None and by_points(x, weight):
            made: Tensor = self.points(x, weight)
            return made
        blurred: Tensor = self.blur(F.conv_transpose2d(x, weight.transpose(0, 1), stride=2))
        return blurred


# --- by products of points ----------------------------------------------------------------------------------


def by_points(x: Tensor, weight: Tensor) -> bool:
    """Whether products of points are the better way: single precision, a CPU, nothing that is exported."""
    exporting = torch.compiler.is_exporting() or torch.jit.is_tracing()  # type: ignore[attr-defined]
    single = x.dtype == weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    return x.device.type == "cpu" and single and not exporting


class PointConvolution(nn.Module):
    """A convolution by products of points: every tile of pixels becomes N x N points, and so does the kernel.

    Args:
        analysis: pixels of an axis to the points of its T tiles, [N, T, S].
        expansion: taps of an axis to points, [N, 3].
        synthesis: points of an axis to pixels, [S', N, T].
    """

    analysis: Tensor
    expansion: Tensor
    synthesis: Tensor

    def __init__(self, analysis: Tensor, expansion: Tensor, synthesis: Tensor) -> None:
        super().__init__()
        self.points = (len(expansion), len(expansion))
        self.tiled = analysis.shape[:2]
        # Constants that follow from the arguments: not saved.
        self.register_buffer("analysis", analysis.flatten(0, 1).float(), persistent=False)
        self.register_buffer("expansion", torch.kron(expansion, expansion).float(), persistent=False)
        self.register_buffer("synthesis", synthesis.flatten(1).float(), persistent=False)

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        """[B, in, S, S] and a kernel [out, in, 3, 3] to [B, out, S', S']."""
        taps = weight.flatten(0, 1).flatten(1).t()  # [9, out·in]
        kernels = (self.expansion @ taps).view(*self.points, *weight.shape[:2])  # [N, N, out, in]
        # One point of the vertical axis after the other, which leaves pieces small enough for a cache.
        # Stacking and unbinding are each other's derivatives; concatenating would leave zeros to be added up.
        rows = torch.stack(list(map(self._multiply, self._analyse(x).unbind(1), kernels.unbind(0))), dim=1)
        made: Tensor = self.synthesis @ rows.flatten(1, 2)  # [B, S', S'·out]
        features: Tensor = made.unflatten(2, (len(self.synthesis), -1))  # [B, S', S', out]
        return features.permute(0, 3, 1, 2)

    def _analyse(self, x: Tensor) -> Tensor:
        """Pixels [B, in, S, S] to points of the vertical axis, [B, N, T, S, in]."""
        pixels = x.permute(0, 2, 3, 1)
        points: Tensor = self.analysis @ pixels.flatten(2)  # [B, N·T, S·in]
        return points.view(len(x), *self.tiled, *pixels.shape[2:])

    def _multiply(self, pixels: Tensor, kernel: Tensor) -> Tensor:
        """Rows [B, T, S, in] at a vertical point, and kernels [N, out, in] there, to rows [B, T, S'·out]."""
        at = self.analysis @ pixels.flatten(0, 1)  # [B·T, N·T, in]
        at = at.unflatten(1, self.tiled).transpose(0, 1).flatten(1, 2)  # [N, B·T·T, in]
        at = (at @ kernel.transpose(1, 2)).unflatten(1, (-1, pixels.shape[1]))  # [N, B·T, T, out]
        made: Tensor = self.synthesis @ at.transpose(0, 1).flatten(1, 2)  # [B·T, S', out]
        return made.view(*pixels.shape[:2], -1)


def same_points(side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Constants of `PointConvolution` for `SameConvolution`: 4 results from 6 points."""
    # These points and infinity; 2 and -2, or 1/2 and -1/2, would triple the error.
    tile, analyse, expand, synthesise = 4, *toom_cook(4, (0.0, 1.0, -1.0, 0.5, -2.0), 3)
    tiles = side // tile
    analysis = torch.zeros(len(analyse), tiles, side + 2, dtype=torch.float64)
    synthesis = torch.zeros(side, len(analyse), tiles, dtype=torch.float64)
    for index, start in enumerate(range(0, side, tile)):
        analysis[:, index, start : start + len(analyse)] = analyse
        synthesis[start : start + tile, :, index] = synthesise
    return analysis[:, :, 1:-1], expand, synthesis  # around the features are zeros


def halving_points(side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Constants of `PointConvolution` for `HalvingConvolution`: 2 results from 5 points.

    The outer taps fall on even pixels of the filtered features, where 3 points give 2 results; the middle tap
    on odd ones, which are points as they are.
    """
    tile, analyse, expand, synthesise = 2, *toom_cook(2, (0.0, 1.0), 2)
    blur = filter_matrix(low_pass(), side, 1, 1, 2, 2).double()  # [S + 1, S]
    tiles, half = side // 2 // tile, side // 2
    analysis = torch.zeros(5, tiles, side, dtype=torch.float64)
    synthesis = torch.zeros(half, 5, tiles, dtype=torch.float64)
    for index, start in enumerate(range(0, half, tile)):
        reached = blur[2 * start : 2 * start + 2 * tile + 1]
        analysis[:3, index], analysis[3:, index] = analyse @ reached[::2], reached[1::2]
        synthesis[start : start + tile, :, index] = torch.cat([synthesise, torch.eye(tile)], dim=1)
    outer = F.pad(expand, [0, 1])[:, [0, 2, 1]]  # [3, 3]
    return analysis, torch.cat([outer, torch.tensor([[0.0, 1.0, 0.0]] * tile)]), synthesis


def doubling_points(side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Constants of `PointConvolution` for `DoublingConvolution`, which is the transpose of halving."""
    analysis, expansion, synthesis = halving_points(2 * side)
    return synthesis.permute(1, 2, 0), expansion, 2 * analysis.permute(2, 0, 1)  # four times as bright


def toom_cook(results: int, points: tuple[float, ...], taps: int) -> tuple[Tensor, Tensor, Tensor]:
    """A few results of a filter along one axis from as many products as there are points, infinity included.

    Evaluated at the points, polynomials are multiplied value by value. What evaluation and interpolation do
    to such a product, their transposes do to a correlation.

    Args:
        results: how many results.
        points: results + taps - 2 different numbers.
        taps: length of the filter.

    Returns:
        Pixels to points, [N, N]; taps to points, [N, taps]; points to results, [results, N].
    """

    def powers(count: int) -> Tensor:
        finite = torch.tensor(points, dtype=torch.float64)[:, None] ** torch.arange(count)
        infinite = torch.eye(count, dtype=torch.float64)[-1:]  # the highest power alone
        return torch.cat([finite, infinite])

    return torch.linalg.inv(powers(len(points) + 1)).t(), powers(taps), powers(results).t()
