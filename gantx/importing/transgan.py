"""The released checkpoints of TransGAN, both versions.

A file contains all networks, or the weights of a generator alone. One function for each network
infers the configuration from the tensors and maps official keys to ours; `account` does the rest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from gantx.config import networks
from gantx.config.schema import RunConfig
from gantx.importing.layouts import (
    Conversion,
    Imported,
    account,
    both,
    count_blocks,
    require,
    section_of,
    without_prefix,
)
from gantx.importing.reading import origin_of, read_torch, tensors_of

PARTS = {"gen": "generator", "avg_gen": "generator_ema", "dis": "discriminator"}  # of `<name>_state_dict`


def read_transgan(path: Path, config: RunConfig) -> Conversion:
    """Read a file of the official training script, or of a bare generator, of either version.

    Args:
        path: the file.
        config: gives the version, by the generator's family, and what cannot be inferred from tensors.

    Raises:
        MissingError: there is no such file.
        CheckpointError: it cannot be read without running code, or contains other networks.
    """
    stored = read_torch(path)
    if not any(f"{name}_state_dict" in stored for name in PARTS):
        stored = {"gen_state_dict": stored, "avg_gen_state_dict": stored}
    readers = {"generator": _generator, "discriminator": _discriminator}
    found = [name for name in PARTS if f"{name}_state_dict" in stored]
    parts = {}
    for name in found:
        entry = f"{name}_state_dict"
        read = readers[PARTS[name].removesuffix("_ema")]
        parts[PARTS[name]] = read(tensors_of(stored[entry], entry, path), config)
    notes = {
        name: value for name in ("epoch", "best_fid") if (value := _number(stored.get(name))) is not None
    }
    return Conversion(
        parts,
        called={PARTS[name]: name for name in found},
        skipped=tuple(str(entry) for entry in stored if str(entry).removesuffix("_state_dict") not in found),
        origin=origin_of(path, [path], **notes),
    )


def _generator(state: Mapping[str, Tensor], config: RunConfig) -> Imported:
    wanted = config.generator
    if isinstance(wanted, networks.TransGAN2GeneratorConfig):
        return transgan_v2_generator(state, wanted.heads, wanted.normalize_latent)
    heads = getattr(wanted, "heads", 4)
    return transgan_v1_generator(state, heads if isinstance(heads, int) else heads[0])


def _discriminator(state: Mapping[str, Tensor], config: RunConfig) -> Imported:
    wanted = config.discriminator
    heads = getattr(wanted, "heads", 4)
    if config.generator.family != "transgan2":
        return transgan_v1_discriminator(state, heads)
    windows = getattr(wanted, "windows", None) or ()
    return transgan_v2_discriminator(state, heads, next((window for window in windows if window), 4))


def _number(value: Any) -> float | int | None:
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def transgan_v1_generator(state: Mapping[str, Tensor], heads: int = 4) -> Imported:
    """Import a generator of TransGAN version 1, any of its released classes.

    Args:
        state: `gen_state_dict` or `avg_gen_state_dict`, with or without `module.` before the keys.
        heads: attention heads, which cannot be inferred from tensors; 4 in all released models.

    Raises:
        CheckpointError: keys are missing, unknown or of the wrong shape.
    """
    what = "TransGAN v1 generator"
    state = without_prefix(state)
    require(what, state, ("l1.weight", "pos_embed_1", "blocks.0.mlp.fc1.weight"))
    tokens, dim = state["pos_embed_1"].shape[1:]
    prefixes = ["blocks"]
    while count_blocks(state, upsampled := f"upsample_blocks.{len(prefixes) - 1}"):
        prefixes.append(upsampled)
    depths = tuple(count_blocks(state, prefix) for prefix in prefixes)
    section = section_of(
        what,
        networks.TransGANGeneratorConfig,
        latent_dim=state["l1.weight"].shape[1],
        base_dim=dim,
        base_size=math.isqrt(tokens),
        depths=depths,
        heads=heads,
        mlp_ratio=state["blocks.0.mlp.fc1.weight"].shape[0] // dim,
        super_resolution=False,
    )

    names = both("l1", "to_tokens") | both("deconv.0", "to_rgb")
    for stage, (prefix, depth) in enumerate(zip(prefixes, depths, strict=True)):
        names[f"pos_embed_{stage + 1}"] = f"stages.{stage}.positions"
        for block in range(depth):
            names |= _transgan_v1_block(f"{prefix}.{block}", f"stages.{stage}.blocks.{block}")
    unused = "belongs to a normalisation that the released code builds but never calls"
    ignored = {key: unused for key in state if key.startswith("to_rgb.0.")}
    return account(what, section, state, names, ignored, reshaped=("deconv.0.weight",))


def transgan_v1_discriminator(state: Mapping[str, Tensor], heads: int = 4) -> Imported:
    """Import a discriminator of TransGAN version 1.

    Args:
        state: `dis_state_dict`, with or without `module.` before the keys.
        heads: attention heads, which cannot be inferred from tensors; 4 in all released models.

    Raises:
        CheckpointError: keys are missing, unknown or of the wrong shape.
    """
    what = "TransGAN v1 discriminator"
    state = without_prefix(state)
    require(what, state, ("pos_embed", "patch_embed.weight", "blocks.0.mlp.fc1.weight"))
    tokens, dim = state["pos_embed"].shape[1:]
    patch_size = state["patch_embed.weight"].shape[-1]
    depth = count_blocks(state, "blocks")
    section = section_of(
        what,
        networks.TransGANDiscriminatorConfig,
        resolution=math.isqrt(tokens - 1) * patch_size,
        patch_size=patch_size,
        dim=dim,
        depth=depth,
        heads=heads,
        mlp_ratio=state["blocks.0.mlp.fc1.weight"].shape[0] // dim,
    )

    names = {"cls_token": "class_token", "pos_embed": "positions"}
    names |= both("patch_embed", "from_patches") | both("norm", "norm") | both("head", "head")
    for block in range(depth):
        names |= _transgan_v1_block(f"blocks.{block}", f"blocks.{block}")
    return account(what, section, state, names, {}, reshaped=("patch_embed.weight",))


def _transgan_v1_block(official: str, ours: str) -> dict[str, str]:
    return {
        **both(f"{official}.norm1", f"{ours}.norm1"),
        f"{official}.attn.qkv.weight": f"{ours}.attention.qkv.weight",
        **both(f"{official}.attn.proj", f"{ours}.attention.out"),
        **both(f"{official}.norm2", f"{ours}.norm2"),
        **both(f"{official}.mlp.fc1", f"{ours}.mlp.0"),
        **both(f"{official}.mlp.fc2", f"{ours}.mlp.2"),
    }


def transgan_v2_generator(
    state: Mapping[str, Tensor], heads: int = 4, normalize_latent: bool = False
) -> Imported:
    """Import a generator of TransGAN version 2: the CIFAR-10, LSUN church or CelebA-HQ class.

    Args:
        state: `gen_state_dict` or `avg_gen_state_dict`, with or without `module.` before the keys.
        heads: attention heads, which cannot be inferred from tensors; 4 in all released models.
        normalize_latent: whether the network normalises z (`--latent_norm`); no released script does.

    Raises:
        CheckpointError: keys are missing, unknown or of the wrong shape.
    """
    what = "TransGAN v2 generator"
    state = without_prefix(state)
    grids = _grids(state)
    if any(key.startswith("blocks.block.") for key in state):
        prefixes = ["blocks.block", *(f"upsample_blocks.{stage}.block" for stage in range(len(grids) - 1))]
    else:
        prefixes = [f"blocks_{stage + 1}.block" for stage in range(len(grids))]
    last = f"{prefixes[-1]}.0" if grids else "blocks.block.0"
    require(what, state, ("l1.weight", "pos_embed_1", f"{last}.mlp.fc1.weight"))
    sides = [math.isqrt(positions.shape[1]) for positions in grids]
    dims = [positions.shape[2] for positions in grids]
    norm, noise = _norm(state), f"{last}.attn.noise_strength_1" in state
    windows = [_window(state, prefix, side) for prefix, side in zip(prefixes, sides, strict=True)]
    latent_grid = "embed_pos" in state
    # The class with a latent grid blurs on the way to its fifth and sixth stage.
    shuffles = ["blur-shuffle" if latent_grid and stage > 3 else "shuffle" for stage in range(len(grids))]
    section = section_of(
        what,
        networks.TransGAN2GeneratorConfig,
        latent_dim=state["l1.weight"].shape[1],
        normalize_latent=normalize_latent,
        dim=dims[0],
        base_size=sides[0],
        depths=tuple(count_blocks(state, prefix) for prefix in prefixes),
        upsampling=tuple(
            "bicubic" if dims[stage] == dims[stage - 1] else shuffles[stage] for stage in range(1, len(dims))
        ),
        windows=tuple(windows) if any(windows) else None,
        heads=heads,
        mlp_ratio=_mlp_ratio(state, last),
        norm=norm,
        noise=noise,
        latent_grid=latent_grid,
    )

    block_names = partial(
        _transgan_v2_block, norm=norm, relative_positions=True, noise=noise, latent_grid=latent_grid
    )
    names = both("l1", "to_tokens") | both("deconv.0", "to_rgb")
    if latent_grid:
        names |= both("embedding_transform", "to_latents") | {"embed_pos": "latent_positions"}
    for stage, (prefix, window) in enumerate(zip(prefixes, windows, strict=True)):
        names[f"pos_embed_{stage + 1}"] = f"stages.{stage}.positions"
        kind = "windowed_blocks" if window else "global_blocks"
        for block in range(count_blocks(state, prefix)):
            names |= block_names(f"{prefix}.{block}", f"stages.{stage}.{kind}.{block}")
    ignored = _transgan_v2_ignored(state)
    return account(what, section, state, names, ignored, reshaped=("deconv.0.weight",))


def transgan_v2_discriminator(state: Mapping[str, Tensor], heads: int = 4, window: int = 4) -> Imported:
    """Import a discriminator of TransGAN version 2: the CIFAR-10, LSUN church or CelebA-HQ class.

    Args:
        state: `dis_state_dict`, with or without `module.` before the keys.
        heads: attention heads, which cannot be inferred from tensors; 4 in all released models.
        window: side of the windows of the CelebA-HQ class, which has no relative positions to infer
            it from (`--d_window_size`).

    Raises:
        CheckpointError: keys are missing, unknown or of the wrong shape.
    """
    what = "TransGAN v2 discriminator"
    state = without_prefix(state)
    require(what, state, ("pos_embed_1", "fRGB_1.weight", "fRGB_2.weight", "last_block.0.mlp.fc1.weight"))
    grids = _grids(state)
    stages = range(1, 1 + len(grids))
    require(what, state, (f"fRGB_{stage}.weight" for stage in stages))
    kernels = [state[f"fRGB_{stage}.weight"].shape[-1] for stage in stages]
    added = [state[f"fRGB_{stage}.weight"].shape[0] for stage in stages]
    sides = [math.isqrt(positions.shape[1]) for positions in grids]
    norm, noise = _norm(state), "last_block.0.attn.noise_strength_1" in state
    overlap = kernels[0] == kernels[1]
    patch_size = kernels[0] // 2 if overlap else kernels[0]
    whole = [count_blocks(state, f"blocks_{stage}1") for stage in stages]  # after those of blocks_{stage}
    depths = [count_blocks(state, f"blocks_{stage}") + whole[stage - 1] for stage in stages]
    relative_positions = any(key.endswith(_TABLE) for key in state)
    if relative_positions:
        windows = [_window(state, f"blocks_{stage}", sides[stage - 1]) for stage in stages]
    else:
        windows = [window if side > max(sides[-1], window) else None for side in sides]
    section = section_of(
        what,
        networks.TransGAN2DiscriminatorConfig,
        resolution=sides[0] * patch_size,
        patch_size=patch_size,
        overlap=overlap,
        dim=sum(added),
        shares=tuple(channels // math.gcd(*added) for channels in added),
        depths=tuple(depths),
        windows=tuple(windows) if any(windows) else None,
        global_blocks=tuple(whole) if any(whole) else None,
        heads=heads,
        mlp_ratio=_mlp_ratio(state, "last_block.0"),
        norm=norm,
        relative_positions=relative_positions,
        noise=noise,
    )

    block_names = partial(_transgan_v2_block, norm=norm, noise=noise)
    names = {"cls_token": "class_token"} | both("head", "head")
    if norm == "layer":
        names |= both("norm.norm", "norm")
    for stage, reach in zip(stages, windows, strict=True):
        names[f"pos_embed_{stage}"] = f"stages.{stage - 1}.positions"
        names |= both(f"fRGB_{stage}", f"from_patches.{stage - 1}")
        first, after = count_blocks(state, f"blocks_{stage}"), whole[stage - 1]
        official = [f"blocks_{stage}.{block}" for block in range(first)]
        official += [f"blocks_{stage}1.{block}" for block in range(after)]
        windowed = first if reach else 0
        ours = [f"windowed_blocks.{block}" for block in range(windowed)]
        ours += [f"global_blocks.{block}" for block in range(first + after - windowed)]
        for theirs, name in zip(official, ours, strict=True):
            names |= block_names(theirs, f"stages.{stage - 1}.{name}", relative_positions=relative_positions)
    names |= block_names("last_block.0", "last_block", relative_positions=False)
    return account(what, section, state, names, _transgan_v2_ignored(state))


def _transgan_v2_block(
    official: str, ours: str, *, norm: str, relative_positions: bool, noise: bool, latent_grid: bool = False
) -> dict[str, str]:
    names = {
        f"{official}.attn.qkv.weight": f"{ours}.attention.qkv.weight",
        **both(f"{official}.attn.proj", f"{ours}.attention.out"),
        **both(f"{official}.mlp.fc1", f"{ours}.mlp.0"),
        **both(f"{official}.mlp.fc2", f"{ours}.mlp.2"),
    }
    if norm == "layer":
        names |= both(f"{official}.norm1.norm", f"{ours}.norm1")
        names |= both(f"{official}.norm2.norm", f"{ours}.norm2")
    if relative_positions:
        names[official + _TABLE] = f"{ours}.attention.relative_positions.table"
    if noise:
        names[f"{official}.attn.noise_strength_1"] = f"{ours}.attention.noise_strength"
    if latent_grid:
        names |= both(f"{official}.cross_attention.proj", f"{ours}.cross_attention.out")
        for part in ("q", "k", "v"):
            names[f"{official}.cross_attention.{part}_transform.weight"] = (
                f"{ours}.cross_attention.{part}.weight"
            )
    return names


def _transgan_v2_ignored(state: Mapping[str, Tensor]) -> dict[str, str]:
    reasons = {
        ".relative_position_index": "numbers the pairs of tokens, which we compute",
        ".cross_attention.noise_strength_1": "is never used by the released code",
        "Hz_fbank": "belongs to the augmentation, which is not part of our network",
    }
    return {key: reason for key in state for end, reason in reasons.items() if key.endswith(end)}


_TABLE = ".attn.relative_position_bias_table"


def _window(state: Mapping[str, Tensor], prefix: str, side: int) -> int | None:
    """Side of the windows of the blocks under `prefix` on a grid of `side`; None for the whole grid."""
    if (table := state.get(f"{prefix}.0{_TABLE}")) is None:
        return None
    window = (math.isqrt(len(table)) + 1) // 2  # a table has (2W - 1)² rows
    return None if window == side else window


def _grids(state: Mapping[str, Tensor]) -> list[Tensor]:
    """The positions of all stages, `pos_embed_1` and so on."""
    grids: list[Tensor] = []
    while (positions := state.get(f"pos_embed_{len(grids) + 1}")) is not None:
        grids.append(positions)
    return grids


def _norm(state: Mapping[str, Tensor]) -> str:
    return "layer" if any(".norm1.norm." in key for key in state) else "pixel"


def _mlp_ratio(state: Mapping[str, Tensor], block: str) -> int:
    hidden, dim = state[f"{block}.mlp.fc1.weight"].shape
    return hidden // dim
