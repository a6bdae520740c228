"""The standard deviation across a minibatch as a feature (Karras et al. 2018, section 3)."""

from __future__ import annotations

from torch import Tensor

from gantx.runtime.precision import widened


def minibatch_standard_deviation(x: Tensor, group_size: int, count: int, parts: int) -> Tensor:
    """Minibatch standard deviation (arXiv 1710.10196, section 3): a measure of how much samples differ.

    Samples i, i + B/G, i + 2B/G, ... of a batch of B form a group of G. G is `group_size` unless the batch is
    smaller or not divisible by it.

    Args:
        x: features [B, C, ...].
        group_size: largest number G of samples in a group.
        count: number F of channel groups, which have separate standard deviations; divides C.
        parts: number of equal batches, one after the other, whose samples are not compared with each other.

    Returns:
        Standard deviation over the group, averaged over the channel group and all that follows, [B, F];
        float32.
    """
    x = widened(x)
    batch = len(x) // parts
    group = next(size for size in range(min(group_size, batch), 0, -1) if batch % size == 0)
    grouped = x.reshape(parts, group, batch // group, count, -1)  # [parts, G, B/G, F, ...]
    # Written out: the derivatives of torch.var are less exact.
    variance = (grouped - grouped.mean(1, keepdim=True)).square().mean(1)  # [parts, B/G, F, ...]
    deviation = (variance + 1e-8).sqrt().mean(3)  # [parts, B/G, F]
    return deviation[:, None].expand(-1, group, -1, -1).flatten(0, 2)
