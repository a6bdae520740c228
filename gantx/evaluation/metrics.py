"""From features to numbers: Fréchet distance, kernel distance, Inception Score, and the neighbour metrics.

What is notable here:

- The Fréchet distance never multiplies the two covariances and takes no square root of a matrix: with
  covariances A Aᵀ and B Bᵀ the trace of the root of their product is the sum of the singular values of AᵀB.
  This stays exact where there are fewer images than features, cannot become complex, and needs no SciPy.
- The kernel distance over subsets is clean-fid's own function.
- Precision, recall, density and coverage never hold all distances at once. Float32 bounds that certainly hold
  decide nearly every comparison; the few they leave open are decided by exact distances, ties included.

Features are float32 [N, D] as a network gives them; everything is computed on the CPU, in float64 where it
matters. `real` is the reference set, `fake` the generated one.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gantx.errors import DataError
from gantx.evaluation.precision import full_precision

_BLOCK = 2**23  # elements of a block of distances, kernel values or probabilities
_SPARE = 4  # candidates beyond the k nearest: the fewer, the more rows must be searched again


# --- the Fréchet distance ---------------------------------------------------------------------------------


class Moments:
    """Mean and covariance of features that arrive batch by batch, in float64 on the CPU.

    Holds the mean so far and the scatter about it (Chan, Golub and LeVeque 1979), so nothing cancels, however
    far the features are from zero, and the moments of several ranks can be merged.

    Args:
        dim: features of an image, D.

    Attributes:
        count: images so far.
        mean: float64 [D].
        scatter: sum of the outer products of the deviations from the mean, float64 [D, D].
    """

    def __init__(self, dim: int) -> None:
        self.count = 0
        self.mean = torch.zeros(dim, dtype=torch.float64)
        self.scatter = torch.zeros(dim, dim, dtype=torch.float64)

    def add(self, features: Tensor) -> None:
        """Take in a batch of features [n, D], of any float type and on any device."""
        added = len(features)
        if not added:
            return
        rows = features.detach().cpu().double()  # copied as it is: half the bytes, and MPS has no float64
        mean = rows.mean(0)
        total = self.count + added
        shift = mean - self.mean
        # The means' difference is one more deviation, so that one product updates the whole scatter.
        between = shift * (self.count * added / total) ** 0.5
        deviations = torch.cat([rows - mean, between[None]])  # [n + 1, D]
        self.scatter.addmm_(deviations.T, deviations)
        self.mean += shift * (added / total)
        self.count = total

    def merge(self, other: Moments) -> Moments:
        """The moments of both sets of images together."""
        merged = Moments(len(self.mean))
        merged.count = self.count + other.count
        shift = other.mean - self.mean
        share = other.count / max(merged.count, 1)
        merged.mean = self.mean + shift * share
        merged.scatter = self.scatter + other.scatter + torch.outer(shift, shift) * (self.count * share)
        return merged

    def without(self, part: Moments) -> Moments:
        """The moments of the images that remain when those of `part`, all among them, are left out."""
        rest = Moments(len(self.mean))
        rest.count = self.count - part.count
        rest.mean = self.mean + (self.mean - part.mean) * (part.count / rest.count)
        shift = part.mean - rest.mean
        between = torch.outer(shift, shift) * (part.count * rest.count / self.count)
        rest.scatter = self.scatter - part.scatter - between
        return rest

    def covariance(self, ddof: int = 1) -> Tensor:
        """The covariance [D, D]: the scatter divided by count - ddof.

        Raises:
            DataError: there are not enough images to divide.
        """
        _enough(self.count, 1 + ddof, "a covariance")
        return self.scatter / (self.count - ddof)

    def state(self) -> dict[str, Tensor]:
        """Everything, as tensors: `count` (int64, 0-d), `mean` [D], `scatter` [D, D]."""
        return {"count": torch.tensor(self.count), "mean": self.mean, "scatter": self.scatter}

    @classmethod
    def of_state(cls, state: dict[str, Tensor]) -> Moments:
        """The moments whose `state` this is."""
        moments = cls(len(state["mean"]))
        moments.count = int(state["count"])
        moments.mean, moments.scatter = state["mean"].clone(), state["scatter"].clone()
        return moments

    @classmethod
    def of_features(cls, features: Tensor) -> Moments:
        """The moments of features [N, D] that are all there; float64 copies are made of blocks only."""
        moments = cls(features.shape[1])
        for block in features.split(_rows_of_blocks(features.shape[1])):
            moments.add(block)
        return moments


@dataclass(frozen=True)
class Gaussian:
    """A normal distribution in the form that the Fréchet distance needs.

    Attributes:
        mean: float64 [D].
        factor: float64 [D, r] with covariance = factor factorᵀ; r may be less than D.
        covariance: float64 [D, D] where the factor is its well-conditioned Cholesky factor, else None.
    """

    mean: Tensor
    factor: Tensor
    covariance: Tensor | None = None

    @classmethod
    def of_moments(cls, mean: Tensor, covariance: Tensor) -> Gaussian:
        """From a mean [D] and a covariance [D, D], which may be singular.

        Raises:
            DataError: they do not fit together, are not finite, or the matrix is no covariance.
        """
        mean, covariance = mean.detach().cpu().double(), covariance.detach().cpu().double()
        if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
            raise DataError(
                f"a mean {list(mean.shape)} does not belong to a covariance {list(covariance.shape)}: "
                "make the statistics again"
            )
        if not bool(mean.isfinite().all() and covariance.isfinite().all()):
            raise DataError(
                "a mean or covariance is not finite, so it has no Fréchet distance: make the statistics again"
            )
        factor, failed = torch.linalg.cholesky_ex(covariance)
        precision = len(mean) * torch.finfo(torch.float64).eps
        # Rounding can leave a singular matrix with pivots just above zero; their directions would be noise.
        if not int(failed) and _conditioning(factor) ** 2 > precision:
            return cls(mean, factor, covariance)
        values, vectors = torch.linalg.eigh(covariance)
        largest = float(values[-1])
        if float(values[0]) < -1e-6 * abs(largest):
            raise DataError(
                f"a covariance has the eigenvalue {float(values[0]):.3g}, and none may be negative: "
                "make the statistics again"
            )
        kept = values > precision * largest
        return cls(mean, vectors[:, kept] * values[kept].sqrt())

    @classmethod
    def of_features(cls, features: Tensor, ddof: int = 1) -> Gaussian:
        """From features [N, D]; no covariance is formed where there are not more images than features.

        Raises:
            DataError: fewer than two images, or features that are not finite.
        """
        features = checked(features)
        count, dim = features.shape
        _enough(count, 2, "a Fréchet distance")
        if count > dim:
            moments = Moments.of_features(features)
            return cls.of_moments(moments.mean, moments.covariance(ddof))
        rows = features.double()
        mean = rows.mean(0)
        return cls(mean, (rows - mean).T / (count - ddof) ** 0.5)

    def distance(self, other: Gaussian) -> float:
        """The Fréchet (2-Wasserstein) distance, squared, as FID reports it; never negative.

        Raises:
            DataError: the two have different numbers of features.
        """
        if self.mean.shape != other.mean.shape:
            raise DataError(
                f"features of {len(self.mean)} and {len(other.mean)} values cannot be compared: "
                "measure both sides with the same feature network"
            )
        if self.covariance is not None and other.covariance is not None:
            # Half the work of singular values, and as exact while both are of full rank.
            if _conditioning(self.factor) >= _conditioning(other.factor):
                product = self.factor.T @ other.covariance @ self.factor
            else:
                product = other.factor.T @ self.covariance @ other.factor
            roots = torch.linalg.eigvalsh(product).clamp(min=0).sqrt()
        else:
            roots = torch.linalg.svdvals(self.factor.T @ other.factor)
        traces = self.factor.square().sum() + other.factor.square().sum()
        # Between equal distributions rounding leaves something like -1e-13.
        return max(0.0, float((self.mean - other.mean).square().sum() + traces - 2 * roots.sum()))


def frechet_distance(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> float:
    """The Fréchet distance of two normal distributions: FID, where the features are Inception's.

    |mean_a - mean_b|² + tr(cov_a + cov_b - 2 (cov_a cov_b)^(1/2)) (Heusel et al. 2017).

    Args:
        mean_a: mean of one side [D].
        cov_a: its covariance [D, D]; may be singular.
        mean_b: mean of the other side [D].
        cov_b: its covariance [D, D].

    Raises:
        DataError: values that are not finite, shapes that do not fit, or a matrix that is no covariance.
    """
    return Gaussian.of_moments(mean_a, cov_a).distance(Gaussian.of_moments(mean_b, cov_b))


def frechet_distance_of_features(a: Tensor, b: Tensor, ddof: int = 1) -> float:
    """The Fréchet distance of two sets of features [N, D], exact also where N is less than D.

    Args:
        a: features of one side.
        b: features of the other side; may be another number of images.
        ddof: 1 divides covariances by N - 1 (clean-fid), 0 by N (StyleGAN).

    Raises:
        DataError: fewer than two images on a side, features that are not finite or of different networks.
    """
    return Gaussian.of_features(a, ddof).distance(Gaussian.of_features(b, ddof))


def _conditioning(triangular: Tensor) -> float:
    """Smallest pivot over the largest: a cheap estimate of how well a Cholesky factor is conditioned."""
    pivots = triangular.diagonal()
    return float(pivots.min() / pivots.max())


# --- the kernel distance ----------------------------------------------------------------------------------


def kernel_distances(
    real: Tensor, fake: Tensor, *, subsets: int = 100, size: int = 1000, seed: int = 0
) -> Tensor:
    """Kernel distances of random subsets by clean-fid; their mean is KID, which may be negative.

    The subsets are those of one call of `cleanfid.fid.kernel_distance` after `np.random.seed(seed)`; NumPy's
    global generator is left as it was.

    Args:
        real: features [N, D] of real images.
        fake: features [M, D] of generated images.
        subsets: how many.
        size: images of each side in a subset, drawn without replacement; at most min(N, M) are used.
        seed: of the choice.

    Returns:
        float64 [subsets].

    Raises:
        DataError: fewer than two images on a side, features that are not finite or of different networks.
    """
    from cleanfid.fid import kernel_distance as cleanfid_kernel_distance

    real, fake = _comparable(real, fake, 2, "a kernel distance")
    values = np.empty(subsets)
    before = np.random.get_state()
    np.random.seed(seed)
    try:
        for index in range(subsets):
            values[index] = cleanfid_kernel_distance(
                real.numpy(), fake.numpy(), num_subsets=1, max_subset_size=size
            )
    finally:
        np.random.set_state(before)
    return torch.from_numpy(values)


@full_precision(torch.device("cpu"))  # training may have relaxed it
def kernel_distance(real: Tensor, fake: Tensor) -> float:
    """The unbiased kernel distance of all images at once: KID without the chance of subsets.

    The squared maximum mean discrepancy under `polynomial_kernel` (Bińkowski et al. 2018, eq. 4).

    Args:
        real: features [N, D] of real images.
        fake: features [M, D] of generated images.

    Raises:
        DataError: fewer than two images on a side, features that are not finite or of different networks.
    """
    real, fake = _comparable(real, fake, 2, "a kernel distance")
    within = [
        (_kernel_sum(side, side) - kernel_of_itself(side).sum()) / (len(side) * (len(side) - 1))
        for side in (real, fake)
    ]
    return float(within[0] + within[1] - 2 * _kernel_sum(real, fake) / (len(real) * len(fake)))


def polynomial_kernel(x: Tensor, y: Tensor) -> Tensor:
    """KID's kernel (x·y / D + 1)³ of every row of x [N, D] with every row of y [M, D]: [N, M]."""
    base = (x @ y.T).div_(x.shape[1]).add_(1)
    return base.square().mul_(base)


def kernel_of_itself(x: Tensor) -> Tensor:
    """`polynomial_kernel` of every row of x [N, D] with itself alone: float64 [N]."""
    squares: Tensor = torch.linalg.vecdot(x, x)
    return (squares.double() / x.shape[1] + 1).pow(3)


def _kernel_sum(x: Tensor, y: Tensor) -> Tensor:
    """Sum of the kernel over all pairs, in float64."""
    blocks = x.split(_rows_of_blocks(len(y)))
    return torch.stack([polynomial_kernel(block, y).sum(dtype=torch.float64) for block in blocks]).sum()


# --- the Inception Score ----------------------------------------------------------------------------------


def inception_scores(logits: Tensor, splits: int = 10) -> Tensor:
    """The Inception Score of each split (Salimans et al. 2016).

    exp of the mean KL divergence of the images' class probabilities to their mean.

    Args:
        logits: class scores [N, C], without the last layer's bias as the original has it.
        splits: contiguous parts in the order given; part i ends before row (i + 1)·N // splits.

    Returns:
        float64 [splits].

    Raises:
        DataError: fewer rows than splits, or logits that are not finite.
    """
    parts = split_rows(checked(logits), splits)
    return torch.cat([score_of_split(part, torch.ones(1, len(part))) for part in parts])


def split_rows(logits: Tensor, splits: int) -> list[Tensor]:
    """The contiguous parts whose scores are averaged; DataError where one would be empty."""
    _enough(len(logits), splits, f"an Inception Score of {splits} splits")
    ends = [index * len(logits) // splits for index in range(splits + 1)]
    return [logits[start:end] for start, end in itertools.pairwise(ends)]


def score_of_split(logits: Tensor, weights: Tensor) -> Tensor:
    """The Inception Scores of one split in which rows count differently often.

    Args:
        logits: class scores [n, C].
        weights: how often each row counts, [B, n]; ones for the score itself.

    Returns:
        float64 [B].
    """
    weights = weights.double()
    mean = torch.zeros(len(weights), logits.shape[1], dtype=torch.float64)
    negative_entropy = torch.zeros(len(weights), dtype=torch.float64)
    size = _rows_of_blocks(logits.shape[1])
    for rows, weight in zip(logits.split(size), weights.split(size, dim=1), strict=True):
        logarithm = torch.log_softmax(rows, dim=1, dtype=torch.float64)
        probability = logarithm.exp()  # [b, C]; its logarithm is finite where it underflows to 0
        mean += weight @ probability
        negative_entropy += weight @ (probability * logarithm).sum(1)
    total = weights.sum(1)
    mean /= total[:, None]
    return (negative_entropy / total - torch.xlogy(mean, mean).sum(1)).exp()


def inception_score(logits: Tensor, splits: int = 10) -> tuple[float, float]:
    """Mean and standard deviation (divided by the number of splits) of `inception_scores`."""
    scores = inception_scores(logits, splits)
    return float(scores.mean()), float(scores.std(correction=0))


# --- precision, recall, density, coverage -----------------------------------------------------------------


class Neighbours(NamedTuple):
    """What each image has to do with the other set; the metrics are the means of these.

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


@full_precision(torch.device("cpu"))  # the bounds of the distances count on it
def neighbours(
    *,
    real: Tensor,
    fake: Tensor,
    pr_k: int = 3,
    dc_k: int = 5,
    pr_closed: bool = True,
    dc_closed: bool = False,
) -> Neighbours:
    """Everything the four neighbour metrics are made of, in one pass over the pairs of images.

    The ball of an image reaches to its k-th nearest other image of its own set. Memory is bounded by a block
    of pairs, time by three products of all pairs.

    Args:
        real: features [N, D] of real images.
        fake: features [M, D] of generated images.
        pr_k: k of precision and recall (Kynkäänniemi et al. 2019).
        dc_k: k of density and coverage (Naeem et al. 2020).
        pr_closed: an image on the surface counts for precision and recall, as their authors have it.
        dc_closed: the same for density and coverage, whose authors do not count it.

    Raises:
        DataError: not more than k images on a side, features that are not finite or of different networks.
    """
    most = max(pr_k, dc_k)
    real, fake = _comparable(real, fake, most + 1, f"{most} nearest neighbours")
    real_radii = _neighbour_distances(real, most)
    pr_radii, dc_radii = real_radii[:, pr_k - 1], real_radii[:, dc_k - 1]
    fake_radii = _neighbour_distances(fake, pr_k)[:, pr_k - 1]
    precise = torch.zeros(len(fake), dtype=torch.bool)
    recalled = torch.zeros(len(real), dtype=torch.bool)
    balls = torch.zeros(len(fake), dtype=torch.int64)
    covered = torch.zeros(len(real), dtype=torch.bool)
    bounds = _DistanceBounds(fake, torch.float32)
    for rows in torch.arange(len(real)).split(_rows_of_blocks(len(fake))):
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


def precision_recall(*, real: Tensor, fake: Tensor, k: int = 3, closed: bool = True) -> tuple[float, float]:
    """Precision and recall in [0, 1]; see `neighbours`, which gives density and coverage in the same pass."""
    found = neighbours(real=real, fake=fake, pr_k=k, dc_k=k, pr_closed=closed)
    return float(found.precise.double().mean()), float(found.recalled.double().mean())


def density_coverage(*, real: Tensor, fake: Tensor, k: int = 5, closed: bool = False) -> tuple[float, float]:
    """Density (0 or more; about 1 for a perfect generator) and coverage in [0, 1]; see `neighbours`."""
    found = neighbours(real=real, fake=fake, pr_k=k, dc_k=k, dc_closed=closed)
    return float(found.density.mean()), float(found.covered.double().mean())


def _neighbour_distances(features: Tensor, k: int) -> Tensor:
    """Exact distances of each image to its k nearest others, ascending: float64 [N, k]."""
    distances = torch.empty(len(features), k, dtype=torch.float64)
    unsettled = torch.arange(len(features))
    # Float64 is for images much closer to each other than to the mean of all: the modes of a collapse.
    for dtype in (torch.float32, torch.float64):
        bounds = _DistanceBounds(features, dtype)
        left = []
        for rows in unsettled.split(_rows_of_blocks(len(features))):
            distances[rows], certain = _nearest(features, rows, k, bounds)
            left.append(rows[~certain])
        unsettled = torch.cat(left)
        if not len(unsettled):
            return distances
    everyone = torch.arange(len(features))
    for row in unsettled:
        exact = _exact_distances(features, row.expand(len(features)), features, everyone)
        exact[row] = torch.inf
        distances[row] = exact.topk(k, largest=False).values
    return distances


def _nearest(features: Tensor, rows: Tensor, k: int, bounds: _DistanceBounds) -> tuple[Tensor, Tensor]:
    """Distances of `rows` to their k nearest others [n, k], and which rows of them are certain [n]."""
    low, _ = bounds.of(features[rows])  # [n, N]
    low[torch.arange(len(rows)), rows] = torch.inf  # not its own neighbour, whatever its duplicates are
    others = len(features) - 1
    candidates = low.topk(min(k + _SPARE, others), largest=False)  # [n, c]
    mine = rows.repeat_interleave(candidates.indices.shape[1])
    exact = _exact_distances(features, mine, features, candidates.indices.flatten())
    nearest = exact.view_as(candidates.values).topk(k, largest=False).values
    # Whoever is no candidate is at least as far away as the last candidate may be.
    certain = nearest[:, -1].square() <= candidates.values[:, -1].clamp(min=0)
    return nearest, certain | (candidates.indices.shape[1] == others)


class _DistanceBounds:
    """Bounds of squared distances by one matrix product, true whatever its rounding.

    |x - y|² = |x|² + |y|² - 2x·y with the mean taken away first. The product's rounding is at most
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
        parts = rows.split(_rows_of_blocks(rows.shape[1]))
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

    From differences, and for every pair in the same order: equal distances tie, whichever set asks.
    """
    distances = torch.empty(len(rows), dtype=torch.float64)
    for part in torch.arange(len(rows)).split(_rows_of_blocks(4 * x.shape[1])):
        distances[part] = torch.cdist(
            x[rows[part], None].double(),  # [n, 1, D]
            y[others[part], None].double(),
            compute_mode="donot_use_mm_for_euclid_dist",
        ).flatten()
    return distances


# --- input ------------------------------------------------------------------------------------------------


def _comparable(real: Tensor, fake: Tensor, least: int, what: str) -> tuple[Tensor, Tensor]:
    """Both sets on the CPU, checked."""
    real, fake = checked(real), checked(fake)
    if real.shape[1] != fake.shape[1]:
        raise DataError(
            f"features of {real.shape[1]} and {fake.shape[1]} values cannot be compared: "
            "measure both sides with the same feature network"
        )
    _enough(min(len(real), len(fake)), least, what)
    return real, fake


def checked(features: Tensor) -> Tensor:
    """The rows [N, D] on the CPU, at least in float32; DataError when they are not finite."""
    rows = features.detach().cpu()
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    if not bool(rows.isfinite().all()):
        raise DataError(
            "the feature network gave values that are not finite, which no metric can use: look at the images"
        )
    return rows


def _enough(count: int, least: int, what: str) -> None:
    if count < least:
        raise DataError(f"{count} images are too few for {what}: take {least} or more of each side")


def _rows_of_blocks(columns: int) -> int:
    return max(1, _BLOCK // max(columns, 1))
