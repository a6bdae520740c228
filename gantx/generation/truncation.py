"""Truncation: styles drawn towards their average (StyleGAN, section B)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gantx.errors import UsageError
from gantx.generation.parsing import Truncation as Truncation
from gantx.generation.parsing import parse_truncation as parse_truncation
from gantx.models.interfaces import Generator, StyleBased


def require_styles(generator: Generator, what: str) -> StyleBased:
    """The generator as one that maps latents to styles.

    Args:
        generator: any network.
        what: what needs styles, the subject of the message.

    Raises:
        UsageError: the network has no styles.
    """
    if not isinstance(generator, StyleBased):
        raise UsageError(
            f"{what} needs a network with styles (vitgan, ganformer, stylegan2, implicit): this one "
            "generates images from its latents directly"
        )
    return generator


def truncate(network: StyleBased, ws: Tensor, psi: float | Tensor, cutoff: int | None = None) -> Tensor:
    """Interpolate styles towards their average: w_avg + psi·(ws − w_avg).

    Args:
        network: has the buffer `w_avg` [D].
        ws: styles [B, L, D] or [B, K, L, D].
        psi: one number, or one per image [B]. Exactly 1 returns the same bits, exactly 0 the average.
        cutoff: only layers 0..cutoff-1; None for all L.

    Returns:
        Styles of the shape of `ws`.

    Raises:
        UsageError: the network has fewer layers than `cutoff`.
    """
    layers = ws.shape[-2]
    if cutoff is not None and not 1 <= cutoff <= layers:
        raise UsageError(f"a truncation of {cutoff} layers: give 1 to {layers}, what this network has")
    weight = psi.to(ws).view(-1, *[1] * (ws.ndim - 1)) if isinstance(psi, Tensor) else psi
    assert isinstance(network, nn.Module)
    average = network.w_avg
    assert isinstance(average, Tensor)
    truncated = torch.lerp(average.expand_as(ws), ws, weight)
    if cutoff is None or cutoff == layers:
        return truncated
    return torch.cat([truncated[..., :cutoff, :], ws[..., cutoff:, :]], dim=-2)
