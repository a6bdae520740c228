"""Official key layouts of GANformer's PyTorch code and of the golden files, mapped to gantx's.

Every function maps a whole official state dict and returns ours; keys that carry nothing (constants that are
recomputed, parameters without any effect) are dropped by name, all others must be known.
"""

import re

# Filters and sine tables: both follow from the sizes.
CONSTANTS = ("resample_kernel", "grid_pos")


def renamed(state, rules, dropped=CONSTANTS):
    """Rename every key by the first rule (pattern, replacement) that matches it whole.

    A rule whose replacement is None drops the key. Weights of 1x1 convolutions lose their two last axes.
    """
    tensors = {}
    for key, tensor in state.items():
        if key.split(".")[-1] in dropped:
            continue
        for pattern, replacement in rules:
            if match := re.fullmatch(pattern, key):
                if replacement is not None:
                    name = match.expand(replacement) if isinstance(replacement, str) else replacement(match)
                    tensors[name] = tensor.flatten(1) if tensor.shape[2:] == (1, 1) else tensor
                break
        else:
            raise KeyError(key)
    return tensors


def _level(match):
    """Index of the block of side b<r>."""
    return int(match["side"]).bit_length() - 3


def _layer(match):
    """Our layer for b<r>.conv<i>: the block at 4x4 has but one."""
    index = 0 if match["side"] == "4" else int(match["index"])
    return f"blocks.{_level(match)}.layers.{index}"


LAYER_PARTS = {
    "weight": "convolution.weight",
    "affine.weight": "convolution.to_style.weight",
    "affine.bias": "convolution.to_style.bias",
    "biasAct.bias": "bias",
    "noise_strength": "strength",
    "noise_const": "constant",
}
FINAL_PARTS = {
    "weight": "weight",
    "affine.weight": "to_style.weight",
    "affine.bias": "to_style.bias",
    "biasAct.bias": "bias",
}


def trunk_rules(resolution, architecture, place="synthesis", ours="synthesis_network"):
    """Rules for a StyleGAN2 synthesis network with its final convolution."""

    def to_rgb(match):
        last = int(match["side"]) == resolution
        index = 0 if architecture != "skip" else _level(match)
        return f"{ours}.to_rgb.{index}.{'to_rgb.' if last else ''}{FINAL_PARTS[match['part']]}"

    final = f"{ours}.to_rgb.{resolution.bit_length() - 3 if architecture == 'skip' else 0}"
    block = rf"{place}\.b(?P<side>\d+)"
    parts = "|".join(map(re.escape, LAYER_PARTS))
    return [
        (rf"{place}\.b4\.const", f"{ours}.constant"),
        (
            rf"{block}\.conv(?P<index>[01])\.(?P<part>{parts})",
            lambda match: f"{ours}.{_layer(match)}.{LAYER_PARTS[match['part']]}",
        ),
        (rf"{block}\.skip\.weight", lambda match: f"{ours}.blocks.{_level(match)}.shortcut.weight"),
        (rf"{block}\.torgb\.(?P<part>{parts})", to_rgb),
        (
            rf"{block}\.conv_last\.(?P<part>{parts})",
            lambda match: f"{final}.convolution.{FINAL_PARTS[match['part']]}",
        ),
    ]


def stylegan2_generator(state, resolution, architecture):
    """The official baseline without attention: one latent and a mapping without shortcuts."""
    layers = sum(bool(re.fullmatch(r"mapping\.global_mlp\.l\d+\.weight", key)) for key in state)
    rules = [
        (r"mapping\.w_avg", "w_avg"),
        (r"mapping\.global_mlp\.l(\d+)\.(weight|bias)", r"mapping_network.layers.\1.\2"),
        (r"mapping\.global_mlp\.out_layer\.(weight|bias)", rf"mapping_network.layers.{layers}.\1"),
        *trunk_rules(resolution, architecture),
    ]
    return renamed(state, rules)


def discriminator_rules(resolution):
    """Rules for the residual discriminator."""
    levels = resolution.bit_length() - 1

    def block(match):
        part = {"conv0": "first", "conv1": "second", "skip": "shortcut"}[match["part"]]
        return f"blocks.{levels - int(match['side']).bit_length() + 1}.{part}.{match['kind']}"

    return [
        (rf"b{resolution}\.fromrgb\.weight", "from_rgb.weight"),
        (rf"b{resolution}\.fromrgb\.biasAct\.bias", "from_rgb.bias"),
        (r"b(?P<side>\d+)\.(?P<part>conv[01]|skip)\.(?:biasAct\.)?(?P<kind>weight|bias)", block),
        (r"b4\.conv\.(?:biasAct\.)?(weight|bias)", r"epilogue.convolution.\1"),
        (r"b4\.fc\.(weight|bias)", r"epilogue.linear.\1"),
        (r"b4\.out\.(weight|bias)", r"out.\1"),
    ]


def stylegan2_discriminator(state, resolution):
    """The official discriminator."""
    return renamed(state, discriminator_rules(resolution))


def vitgan_discriminator(state):
    """The convolutional discriminator of ViTGAN's release."""
    parts = {"conv1": "first", "conv2": "second", "skip": "shortcut"}

    def block(match):
        return f"blocks.{int(match['level']) - 1}.{parts[match['part']]}.{match['kind']}"

    rules = [
        (r"layers\.0\.\d\.(weight|bias)", r"from_rgb.\1"),
        (r"layers\.(?P<level>[1-9])\.(?P<part>conv[12]|skip)\.\d\.(?P<kind>weight|bias)", block),
        (r"last_conv\.\d\.(weight|bias)", r"epilogue.convolution.\1"),
        (r"linear\.l1\.(weight|bias)", r"epilogue.linear.\1"),
        (r"linear\.l2\.(weight|bias)", r"out.\1"),
    ]
    return renamed(state, rules, dropped=("kernel",))


# --- GANformer ------------------------------------------------------------------------------------------

READ_PARTS = {  # of LatentAttention
    "to_queries": "to_queries",
    "to_values": "to_values",
    "modulation": "modulation",
    "from_pos_map": "positions_to_queries",
    "to_keys": "to_keys",
    "to_pos_map": "positions_to_keys",
}
LOOK_PARTS = {  # of ImageAttention
    "to_queries": "scores.to_queries",
    "to_values": "to_values",
    "modulation": "modulation",
    "from_pos_map": "scores.grid_to_queries",
    "to_keys": "scores.to_keys",
    "to_pos_map": "scores.positions_to_keys",
    "to_gate_attention.gate": "latent_gate.content",
    "to_gate_attention.gate_pos": "latent_gate.position",
    "from_gate_attention.gate": "image_gate.content",
    "from_gate_attention.gate_pos": "image_gate.position",
}


def attention_rules(place, ours, parts, kmeans=False, positions=True):
    """Rules for one attention layer.

    Biases of keys are dropped, because the softmax cancels them; with k-means, the released code leaves keys
    without any effect.

    Args:
        place: pattern of the official layer.
        ours: function of the match, or text, that names our layer.
        parts: official to our names inside the layer.
        kmeans: whether cells compare themselves with centroids.
        positions: whether the latents have position codes.
    """

    def name(match):
        start = ours(match) if callable(ours) else ours
        return f"{start}.{parts[match['part']]}.{match['kind']}"

    idle = ["to_keys", "to_pos_map"] if kmeans else [] if positions else ["to_pos_map"]
    alternatives = "|".join(map(re.escape, parts))
    rules = [(rf"{place}\.(to_keys|to_pos_map)\.bias", None)]
    rules += [(rf"{place}\.{part}\.weight", None) for part in idle]
    rules += [(rf"{place}\.(?P<part>{alternatives})\.(?P<kind>weight|bias)", name)]
    if kmeans:
        start = ours if callable(ours) else lambda match: ours
        rules += [
            (rf"{place}\.centroids", lambda match: f"{start(match)}.scores.centroids"),
            (rf"{place}\.att_weight", lambda match: f"{start(match)}.scores.weights"),
        ]
    return rules


def layer_index(match):
    """Index among all layers of b<r>.conv<i>."""
    return 2 * _level(match) - 1 + int(match["index"])


def mapping_rules(place="mapping", ours="mapping_network"):
    """Rules for the mapping of local and global latents."""
    networks = {"mlp": "local", "global_mlp": "overall"}

    def layer(match):
        part = {"fc0": "first", "fc1": "second", None: "first"}[match["part"]]
        return f"{ours}.{networks[match['network']]}.{match['stage']}.{part}.{match['kind']}"

    return [
        *attention_rules(
            rf"{place}\.mlp\.sa(?P<stage>\d+)",
            lambda match: f"{ours}.local.{match['stage']}.attention",
            READ_PARTS,
        ),
        (
            rf"{place}\.(?P<network>mlp|global_mlp)\.l(?P<stage>\d+)\.(?:(?P<part>fc[01])\.)?(?P<kind>weight|bias)",
            layer,
        ),
        (
            rf"{place}\.(?P<network>mlp|global_mlp)\.out_layer\.(?P<kind>weight|bias)",
            lambda match: f"{ours}.{networks[match['network']]}_out.{match['kind']}",
        ),
    ]


def ganformer_generator(
    state, resolution, architecture, kmeans, style=True, unused_positions=False, last=None
):
    """A generator of the PyTorch code, or the synthesis network of the TensorFlow code.

    Args:
        state: official tensors.
        resolution: side of the images.
        architecture: `skip`, `resnet` or `orig`.
        kmeans: whether cells compare themselves with centroids.
        style: whether convolutions are modulated; otherwise the file contains modulation that is never used.
        unused_positions: drop the position codes of the latents, which nothing reads.
        last: the last layer with attention, such as `b16.conv1`; its update of the latents is read by none.
    """
    layer = r"synthesis\.b(?P<side>\d+)\.conv(?P<index>[01])"

    def of_layer(part):
        return lambda match: f"attention_layers.layer{layer_index(match)}.{part}"

    def update_linear(match):
        part = {"0": "first", "1": "second"}[match["part"]]
        return f"{of_layer('update')(match)}.{part}.{match['kind']}"

    rules = [(r"synthesis\..*\.affine\.(weight|bias)", None)] if not style else []
    rules += [(rf"synthesis\.{re.escape(last)}\.(n2l|n2l_ff)\..*", None)] if last else []
    rules += [
        (r"pos", None if unused_positions else "positions"),
        (r"mapping\.w_avg", "w_avg"),
        *mapping_rules(),
        *attention_rules(rf"{layer}\.transformer", of_layer("look"), LOOK_PARTS, kmeans),
        *attention_rules(rf"{layer}\.n2l", of_layer("update.attention"), READ_PARTS),
        (rf"{layer}\.n2l_ff\.fc(?P<part>[01])\.(?P<kind>weight|bias)", update_linear),
        *trunk_rules(resolution, architecture),
    ]
    tensors = renamed(state, rules)
    return {name: t[0] if name.endswith("scores.centroids") else t for name, t in tensors.items()}


def ganformer_discriminator(state, resolution):
    """The discriminator with attention of the TensorFlow code."""
    rules = [
        (r"aggregators", "aggregators"),
        (r"aggregator_pos", "positions"),
        *attention_rules(r"b(?P<side>\d+)\.n2l", lambda match: f"reading.{match['side']}", READ_PARTS),
        (r"comp\.fc\.(weight|bias)", r"component_linear.\1"),
        (r"comp\.out\.(weight|bias)", r"component_out.\1"),
        *discriminator_rules(resolution),
    ]
    return renamed(state, rules)
