"""The snapshots of GANformer's PyTorch code: its generator, or the StyleGAN2 it is compared with, and D.

A snapshot keeps the arguments of each network beside its tensors, so every setting can be inferred: from the
tensors where possible, from the arguments otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from gantx.config.networks import (
    GANformerGeneratorConfig,
    StyleGAN2DiscriminatorConfig,
    StyleGAN2GeneratorConfig,
)
from gantx.config.schema import RunConfig
from gantx.config.section import Section
from gantx.errors import CheckpointError
from gantx.importing.layouts import (
    Conversion,
    Imported,
    account,
    both,
    channel_sizes,
    explained,
    numbered,
    require,
    section_of,
)
from gantx.importing.reading import PickledNetwork, origin_of, read_snapshot

PARTS = {"G": "generator", "Gs": "generator_ema", "D": "discriminator"}

# Official keys that may have no counterpart in our network, and why.
_IDLE = {
    r".*\bresample_kernel|.*\.grid_pos": "follows from the sizes, and we compute it",
    r".*\.to_(keys|pos_map)\.bias": "adds the same to all scores of a position, which softmax ignores",
    r"synthesis\..*\.to_(keys|pos_map)\.weight": "is never used: positions are compared with centroids",
    r"pos|mapping\..*\.(from_pos_map\..*|to_pos_map\.weight)": "belongs to unused position codes",
    r".*\.affine\..*": "is never used: nothing is modulated",
    r".*\.noise_(strength|const)": "is never used: there is no noise",
}


def read_ganformer(path: Path, config: RunConfig) -> Conversion:
    """Read a snapshot of GANformer's PyTorch code, `network-snapshot-*.pkl`.

    Args:
        path: the file.
        config: how its settings are to be spelled where several spellings mean the same.

    Raises:
        MissingError: there is no such file.
        CheckpointError: it cannot be read without running code, or contains other networks.
    """
    stored = read_snapshot(path)
    found = {name: value for name in PARTS if isinstance(value := stored.get(name), PickledNetwork)}
    parts = {}
    for name, network in found.items():
        if name == "D":
            imported = ganformer_discriminator(network.tensors, network.arguments, config.discriminator)
        else:
            imported = ganformer_generator(network.tensors, network.arguments, config.generator)
        parts[PARTS[name]] = imported
    return Conversion(
        parts,
        called={PARTS[name]: name for name in found},
        skipped=tuple(name for name in stored if name not in found),
        origin=origin_of(path, [path]),
    )


def ganformer_generator(
    state: Mapping[str, Tensor], arguments: Mapping[str, Any], wanted: Section
) -> Imported:
    """Import a generator of GANformer's PyTorch code, or the StyleGAN2 it is compared with.

    Args:
        state: of `G` or `Gs`.
        arguments: what it was built with: `synthesis_kwargs`, `mapping_kwargs`, ...
        wanted: how settings are to be spelled where several spellings mean the same, and what a snapshot
            cannot tell (`latent_norm` of one that was converted from TensorFlow).

    Raises:
        CheckpointError: keys are missing, unknown or of the wrong shape, or the network has an option for
            which ours has no counterpart.
    """
    what = "GANformer generator"
    require(what, state, ("synthesis.b4.const", "synthesis.b4.conv1.weight", "mapping.w_avg"))
    synthesis, mapping = _options(arguments, "synthesis_kwargs"), _options(arguments, "mapping_kwargs")
    _refuse_foreign(what, synthesis, mapping)
    resolutions = _resolutions(numbered(state, r"synthesis\.b(\d+)\."))
    require(what, state, (f"synthesis.b{size}.conv1.weight" for size in resolutions))
    residual = "mapping.global_mlp.l0.fc0.weight" in state
    stages = 1 + numbered(state, r"mapping\.global_mlp\.l(\d+)\.")
    sizes = {
        "resolution": resolutions[-1],
        "latent_dim": state["mapping.w_avg"].numel(),
        "mapping_layers": (2 if residual else 1) * stages + 1,
        **channel_sizes(
            {size: len(state[f"synthesis.b{size}.conv1.weight"]) for size in resolutions},
            wanted,
        ),
        "architecture": synthesis.get("architecture", "skip"),
        "noise": synthesis.get("local_noise", True),
        "final_convolution": True,
    }
    attended = [size for size in resolutions if any(f".b{size}.conv1.transformer." in key for key in state)]
    section: GANformerGeneratorConfig | StyleGAN2GeneratorConfig
    if attended:
        fields = _attention_fields(state, attended, synthesis, mapping, arguments)
        found = section_of(what, GANformerGeneratorConfig, **sizes, **fields, mapping_residual=residual)
        section = _spelled_like(found, wanted)
        names = _mapping_names(section, stages) | _attention_names(section)
    else:
        section = section_of(what, StyleGAN2GeneratorConfig, **sizes)
        names = both("mapping.global_mlp.out_layer", f"mapping_network.layers.{stages}")
        for stage in range(stages):
            names |= both(f"mapping.global_mlp.l{stage}", f"mapping_network.layers.{stage}")
    names |= {"mapping.w_avg": "w_avg"} | _sampling_names(section)
    return account(what, section, state, names, explained(state, names, _IDLE), reshaped=_reshaped(state))


def ganformer_discriminator(
    state: Mapping[str, Tensor], arguments: Mapping[str, Any], wanted: Section
) -> Imported:
    """Import a discriminator of GANformer's PyTorch code: that of StyleGAN2, without attention.

    Args:
        state: of `D`.
        arguments: what it was built with: `c_dim`, `epilogue_kwargs`, ...
        wanted: how sizes are to be spelled where several spellings mean the same.

    Raises:
        CheckpointError: keys are missing, unknown or of the wrong shape.
    """
    what = "GANformer discriminator"
    require(what, state, ("b4.conv.weight", "b4.out.weight"))
    resolutions = _resolutions(numbered(state, r"b(\d+)\."))
    require(what, state, (f"b{size}.conv0.weight" for size in resolutions[1:]))
    channels, inputs = state["b4.conv.weight"].shape[:2]
    widths = {4: channels} | {size: state[f"b{size}.conv0.weight"].shape[1] for size in resolutions[1:]}
    section = section_of(
        what,
        StyleGAN2DiscriminatorConfig,
        resolution=resolutions[-1],
        **channel_sizes(widths, wanted),
        group_size=_options(arguments, "epilogue_kwargs").get("mbstd_group_size", 4),
        group_channels=inputs - channels,
        classes=arguments.get("c_dim", 0),
        label_head="selected" if arguments.get("c_dim", 0) else "mapped",
    )

    names = _convolution(f"b{resolutions[-1]}.fromrgb", "from_rgb")
    for level, size in enumerate(reversed(resolutions[1:])):
        names |= _convolution(f"b{size}.conv0", f"blocks.{level}.first")
        names |= _convolution(f"b{size}.conv1", f"blocks.{level}.second")
        names[f"b{size}.skip.weight"] = f"blocks.{level}.shortcut.weight"
    names |= _convolution("b4.conv", "epilogue.convolution")
    names |= both("b4.fc", "epilogue.linear") | both("b4.out", "out")
    return account(what, section, state, names, explained(state, names, _IDLE), reshaped=_reshaped(state))


# --- settings -----------------------------------------------------------------------------------------------


def _options(arguments: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    options = arguments.get(name, {})
    return options if isinstance(options, Mapping) else {}


def _attention_fields(
    state: Mapping[str, Tensor],
    attended: list[int],
    synthesis: Mapping[str, Any],
    mapping: Mapping[str, Any],
    arguments: Mapping[str, Any],
) -> dict[str, Any]:
    """What only a generator with attention has; defaults are those of the released classes."""
    kmeans = any(key.endswith(".centroids") for key in state)
    norm = synthesis.get("norm")
    return {
        "components": arguments.get("k", 1) - 1,  # one of them is global
        "mapping_attention": any(key.startswith("mapping.mlp.sa") for key in state),
        "normalize_global": mapping.get("normalize_global", True),
        "style": synthesis.get("style", True),
        "attention": "kmeans" if kmeans else "simplex",
        "kmeans_iterations": synthesis.get("kmeans_iters", 1) if kmeans else None,
        "update_latents": False,
        "attention_from": min(attended),
        "attention_to": max(attended),
        "heads": synthesis.get("num_heads", 1),
        # The released code takes "batch" for "layer".
        "normalization": {None: "none", "batch": "layer"}.get(norm, norm),
        "integration": synthesis.get("integration", "add"),
        "positions": synthesis.get("use_pos", False),
        "grid": "sine" if synthesis.get("pos_type", "sinus") == "sinus" else "trainable2d",
        "grid_dim": synthesis.get("pos_dim"),
        "grid_directions": synthesis.get("pos_directions_num", 2),
        "latent_gate": synthesis.get("ltnt_gate", False),
        "image_gate": synthesis.get("img_gate", False),
        "attention_dropout": synthesis.get("attention_dropout", 0.12),
        "component_dropout": arguments.get("component_dropout", 0.0),
    }


def _refuse_foreign(what: str, synthesis: Mapping[str, Any], mapping: Mapping[str, Any]) -> None:
    """CheckpointError for options that ours lacks; most of them crash the released code as well."""
    reads = mapping.get("ltnt2ltnt")  # otherwise the mapping ignores its own options of attention
    present = {
        "latent_stem": synthesis.get("latent_stem"),
        "iterative": synthesis.get("iterative"),
        "mapping_shared": mapping.get("shared"),
        "ltnt_gate in the mapping": mapping.get("ltnt_gate"),
        "pos_type linear or trainable": synthesis.get("pos_type") in ("linear", "trainable"),
        "use_pos in one half": reads and mapping.get("use_pos", False) != synthesis.get("use_pos", False),
        "two num_heads": reads and mapping.get("num_heads", 1) != synthesis.get("num_heads", 1),
    }
    if options := [name for name, there in present.items() if there]:
        raise CheckpointError(f"this {what} has {', '.join(options)}, for which gantx has no counterpart")


def _spelled_like(found: GANformerGeneratorConfig, wanted: Section) -> GANformerGeneratorConfig:
    """`found`, with the values of `wanted` wherever they mean the same."""
    if not isinstance(wanted, GANformerGeneratorConfig):
        return found
    theirs, ours = _meaning(found), _meaning(wanted)
    same = {name: getattr(wanted, name) for name, value in theirs.items() if ours[name] == value}
    if not found.normalize_global:  # converted from TensorFlow, whose norm is `component`: not in the file
        same["latent_norm"] = wanted.latent_norm
    return found.model_copy(update=same)


def _meaning(section: GANformerGeneratorConfig) -> dict[str, Any]:
    """The effective values of settings that can be written in more than one way."""
    attending = [
        size
        for size in _resolutions(section.resolution)
        if section.attention_from <= size <= section.attention_to
    ]
    duplex = section.attention == "duplex"
    default_iterations = {"simplex": None, "kmeans": 1, "duplex": 2}[section.attention]
    return {
        "kmeans_iterations": section.kmeans_iterations or default_iterations,
        "update_latents": duplex if section.update_latents is None else section.update_latents,
        "attention_from": min(attending),
        "attention_to": max(attending),
        "grid_dim": section.grid_dim or section.latent_dim,
    }


def _resolutions(resolution: int) -> list[int]:
    """Resolutions of the features of all blocks, from coarse to fine."""
    return [2**power for power in range(2, resolution.bit_length())]


# --- keys ---------------------------------------------------------------------------------------------------


def _convolution(official: str, ours: str) -> dict[str, str]:
    """A convolution with bias and activation."""
    return {f"{official}.weight": f"{ours}.weight", f"{official}.biasAct.bias": f"{ours}.bias"}


def _sampling_names(section: GANformerGeneratorConfig | StyleGAN2GeneratorConfig) -> dict[str, str]:
    """Keys of the StyleGAN2 synthesis network with its final convolution."""
    style = getattr(section, "style", True)
    skip = section.architecture == "skip"
    resolutions = _resolutions(section.resolution)
    names = {"synthesis.b4.const": "synthesis_network.constant"}

    def modulation(official: str, ours: str) -> dict[str, str]:
        return both(f"{official}.affine", f"{ours}.to_style") if style else {}

    for level, size in enumerate(resolutions):
        prefix, block = f"synthesis.b{size}", f"synthesis_network.blocks.{level}"
        for index, convolution in enumerate(("conv0", "conv1") if level else ("conv1",)):
            official, ours = f"{prefix}.{convolution}", f"{block}.layers.{index}"
            names[f"{official}.weight"] = f"{ours}.convolution.weight"
            names[f"{official}.biasAct.bias"] = f"{ours}.bias"
            names |= modulation(official, f"{ours}.convolution")
            if section.noise:
                names[f"{official}.noise_strength"] = f"{ours}.strength"
                names[f"{official}.noise_const"] = f"{ours}.constant"
        if level and section.architecture == "resnet":
            names[f"{prefix}.skip.weight"] = f"{block}.shortcut.weight"
        last = size == section.resolution
        if skip or last:
            colours = f"synthesis_network.to_rgb.{level if skip else 0}"
            inside = f"{colours}.to_rgb" if last else colours
            names |= _convolution(f"{prefix}.torgb", inside) | modulation(f"{prefix}.torgb", inside)
            if last:
                names[f"{prefix}.conv_last.weight"] = f"{colours}.convolution.weight"
                names |= modulation(f"{prefix}.conv_last", f"{colours}.convolution")
    return names


def _mapping_names(section: GANformerGeneratorConfig, stages: int) -> dict[str, str]:
    """Keys of the mapping of local and global latents, and of the codes that it reads."""
    names = {"pos": "positions"} if _reads_positions(section) else {}
    for network, ours in (("mlp", "local"), ("global_mlp", "overall")):
        for stage in range(stages):
            official, prefix = f"mapping.{network}.l{stage}", f"mapping_network.{ours}.{stage}"
            if section.mapping_residual:
                names |= both(f"{official}.fc0", f"{prefix}.first")
                names |= both(f"{official}.fc1", f"{prefix}.second")
            else:
                names |= both(official, f"{prefix}.first")
        names |= both(f"mapping.{network}.out_layer", f"mapping_network.{ours}_out")
    for stage in range(stages if section.mapping_attention else 0):
        official, prefix = f"mapping.mlp.sa{stage}", f"mapping_network.local.{stage}.attention"
        for part in ("to_queries", "to_values", "modulation"):
            names |= both(f"{official}.{part}", f"{prefix}.{part}")
        names[f"{official}.to_keys.weight"] = f"{prefix}.to_keys.weight"
        if section.positions:
            names |= both(f"{official}.from_pos_map", f"{prefix}.positions_to_queries")
            names[f"{official}.to_pos_map.weight"] = f"{prefix}.positions_to_keys.weight"
    return names


def _attention_names(section: GANformerGeneratorConfig) -> dict[str, str]:
    """Keys of the attention layers between convolutions and activations."""
    names: dict[str, str] = {}
    layers = [(size, conv) for size in _resolutions(section.resolution) for conv in ("conv0", "conv1")][1:]
    for index, (size, conv) in enumerate(layers):
        if not section.attention_from <= size <= section.attention_to:
            continue
        prefix = f"synthesis.b{size}.{conv}"
        official, ours = f"{prefix}.transformer", f"attention_layers.layer{index}.look"
        names |= both(f"{official}.to_queries", f"{ours}.scores.to_queries")
        names |= both(f"{official}.from_pos_map", f"{ours}.scores.grid_to_queries")
        names |= both(f"{official}.to_values", f"{ours}.to_values")
        names |= both(f"{official}.modulation", f"{ours}.modulation")
        if section.attention == "kmeans":
            names[f"{official}.centroids"] = f"{ours}.scores.centroids"
            names[f"{official}.att_weight"] = f"{ours}.scores.weights"
        else:
            names[f"{official}.to_keys.weight"] = f"{ours}.scores.to_keys.weight"
            if section.positions:
                names[f"{official}.to_pos_map.weight"] = f"{ours}.scores.positions_to_keys.weight"
        if section.latent_gate:
            names |= both(f"{official}.to_gate_attention.gate", f"{ours}.latent_gate.content")
            if section.positions:
                names |= both(f"{official}.to_gate_attention.gate_pos", f"{ours}.latent_gate.position")
        if section.image_gate:
            names |= both(f"{official}.from_gate_attention.gate", f"{ours}.image_gate.content")
            names |= both(f"{official}.from_gate_attention.gate_pos", f"{ours}.image_gate.position")
        if section.grid == "trainable2d":
            names[f"{prefix}.grid_pos"] = f"attention_layers.layer{index}.code.table"
    return names


def _reads_positions(section: GANformerGeneratorConfig) -> bool:
    """Whether anything reads the position codes of the latents."""
    return section.positions and (
        section.mapping_attention or section.attention == "simplex" or section.latent_gate
    )


def _reshaped(state: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Convolutions of one pixel, which are linear layers here, and tables that ours keep with fewer axes."""
    endings = (".torgb.weight", ".skip.weight", ".fromrgb.weight", ".centroids", ".grid_pos")
    return tuple(key for key in state if key.endswith(endings))
