"""Conversion of official state dicts to ours, for all families: every key is accounted for."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from pydantic import ValidationError
from torch import Tensor

from gantx import models
from gantx.config.networks import DiscriminatorConfig, GeneratorConfig
from gantx.config.section import Section
from gantx.errors import CheckpointError
from gantx.models import bounded
from gantx.models.layers.synthesis import channels_at


@dataclass(frozen=True)
class Imported:
    """An official network converted to ours.

    Attributes:
        section: the configuration that `models.build` turns into the network.
        tensors: its state dict.
        names: official key to our key, for everything in `tensors`.
        ignored: official key to the reason why it was left out.
        computed: our key to a description of its value, for tensors that the file does not contain.
    """

    section: GeneratorConfig | DiscriminatorConfig
    tensors: dict[str, Tensor]
    names: dict[str, str]
    ignored: dict[str, str]
    computed: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Conversion:
    """Official files converted to our networks.

    Attributes:
        parts: our part of a checkpoint to its network.
        called: our part to its name in the official code, such as `Gs`.
        skipped: entries or files that are no networks: optimiser states, notes of the training script.
        origin: where it comes from, for the header of the checkpoint.
        pixels: scale and shift that turn pixels in [-1, 1] into those of the official code.
    """

    parts: dict[str, Imported]
    called: dict[str, str]
    skipped: tuple[str, ...]
    origin: dict[str, Any]
    pixels: tuple[float, float] = (1.0, 0.0)


def both(official: str, ours: str) -> dict[str, str]:
    """Weight and bias of a layer: official key to ours."""
    return {f"{official}.{part}": f"{ours}.{part}" for part in ("weight", "bias")}


def without_prefix(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Drop the `module.` that parallel training puts before every key."""
    return {key.removeprefix("module."): tensor for key, tensor in state.items()}


def count_blocks(state: Mapping[str, Tensor], prefix: str) -> int:
    """How many blocks the keys `prefix.0.*`, `prefix.1.*`, ... name: one more than the highest number."""
    numbers = [key[len(prefix) + 1 :].split(".")[0] for key in state if key.startswith(f"{prefix}.")]
    return 1 + max((int(number) for number in numbers if number.isdecimal()), default=-1)


def require(what: str, state: Mapping[str, Tensor], keys: Iterable[str]) -> None:
    """CheckpointError when keys that are needed to infer the configuration are missing."""
    if missing := [key for key in keys if key not in state]:
        raise CheckpointError(f"this is no {what}: it has no {_listed(missing)}")


SomeSection = TypeVar("SomeSection", bound=Section)


def section_of(what: str, kind: type[SomeSection], **fields: object) -> SomeSection:
    """The section with these fields; CheckpointError when they do not fit together."""
    try:
        return kind.model_validate(fields)
    except ValidationError as problem:
        reason = problem.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
        raise CheckpointError(f"the sizes of this {what} do not fit together: {reason}") from None


def numbered(state: Mapping[str, Tensor], pattern: str) -> int:
    """The highest number that the group of `pattern` finds at the start of a key; -1 when there is none."""
    found = (re.match(pattern, key) for key in state)
    return max((int(match[1]) for match in found if match), default=-1)


def explained(
    state: Mapping[str, Tensor], names: Mapping[str, str], reasons: Mapping[str, str]
) -> dict[str, str]:
    """Official keys that have no counterpart in our network for a known reason, with the reason.

    Args:
        state: official tensors.
        names: official key to our key.
        reasons: pattern of whole keys to the reason.
    """
    left = [key for key in state if key not in names]
    return {key: why for key in left for pattern, why in reasons.items() if re.fullmatch(pattern, key)}


def channel_sizes(widths: Mapping[int, int], wanted: Section) -> dict[str, int]:
    """`channel_base` and `channel_max` of a StyleGAN2 network, which its tensors do not determine uniquely.

    Args:
        widths: resolution of features to their channels.
        wanted: a section whose values are taken if they give these channels.
    """
    base, most = getattr(wanted, "channel_base", 0), getattr(wanted, "channel_max", 0)
    if any(channels_at(resolution, base, most) != channels for resolution, channels in widths.items()):
        finest = max(widths)
        base, most = finest * widths[finest], max(widths.values())
    return {"channel_base": base, "channel_max": most}


def account(
    what: str,
    section: GeneratorConfig | DiscriminatorConfig,
    state: Mapping[str, Tensor],
    names: dict[str, str],
    ignored: dict[str, str],
    *,
    reshaped: Collection[str] = (),
    changes: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
) -> Imported:
    """Account for every key: imported, ignored with a reason, or an error.

    Args:
        what: names the network in messages.
        section: builds our network, whose shapes the tensors must have.
        state: official tensors.
        names: official key to our key, complete.
        ignored: official key to the reason why it is left out.
        reshaped: official tensors that have other axes than ours for the same numbers, such as the weights of
            convolutions that are linear layers here.
        changes: official key to the conversion of its tensor to ours, where the values differ.

    Raises:
        CheckpointError: keys are missing, unknown or of the wrong shape.
    """
    missing = [key for key in names if key not in state]
    unknown = [key for key in state if key not in names and key not in ignored]
    wrong = [
        f"{how} {_listed(keys)}" for how, keys in (("misses", missing), ("has unknown", unknown)) if keys
    ]
    if wrong:
        raise CheckpointError(f"this is no {what} as released: it {' and '.join(wrong)}")

    try:
        bounded.check_within(section, sum(tensor.numel() for tensor in state.values()))
    except bounded.TooLargeError as problem:
        raise CheckpointError(f"this is no {what} as released: {problem}") from problem
    with torch.device("meta"):
        expected = models.build(section).state_dict()
    tensors: dict[str, Tensor] = {}
    for official, ours in names.items():
        tensor, shape = state[official].detach(), expected[ours].shape
        if official in reshaped and tensor.numel() == shape.numel():
            tensor = tensor.reshape(shape)
        if tensor.shape != shape:
            raise CheckpointError(
                f"{official} of this {what} has {list(tensor.shape)} numbers where the other tensors "
                f"ask for {list(shape)}: the file is damaged or of another model"
            )
        tensor = tensor.to(expected[ours].dtype)
        tensors[ours] = changes[official](tensor) if changes and official in changes else tensor
    return Imported(section, tensors, names, ignored)


def _listed(keys: list[str], most: int = 8) -> str:
    more = f" and {len(keys) - most} more" if len(keys) > most else ""
    return ", ".join(keys[:most]) + more
