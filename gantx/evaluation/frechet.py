"""The Fréchet distance of two sets of features (FID, where they are Inception's) and the moments it needs.

The two covariances are never multiplied, and no square root of a matrix is taken: with covariances A Aᵀ and
B Bᵀ the trace of the root of their product is the sum of the singular values of AᵀB. This stays exact where
there are fewer images than features, cannot become complex, and does not need SciPy.

Features are float32 [N, D] as a network gives them; everything is computed on the CPU in float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gantx.errors import DataError
from gantx.evaluation.feature_sets import checked, require_images, rows_per_block


class Moments:
    """Mean and covariance of features that arrive batch by batch, in float64 on the CPU.

    Keeps the mean so far and the scatter about it (Chan, Golub and LeVeque 1979), which avoids cancellation
    for features far from zero.

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
        """Include a batch of features [n, D], of any float type and on any device."""
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
        require_images(self.count, 1 + ddof, "a covariance")
        return self.scatter / (self.count - ddof)

    @classmethod
    def of_features(cls, features: Tensor) -> Moments:
        """The moments of features [N, D] that are all there; float64 copies are made of blocks only."""
        moments = cls(features.shape[1])
        for block in features.split(rows_per_block(features.shape[1])):
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
        require_images(count, 2, "a Fréchet distance")
        if count > dim:
            moments = Moments.of_features(features)
            return cls.of_moments(moments.mean, moments.covariance(ddof))
        rows = features.double()
        mean = rows.mean(0)
        return cls(mean, (rows - mean).T / (count - ddof) ** 0.5)

    def distance(self, other: Gaussian) -> float:
        """The squared Fréchet (2-Wasserstein) distance, as FID reports it; never negative.

        |mean_a - mean_b|² + tr(cov_a + cov_b - 2 (cov_a cov_b)^(1/2)) (Heusel et al. 2017).

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


def _conditioning(triangular: Tensor) -> float:
    """Smallest pivot over the largest: a cheap estimate of how well a Cholesky factor is conditioned."""
    pivots = triangular.diagonal()
    return float(pivots.min() / pivots.max())
