"""The files of ViTGAN's training script: gen.pt, gen_ema.pt and dis.pt.

Spectral normalisation keeps each weight at its initial norm, and the released code does not save
these norms. They are read from `spectral_norms.safetensors` beside the files if it is there, and estimated
otherwise. The released discriminator is the convolutional one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from gantx.config.networks import StyleGAN2DiscriminatorConfig, ViTGANGeneratorConfig
from gantx.config.schema import RunConfig
from gantx.config.section import Section
from gantx.errors import DataError, MissingError
from gantx.importing.layouts import (
    Conversion,
    Imported,
    account,
    both,
    channel_sizes,
    count_blocks,
    explained,
    numbered,
    require,
    section_of,
    without_prefix,
)
from gantx.importing.reading import origin_of, read_torch, tensors_of
from gantx.io.byte_names import utf8_path
from gantx.models.vitgan.mapping import Mapping as MappingNetwork

PARTS = {"gen": "generator", "gen_ema": "generator_ema", "dis": "discriminator"}  # of `<name>.pt`
NORMS = "spectral_norms.safetensors"
LATENTS = 10_000  # number of latents whose mean style becomes w_avg


def read_vitgan(path: Path, config: RunConfig) -> Conversion:
    """Read the files of ViTGAN's training script.

    Args:
        path: the folder of gen.pt, gen_ema.pt and dis.pt, or a file of a generator alone.
        config: gives resolution, patch size and heads, which cannot be inferred from tensors.

    Raises:
        MissingError: there is no such file, or no averaged generator in the folder.
        CheckpointError: a file cannot be read without running code, or contains another network.
        DataError: the file of spectral norms beside them does not fit.
    """
    alone = not path.is_dir()
    files = {"gen_ema": path} if alone else {name: path / f"{name}.pt" for name in PARTS}
    files = {name: file for name, file in files.items() if alone or file.is_file()}
    if "gen_ema" not in files:
        raise MissingError(f"there is no gen_ema.pt, the averaged generator, in {path}")
    norms = _read_norms(files["gen_ema"].parent / NORMS)
    wanted = config.generator
    assert isinstance(wanted, ViTGANGeneratorConfig)

    parts: dict[str, Imported] = {}
    for name, file in files.items():
        state = tensors_of(read_torch(file), "the content", file)
        if name == "dis":
            parts[PARTS[name]] = vitgan_discriminator(state, config.discriminator)
        else:
            own = None if norms is None else _norms_of(norms, file.stem)
            parts[PARTS[name]] = vitgan_generator(state, wanted, own)
    called = {PARTS[name]: name for name in files}
    if alone:
        parts = {"generator": parts["generator_ema"]} | parts
        called["generator"] = "gen"
    others = () if alone else sorted(file.name for file in path.glob("*.pt") if file.stem not in PARTS)
    return Conversion(
        parts,
        called,
        skipped=tuple(others),
        origin=origin_of(path, files.values()),
        pixels=(0.5, 0.5),  # the released code generates images in [0, 1]
    )


def vitgan_generator(
    state: Mapping[str, Tensor],
    wanted: ViTGANGeneratorConfig,
    norms: Mapping[str, Tensor] | None = None,
) -> Imported:
    """Import a generator of the released code, with either decoder.

    Args:
        state: of gen.pt or gen_ema.pt, with or without `module.` before the keys.
        wanted: gives what cannot be inferred from tensors: resolution, patch size, heads, and whether
            attention is `released-dot`.
        norms: by official layer (`layers.0.attn.to_qkv`), the spectral norm that its weight started with;
            None to estimate them.

    Raises:
        CheckpointError: keys are missing, unknown or of the wrong shape.
        DataError: `norms` lacks a layer.
    """
    what = "ViTGAN generator"
    state = without_prefix(state)
    depth, mapping_depth = count_blocks(state, "layers"), numbered(state, r"style\.(\d+)\.")
    spectral = any(key.endswith(".weight_bar") for key in state)
    inner, weight = (".module", "weight_bar") if spectral else ("", "weight")
    convolutions = count_blocks(state, "convs")
    first = "convs.0" if convolutions else "cips.conv1"
    widening = f"layers.0.ff.net.0{inner}.{weight}"
    require(what, state, ("style.1.weight", "lff.ffm.conv.weight", widening, f"{first}.conv.weight"))
    dim = len(state["lff.ffm.conv.weight"])
    patch_size = 2 ** (convolutions // 2) if convolutions else wanted.patch_size
    section = section_of(
        what,
        ViTGANGeneratorConfig,
        resolution=wanted.resolution // wanted.patch_size * patch_size,
        patch_size=patch_size,
        dim=dim,
        depth=depth,
        heads=wanted.heads,
        mlp_ratio=len(state[widening]) // dim,
        mapping_depth=mapping_depth,
        residual="released",
        attention="released-dot" if wanted.attention == "released-dot" else "released",
        activation="silu",
        spectral_norm="released" if spectral else "none",
        norm_eps=1e-3,
        decoder="conv" if convolutions else "inr",
        decoder_dim=state[f"{first}.conv.weight"].shape[1],
        decoder_noise=True,
    )

    names = both("lff.ffm.conv", "positions") | _norm("layernorm", "norm")
    for layer in range(mapping_depth):
        names |= both(f"style.{layer + 1}", f"mapping_network.layers.{layer}")
    for block in range(depth):
        official, ours = f"layers.{block}", f"blocks.{block}"
        names |= _norm(f"{official}.layernorm1", f"{ours}.norm1")
        names |= _norm(f"{official}.layernorm2", f"{ours}.norm2")
        names[f"{official}.attn.temperature"] = f"{ours}.attention.temperature"
    for official, ours in _normalized_layers(depth).items():
        names[f"{official}{inner}.{weight}"] = f"{ours}.weight"
        names[f"{official}{inner}.bias"] = f"{ours}.bias"
        if spectral:
            names[f"{official}.module.weight_u"] = f"{ours}.spectral.u"
    names |= _convolutional(convolutions // 2) if convolutions else _implicit()
    imported = account(
        what,
        section,
        state,
        names,
        explained(state, names, _IDLE),
        reshaped=[key for key in state if key.endswith(_WITH_AXES_OF_ONE)],
        changes=_changes(state),
    )
    added = {"w_avg": _average_style(imported, mapping_depth)}
    reasons = {"w_avg": f"mean of {LATENTS:,} mapped latents, since the released code keeps none"}
    for official, ours in _normalized_layers(depth if spectral else 0).items():
        key = f"{ours}.spectral.target"
        if norms is None:
            added[key] = torch.tensor(sum(map(math.sqrt, imported.tensors[f"{ours}.weight"].shape)))
            reasons[key] = (
                "spectral norm at the start, estimated as √out + √in since the file does not contain it"
            )
        else:
            added[key] = _norm_of(norms, official)
            reasons[key] = f"spectral norm at the start, from {NORMS}"
    return replace(imported, tensors=imported.tensors | added, computed=reasons)


def vitgan_discriminator(state: Mapping[str, Tensor], wanted: Section) -> Imported:
    """Import the discriminator of the released code, which is that of StyleGAN2.

    Args:
        state: of dis.pt, with or without `module.` before the keys.
        wanted: how sizes are to be spelled where several spellings mean the same.

    Raises:
        CheckpointError: keys are missing, unknown or of the wrong shape.
    """
    what = "ViTGAN discriminator"
    state = without_prefix(state)
    levels = count_blocks(state, "layers") - 1
    before = [f"layers.{level}.conv1.0.weight" for level in range(1, 1 + levels)]
    require(what, state, ("layers.0.0.weight", *before, "last_conv.0.weight"))
    channels, inputs = state["last_conv.0.weight"].shape[:2]
    widths = {4: channels} | {4 << (levels - level): state[key].shape[1] for level, key in enumerate(before)}
    section = section_of(
        what,
        StyleGAN2DiscriminatorConfig,
        resolution=4 << levels,
        **channel_sizes(widths, wanted),
        group_size=4,
        group_channels=inputs - channels,
    )

    names = _layer("layers.0", 0, "from_rgb") | _layer("last_conv", 0, "epilogue.convolution")
    for level in range(levels):
        official, ours = f"layers.{level + 1}", f"blocks.{level}"
        names |= _layer(f"{official}.conv1", 0, f"{ours}.first")
        names |= _layer(f"{official}.conv2", 1, f"{ours}.second")
        names[f"{official}.skip.1.weight"] = f"{ours}.shortcut.weight"
    names |= both("linear.l1", "epilogue.linear") | both("linear.l2", "out")
    of_one_pixel = [key for key in state if key.endswith(("layers.0.0.weight", ".skip.1.weight"))]
    return account(what, section, state, names, explained(state, names, _IDLE), reshaped=of_one_pixel)


# --- keys ---------------------------------------------------------------------------------------------------

# Official keys without a counterpart in our networks, and why.
_IDLE = {
    r".*\.kernel": "is the blur, which we compute",
    r".*\.module\.weight": "is a weight before its first normalisation, which replaced it",
    r".*\.weight_v": "is computed anew from weight_u in every pass",
    r"projection.*": "belongs to a head whose output the released code multiplies by zero",
}
# Tensors that have axes of length 1 in the released code.
_WITH_AXES_OF_ONE = ("conv.weight", ".temperature", ".noise.weight", "to_rgb.bias", "to_rgbs.0.bias")


def _norm(official: str, ours: str) -> dict[str, str]:
    return both(f"{official}.mlp_gamma", f"{ours}.gain") | both(f"{official}.mlp_beta", f"{ours}.bias")


def _normalized_layers(depth: int) -> dict[str, str]:
    """The layers of all blocks that spectral normalisation wraps."""
    layers = {
        "attn.to_qkv": "attention.qkv",
        "attn.to_out.0": "attention.out",
        "ff.net.0": "mlp.0",
        "ff.net.3": "mlp.2",
    }
    return {
        f"layers.{block}.{official}": f"blocks.{block}.{ours}"
        for block in range(depth)
        for official, ours in layers.items()
    }


def _modulated(official: str, ours: str) -> dict[str, str]:
    """A modulated layer without what follows it."""
    weights = {f"{official}.conv.weight": f"{ours}.weight"}
    return weights | both(f"{official}.conv.modulation", f"{ours}.modulation")


def _styled(official: str, ours: str) -> dict[str, str]:
    """A modulated layer with noise and bias."""
    after = {
        f"{official}.noise.weight": f"{ours}.noise_strength",
        f"{official}.activate.bias": f"{ours}.bias",
    }
    return _modulated(official, ours) | after


def _implicit() -> dict[str, str]:
    """Keys of the decoder that maps each token to its patch."""
    names = both("cips.lff.ffm.conv", "decoder.coordinates")
    for layer in range(4):
        names |= both(f"cips.style.{layer + 1}", f"decoder.mapping.layers.{layer}")
    for layer, official in enumerate(("cips.conv1", "cips.layers.0", "cips.layers.1")):
        names |= _styled(official, f"decoder.layers.{layer}")
    names |= _modulated("cips.to_rgbs.0", "decoder.to_rgb")
    return names | {"cips.to_rgbs.0.bias": "decoder.to_rgb.bias"}


def _convolutional(doublings: int) -> dict[str, str]:
    """Keys of the decoder of convolutions, of which there are two for every doubling of the resolution."""
    names = _modulated("to_rgb", "decoder.to_rgb") | {"to_rgb.bias": "decoder.to_rgb.bias"}
    for layer in range(2 * doublings):
        names |= _styled(f"convs.{layer}", f"decoder.layers.{layer}")
    return names


def _layer(official: str, index: int, ours: str) -> dict[str, str]:
    """A convolution of the discriminator, which follows `index` filters, and its bias."""
    return {f"{official}.{index}.weight": f"{ours}.weight", f"{official}.{index + 1}.bias": f"{ours}.bias"}


def _changes(state: Mapping[str, Tensor]) -> dict[str, Callable[[Tensor], Tensor]]:
    """Conversions of official tensors to ours, by official key.

    The released code adds 1 to the gain computed from a style, where the bias of ours starts at 1. Its
    convolutional decoder generates images in [0, 1].
    """
    changes: dict[str, Callable[[Tensor], Tensor]] = {
        key: lambda bias: bias + 1 for key in state if key.endswith((".mlp_gamma.bias", ".modulation.bias"))
    }
    return changes | {
        "to_rgb.conv.weight": lambda weight: 2 * weight,
        "to_rgb.bias": lambda bias: 2 * bias - 1,
    }


# --- what the files do not contain --------------------------------------------------------------------------


def _average_style(imported: Imported, depth: int) -> Tensor:
    """The mean style [D] of many latents."""
    prefix = "mapping_network."
    tensors = {
        key.removeprefix(prefix): value for key, value in imported.tensors.items() if key.startswith(prefix)
    }
    dim = len(imported.tensors["norm.gain.bias"])
    mapping = MappingNetwork(dim, depth)
    mapping.load_state_dict(tensors)
    latents = torch.randn(LATENTS, dim, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        average: Tensor = mapping(latents).mean(0)
    return average


def _read_norms(path: Path) -> dict[str, Tensor] | None:
    """The spectral norms that the weights started with, `<file>.<layer>`; None without such a file."""
    if not path.is_file():
        return None
    try:
        with utf8_path(path) as readable:
            return load_file(readable)
    except SafetensorError as problem:
        raise DataError(f"{path} is not a readable safetensors file: {problem}") from problem


def _norms_of(norms: Mapping[str, Tensor], file: str) -> dict[str, Tensor]:
    """Those of one network."""
    prefix = f"{file}."
    return {key.removeprefix(prefix): value for key, value in norms.items() if key.startswith(prefix)}


def _norm_of(norms: Mapping[str, Tensor], layer: str) -> Tensor:
    norm = norms.get(layer)
    if norm is None or norm.numel() != 1 or not norm.item() > 0:
        raise DataError(
            f"{NORMS} has no positive number under <file>.{layer}: add it, or move that file away"
        )
    return norm.float().reshape(())
