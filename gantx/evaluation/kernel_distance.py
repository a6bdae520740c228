"""The kernel distance of two sets of features: KID, where they are Inception's.

The distance over subsets is clean-fid's own function; the kernel is used for its intervals.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from gantx.evaluation.feature_sets import comparable


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

    real, fake = comparable(real, fake, 2, "a kernel distance")
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


def polynomial_kernel(x: Tensor, y: Tensor) -> Tensor:
    """KID's kernel (x·y / D + 1)³ of every row of x [N, D] with every row of y [M, D]: [N, M]."""
    base = (x @ y.T).div_(x.shape[1]).add_(1)
    return base.square().mul_(base)


def kernel_of_itself(x: Tensor) -> Tensor:
    """`polynomial_kernel` of every row of x [N, D] with itself alone: float64 [N]."""
    squares: Tensor = torch.linalg.vecdot(x, x)
    return (squares.double() / x.shape[1] + 1).pow(3)
