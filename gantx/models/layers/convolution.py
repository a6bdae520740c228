"""3x3 convolutions of features, as StyleGAN2 has them: of the same side, halving and doubling it.

The libraries under torch convolve on a CPU with 9 multiplications per pixel and pair of channels, close to
what the machine can do, and form the weight gradient of strided convolutions at a fraction of that. With
tiles of 4x4 results, Winograd's way (Lavin and Gray 2015, arXiv 1509.09308) needs 2.25: pixels and kernels
go to 6x6 points, are multiplied there, a matrix product over the channels, and come back. Convolutions that
halve or double the side need 6.25 instead of 9, their low-pass filter included.

Points take several times the memory of pixels, so they are made anew for the derivatives, which are such
convolutions again: all of it can be differentiated any number of times. In single precision it is as exact
as the direct sum. In half precision it would not be, and on a GPU the libraries are quicker: there, the
convolutions of torch do the work.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gantx.models.layers.resampling import Resample, filter_matrix, low_pass

CHANNELS = 256  # with fewer, going to the points and back costs what the products save
IMAGES = 4  # convolved at a time, since points take several times the memory of features


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

    For derivatives it keeps features and kernel, not their points, which are a multiple of them in size.

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
        # Constants that follow from the arguments: not saved.
        self.register_buffer("analysis", analysis.flatten(0, 1).float(), persistent=False)
        self.register_buffer("expansion", torch.kron(expansion, expansion).float(), persistent=False)
        self.register_buffer("synthesis", synthesis.flatten(1).float(), persistent=False)

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        """[B, in, S, S] and a kernel [out, in, 3, 3] to [B, out, S', S']."""
        constants = Constants(self.analysis, self.expansion, self.synthesis)
        # A compiler decides by itself what to keep, and differentiates no function of ours twice.
        if torch.compiler.is_compiling():
            return convolve(x, weight, constants)
        made: Tensor = _Convolution.apply(x, weight, *constants)
        return made


class Constants(NamedTuple):
    """What a convolution by products of points multiplies with.

    Attributes:
        analysis: pixels of an axis to its points, [N·T, S].
        expansion: taps to points, [N·N, 9].
        synthesis: points of an axis to pixels, [S', N·T].
    """

    analysis: Tensor
    expansion: Tensor
    synthesis: Tensor

    def transposed(self) -> Constants:
        """Those of the transposed convolution."""
        return Constants(self.synthesis.t(), self.expansion, self.analysis.t())

    @property
    def points(self) -> int:
        """The number N of points along an axis of a tile."""
        return math.isqrt(len(self.expansion))

    def expansion_of(self, row: int) -> Tensor:
        """Taps to a row of points, [N, 9]."""
        return self.expansion[row * self.points : (row + 1) * self.points]


def convolve(x: Tensor, weight: Tensor, constants: Constants) -> Tensor:
    """Convolve features [B, in, S, S] by a kernel [out, in, 3, 3] to [B, out, S', S'] in channels_last."""
    lines, taps = _no_lines(x, len(weight), constants), _taps(weight)
    for row, points in enumerate(_points(x, constants)):
        kernels = _kernels(row, taps, weight, constants)
        lines[:, row] = _to_lines(points @ kernels.transpose(1, 2), len(x), constants)
    return _to_features(lines, constants)


def correlate(x: Tensor, y: Tensor, constants: Constants) -> Tensor:
    """The derivative of `convolve` by its kernel: x [B, in, S, S], y [B, out, S', S'] to [out, in, 3, 3]."""
    sums, points = None, _points(y, constants.transposed())
    for row, of_x in enumerate(_points(x, constants)):
        sums = _add_taps(sums, of_x, next(points), row, constants)
    return _to_kernel(sums, y.shape[1])


def derivatives(x: Tensor, weight: Tensor, y: Tensor, constants: Constants) -> tuple[Tensor, Tensor]:
    """Both derivatives of `convolve` in the direction y [B, out, S', S'], whose points serve twice."""
    back, taps, sums = constants.transposed(), _taps(weight), None
    lines = _no_lines(y, weight.shape[1], back)
    points = _points(x, constants)
    for row, of_y in enumerate(_points(y, back)):
        sums = _add_taps(sums, next(points), of_y, row, constants)
        kernels = _kernels(row, taps, weight, constants)
        lines[:, row] = _to_lines(of_y @ kernels, len(x), back)
    return _to_features(lines, back), _to_kernel(sums, len(weight))


# Tiles have N x N points. One row of them after the other leaves pieces small enough for a cache.


def _points(x: Tensor, constants: Constants) -> Iterator[Tensor]:
    """Features [B, C, S, S] as row after row of the points of all tiles, [N, B·T·T, C] each."""
    tiled = constants.points, len(constants.analysis) // constants.points
    pixels = x.permute(0, 2, 3, 1)
    # Half of the rows at once: one by one would take longer, all of them twice the memory.
    for some in constants.analysis.unflatten(0, tiled).split(-(-constants.points // 2)):
        lines = (some.flatten(0, 1) @ pixels.flatten(2)).unflatten(1, (-1, tiled[1]))  # [B, N/2, T, S·C]
        for row in lines.unbind(1):
            # Without a name for the product [B·T, N·T, C]: it would stay until the next row.
            yield _in_front(constants.analysis @ row.reshape(-1, *pixels.shape[2:]), tiled)


def _in_front(points: Tensor, tiled: tuple[int, int]) -> Tensor:
    """Points [B·T, N·T, C] as [N, B·T·T, C]."""
    apart: Tensor = points.unflatten(1, tiled)
    return apart.transpose(0, 1).flatten(1, 2)


def _no_lines(x: Tensor, channels: int, constants: Constants) -> Tensor:
    """Room for lines of pixels from each row of points, [B, N, T, S'·C]."""
    tiles = constants.synthesis.shape[1] // constants.points
    return x.new_empty(len(x), constants.points, tiles, len(constants.synthesis) * channels)


def _to_lines(points: Tensor, batch: int, constants: Constants) -> Tensor:
    """A row of points [N, B·T·T, C] to lines of pixels, [B, T, S'·C]."""
    tiles = constants.synthesis.shape[1] // len(points)
    points = points.unflatten(1, (-1, tiles)).transpose(0, 1).flatten(1, 2)  # [B·T, N·T, C]
    lines: Tensor = constants.synthesis @ points  # [B·T, S', C]
    return lines.view(batch, tiles, -1)


def _to_features(lines: Tensor, constants: Constants) -> Tensor:
    """Lines of pixels from each row of points, [B, N, T, S'·C], to features [B, C, S', S']."""
    pixels: Tensor = constants.synthesis @ lines.flatten(1, 2)  # [B, S', S'·C]
    features: Tensor = pixels.unflatten(2, (len(constants.synthesis), -1))
    return features.permute(0, 3, 1, 2)


def _taps(weight: Tensor) -> Tensor:
    """A kernel [out, in, 3, 3] as [9, out·in]."""
    return weight.flatten(2).flatten(0, 1).t()


def _kernels(row: int, taps: Tensor, weight: Tensor, constants: Constants) -> Tensor:
    """What a row of points is multiplied with, [N, out, in]."""
    kernels: Tensor = constants.expansion_of(row) @ taps  # [N, out·in]
    return kernels.view(-1, *weight.shape[:2])


def _add_taps(sums: Tensor | None, x: Tensor, y: Tensor, row: int, constants: Constants) -> Tensor:
    """What a row of points [N, P, in] and [N, P, out] adds to the taps, on top of `sums`: [9, out·in]."""
    products = (y.transpose(1, 2) @ x).flatten(1)  # [N, out·in]
    expansion = constants.expansion_of(row).t()
    return expansion @ products if sums is None else sums.addmm_(expansion, products)


def _to_kernel(taps: Tensor | None, out_channels: int) -> Tensor:
    """Taps [9, out·in] as a kernel [out, in, 3, 3]."""
    assert taps is not None
    return taps.t().reshape(out_channels, -1, 3, 3)


def _joined(parts: list[Tensor]) -> Tensor:
    """Concatenate along the batch."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)


class _Convolution(torch.autograd.Function):
    """`convolve`, whose derivatives are such convolutions and correlations again."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, *constants: Tensor) -> Tensor:
        return _joined([convolve(some, weight, Constants(*constants)) for some in x.split(IMAGES)])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, *rest = ctx.saved_tensors
        constants = Constants(*rest)
        for_x, for_weight = ctx.needs_input_grad[:2]
        if for_x and for_weight and not torch.is_grad_enabled():
            pairs = zip(x.split(IMAGES), gradient.split(IMAGES), strict=True)
            parts = [derivatives(some, weight, y, constants) for some, y in pairs]
            of_x, of_weight = (list(each) for each in zip(*parts, strict=True))
            return _joined(of_x), functools.reduce(torch.add, of_weight), None, None, None
        back = constants.transposed()
        return (
            _Convolution.apply(gradient, weight.transpose(0, 1), *back) if for_x else None,
            _Correlation.apply(x, gradient, *constants) if for_weight else None,
            *(None, None, None),
        )


class _Correlation(torch.autograd.Function):
    """`correlate`, the other of the two."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, y: Tensor, *constants: Tensor) -> Tensor:
        pairs = zip(x.split(IMAGES), y.split(IMAGES), strict=True)
        return functools.reduce(torch.add, (correlate(*pair, Constants(*constants)) for pair in pairs))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, y, *rest = ctx.saved_tensors
        constants = Constants(*rest)
        for_x, for_y = ctx.needs_input_grad[:2]
        back = constants.transposed()
        return (
            _Convolution.apply(y, gradient.transpose(0, 1), *back) if for_x else None,
            _Convolution.apply(x, gradient, *constants) if for_y else None,
            *(None, None, None),
        )


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
