"""95 % intervals of the scores: their variation with the sample of images.

Each function takes what the metric was computed from and a seed, and gives the same interval for the same
seed. An interval is about the mean score of as many images: it shows whether two checkpoints differ by more
than chance, and does not remove the bias of their number (FID grows when there are fewer).

| score | what is resampled | how |
|---|---|---|
| FID | generated images | jackknife over groups of them; extrapolates to infinitely many, too (`frechet`) |
| KID | real and generated images, subsets | bootstrap (`kernel`) |
| Inception Score | generated images | bootstrap within each split (`inception_score`) |
| precision | generated images | Wilson's interval of a share (`share`) |
| density | generated images | bootstrap (`mean`) |
| recall, coverage | real images | Wilson's interval of a share (`share`) |

Everything else stays fixed; with both sides resampled all but KID would move more.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from gantx.evaluation.feature_sets import checked
from gantx.evaluation.frechet import Gaussian, Moments
from gantx.evaluation.inception_score import score_of_split, split_rows
from gantx.evaluation.kernel_distance import kernel_of_itself, polynomial_kernel
from gantx.runtime.random import Draw, Spec, draw

# How each interval is computed, for records and documentation.
METHODS = {
    "fid": "jackknife over groups of generated images",
    "kid": "bootstrap over the images of both sides",
    "is": "bootstrap over the images of each split",
    "precision": "Wilson interval over generated images",
    "recall": "Wilson interval over real images",
    "density": "bootstrap over generated images",
    "coverage": "Wilson interval over real images",
}
_CPU = torch.device("cpu")
_GROUPS = 20  # of the jackknife
_LEAST = 2 * _GROUPS  # images; with fewer there is no interval of FID and KID
_T = 2.093  # 97.5 % quantile of Student's t with _GROUPS - 1 degrees of freedom
_Z = 1.960  # the same of the normal distribution
_REPLICATES = 500  # of a bootstrap
_KERNEL_ROWS = 5_000  # images of a side whose kernel values are computed
_BLOCK = 2**23  # elements computed at once


class Interval(NamedTuple):
    """Where a value lies with 95 % confidence."""

    low: float
    high: float


class FrechetIntervals(NamedTuple):
    """Jackknife estimates for a Fréchet distance at N images.

    Attributes:
        at_count: interval of the distance that the generator has on average at N images.
        limit: the distance extrapolated to infinitely many generated images; None for N <= 2 D.
        at_limit: interval of that limit, or None.
    """

    at_count: Interval
    limit: float | None
    at_limit: Interval | None


def frechet(
    mean: Tensor, covariance: Tensor, fake: Tensor, *, ddof: int = 1, seed: int = 0
) -> FrechetIntervals | None:
    """Intervals of the Fréchet distance to a fixed reference; None for fewer than 40 generated images.

    The distance is computed again without each of 20 random groups of images. The line through the distances
    at N and at 19 N / 20 images, over 1 / N, gives one estimate of the limit at 1 / N = 0 per group; the
    spread of these estimates is the standard error (Tukey's jackknife; extrapolation over 1 / N as in Chong
    and Forsyth 2020). The reference is fixed: that it is a sample itself is not in the intervals.

    The distance is not linear in 1 / N where N is only a few times D. The halves of the images show how much:
    the limit is corrected for it to second order, and its interval widened by as much on either side. Where a
    half has not more images than features, this cannot be estimated, and there is no limit.

    Costs 23 eigendecompositions [D, D] and three passes over the images.

    Args:
        mean: of the reference [D].
        covariance: of the reference [D, D].
        fake: features [N, D] of generated images.
        ddof: as the distance was computed.
        seed: of the groups.

    Raises:
        DataError: the reference or the features are not finite, or the matrix is no covariance.
    """
    count = len(fake)
    if count < _LEAST:
        return None
    fake = checked(fake)
    reference = Gaussian.of_moments(mean, covariance)
    trace = reference.factor.square().sum()

    def distance(moments: Moments) -> float:
        # Less exact than Gaussian.distance where covariances are singular, but enough for an interval.
        other = moments.covariance(ddof)
        roots = torch.linalg.eigvalsh(reference.factor.T @ other @ reference.factor).clamp(min=0).sqrt()
        shift = (reference.mean - moments.mean).square().sum()
        return float(shift + trace + other.trace() - 2 * roots.sum())

    order = _shuffled(count, seed, "fid")
    whole = Moments.of_features(fake)
    value = distance(whole)
    limits = []
    for rows in order.tensor_split(_GROUPS):
        without = distance(whole.without(Moments.of_features(fake[rows])))
        limits.append(value - (without - value) * (count - len(rows)) / len(rows))
    reach = _T * statistics.stdev(limits) / math.sqrt(_GROUPS)
    at_count = Interval(max(0.0, value - reach), value + reach)
    if count // 2 <= fake.shape[1]:
        return FrechetIntervals(at_count, None, None)
    halves = [distance(Moments.of_features(fake[rows])) for rows in order.tensor_split(2)]
    straight = statistics.fmean(limits)
    bend = straight - (2 * value - statistics.fmean(halves))
    limit, doubt = straight + bend, reach + abs(bend)
    at_limit = Interval(max(0.0, limit - doubt), max(0.0, limit + doubt))
    return FrechetIntervals(at_count, max(0.0, limit), at_limit)


def kernel(real: Tensor, fake: Tensor, distances: Tensor, *, seed: int = 0) -> Interval | None:
    """Interval of KID, whose mean does not depend on the number of images; None for fewer than 40 of a side.

    Bootstrap of the unbiased distance of all images: every image gets the number of times it was drawn as
    its weight, and no pair of an image with itself is counted, so that repetitions add no bias. Larger sets
    are represented by 5,000 images of each side, with weights pulled towards 1 as their number demands.
    The distance that is reported is a mean over random subsets; the variance of their choice is added.

    Args:
        real: features [N, D] of real images.
        fake: features [M, D] of generated images.
        distances: of the subsets, from `gantx.evaluation.kernel_distance`; their mean is KID.
        seed: of the bootstrap.
    """
    if min(len(real), len(fake)) < _LEAST:
        return None
    sides, weights, within = [], [], []
    for name, features in (("real", real), ("fake", fake)):
        rows = _shuffled(len(features), seed, f"kid/{name}")[:_KERNEL_ROWS]
        pull = math.sqrt(len(rows) / len(features))
        weights.append(1 + pull * (_weights(len(rows), seed, f"kid/{name}") - 1))
        sides.append(features.detach().cpu()[rows].float())
    # What all kernel values have in common cancels; without it float32 keeps the digits that matter.
    offset = float(polynomial_kernel(sides[0][:100], sides[1][:100]).mean())
    for side, weight in zip(sides, weights, strict=True):
        itself = kernel_of_itself(side) - offset
        squares = weight.square().double()
        pairs = weight.sum(1).double().square() - squares.sum(1)
        within.append((_kernel_sums(side, side, weight, weight, offset) - squares @ itself) / pairs)
    pairs = weights[0].sum(1).double() * weights[1].sum(1)
    across = _kernel_sums(sides[0], sides[1], weights[0], weights[1], offset) / pairs
    resampled = within[0] + within[1] - 2 * across  # [1 + B]
    choice = torch.stack([distances[rows].mean() for rows in _resamples(len(distances), seed, "kid")])
    return _quantiles(resampled[1:] - resampled[0] + choice)


def inception_score(logits: Tensor, *, splits: int = 10, seed: int = 0) -> Interval:
    """Interval of the Inception Score: the mean over splits, each resampled on its own.

    Resampled scores are lower than the score itself as that is lower than the one of infinitely many images;
    the interval lies about the score, with their spread.

    Args:
        logits: class scores [N, C], as for `gantx.evaluation.inception_score`.
        splits: contiguous parts.
        seed: of the bootstrap.
    """
    value, resampled = 0.0, torch.zeros(_REPLICATES, dtype=torch.float64)
    for index, rows in enumerate(split_rows(logits.detach().cpu(), splits)):
        scores = score_of_split(rows, _weights(len(rows), seed, f"is/{index}"))
        value += float(scores[0]) / splits
        resampled += scores[1:] / splits
    return _quantiles(value + resampled - resampled.mean())


def share(indicators: Tensor) -> Interval:
    """Wilson's interval of the share of true values: precision, recall, coverage.

    As a bootstrap of 0 and 1 would give, but not empty if all values are equal. The balls of the other
    set are fixed: precision is the share of all images the generator may generate that lies in the balls of
    these real images, recall the share of all real images in the balls of these generated ones.

    Args:
        indicators: bool [N], such as `Neighbours.precise`.
    """
    count, found = len(indicators), float(indicators.double().mean())
    centre = (found + _Z**2 / (2 * count)) / (1 + _Z**2 / count)
    reach = _Z / (1 + _Z**2 / count) * math.sqrt(found * (1 - found) / count + _Z**2 / (4 * count**2))
    # At the ends the difference is zero up to rounding, which would be shown as 1e-19.
    return Interval(
        max(0.0, centre - reach) if found > 0 else 0.0, min(1.0, centre + reach) if found < 1 else 1.0
    )


def mean(values: Tensor, *, seed: int = 0) -> Interval:
    """Interval of the mean of independent values by bootstrap: density.

    Args:
        values: [N], such as `Neighbours.density`.
        seed: of the bootstrap.
    """
    values = values.double()
    return _quantiles(torch.stack([values[rows].mean() for rows in _resamples(len(values), seed, "mean")]))


def _kernel_sums(x: Tensor, y: Tensor, left: Tensor, right: Tensor, offset: float) -> Tensor:
    """Sums over all pairs of (kernel - offset), weighted by each row of left [B, n] and right [B, m]: [B]."""
    sums = torch.zeros(len(left), dtype=torch.float64)
    size = max(1, _BLOCK // len(y))
    for rows, weight in zip(x.split(size), left.split(size, dim=1), strict=True):
        values = polynomial_kernel(rows, y).sub_(offset)  # [b, m]
        sums += (right @ values.T).mul_(weight).sum(1, dtype=torch.float64)
    return sums


def _weights(count: int, seed: int, name: str) -> Tensor:
    """How often each image counts: [1 + B, count], ones first, then the resamples."""
    drawn = [torch.bincount(rows, minlength=count) for rows in _resamples(count, seed, name)]
    return torch.stack([torch.ones(count, dtype=torch.int64), *drawn]).float()


def _resamples(count: int, seed: int, name: str) -> Iterator[Tensor]:
    """As many images as there are, drawn with replacement: their numbers [count], once per replicate."""
    spec: Spec = {"rows": Draw("integers", (count,), high=count)}
    for replicate in range(_REPLICATES):
        rows = draw(spec, seed=seed, stream=f"interval/{name}", step=replicate, device=_CPU)["rows"]
        assert isinstance(rows, Tensor)
        yield rows


def _shuffled(count: int, seed: int, name: str) -> Tensor:
    """The numbers 0 to count - 1 in random order."""
    spec: Spec = {"order": Draw("uniform", (count,))}
    order = draw(spec, seed=seed, stream=f"interval/{name}", step=0, device=_CPU)["order"]
    assert isinstance(order, Tensor)
    return order.argsort()


def _quantiles(resampled: Tensor) -> Interval:
    low, high = resampled.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Interval(low, high)
