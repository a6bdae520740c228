"""Style mixing: images with some of their styles taken from another image (StyleGAN, section 3.1).

Coarse layers control pose and shape, fine layers colours and texture. In networks with several latents per
image (GANformer) single latents, called components, can be exchanged as well.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gantx.errors import UsageError
from gantx.generation import sampling
from gantx.generation.latents import require_labels, spec_of_one, style_shape
from gantx.generation.sampling import in_tiles
from gantx.generation.truncation import Truncation, require_styles, truncate
from gantx.io import sheets
from gantx.io.sheets import Cell, Sheet
from gantx.models.interfaces import Generator, StyleBased
from gantx.runtime import memory
from gantx.runtime.precision import full_precision
from gantx.runtime.random import Spec, for_seeds
from gantx.runtime.seeds import seeds_of


class _Cell(NamedTuple):
    """One image of the table: the seed of its latent and noise; if mixed, the seed whose styles it takes.

    The classes of both stand beside their seeds; None for an unconditional generator.
    """

    own: int
    other: int
    mixed: bool
    own_class: int | None = None
    other_class: int | None = None


@torch.no_grad()
@full_precision()
def table(
    generator: Generator,
    rows: Sequence[int],
    columns: Sequence[int],
    *,
    layers: Sequence[int] | None = None,
    components: Sequence[int] | None = None,
    batch: int,
    device: torch.device,
    truncation: Truncation | None = None,
    ratio: float = 1.0,
    classes: tuple[int, int] | None = None,
) -> Tensor:
    """Mix the styles of every row with those of every column.

    Args:
        generator: a network with styles, on `device`.
        rows: seeds of the images that are changed; their noise is used.
        columns: seeds of the images whose styles are taken.
        layers: layers whose styles are taken from the columns; None for all.
        components: latents whose styles are taken from the columns; None for all.
        batch: images computed at once.
        device: where the generator is.
        truncation: of all styles.
        ratio: height / width to which images are cropped; see `sampling.crop`.
        classes: of the rows and of the columns, of a conditional generator.

    Returns:
        uint8 [(1 + rows)·(1 + columns), C, H, W] in reading order: a white image and the images of the
        columns; then for every row its image and its mixtures. Images of single seeds equal those of
        `sampling.sample`.

    Raises:
        UsageError: the network has no styles or no such layers or components, or neither of them is given.
    """
    styled = require_styles(generator, "mixing")
    require_labels(generator, classes)
    of_rows, of_columns = classes if generator.classes and classes else (None, None)
    *latents, count, _ = style_shape(generator)
    if layers is None and components is None:
        raise UsageError("say what to take from the columns: layers such as 0-3, or components")
    taken = _mask(layers, count, "layers")[:, None]  # [L, 1]
    if components is not None and not latents:
        raise UsageError("components need a network with several latents per image: take layers")
    if latents:
        taken = taken & _mask(components, latents[0], "components")[:, None, None]  # [K, L, 1]
    number = (1 + len(rows)) * (1 + len(columns))
    size = 3 * number * math.prod(sampling.cropped_shape(generator, ratio))  # as a list, a tensor and a sheet
    memory.require(size, f"a table of {number:,} images", "name fewer --rows or --columns")
    cells = [_Cell(column, column, False, of_columns, of_columns) for column in columns]
    for row in rows:
        cells.append(_Cell(row, row, False, of_rows, of_rows))
        cells += [_Cell(row, column, True, of_rows, of_columns) for column in columns]
    mixtures: list[Tensor] = []
    spec = spec_of_one(generator)
    with sampling.memory_explained(batch, device):
        for filled, number in in_tiles(cells, batch):
            images = _mix(styled, spec, filled, taken, truncation, device)
            mixtures += sampling.quantise(sampling.crop(images[:number], ratio)).cpu()
    return torch.stack([torch.full_like(mixtures[0], 255), *mixtures])


def coarse_layers(generator: Generator) -> list[int]:
    """The first half of the layers of a network with styles: the layers that are mixed by default."""
    require_styles(generator, "mixing")
    return list(range(max(1, style_shape(generator)[-2] // 2)))


def sheet(
    images: Tensor,
    rows: Sequence[int],
    columns: Sequence[int],
    *,
    layers: Sequence[int] | None,
    components: Sequence[int] | None,
    factor: int | None = None,
    labels: bool = True,
    classes: tuple[str, str] = ("", ""),
) -> Sheet:
    """Arrange the images of `table`.

    Args:
        images: returned by `table`.
        rows: as in `table`.
        columns: as in `table`.
        layers: as in `table`, named in the title.
        components: as in `table`, named in the title.
        factor: enlargement of the images; None for the default of `sheets.enlargement`.
        labels: name the seeds of rows and columns, and what was mixed.
        classes: names of the classes of the rows and of the columns, if these are named too.
    """
    _, _, height, width = images.shape
    factor = factor or sheets.enlargement(height, width, 1 + len(columns), 1 + len(rows))
    cells = [Cell(image) for image in images]
    if not labels:
        return Sheet(cells, 1 + len(columns), factor)
    what = [] if layers is None else [f"layers {seeds_of(layers)}"]
    what += [] if components is None else [f"components {seeds_of(components)}"]
    return Sheet(
        cells,
        1 + len(columns),
        factor,
        title=f"styles of the {', '.join(what)} from the columns, the others from the rows",
        header=["", *(f"{classes[1]} seed {seed}".strip() for seed in columns)],
        side=["", *(f"{classes[0]} seed {seed}".strip() for seed in rows)],
    )


def _mix(
    generator: StyleBased,
    spec: Spec,
    cells: Sequence[_Cell],
    taken: Tensor,
    truncation: Truncation | None,
    device: torch.device,
) -> Tensor:
    """Images of the cells; where `mixed`, with the styles `taken` from the seed `other`."""
    q: Any = for_seeds(spec, [cell.own for cell in cells], device)
    ws = generator.mapping(q["z"], _labels([cell.own_class for cell in cells], device), q["noise"])
    theirs: Any = for_seeds({"z": spec["z"]}, [cell.other for cell in cells], device)
    labels = _labels([cell.other_class for cell in cells], device)
    from_other = generator.mapping(theirs["z"], labels, q["noise"])
    mixed = torch.tensor([cell.mixed for cell in cells], device=device)
    which = mixed.view(-1, *[1] * (ws.ndim - 1)) & taken.to(device)
    ws = torch.where(which, from_other, ws)
    if truncation is not None:
        ws = truncate(generator, ws, *truncation)
    return generator.synthesis(ws, q["noise"])


def _labels(classes: Sequence[int | None], device: torch.device) -> Tensor | None:
    given = [label for label in classes if label is not None]
    return torch.tensor(given, device=device) if given else None


def _mask(chosen: Sequence[int] | None, count: int, what: str) -> Tensor:
    """True at the chosen numbers, [count]; None means all."""
    mask = torch.zeros(count, dtype=torch.bool)
    for number in range(count) if chosen is None else chosen:
        if number >= count:
            raise UsageError(f"no {what} {number}: this network has {what} 0 to {count - 1}")
        mask[number] = True
    return mask
