"""Official key layouts mapped to ours.

For each official network there is one function: it reads the sizes off the tensors, writes down which
official key is which of ours, and leaves the rest to `_imported`, which accounts for every key.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from pydantic import ValidationError
from torch import Tensor

from gantx import models
from gantx.architectures import TransGANDiscriminatorConfig, TransGANGeneratorConfig
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


def transgan_v1_generator(state: Mapping[str, Tensor], heads: int = 4) -> Imported:
    """Import a generator of TransGAN version 1, any of its released classes.

    Args:
        state: `gen_state_dict` or `avg_gen_state_dict`, with or without `module.` before the keys.
        heads: attention heads, which the tensors do not tell; 4 in all released models.

    Raises:
        CheckpointError: keys are missing, unknown or of the wrong shape.
    """
    what = "TransGAN v1 generator"
    state = _without_prefix(state)
    _require(what, state, ("l1.weight", "pos_embed_1", "blocks.0.mlp.fc1.weight"))
    tokens, dim = state["pos_embed_1"].shape[1:]
    places = ["blocks"]
    while _count(state, upsampled := f"upsample_blocks.{len(places) - 1}"):
        places.append(upsampled)
    depths = tuple(_count(state, place) for place in places)
    section = _section(
        what,
        TransGANGeneratorConfig,
        latent_dim=state["l1.weight"].shape[1],
        base_dim=dim,
        base_size=math.isqrt(tokens),
        depths=depths,
        heads=heads,
        mlp_ratio=state["blocks.0.mlp.fc1.weight"].shape[0] // dim,
        super_resolution=False,
    )

    names = _both("l1", "to_tokens") | _both("deconv.0", "to_rgb")
    for stage, (place, depth) in enumerate(zip(places, depths, strict=True)):
        names[f"pos_embed_{stage + 1}"] = f"stages.{stage}.positions"
        for block in range(depth):
            names |= _transgan_v1_block(f"{place}.{block}", f"stages.{stage}.blocks.{block}")
    unused = "belongs to a normalisation that the released code builds but never calls"
    ignored = {key: unused for key in state if key.startswith("to_rgb.0.")}
    return _imported(what, section, state, names, ignored, convolutions=("deconv.0.weight",))


def transgan_v1_discriminator(state: Mapping[str, Tensor], heads: int = 4) -> Imported:
    """Import a discriminator of TransGAN version 1.

    Args:
        state: `dis_state_dict`, with or without `module.` before the keys.
        heads: attention heads, which the tensors do not tell; 4 in all released models.

    Raises:
        CheckpointError: keys are missing, unknown or of the wrong shape.
    """
    what = "TransGAN v1 discriminator"
    state = _without_prefix(state)
    _require(what, state, ("pos_embed", "patch_embed.weight", "blocks.0.mlp.fc1.weight"))
    tokens, dim = state["pos_embed"].shape[1:]
    patch_size = state["patch_embed.weight"].shape[-1]
    depth = _count(state, "blocks")
    section = _section(
        what,
        TransGANDiscriminatorConfig,
        resolution=math.isqrt(tokens - 1) * patch_size,
        patch_size=patch_size,
        dim=dim,
        depth=depth,
        heads=heads,
        mlp_ratio=state["blocks.0.mlp.fc1.weight"].shape[0] // dim,
    )

    names = {"cls_token": "class_token", "pos_embed": "positions"}
    names |= _both("patch_embed", "from_patches") | _both("norm", "norm") | _both("head", "head")
    for block in range(depth):
        names |= _transgan_v1_block(f"blocks.{block}", f"blocks.{block}")
    return _imported(what, section, state, names, {}, convolutions=("patch_embed.weight",))


def _transgan_v1_block(official: str, ours: str) -> dict[str, str]:
    return {
        **_both(f"{official}.norm1", f"{ours}.norm1"),
        f"{official}.attn.qkv.weight": f"{ours}.attention.qkv.weight",
        **_both(f"{official}.attn.proj", f"{ours}.attention.out"),
        **_both(f"{official}.norm2", f"{ours}.norm2"),
        **_both(f"{official}.mlp.fc1", f"{ours}.mlp.0"),
        **_both(f"{official}.mlp.fc2", f"{ours}.mlp.2"),
    }


# --- for all families -------------------------------------------------------------------------------------


def _both(official: str, ours: str) -> dict[str, str]:
    return {f"{official}.{part}": f"{ours}.{part}" for part in ("weight", "bias")}


def _without_prefix(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Drop the `module.` that parallel training puts before every key."""
    return {key.removeprefix("module."): tensor for key, tensor in state.items()}


def _count(state: Mapping[str, Tensor], place: str) -> int:
    """How many blocks the keys `place.0.*`, `place.1.*`, ... name: one more than the highest number."""
    numbers = [key[len(place) + 1 :].split(".")[0] for key in state if key.startswith(f"{place}.")]
    return 1 + max((int(number) for number in numbers if number.isdecimal()), default=-1)


def _require(what: str, state: Mapping[str, Tensor], keys: Iterable[str]) -> None:
    if missing := [key for key in keys if key not in state]:
        raise CheckpointError(f"this is no {what}: it has no {_listed(missing)}")


def _section(what: str, kind: type[Section], **fields: int | bool | tuple[int, ...]) -> Section:
    try:
        return kind.model_validate(fields)
    except ValidationError as problem:
        reason = problem.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
        raise CheckpointError(f"the sizes of this {what} do not fit together: {reason}") from None


def _imported(
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
