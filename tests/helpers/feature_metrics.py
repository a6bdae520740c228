"""Random features, and the scores of two sets of them from the functions that an evaluation calls."""

import torch

from gantx.evaluation.frechet import Gaussian
from gantx.evaluation.kernel_distance import kernel_of_itself, polynomial_kernel
from gantx.evaluation.neighbours import neighbours


def features(count, dim, seed, shift=0.0, scale=1.0):
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)) * scale + shift


def frechet_distance(a, b, ddof=1):
    return Gaussian.of_features(a, ddof).distance(Gaussian.of_features(b, ddof))


def kernel_distance(real, fake):
    """The unbiased squared MMD of all images at once (Bińkowski et al. 2018, eq. 4), without subsets."""
    sums = [
        polynomial_kernel(x, y).sum(dtype=torch.float64)
        for x, y in ((real, real), (fake, fake), (real, fake))
    ]
    within = [
        (total - kernel_of_itself(side).sum()) / (len(side) * (len(side) - 1))
        for total, side in zip(sums, (real, fake), strict=False)
    ]
    return float(within[0] + within[1] - 2 * sums[2] / (len(real) * len(fake)))


def neighbour_scores(real, fake, **options):
    """Precision, recall, density, coverage."""
    return [float(values.double().mean()) for values in neighbours(real=real, fake=fake, **options)]
