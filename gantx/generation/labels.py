"""Labels of generated images: drawn from seeds in the proportions of the data, or chosen."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from typing import overload

import numpy as np
import torch
from torch import Tensor

from gantx.config.schema import ConditioningConfig
from gantx.errors import UsageError, closest
from gantx.models.interfaces import Generator, StyleBased
from gantx.runtime.random import Draw, Draws, for_seeds

_SHOWN = 6  # names of classes in a message
_DIGITS, _LONGEST_SHOWN = 9, 60  # of a number of a class; of what is no class, in a message
_BLOCK, _BLOCKS_KEPT = 256, 16  # labels that are drawn at once, and how many such draws are remembered


def drawn_labels(conditioning: ConditioningConfig, seeds: Sequence[int]) -> list[int] | None:
    """The label of each seed, in the proportions of the training data; None for an unconditional model.

    A seed always has the same label, and the latent that it has without labels.

    Args:
        conditioning: of the run.
        seeds: one per image.
    """
    if not isinstance(conditioning.classes, int):
        return None
    numbers = conditioning.counts or (1,) * conditioning.classes
    sums = np.array(list(accumulate(numbers)), np.float64)
    u = for_seeds({"label": Draw("uniform", (1,))}, seeds, torch.device("cpu"))["label"]
    assert isinstance(u, torch.Tensor)
    labels: list[int] = np.searchsorted(sums[:-1] / sums[-1], u.double().numpy(), side="right").tolist()
    return labels


class DrawnLabels(Sequence[int]):
    """The labels of `drawn_labels`, each computed when it is asked for: a billion of them take no memory.

    Args:
        conditioning: of a conditional run.
        seeds: one per image.
    """

    def __init__(self, conditioning: ConditioningConfig, seeds: Sequence[int]) -> None:
        self._conditioning = conditioning
        self._seeds = seeds
        self._of_block = lru_cache(_BLOCKS_KEPT)(self._draw)  # one by one, labels take longer than latents

    def __len__(self) -> int:
        return len(self._seeds)

    @overload
    def __getitem__(self, where: int) -> int: ...
    @overload
    def __getitem__(self, where: slice) -> DrawnLabels: ...
    def __getitem__(self, where: int | slice) -> int | DrawnLabels:
        if isinstance(where, slice):
            return DrawnLabels(self._conditioning, self._seeds[where])
        block, row = divmod(range(len(self))[where], _BLOCK)
        return self._of_block(block)[row]

    def _draw(self, block: int) -> list[int]:
        labels = drawn_labels(self._conditioning, self._seeds[block * _BLOCK : (block + 1) * _BLOCK])
        assert labels is not None
        return labels


def with_label(generator: Generator, label: int) -> Generator:
    """A generator with the same weights that generates one class, and is given no labels.

    Args:
        generator: a conditional network of `gantx.models`; it is not changed.
        label: of all images.
    """
    bound = copy.copy(generator)
    bound.classes = 0

    def labels(z: Tensor) -> Tensor:
        return torch.full((len(z),), label, dtype=torch.int64, device=z.device)

    def forward(z: Tensor, noise: Draws | None = None, given: Tensor | None = None) -> Tensor:
        images: Tensor = generator.forward(z, noise, labels(z))
        return images

    setattr(bound, "forward", forward)  # noqa: B010 -- a method of this object alone
    if isinstance(generator, StyleBased):
        styled = generator

        def mapping(z: Tensor, given: Tensor | None = None, noise: Draws | None = None) -> Tensor:
            return styled.mapping(z, labels(z), noise)

        setattr(bound, "mapping", mapping)  # noqa: B010
    return bound


def parse_classes(conditioning: ConditioningConfig, text: str) -> list[int]:
    """Read `cat`, `3`, `cat,dog`, `0-4` (ends included), `all`, or `none` for a withheld class.

    A name wins over a number, and a text that is a name as a whole is not split at commas.

    Args:
        conditioning: of the run.
        text: names and numbers.

    Raises:
        UsageError: the model is unconditional, or has no such class.
    """
    count, names = conditioning.classes, conditioning.names
    if not isinstance(count, int):
        raise UsageError("this model was trained without classes: omit the class")
    if text in names:
        return [names.index(text)]
    if text.strip() == "all":
        return list(range(count))
    labels: list[int] = []
    for part in (part.strip() for part in text.split(",")):
        first, dash, last = (piece.strip() for piece in part.partition("-"))
        numbers = all(piece.isdecimal() and len(piece) <= _DIGITS for piece in (first, last or "0"))
        if part in names:
            labels.append(names.index(part))
        elif part == "none" and conditioning.dropout:
            labels.append(count)
        elif numbers and not dash and int(first) < count:
            labels.append(int(first))
        elif numbers and last and int(first) <= int(last) < count:
            labels.extend(range(int(first), int(last) + 1))
        elif numbers and last and int(last) < int(first):
            raise UsageError(f"class '{part}': the range ends before it begins")
        else:
            shown = part if len(part) <= _LONGEST_SHOWN else f"{part[:_LONGEST_SHOWN]}…"
            raise UsageError(
                f"no class '{shown}'{closest(part, names)}: this model has {describe_classes(conditioning)}"
            )
    return labels


def parse_class(conditioning: ConditioningConfig, text: str | int) -> int:
    """Read the one class that all images of a command share.

    Args:
        conditioning: of the run.
        text: a name or a number as text; an integer is the label itself, also where names are numbers.

    Raises:
        UsageError: the model is unconditional, has no such class, or several are meant.
    """
    if isinstance(text, int) and isinstance(conditioning.classes, int):
        if not 0 <= text < conditioning.labels:
            raise UsageError(f"no class {text}: this model has {describe_classes(conditioning)}")
        return text
    labels = parse_classes(conditioning, str(text))
    if len(labels) != 1:
        raise UsageError(f"'{text}' is {len(labels)} classes: choose one")
    return labels[0]


def describe_classes(conditioning: ConditioningConfig) -> str:
    """The classes for messages: "18 classes, 0 red circle, 1 green circle, …"."""
    count = conditioning.classes
    assert isinstance(count, int)
    if not conditioning.names:
        return f"{count} classes, 0-{count - 1}"
    shown = ", ".join(f"{index} {name}" for index, name in enumerate(conditioning.names[:_SHOWN]))
    return f"{count} classes, {shown}{', …' if count > _SHOWN else ''}"


def name_of(conditioning: ConditioningConfig, label: int) -> str:
    """The name of a class; its number if it has none, `none` for a withheld class."""
    if label == conditioning.classes:
        return "none"
    return conditioning.names[label] if conditioning.names else str(label)
