"""Logits of a discriminator that knows classes."""

from __future__ import annotations

from torch import Tensor


def for_labels(logits: Tensor, classes: int, labels: Tensor | None) -> Tensor:
    """Pick each sample's logit: logits [B, max(classes, 1)] and one-hot labels [B, classes] to [B]."""
    if not classes:
        return logits.squeeze(1)
    if labels is None:
        raise ValueError(f"this discriminator tells {classes} classes apart: it needs labels")
    return (logits * labels).sum(1)
