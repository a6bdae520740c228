"""Mixing regularisation: training on images with the styles of two latents (StyleGAN, section 3.1)."""

from __future__ import annotations

import torch
from torch import Tensor


def mix(ws: Tensor, other: Tensor, u: Tensor, probability: float, axis: int) -> Tensor:
    """Replace styles from a random index of an axis on by those of other latents, or none.

    The index is never 0, so every image keeps some of its own styles.

    Args:
        ws: styles [B, L, D] or [B, K, L, D].
        other: styles of other latents, of the same shape.
        u: uniform in [0, 1), 0-d: decides for the whole batch whether to mix, and from which index on.
        probability: that styles are mixed at all.
        axis: −2 to mix layers, 1 to mix the K latents of an image.

    Returns:
        Styles like `ws`.
    """
    count = ws.shape[axis]
    first = 1 + (u / probability * (count - 1)).long()  # uniform in 1..count − 1 where u < probability
    indices = torch.arange(count, device=ws.device)
    replaced = (indices >= first) & (u < probability)  # [count]
    shape = [1] * ws.ndim
    shape[axis] = count
    return torch.where(replaced.view(shape), other, ws)
