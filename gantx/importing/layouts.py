"""How an official network is brought under our names, for all families: every key is accounted for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from pydantic import ValidationError
from torch import Tensor

from gantx import models
from gantx.errors import CheckpointError
from gantx.sections import Section


@dataclass(frozen=True)
class Imported:
    """An official network under our names.

    Attributes:
        section: the configuration that `models.build` turns into the network.
        tensors: its state dict.
        names: official key to our key, for everything in `tensors`.
        ignored: official key to the reason why it was left out.
    """

    section: Section
    tensors: dict[str, Tensor]
    names: dict[str, str]
    ignored: dict[str, str]


def both(official: str, ours: str) -> dict[str, str]:
    """Weight and bias of a layer: official key to ours."""
    return {f"{official}.{part}": f"{ours}.{part}" for part in ("weight", "bias")}


def without_prefix(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Drop the `module.` that parallel training puts before every key."""
    return {key.removeprefix("module."): tensor for key, tensor in state.items()}


def count_blocks(state: Mapping[str, Tensor], place: str) -> int:
    """How many blocks the keys `place.0.*`, `place.1.*`, ... name: one more than the highest number."""
    numbers = [key[len(place) + 1 :].split(".")[0] for key in state if key.startswith(f"{place}.")]
    return 1 + max((int(number) for number in numbers if number.isdecimal()), default=-1)


def require(what: str, state: Mapping[str, Tensor], keys: Iterable[str]) -> None:
    """CheckpointError when keys without which nothing can be read off are missing."""
    if missing := [key for key in keys if key not in state]:
        raise CheckpointError(f"this is no {what}: it has no {_listed(missing)}")


def section_of(what: str, kind: type[Section], **fields: object) -> Section:
    """The section with these fields; CheckpointError when they do not fit together."""
    try:
        return kind.model_validate(fields)
    except ValidationError as problem:
        reason = problem.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
        raise CheckpointError(f"the sizes of this {what} do not fit together: {reason}") from None


def account(
    what: str,
    section: Section,
    state: Mapping[str, Tensor],
    names: dict[str, str],
    ignored: dict[str, str],
    convolutions: tuple[str, ...],
) -> Imported:
    """Account for every key: imported, ignored with a reason, or an error.

    Args:
        what: names the network in messages.
        section: builds our network, whose shapes the tensors must have.
        state: official tensors.
        names: official key to our key, complete.
        ignored: official key to the reason why it is left out.
        convolutions: official weights [out, in, k, k] that are linear layers [out, in·k²] here.
    """
    missing = [key for key in names if key not in state]
    unknown = [key for key in state if key not in names and key not in ignored]
    wrong = [
        f"{how} {_listed(keys)}" for how, keys in (("misses", missing), ("has unknown", unknown)) if keys
    ]
    if wrong:
        raise CheckpointError(f"this is no {what} as released: it {' and '.join(wrong)}")

    with torch.device("meta"):
        expected = models.build(section).state_dict()
    tensors: dict[str, Tensor] = {}
    for official, ours in names.items():
        tensor = state[official].detach()
        tensor = tensor.flatten(1) if official in convolutions else tensor
        if tensor.shape != expected[ours].shape:
            raise CheckpointError(
                f"{official} of this {what} holds {list(tensor.shape)} numbers where the other tensors "
                f"ask for {list(expected[ours].shape)}: the file is damaged or of another model"
            )
        tensors[ours] = tensor.to(expected[ours].dtype)
    return Imported(section, tensors, names, ignored)


def _listed(keys: list[str], most: int = 8) -> str:
    more = f" and {len(keys) - most} more" if len(keys) > most else ""
    return ", ".join(keys[:most]) + more
