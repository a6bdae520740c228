"""CPU time and exactness of gantx's Fréchet distance beside the usual one with scipy.linalg.sqrtm.

    OMP_NUM_THREADS=1 python benchmarks/frechet.py

Both sides get the same means and covariances and take turns; what counts is the CPU time of the process, so
that a busy machine does not matter. The distances are checked against the singular values of the product of
all centred features, which is slow and exact.
"""

from __future__ import annotations

import argparse
import platform
import time

import numpy as np
import scipy
import torch
from scipy.linalg import sqrtm

from gantx.evaluation.frechet import Gaussian, Moments


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--dim", type=int, default=2048, help="features of an image")
    parser.add_argument("--images", type=int, nargs="+", default=[10_000, 1_000], help="images of each side")
    parser.add_argument("--repeats", type=int, default=3, help="turns; the fastest counts")
    options = parser.parse_args()

    torch.set_num_threads(1)
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, NumPy {np.__version__}"
    print(f"{versions}, SciPy {scipy.__version__}; {options.dim} features, {options.repeats} turns\n")
    print("| images of each side | method | CPU seconds | times sqrtm | relative error |")
    print("|---|---|---|---|---|")
    for images in options.images:
        real = made_features(images, options.dim, seed=0)
        fake = made_features(images, options.dim, seed=1) * 1.02 + 0.01
        statistics = [value for side in (real, fake) for value in moments_of(side)]
        exact = by_features(real, fake)
        methods = {"sqrtm": by_sqrtm, "gantx": by_gantx}
        seconds, distances = {name: [] for name in methods}, {}
        for _ in range(options.repeats):
            for name, method in methods.items():
                started = time.process_time()
                distances[name] = method(*statistics)
                seconds[name].append(time.process_time() - started)
        for name in methods:
            least = min(seconds[name])
            print(
                f"| {images:,} | {name} | {least:.2f} | {min(seconds['sqrtm']) / least:.1f} "
                f"| {abs(distances[name] / exact - 1):.0e} |",
                flush=True,
            )


def made_features(images, dim, seed):
    """Correlated, never negative, with eigenvalues that fall like those of image features."""
    mixing = torch.randn(dim, dim, generator=torch.Generator().manual_seed(2))
    mixing *= torch.logspace(-1, -3, dim)[:, None]
    return (torch.randn(images, dim, generator=torch.Generator().manual_seed(seed)) @ mixing).relu()


def moments_of(features):
    moments = Moments.of_features(features)
    return moments.mean, moments.covariance()


def by_gantx(mean_a, covariance_a, mean_b, covariance_b):
    return Gaussian.of_moments(mean_a, covariance_a).distance(Gaussian.of_moments(mean_b, covariance_b))


def by_sqrtm(mean_a, covariance_a, mean_b, covariance_b):
    """What clean-fid and pytorch-fid compute."""
    mean_a, covariance_a, mean_b, covariance_b = (
        value.numpy() for value in (mean_a, covariance_a, mean_b, covariance_b)
    )
    root = sqrtm(covariance_a.dot(covariance_b)).real
    shift = mean_a - mean_b
    return float(shift @ shift + np.trace(covariance_a) + np.trace(covariance_b) - 2 * np.trace(root))


def by_features(a, b):
    """The exact value: the trace of the root is the sum of the singular values of A Bᵀ."""
    shift = a.double().mean(0) - b.double().mean(0)
    a, b = (factor(side.double()) for side in (a, b))
    total = shift.square().sum() + a.square().sum() + b.square().sum()
    return float(total - 2 * torch.linalg.svdvals(a @ b.T).sum())


def factor(features):
    """A matrix whose square is the covariance, with no more rows than columns."""
    centred = (features - features.mean(0)) / (len(features) - 1) ** 0.5
    return torch.linalg.qr(centred, mode="r").R if len(centred) > centred.shape[1] else centred


if __name__ == "__main__":
    main()
