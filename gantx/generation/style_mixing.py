"""Style mixing: images that take some of their styles from another (StyleGAN, section 3.1).

Coarse layers carry pose and shape, fine ones colours and texture. Where several latents meet in an image
(GANformer), single components can be exchanged as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gantx.errors import UsageError
from gantx.generation import sampling
from gantx.generation.batches import in_tiles
from gantx.generation.latents import spec_of_one, style_shape
from gantx.generation.truncation import Truncation, require_styles, truncate
from gantx.runtime.random import for_seeds


@torch.no_grad()
def table(
    generator: Any,
    rows: Sequence[int],
    columns: Sequence[int],
    *,
    layers: Sequence[int] | None = None,
    components: Sequence[int] | None = None,
    batch: int,
    device: torch.device,
    truncation: Truncation | None = None,
    ratio: float = 1.0,
) -> Tensor:
    """Mix every row with every column.

    Args:
        generator: a network with styles, on `device`.
        rows: seeds of the images that are changed; noise is theirs.
        columns: seeds of the images whose styles are taken.
        layers: what is taken from the columns; None for all layers.
        components: of which latents; None for all of them.
        batch: images computed at once.
        device: where the generator is.
        truncation: of all styles.
        ratio: height / width to which images are cropped; see `sampling.crop`.

    Returns:
        uint8 [(1 + rows)·(1 + columns), 3, H, W] in reading order: a white place, the images of the columns;
        then for every row its image and its mixtures. The images of seeds are those of `sampling.sample`.

    Raises:
        UsageError: the network has no styles, no such layers or components, or nothing is left to mix.
    """
    require_styles(generator, "mixing")
    *latents, count, _ = style_shape(generator)
    if layers is None and components is None:
        raise UsageError("say what to take from the columns: layers such as 0-3, or components")
    taken = _mask(layers, count, "layers")[:, None]  # [L, 1]
    if components is not None and not latents:
        raise UsageError("components need a network in which several latents meet in an image: take layers")
    if latents:
        taken = taken & _mask(components, latents[0], "components")[:, None, None]  # [K, L, 1]
    pairs: list[tuple[int | None, int | None]] = [(None, column) for column in columns]
    for row in rows:
        pairs += [(row, None), *((row, column) for column in columns)]
    painted: list[Tensor] = []
    for filled, number in in_tiles(pairs, batch):
        own = [row if row is not None else column for row, column in filled]
        other = [column if column is not None else row for row, column in filled]
        mixed = [row is not None and column is not None for row, column in filled]
        images = _paint(generator, own, other, torch.tensor(mixed, device=device), taken, truncation, device)
        painted += sampling.quantise(sampling.crop(images[:number], ratio)).cpu()
    return torch.stack([torch.full_like(painted[0], 255), *painted])


def _paint(
    generator: Any,
    own: Sequence[Any],
    other: Sequence[Any],
    mixed: Tensor,
    taken: Tensor,
    truncation: Truncation | None,
    device: torch.device,
) -> Tensor:
    """Images of seeds `own`; where `mixed`, with the styles `taken` from seeds `other`."""
    spec = spec_of_one(generator)
    q: Any = for_seeds(spec, own, device)
    ws = generator.mapping(q["z"], noise=q["noise"])
    theirs: Any = for_seeds({"z": spec["z"]}, other, device)
    from_other = generator.mapping(theirs["z"], noise=q["noise"])
    which = mixed.view(-1, *[1] * (ws.ndim - 1)) & taken.to(device)
    ws = torch.where(which, from_other, ws)
    if truncation is not None:
        ws = truncate(generator, ws, *truncation)
    images: Tensor = generator.synthesis(ws, q["noise"])
    return images


def _mask(chosen: Sequence[int] | None, count: int, what: str) -> Tensor:
    """True at the chosen numbers, [count]; None means all."""
    mask = torch.zeros(count, dtype=torch.bool)
    for number in range(count) if chosen is None else chosen:
        if number >= count:
            raise UsageError(f"no {what} {number}: this network has {what} 0 to {count - 1}")
        mask[number] = True
    return mask
