"""Precision, recall, density and coverage: nearest neighbours within and between two sets of features.

Distances are computed in blocks. Float32 bounds that certainly contain a distance decide nearly every
comparison; the few they leave open are decided by exact distances, ties included.

Features are float32 [N, D] as a network gives them; everything is computed on the CPU, in float64 where it
matters. `real` is the reference set, `fake` the generated one.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gantx.evaluation.feature_sets import comparable, rows_per_block
from gantx.runtime.precision import full_precision

_EXTRA_CANDIDATES = 4  # beyond the k nearest: the fewer, the more rows must be searched again


class Neighbours(NamedTuple):
    """The relation of each image to the other set; the metrics are the means of these.

    Attributes:
        precise: the fake image lies in the ball of some real one, bool [M]; precision.
        recalled: the real image lies in the ball of some fake one, bool [N]; recall.
        density: real balls the fake image lies in, divided by k, float64 [M]; may exceed 1.
        covered: some fake image lies in the real image's ball, bool [N]; coverage.
    """

    precise: Tensor
    recalled: Tensor
    density: Tensor
    covered: Tensor


@full_precision()  # the bounds of the distances rely on it
def neighbours(
    *,
    real: Tensor,
    fake: Tensor,
    pr_k: int = 3,
    dc_k: int = 5,
    pr_closed: bool = True,
    dc_closed: bool = False,
) -> Neighbours:
    """Per-image values of the four neighbour metrics, in one pass over the pairs of images.

    The ball of an image reaches to its k-th nearest other image of its own set. Memory is bounded by a block
    of pairs, time by three products of all pairs.

    Args:
        real: features [N, D] of real images.
        fake: features [M, D] of generated images.
        pr_k: k of precision and recall (Kynkäänniemi et al. 2019).
        dc_k: k of density and coverage (Naeem et al. 2020).
        pr_closed: an image on the surface counts for precision and recall, as their authors define them.
        dc_closed: the same for density and coverage, whose authors do not count it.

    Raises:
        DataError: not more than k images on a side, features that are not finite or of different networks.
    """
    most = max(pr_k, dc_k)
    real, fake = comparable(real, fake, most + 1, f"{most} nearest neighbours")
    real_radii = _neighbour_distances(real, most)
    pr_radii, dc_radii = real_radii[:, pr_k - 1], real_radii[:, dc_k - 1]
    fake_radii = _neighbour_distances(fake, pr_k)[:, pr_k - 1]
    precise = torch.zeros(len(fake), dtype=torch.bool)
    recalled = torch.zeros(len(real), dtype=torch.bool)
    balls = torch.zeros(len(fake), dtype=torch.int64)
    covered = torch.zeros(len(real), dtype=torch.bool)
    bounds = _DistanceBounds(fake, torch.float32)
    for rows in torch.arange(len(real)).split(rows_per_block(len(fake))):
        block = real[rows]
        low, high = bounds.of(block)
        inside = _within(low, high, pr_radii[rows, None], pr_closed, block, fake)
        precise |= inside.any(0)
        inside = _within(low, high, fake_radii[None], pr_closed, block, fake)
        recalled[rows] = inside.any(1)
        inside = _within(low, high, dc_radii[rows, None], dc_closed, block, fake)
        balls += inside.sum(0)
        covered[rows] = inside.any(1)
    return Neighbours(precise, recalled, balls.double() / dc_k, covered)


def _neighbour_distances(features: Tensor, k: int) -> Tensor:
    """Exact distances of each image to its k nearest others, ascending: float64 [N, k]."""
    distances = torch.empty(len(features), k, dtype=torch.float64)
    uncertain = torch.arange(len(features))
    # Float64 is for images much closer to each other than to the mean of all: the modes of a collapse.
    for dtype in (torch.float32, torch.float64):
        bounds = _DistanceBounds(features, dtype)
        left = []
        for rows in uncertain.split(rows_per_block(len(features))):
            distances[rows], certain = _nearest(features, rows, k, bounds)
            left.append(rows[~certain])
        uncertain = torch.cat(left)
        if not len(uncertain):
            return distances
    everything = torch.arange(len(features))
    for row in uncertain:
        exact = _exact_distances(features, row.expand(len(features)), features, everything)
        exact[row] = torch.inf
        distances[row] = exact.topk(k, largest=False).values
    return distances


def _nearest(features: Tensor, rows: Tensor, k: int, bounds: _DistanceBounds) -> tuple[Tensor, Tensor]:
    """Distances of `rows` to their k nearest others [n, k], and which rows of them are certain [n]."""
    low, _ = bounds.of(features[rows])  # [n, N]
    low[torch.arange(len(rows)), rows] = torch.inf  # not its own neighbour; its duplicates are
    others = len(features) - 1
    candidates = low.topk(min(k + _EXTRA_CANDIDATES, others), largest=False)  # [n, c]
    owners = rows.repeat_interleave(candidates.indices.shape[1])
    exact = _exact_distances(features, owners, features, candidates.indices.flatten())
    nearest = exact.view_as(candidates.values).topk(k, largest=False).values
    # All other rows are at least as far away as the lower bound of the last candidate.
    certain = nearest[:, -1].square() <= candidates.values[:, -1].clamp(min=0)
    return nearest, certain | (candidates.indices.shape[1] == others)


class _DistanceBounds:
    """Bounds of squared distances by one matrix product, valid for any rounding.

    |x - y|² = |x|² + |y|² - 2x·y with the mean subtracted first. The product's rounding is at most
    D·u·|x||y| for unit roundoff u; with that of the centring and the sums it stays below
    (D / 2 + 16)·2u·(|x|² + |y|²).

    Args:
        others: the set [M, D] that rows are compared with.
        dtype: of the product.
    """

    def __init__(self, others: Tensor, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.slack = (others.shape[1] / 2 + 16) * torch.finfo(dtype).eps
        self.centre = others.mean(0).to(torch.promote_types(others.dtype, dtype))
        self.others = self._centred(others)
        self.norms = self._squares(self.others)

    def of(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Lower and upper bounds [n, M] of the squared distances of rows [n, D]."""
        rows = self._centred(rows)
        norms = self._squares(rows)[:, None] + self.norms
        low = torch.addmm(norms, rows, self.others.T, beta=1 - self.slack, alpha=-2)
        return low, norms.mul_(2 * self.slack).add_(low)

    def _centred(self, rows: Tensor) -> Tensor:
        return (rows.to(self.centre.dtype) - self.centre).to(self.dtype)

    def _squares(self, rows: Tensor) -> Tensor:
        parts = rows.split(rows_per_block(rows.shape[1]))
        return torch.cat([part.double().square().sum(1) for part in parts]).to(self.dtype)


def _within(low: Tensor, high: Tensor, radii: Tensor, closed: bool, rows: Tensor, others: Tensor) -> Tensor:
    """Which pairs are no farther apart than the radius, or nearer where the ball is open: bool [n, M].

    Args:
        low: lower bounds of the squared distances [n, M].
        high: upper bounds [n, M].
        radii: float64, of the rows [n, 1] or of the others [1, M].
        closed: the surface belongs to the ball.
        rows: features [n, D].
        others: features [M, D].
    """
    squares = radii.square().to(low.dtype)
    inside = high < squares
    row, other = ((low <= squares) & ~inside).nonzero(as_tuple=True)
    exact, limit = _exact_distances(rows, row, others, other), radii.expand_as(low)[row, other]
    inside[row, other] = exact <= limit if closed else exact < limit
    return inside


def _exact_distances(x: Tensor, rows: Tensor, y: Tensor, others: Tensor) -> Tensor:
    """Distances of the pairs x[rows[i]], y[others[i]], float64 [n].

    From differences, and for every pair in the same order: equal distances tie in either order of the sets.
    """
    distances = torch.empty(len(rows), dtype=torch.float64)
    for part in torch.arange(len(rows)).split(rows_per_block(4 * x.shape[1])):
        distances[part] = torch.cdist(
            x[rows[part], None].double(),  # [n, 1, D]
            y[others[part], None].double(),
            compute_mode="donot_use_mm_for_euclid_dist",
        ).flatten()
    return distances
