"""The classes of a conditional model, as exported files describe them."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor

from gantx.config.schema import ConditioningConfig
from gantx.generation.labels import name_of, parse_class
from gantx.io.escaping import printable


def describe(conditioning: ConditioningConfig, chosen: str | None) -> dict[str, Any]:
    """What a user of an exported network needs to know about its classes, as JSON values.

    Args:
        conditioning: of the run.
        chosen: name or number of the only class that the export generates; None for all.

    Returns:
        `class`, the name of the chosen one; or `classes`, the names by label, `class_counts`, the training
        images of each, if known, and `no_class`, the label that stands for no class in particular, or None
        if the network was not trained with it. Control characters in names are escaped. {} for an
        unconditional run.

    Raises:
        UsageError: there is no such class.
    """
    label = None if chosen is None else parse_class(conditioning, chosen)
    if label is not None:
        return {"class": printable(name_of(conditioning, label))}
    count = conditioning.classes
    if not isinstance(count, int):
        return {}
    return {
        "classes": [printable(name_of(conditioning, label)) for label in range(count)],
        "class_counts": list(conditioning.counts),
        "no_class": count if conditioning.dropout else None,
    }


def metadata(described: dict[str, Any]) -> dict[str, str]:
    """The known entries of `describe` as metadata of a file: the class as text, all else as JSON."""
    return {
        f"gantx.{key}": value if isinstance(value, str) else json.dumps(value)
        for key, value in described.items()
        if value not in (None, [])
    }


def mixed_labels(count: int, batch: int) -> Tensor:
    """Labels int64 [batch] for a comparison: from both ends of the range, so that neighbours differ."""
    return torch.tensor([(row // 2 if row % 2 == 0 else -1 - row // 2) % count for row in range(batch)])


def require_known(labels: Tensor, count: int) -> Tensor:
    """The same labels [B], looked up in a table, so that the exported program refuses unknown ones.

    Without it, a label outside of 0 to `count` - 1 would be an image of no class at all, without any message.
    Runtimes check the indices of such a look-up on CPUs, and in browsers; on a GPU some do not.
    """
    known = torch.arange(count, device=labels.device)
    return known.index_select(
        0, labels.where(labels >= 0, count)
    )  # negative indices would count from the end
