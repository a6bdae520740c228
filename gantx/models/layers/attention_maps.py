"""The attention of one position of an image, observed while the image is generated.

The attention of N tokens has N·N entries, of which only the row of the query is computed. This is done by
hooks that are registered for one forward pass, so that other passes have no overhead.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn


@runtime_checkable
class SelfAttention(Protocol):
    """A self-attention layer that can return the attention of one query."""

    def row(self, position: int, *inputs: Any) -> Tensor:
        """Attention [B, h, N] of the token at `position`; `inputs` as of the layer itself."""


def follow(
    generate: Callable[[], Tensor], attentions: Sequence[nn.Module], query: tuple[float, float], layers: str
) -> tuple[Tensor, dict[str, Tensor]]:
    """Generate images and return the attention map of one query position.

    Args:
        generate: one pass of a network, to images [B, C, R, R].
        attentions: its self-attention layers in the order of the pass. Each is called with tokens [B, S², D]
            and what else its attention depends on, and has a method `row(position, ...)` that takes the same
            and gives the attention [B, h, S²] of the token at that position of the grid, in raster order.
        query: position in the image, (y, x) in [0, 1) from the top left corner.
        layers: `last` or `all`.

    Returns:
        What `generate` returned; attention [B, h, S, S] under `<S>x<S>.<index among the layers of this
        resolution>`.
    """
    passed: Counter[int] = Counter()
    maps: dict[str, Tensor] = {}

    def watch(layer: nn.Module, arguments: tuple[Any, ...]) -> None:
        side = math.isqrt(arguments[0].shape[1])
        name = f"{side}x{side}.{passed[side]}"
        passed[side] += 1
        if layers == "all" or layer is attentions[-1]:
            assert isinstance(layer, SelfAttention)
            y, x = (int(part * side) for part in query)
            maps[name] = layer.row(y * side + x, *arguments[:2]).unflatten(2, (side, side))

    handles = [layer.register_forward_pre_hook(watch) for layer in attentions]
    try:
        images = generate()
    finally:
        for handle in handles:
            handle.remove()
    return images, maps


def attention_variances(
    generate: Callable[[], object], attentions: Sequence[nn.Module], resolution: int
) -> Tensor:
    """How much the attention of a query position varies over the image, for positions on a regular grid.

    A position that attends to everything alike has a variance of 0; on an object it is usually largest.

    Args:
        generate: one pass of a network.
        attentions: as in `follow`; the last one is observed.
        resolution: of the grid of query positions, at most that of the layer; bounds the time.

    Returns:
        [B, s, s], the variance over all positions of the attention averaged over heads; s is `resolution` or
        the resolution of the layer.
    """
    inputs: list[tuple[Any, ...]] = []
    handle = attentions[-1].register_forward_pre_hook(lambda layer, arguments: inputs.append(arguments[:2]))
    try:
        generate()
    finally:
        handle.remove()
    layer, side = attentions[-1], math.isqrt(inputs[0][0].shape[1])
    assert isinstance(layer, SelfAttention)
    count = min(side, resolution)
    along = [(2 * index + 1) * side // (2 * count) for index in range(count)]
    rows = [layer.row(y * side + x, *inputs[0]).mean(1).var(1) for y in along for x in along]
    variances: Tensor = torch.stack(rows, 1).unflatten(1, (count, count))
    return variances
