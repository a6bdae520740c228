"""Style mixing: an image painted with the styles of two latents (StyleGAN, section 3.1)."""

from __future__ import annotations

import torch
from torch import Tensor


def mix(ws: Tensor, other: Tensor, coin: Tensor, chance: float, axis: int) -> Tensor:
    """Take styles of other latents from a random place of an axis on, or none.

    The place is never the first, so every image keeps a part of its own styles.

    Args:
        ws: styles [B, L, D] or [B, K, L, D].
        other: styles of other latents, of the same shape.
        coin: uniform in [0, 1), 0-d: decides for the whole batch whether, and from where.
        chance: that styles are mixed at all.
        axis: −2 to mix layers, 1 to mix the K latents of an image.

    Returns:
        Styles like `ws`.
    """
    count = ws.shape[axis]
    first = 1 + (coin / chance * (count - 1)).long()  # uniform in 1..count − 1 where coin < chance
    places = torch.arange(count, device=ws.device)
    taken = (places >= first) & (coin < chance)  # [count]
    shape = [1] * ws.ndim
    shape[axis] = count
    return torch.where(taken.view(shape), other, ws)
