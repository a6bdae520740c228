"""Class-conditional logits."""

from __future__ import annotations

from torch import Tensor


def for_labels(logits: Tensor, classes: int, labels: Tensor | None) -> Tensor:
    """Select the logit of each sample's class; without classes, drop the last axis.

    Args:
        logits: [B, max(classes, 1)].
        classes: number of classes, 0 for none.
        labels: one-hot [B, classes]; not used without classes.

    Returns:
        Logits [B].

    Raises:
        ValueError: there are classes but no labels.
    """
    if not classes:
        return logits.squeeze(1)
    if labels is None:
        raise ValueError(f"this discriminator has {classes} classes: it needs labels")
    return (logits * labels).sum(1)
