"""The Inception Score of class scores (Salimans et al. 2016), in float64 on the CPU."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from gantx.evaluation.feature_sets import checked, require_images, rows_per_block


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
    return torch.cat([score_of_split(part, torch.ones(1, len(part), dtype=torch.float32)) for part in parts])


def split_rows(logits: Tensor, splits: int) -> list[Tensor]:
    """The contiguous parts whose scores are averaged; DataError where one would be empty."""
    require_images(len(logits), splits, f"an Inception Score of {splits} splits")
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
    size = rows_per_block(logits.shape[1])
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
