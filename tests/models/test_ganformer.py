import copy

import pytest
import torch
import torch.nn.functional as F
from helpers.computed_types import ComputedTypes, agreement, gradient_of, in_bf16
from helpers.golden_file import GoldenFile
from helpers.golden_ganformer import (
    LOOK_PARTS,
    READ_PARTS,
    attention_rules,
    ganformer_discriminator,
    ganformer_generator,
    mapping_rules,
    renamed,
)

from gantx.config.networks import GANformerDiscriminatorConfig, GANformerGeneratorConfig
from gantx.models import interfaces
from gantx.models.ganformer import Discriminator, Generator
from gantx.models.ganformer.attention import ImageAttention, LatentAttention, LatentStage, dropped
from gantx.models.ganformer.mapping import Mapping
from gantx.models.ganformer.positions import GridCode, sine_grid
from gantx.models.ganformer.scores import MASKED, CentroidScores, SimplexScores, attention_of
from gantx.models.layers.normalization import rms_norm
from gantx.runtime.precision import to_compute
from gantx.runtime.random import Draw, draw
from gantx.training.regularizers import input_gradient, path_lengths, zero_centered_penalty

SMALL = {
    "resolution": 16,
    "components": 3,
    "latent_dim": 8,
    "mapping_layers": 5,
    "mapping_residual": True,
    "mapping_attention": True,
    "latent_norm": "joint",
    "normalize_global": True,
    "channel_base": 128,
    "channel_max": 12,
    "architecture": "resnet",
    "style": True,
    "noise": True,
    "final_convolution": True,
    "attention": "simplex",
    "kmeans_iterations": None,
    "update_latents": None,
    "attention_from": 4,
    "attention_to": 16,
    "heads": 1,
    "normalization": "layer",
    "integration": "mul",
    "positions": True,
    "grid": "sine",
    "grid_dim": None,
    "grid_directions": 2,
    "latent_gate": False,
    "image_gate": False,
    "attention_dropout": 0.12,
    "component_dropout": 0.0,
}
PRESET = SMALL | {
    "components": 16,
    "latent_dim": 32,
    "mapping_layers": 9,
    "channel_base": 32768,
    "channel_max": 512,
    "attention_to": 128,
}
CLEVR = PRESET | {"components": 8, "latent_dim": 16, "mapping_attention": False, "style": False}


def small_generator(**changes):
    return Generator(GANformerGeneratorConfig(**SMALL | changes))


def small_discriminator(**changes):
    settings = {
        "resolution": 16,
        "channel_base": 128,
        "channel_max": 12,
        "group_size": 4,
        "group_channels": 1,
        "classes": 0,
        "components": 3,
        "latent_dim": 8,
        "attention_from": 8,
        "attention_to": 16,
        "heads": 1,
        "positions": True,
        "grid": "sine",
        "grid_dim": None,
        "grid_directions": 2,
        "attention_dropout": 0.12,
        **changes,
    }
    return Discriminator(GANformerDiscriminatorConfig(**settings))


def shaken(network):
    """Move every parameter so that none is trivially zero or one."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def latents(generator, batch=2):
    return torch.randn(batch, *generator.latent_shape)


def noise_of(network, batch):
    return draw(network.noise_spec(batch), seed=0, stream="test", step=0, device=torch.device("cpu"))


def silence(generator, batch):
    """Noise that is zero everywhere, and nothing left out."""
    spec = generator.synthesis_network.noise_spec(batch)
    return {name: torch.zeros(wanted.shape) for name, wanted in spec.items()}


def parameter_count(network):
    return sum(parameter.numel() for parameter in network.parameters())


def check(value, expected, limit=1e-4):
    """Close within `limit` of the largest expected number."""
    assert value.shape == expected.shape
    torch.testing.assert_close(value, expected, rtol=0, atol=float(limit * expected.abs().max()))


def check_maps(maps, expected):
    """Maps [B, h, m, S, S] against the official stack [B, m, layers, h, R, R], all at full resolution."""
    for index, attention in enumerate(maps.values()):
        enlarged = F.interpolate(attention.flatten(0, 1), size=expected.shape[-2:])
        check(enlarged.unflatten(0, attention.shape[:2]), expected[:, :, index].transpose(1, 2))
    assert len(maps) == expected.shape[2]


# --- the released code ------------------------------------------------------------------------------------


def official_generator(config, **changes):
    settings = {
        "resolution": config["res"],
        "components": config["k_total"] - 1 if "k_total" in config else config["k"],
        "latent_dim": config["w_dim"],
        "mapping_layers": config.get("mapping_num_layers", 8) + 1,
        "mapping_residual": config.get("mapping_resnet", True),
        "mapping_attention": config.get("mapping_ltnt2ltnt", True),
        "channel_base": config["channel_base"],
        "channel_max": config["channel_max"],
        "architecture": config["arch"],
        "style": config["style"],
        "attention": "kmeans" if config.get("kmeans") else "simplex",
        "kmeans_iterations": config.get("kmeans_iters", 1) if config.get("kmeans") else None,
        "update_latents": config.get("img2ltnt", False),
        "attention_from": max(4, 2 ** config.get("start_res", 0)),  # there are no features below
        "attention_to": 2 ** (config.get("end_res", 8) - 1),
        "heads": config.get("num_heads", 1),
        "normalization": config["norm"],
        "integration": config["integration"],
        "image_gate": config.get("img_gate", False),
        **changes,
    }
    return small_generator(**settings).eval()


@pytest.mark.parametrize(
    "name",
    [
        "g_simplex_16",
        "g_duplex_16",
        "g_duplex_iters3_heads2_16",
        "g_clevr_style_false_duplex_16",
        "g_simplex_both_instance_gate_skip_32",
    ],
)
def test_generator_agrees_with_the_official_code(name):
    with GoldenFile(f"gansformer/{name}") as golden:
        config = golden.config
        resolution, kmeans, style = config["res"], config.get("kmeans", False), config["style"]

        def ours(state):
            return ganformer_generator(state, resolution, config["arch"], kmeans, style, not style)

        generator = official_generator(config)
        generator.load_state_dict(ours(golden.prefix("param/")))
        assert generator.synthesis_network.styles == config["num_ws"]
        z = golden["in/z"].requires_grad_()
        ws = generator.mapping(z)
        check(ws, golden["out/ws"])
        check(torch.lerp(generator.w_avg, ws, 0.7)[:, :, 0], golden["out/ws_psi0.7"])
        truncated = torch.cat([torch.lerp(generator.w_avg, ws[:, :, :3], 0.5), ws[:, :, 3:]], dim=2)
        check(truncated, golden["out/ws_psi0.5_cutoff3"])

        seen = observed_features(generator)
        silent = silence(generator, 3)
        image, maps = generator.observe(ws, silent, layers="all")
        check(image, golden["out/img_none"])
        check_maps(maps, golden["out/att"])
        # The official code counts the final convolution as a part of the last block.
        final = generator.synthesis_network.to_rgb[-1].convolution
        features, factor = final(seen[f"b{resolution}.x"], ws[:, -1, -2])
        seen[f"b{resolution}.x"] = features * factor
        for key, features in seen.items():
            check(features, golden[f"act/{key}"])

        score = (image * golden["in/coef"]).sum()
        check(torch.autograd.grad(score, z, retain_graph=True)[0], golden["grad/z"], 1e-3)
        score.backward()
        gradients = {key: parameter.grad for key, parameter in generator.named_parameters()}
        for key, expected in ours(golden.prefix("grad_param/")).items():
            made = torch.zeros_like(expected) if gradients[key] is None else gradients[key]
            check(made, expected, 1e-3)

        with torch.no_grad():
            check(generator(z), golden["out/img_const"])
            check(generator.synthesis(golden["in/ws_mixed"], silent), golden["out/img_ws_mixed_none"])
            truncated = torch.lerp(generator.w_avg, ws, 0.7)
            check(generator.synthesis(truncated, silent), golden["out/img_psi0.7_none"])


def observed_features(generator):
    """What blocks and attention layers make in the next pass, under the official names."""
    seen = {}

    def keep_block(side):
        def keep(_, __, features):
            seen[f"b{side}.x"] = features

        return keep

    def keep_layer(name):
        def keep(_, __, made):
            features, factor, _, _ = made
            seen[name] = (features * factor).flatten(2).transpose(1, 2)

        return keep

    for level, block in enumerate(generator.synthesis_network.blocks):
        block.register_forward_hook(keep_block(4 << level))
    sides = generator.synthesis_network.resolutions
    for key, layer in generator.attention_layers.items():
        index = int(key.removeprefix("layer"))
        layer.register_forward_hook(keep_layer(f"b{sides[index]}.conv{1 - index % 2}.transformer.out"))
    return seen


@pytest.mark.parametrize(
    "name", ["tf_synth_simplex_16", "tf_synth_duplex_img2ltnt_16", "tf_synth_duplex_kmeans_img2ltnt_16"]
)
def test_synthesis_agrees_with_the_official_tensorflow_code(name):
    with GoldenFile(f"gansformer/{name}") as golden:
        config = golden.config
        generator = official_generator(config, noise=False)
        state = ganformer_generator(
            golden.prefix("param/"),
            config["res"],
            config["arch"],
            config.get("kmeans", False),
            last="b16.conv1",
        )
        rest = generator.load_state_dict(state | {"positions": golden["in/pos"]}, strict=False)
        assert not rest.unexpected_keys
        assert all(key.startswith(("mapping_network.", "w_avg")) for key in rest.missing_keys)
        w = golden["in/w"].requires_grad_()
        ws = w[:, :, None].expand(-1, -1, generator.synthesis_network.styles, -1)
        image, maps = generator.observe(ws, layers="all")
        check(image, golden["out/img"])
        check_maps(maps, golden["out/att"])
        check(torch.autograd.grad((image * golden["in/coef"]).sum(), w)[0], golden["grad/w"], 1e-3)


def test_mapping_agrees_with_the_official_tensorflow_code():
    with GoldenFile("gansformer/tf_mapping") as golden:
        dim = golden.config["w_dim"]
        mapping = Mapping(
            dim,
            golden.config["num_layers"] + 1,
            residual=True,
            heads=1,
            position_dim=dim,
            latent_norm="component",
            normalize_global=False,
        )
        state = renamed(golden.prefix("param/"), mapping_rules(ours="own"))
        mapping.load_state_dict({key.removeprefix("own."): tensor for key, tensor in state.items()})
        check(mapping(golden["in/z"], golden["in/pos"], None, None, 0.0), golden["out/w"])


def test_discriminator_agrees_with_the_official_tensorflow_code():
    with GoldenFile("gansformer/tf_d_attention_16") as golden:
        config = golden.config
        discriminator = small_discriminator(
            resolution=config["res"],
            channel_base=config["channel_base"],
            channel_max=config["channel_max"],
            group_size=config["mbstd_group_size"],
            components=config["k"],
            latent_dim=config["a_dim"],
        )
        discriminator.load_state_dict(ganformer_discriminator(golden.prefix("param/"), config["res"]))
        images = golden["in/img"]
        check(discriminator(images), golden["out/logits"][:, 0])
        steep = input_gradient(discriminator, images)
        check(steep, golden["grad/img"], 1e-3)
        check(steep.square().sum((1, 2, 3)), golden["out/r1_penalty"], 1e-3)


def image_attention(config):
    """The layer of a golden file `t_*`."""
    channels, heads, grid_dim = config["dim"], config["num_heads"], config["pos_dim"]
    positions = grid_dim if config.get("to_pos", True) else None
    if config.get("kmeans"):
        iterations = config.get("kmeans_iters", 1)
        scores = CentroidScores(channels, config["to_len"], grid_dim, heads, iterations)
    else:
        scores = SimplexScores(channels, config["to_dim"], grid_dim, positions, heads)
    return ImageAttention(
        channels,
        config["to_dim"],
        grid_dim,
        positions,
        heads,
        scores,
        normalization=config["norm"] or "none",
        integration=config["integration"],
        latent_gate=config.get("to_gate", False),
        image_gate=config.get("from_gate", False),
    )


@pytest.mark.parametrize(
    "name",
    [
        "t_simplex",
        "t_simplex_add_nonorm",
        "t_simplex_gates",
        "t_simplex_heads2_both_instance_mask",
        "t_duplex",
        "t_duplex_iters2",
    ],
)
def test_attention_of_the_image_agrees_with_the_official_code(name):
    with GoldenFile(f"gansformer/{name}") as golden:
        config = golden.config
        positions = config.get("to_pos", True)
        rules = attention_rules("own", "own", LOOK_PARTS, config.get("kmeans", False), positions)

        def ours(state):
            state = renamed({f"own.{key}": tensor for key, tensor in state.items()}, rules)
            state = {key.removeprefix("own."): tensor for key, tensor in state.items()}
            return {key: t[0] if key == "scores.centroids" else t for key, t in state.items()}

        layer = image_attention(config)
        layer.load_state_dict(ours(golden.prefix("param/")))
        cells, to = golden["in/from"].requires_grad_(), golden["in/to"].requires_grad_()
        mask = MASKED * (1 - golden["in/mask"][:, 0]) if config.get("mask") else None
        code = golden["in/to_pos"] if positions else None
        made, gain, looks = layer(cells, golden["in/from_pos"], to, code, mask)
        made = made if gain is None else made * gain
        check(made, golden["out/from"])
        check(looks.permute(0, 2, 3, 1).flatten(0, 1).unflatten(2, config["hw"]), golden["out/att"])
        if config.get("kmeans"):  # the official layer also hands on how the centroids weigh the cells
            check(
                (looks / looks.sum(1, keepdim=True)).permute(0, 2, 3, 1), golden["out/centroid_assignments"]
            )

        score = (made * golden["in/coef"]).sum()
        gradients = torch.autograd.grad(score, (cells, to), retain_graph=True)
        check(gradients[0], golden["grad/from"], 1e-3)
        check(gradients[1], golden["grad/to"], 1e-3)
        score.backward()
        gradients = {key: parameter.grad for key, parameter in layer.named_parameters()}
        for key, expected in ours(golden.prefix("grad_param/")).items():
            check(gradients[key], expected, 1e-3)
        for key in ("to_keys.bias", "to_pos_map.bias"):  # nothing but rounding: gantx has none
            assert golden.prefix(f"grad_param/{key}").get("", torch.zeros(1)).abs().max() < 1e-5


def test_attention_of_latents_agrees_with_the_official_code():
    with GoldenFile("gansformer/t_self_latents") as golden:
        rules = attention_rules("own", "own", READ_PARTS)

        def ours(state):
            state = renamed({f"own.{key}": tensor for key, tensor in state.items()}, rules)
            return {key.removeprefix("own."): tensor for key, tensor in state.items()}

        dim, code_dim = golden.config["dim"], golden.config["pos_dim"]
        layer = LatentAttention(dim, golden.config["to_dim"], code_dim, code_dim, golden.config["num_heads"])
        layer.load_state_dict(ours(golden.prefix("param/")))
        own, seen = golden["in/from"].requires_grad_(), golden["in/to"].requires_grad_()
        made = layer(own, seen, golden["in/from_pos"], golden["in/to_pos"])
        check(made, golden["out/from"])
        golden["out/att"]  # gantx has no use for these maps
        score = (made * golden["in/coef"]).sum()
        gradients = torch.autograd.grad(score, (own, seen), retain_graph=True)
        check(gradients[0], golden["grad/from"], 1e-3)
        check(gradients[1], golden["grad/to"], 1e-3)
        score.backward()
        gradients = {key: parameter.grad for key, parameter in layer.named_parameters()}
        for key, expected in ours(golden.prefix("grad_param/")).items():
            check(gradients[key], expected, 1e-3)


OF_STYLEGAN2 = ("biasact/", "conv/", "fc/", "loss/", "mbstd/", "modconv/", "upfirdn/")
NOT_IN_GANTX = ("assign/", "attup/")  # what layers hand to each other, and maps at full resolution


class Returns(torch.nn.Module):
    """Stands in for an attention whose result is known."""

    def __init__(self, result):
        super().__init__()
        self.result = result

    def forward(self, *reading):
        return self.result


def test_single_operations_agree_with_the_official_code():
    with GoldenFile("gansformer/ops") as ops:
        for prefix in (*OF_STYLEGAN2, *NOT_IN_GANTX):
            ops.prefix(prefix)
        for size, dim, directions in ((4, 16, 2), (16, 16, 2), (8, 32, 2), (4, 32, 4), (8, 16, 4)):
            made = sine_grid(size, dim, directions).view(size, size, dim)
            check(made, ops[f"posenc/sinus_size{size}_dim{dim}_dirs{directions}"])
        check(rms_norm(ops["norm/x"], (1, 2)), ops["norm/z_joint"])

        cells = ops["attnorm/x"].view(2, 5, 6)
        for key, expected in ops.prefix("attnorm/").items():
            if key != "x":
                normalization, integration, _ = key.split("_")
                check(normalized(cells, normalization, integration), expected.view(2, 5, 6))

        mask = MASKED * (1 - ops["mask/mask"][:, 0, 0])
        looks = attention_of(ops["mask/scores"].transpose(1, 2).flatten(2), 1, mask)  # one head
        check(looks[:, :, 0], ops["mask/out"][:, 0].softmax(2))

        stage = LatentStage(8, 0.01, True, Returns(ops["resnetfc/in_x"]))
        for part, ours in (("fc0", stage.first), ("fc1", stage.second)):
            ours.load_state_dict({kind: ops[f"resnetfc/{part}.{kind}"] for kind in ("weight", "bias")})
        check(stage(ops["resnetfc/in_skip"]), ops["resnetfc/out"])


def normalized(cells, normalization, integration):
    """Cells [B, n, C] as attention finds them, from what it makes of them when it reads nothing."""
    config = {"dim": 6, "num_heads": 1, "pos_dim": 4, "to_dim": 2, "norm": normalization}
    layer = image_attention(config | {"integration": integration})
    layer.modulation.weight.data.zero_()
    grid, latent, code = torch.zeros(5, 4), torch.zeros(2, 1, 2), torch.zeros(1, 4)
    made, gain, _ = layer(cells, grid, latent, code)
    return (made if gain is None else made * gain).detach()


# The released code has parameters without effect: biases of keys, with k-means all of the keys, and for CLEVR
# the modulation and, with k-means, the position codes.
@pytest.mark.parametrize(
    ("preset", "attention", "resolution", "published"),
    [
        pytest.param(PRESET, "simplex", 64, 30_222_668, id="simplex-64"),
        pytest.param(PRESET, "simplex", 128, 30_692_686, id="simplex-128"),
        pytest.param(PRESET, "simplex", 256, 30_729_552, id="simplex-256"),
        pytest.param(PRESET, "kmeans", 64, 30_379_340, id="kmeans-64"),
        pytest.param(PRESET, "kmeans", 128, 30_866_766, id="kmeans-128"),
        pytest.param(PRESET, "kmeans", 256, 30_903_632, id="kmeans-256"),
        pytest.param(CLEVR, "simplex", 64, 29_797_804, id="clevr-simplex-64"),
        pytest.param(CLEVR, "simplex", 128, 30_230_958, id="clevr-simplex-128"),
        pytest.param(CLEVR, "simplex", 256, 30_265_776, id="clevr-simplex-256"),
        pytest.param(CLEVR, "kmeans", 64, 29_880_748, id="clevr-kmeans-64"),
        pytest.param(CLEVR, "kmeans", 128, 30_323_118, id="clevr-kmeans-128"),
        pytest.param(CLEVR, "kmeans", 256, 30_357_936, id="clevr-kmeans-256"),
    ],
)
def test_generator_has_the_published_number_of_parameters(preset, attention, resolution, published):
    with torch.device("meta"):
        generator = Generator(
            GANformerGeneratorConfig(**preset | {"attention": attention, "resolution": resolution})
        )
    dim = preset["latent_dim"]
    idle = idle_keys(generator, attention)
    if preset["mapping_attention"]:
        idle += len(generator.mapping_network.local) * 2 * dim
    if not preset["style"]:
        modulated = [part for part in generator.synthesis_network.modules() if hasattr(part, "to_style")]
        idle += sum(part.weight.shape[1] for part in modulated) * (dim + 1)
    if generator.positions is None:
        idle += preset["components"] * dim
    assert parameter_count(generator) + idle == published


@pytest.mark.parametrize(
    ("attention", "resolution", "published"),
    [
        ("simplex", 64, 30_530_316),
        ("simplex", 128, 31_045_902),
        ("simplex", 256, 31_082_768),
        ("kmeans", 64, 30_686_988),
        ("kmeans", 128, 31_219_982),
        ("kmeans", 256, 31_256_848),
    ],
)
def test_synthesis_with_updates_has_the_published_number_of_parameters(attention, resolution, published):
    with torch.device("meta"):
        generator = Generator(
            GANformerGeneratorConfig(
                **PRESET | {"attention": attention, "update_latents": True, "resolution": resolution}
            )
        )
    synthesis = sum(map(parameter_count, (generator.synthesis_network, generator.attention_layers)))
    assert synthesis + idle_keys(generator, attention) + idle_update(generator) == published


def idle_keys(generator, attention):
    """Parameters of keys that the released code has in its synthesis network and gantx has not."""
    idle = 0
    dim = generator.latent_shape[1]
    for layer in generator.attention_layers.values():
        channels = layer.look.to_values.weight.shape[0]
        idle += 2 * channels if attention == "simplex" else 2 * channels * (dim + 1)
        if layer.update is not None:
            idle += 2 * dim
    return idle


def idle_update(generator):
    """Parameters of the update after the last layer with attention, which no layer reads."""
    dim = generator.latent_shape[1]
    *_, last = generator.attention_layers.values()
    channels = last.look.to_values.weight.shape[0]
    update = LatentStage(dim, 1.0, True, LatentAttention(dim, channels, dim, dim, 1))
    return parameter_count(update) + 2 * dim


@pytest.mark.parametrize(
    ("resolution", "published"), [(64, 26_639_218), (128, 28_560_178), (256, 29_035_186)]
)
def test_discriminator_has_the_published_number_of_parameters(resolution, published):
    with torch.device("meta"):
        discriminator = Discriminator(
            GANformerDiscriminatorConfig(
                resolution=resolution,
                channel_base=32768,
                channel_max=512,
                group_size=4,
                group_channels=1,
                classes=0,
                components=16,
                latent_dim=32,
                attention_from=8,
                attention_to=128,
                heads=1,
                positions=True,
                grid="sine",
                grid_dim=None,
                grid_directions=2,
                attention_dropout=0.12,
            )
        )
    idle = len(discriminator.reading) * 2 * 32  # biases of keys
    assert parameter_count(discriminator) + idle == published


# --- generator --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["simplex", "kmeans", "duplex"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"heads": 2, "integration": "both", "normalization": "instance"},
        {"integration": "add", "normalization": "none", "architecture": "skip", "style": False},
        {"latent_gate": True, "image_gate": True, "noise": False, "final_convolution": False},
        {"grid": "linear", "grid_dim": 6, "grid_directions": 3, "positions": False},
        {"grid": "trainable", "grid_dim": 4, "mapping_attention": False},
        {"grid": "trainable2d", "attention_from": 8, "attention_to": 8, "mapping_residual": False},
        {"latent_norm": "component", "normalize_global": False, "component_dropout": 0.5},
    ],
)
def test_generator_generates_and_trains_whole(attention, changes):
    generator = shaken(small_generator(attention=attention, **changes))
    images = generator(latents(generator, 3), noise_of(generator, 3))
    assert images.shape == (3, *generator.image_shape)
    images.square().sum().backward()
    idle = {name for name, parameter in generator.named_parameters() if parameter.grad is None}
    if changes.get("style", True):
        assert not idle
    else:  # nothing reads the global latent
        assert all(name.startswith("mapping_network.overall") for name in idle)


def test_modes_differ_in_what_they_are_named_for():
    modes = {mode: small_generator(attention=mode) for mode in ("simplex", "kmeans", "duplex")}
    layers = {mode: generator.attention_layers["layer1"] for mode, generator in modes.items()}
    assert isinstance(layers["simplex"].look.scores, SimplexScores)
    assert layers["simplex"].update is layers["kmeans"].update is None
    assert layers["kmeans"].look.scores.iterations == 1
    assert layers["duplex"].look.scores.iterations == 2
    assert layers["duplex"].update is not None
    plain = small_generator(attention="duplex", kmeans_iterations=1, update_latents=False)
    assert plain.state_dict().keys() == modes["kmeans"].state_dict().keys()
    updated = small_generator(attention="simplex", update_latents=True)
    assert updated.attention_layers["layer1"].update is not None


def test_local_latents_are_a_set():
    """Their order means nothing but for their position codes."""
    generator = shaken(small_generator(heads=2)).eval()
    z = latents(generator)
    images, maps = generator.observe(generator.mapping(z), layers="all")
    order = [2, 0, 1]
    generator.positions.data = generator.positions.data[order]
    swapped, swapped_maps = generator.observe(generator.mapping(z[:, [*order, 3]]), layers="all")
    torch.testing.assert_close(swapped, images)
    for name, attention in maps.items():
        torch.testing.assert_close(swapped_maps[name], attention[:, :, order])


def test_every_latent_matters():
    generator = shaken(small_generator())
    z = latents(generator)
    images = generator(z)
    for index in range(z.shape[1]):
        other = z.clone()
        other[:, index] += 1
        assert not torch.allclose(generator(other), images, atol=1e-3), index


def test_each_layer_reads_its_own_copy_of_w():
    generator = shaken(small_generator(architecture="skip"))
    ws = generator.mapping(latents(generator)).contiguous()
    assert ws.shape == (2, 4, generator.synthesis_network.styles, 8)
    images = generator.synthesis(ws)
    for index in range(ws.shape[2]):
        changed = ws.clone()
        changed[:, :, index] += 1
        assert not torch.allclose(generator.synthesis(changed), images, atol=1e-4), index


def test_updated_latents_go_on_until_a_layer_without_attention():
    """In duplex, only the first of a run of layers reads local latents from ws."""
    generator = shaken(small_generator(attention="duplex", attention_from=8, attention_to=8)).eval()
    assert list(generator.attention_layers) == ["layer1", "layer2"]
    ws = generator.mapping(latents(generator)).contiguous()
    images = generator.synthesis(ws)
    read = []
    for index in range(ws.shape[2]):
        changed = ws.clone()
        changed[:, :-1, index] += 1
        if not torch.equal(generator.synthesis(changed), images):
            read.append(index)
    assert read == [1]


def test_attention_maps_come_on_request_at_the_side_of_their_layer():
    generator = shaken(small_generator(heads=2, attention_to=8)).eval()
    z = latents(generator)
    maps = generator.attention(z, layers="all")
    assert list(maps) == ["4x4.0", "8x8.0", "8x8.1"]
    for name, attention in maps.items():
        side = int(name.split("x")[0])
        assert attention.shape == (2, 2, 3, side, side)
        torch.testing.assert_close(attention.sum(2), torch.ones(2, 2, side, side))
    assert list(generator.attention(z)) == ["8x8.1"]
    painted, again = generator.observe(generator.mapping(z), layers="last")
    assert torch.equal(painted, generator(z))
    assert torch.equal(again["8x8.1"], maps["8x8.1"])


def test_released_kmeans_attention_to_the_constant_does_not_depend_on_the_latents():
    generator = shaken(small_generator(attention="kmeans", style=False)).eval()
    one, other = (generator.attention(latents(generator), layers="all") for _ in range(2))
    torch.testing.assert_close(one["4x4.0"], other["4x4.0"])
    assert not torch.allclose(one["8x8.0"], other["8x8.0"], atol=1e-3)


def test_dropout_is_for_training_alone():
    generator = shaken(small_generator(attention="duplex", component_dropout=0.3))
    spec = generator.noise_spec(2)
    assert spec["components"] == Draw("uniform", (2, 3))
    assert spec["attention1"]["look"]["entries"] == Draw("uniform", (2, 64, 1, 3))
    assert spec["attention1"]["update"]["entries"] == Draw("uniform", (2, 3, 1, 64))
    assert spec["mapping0"]["latents"] == Draw("uniform", (2, 1, 1, 3))
    z, noise = latents(generator), noise_of(generator, 2)
    only_noise = {name: noise[name] for name in generator.synthesis_network.noise_spec(2)}
    assert not torch.allclose(generator(z, noise), generator(z, only_noise), atol=1e-3)
    assert generator.eval().noise_spec(2).keys() == only_noise.keys()


def test_dropout_loses_entries_and_whole_latents_and_keeps_the_mean():
    seeded = torch.Generator().manual_seed(0)
    attention = torch.full((500, 40, 1, 10), 0.1)
    draws = {
        "entries": torch.rand(attention.shape, generator=seeded),
        "latents": torch.rand(500, 1, 1, 10, generator=seeded),
    }
    thinned = dropped(attention, draws, 0.5)
    assert not thinned[(draws["latents"] < 0.25).expand_as(thinned)].any()
    kept = thinned[thinned > 0]
    torch.testing.assert_close(kept, torch.full_like(kept, 0.1 / 0.75**2))
    assert kept.numel() / thinned.numel() == pytest.approx(0.75**2, rel=0.02)
    assert thinned.mean().item() == pytest.approx(0.1, rel=0.02)
    assert torch.equal(dropped(attention, None, 0.5), attention)


def test_a_dropped_component_is_not_looked_at():
    generator = shaken(small_generator(component_dropout=0.5))
    noise = {"components": torch.tensor([[0.1, 0.9, 0.6], [0.7, 0.9, 0.6]])}
    z = latents(generator)
    _, maps = generator.observe(generator.mapping(z, noise=noise), noise, layers="all")
    for attention in maps.values():
        assert not attention[0, :, 0].any()
        assert attention[0, :, 1:].all()
        assert attention[1].all()
    other = z.clone()
    other[0, 0] = -other[0, 0]  # of the same norm
    torch.testing.assert_close(generator(other, noise), generator(z, noise))


def test_forward_changes_nothing():
    generator = shaken(small_generator())
    assert isinstance(generator, interfaces.StyleBased)
    before = copy.deepcopy(generator.state_dict())
    ws = generator.mapping(latents(generator))
    generator.synthesis(ws)
    for name, tensor in generator.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert "w_avg" in generator.state_dict()


def test_codes_of_the_grid_tell_cells_apart():
    for kind, dim, directions in (
        ("sine", 8, 2),
        ("linear", 6, 3),
        ("trainable", 4, 2),
        ("trainable2d", 5, 2),
    ):
        code = GridCode(4, dim, kind, directions)()
        assert code.shape == (16, dim)
        assert torch.cdist(code, code).fill_diagonal_(1).min() > 1e-3
    rows_and_columns = GridCode(3, 4, "trainable", 2)().unflatten(0, (3, 3))
    assert torch.equal(rows_and_columns[0, :, :2], rows_and_columns[2, :, :2])
    assert torch.equal(rows_and_columns[:, 0, 2:], rows_and_columns[:, 2, 2:])
    column, row = torch.tensor([1.0, 0.01]), torch.tensor([0.0, 0.0])  # times the two frequencies
    expected = torch.cat([column.sin(), column.cos(), row.sin(), row.cos()])
    torch.testing.assert_close(sine_grid(3, 8, 2).unflatten(0, (3, 3))[1, 2], expected)


# --- discriminator ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"heads": 2, "positions": False, "grid": "trainable"},
        {"classes": 2},
        {"classes": 2, "label_head": "mapped"},
    ],
)
def test_discriminator_discriminates_and_trains_whole(changes):
    discriminator = shaken(small_discriminator(**changes))
    labels = torch.tensor([0, 1, 0, 1]) if changes.get("classes") else None
    logits = discriminator(torch.randn(4, 3, 16, 16), noise_of(discriminator, 4), labels)
    assert logits.shape == (4,)
    logits.square().sum().backward()
    assert all(parameter.grad.any() for parameter in discriminator.parameters())


def test_parts_of_a_batch_do_not_see_each_other():
    discriminator = shaken(small_discriminator()).eval()
    assert discriminator.noise_spec(4) == {}
    real, fake = torch.randn(2, 4, 3, 16, 16)
    together = discriminator(torch.cat([real, fake]), parts=2)
    torch.testing.assert_close(together, torch.cat([discriminator(real), discriminator(fake)]))


def test_aggregators_read_the_image():
    discriminator = shaken(small_discriminator()).eval()
    images = torch.randn(4, 3, 16, 16)
    logits = discriminator(images)
    with torch.no_grad():
        for reading in discriminator.reading.values():
            reading.modulation.weight.zero_()
    assert not torch.allclose(discriminator(images), logits, atol=1e-4)


# --- gradients, precision, compilation --------------------------------------------------------------------


def test_slope_agrees_with_double_backward():
    discriminator = shaken(small_discriminator())
    images = torch.randn(4, 3, 16, 16)
    parameters = list(discriminator.parameters())

    def gradients(of):
        return torch.autograd.grad(of.square().sum(), parameters, materialize_grads=True)

    functional = gradients(input_gradient(discriminator, images))
    images.requires_grad_()
    (direct,) = torch.autograd.grad(discriminator(images).sum(), images, create_graph=True)
    for one, other in zip(functional, gradients(direct), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("attention", ["simplex", "duplex"])
def test_path_length_has_the_derivative_of_finite_differences(attention):
    generator = shaken(small_generator(attention=attention, channel_max=4, resolution=8)).double()
    generator.attention_layers.double()
    ws = generator.mapping(latents(generator).double()).detach().clone()
    noise = {name: tensor.double() for name, tensor in silence(generator, 2).items()}
    direction = torch.randn(2, 3, 8, 8, dtype=torch.double)

    def length(network):
        moved = torch.func.grad(lambda ws: (network.synthesis(ws, noise) * direction).sum())(ws)
        return moved.square().sum(3).mean((1, 2)).sqrt().sum()

    weight = generator.attention_layers["layer1"].look.to_values.weight
    (gradient,) = torch.autograd.grad(length(generator), weight)
    step = torch.randn_like(weight)
    values = []
    for sign in (1, -1):
        moved = copy.deepcopy(generator)
        moved.attention_layers["layer1"].look.to_values.weight.data += sign * 1e-6 * step
        values.append(length(moved))
    torch.testing.assert_close((gradient * step).sum(), (values[0] - values[1]) / 2e-6, rtol=1e-5, atol=0)


@pytest.mark.parametrize("attention", ["simplex", "kmeans", "duplex"])
def test_bf16_is_close_to_fp32(attention):
    generator, discriminator = shaken(small_generator(attention=attention)), shaken(small_discriminator())
    z = latents(generator, 4)
    exact = generator(z)
    exact_logits = discriminator(exact)
    generator, discriminator = in_bf16(generator), in_bf16(discriminator)
    made, summed, read = set(), set(), set()
    for modules, kinds in (
        (generator.synthesis_network.blocks, made),
        (discriminator.blocks, summed),
        (discriminator.reading.values(), read),
    ):
        for module in modules:
            module.register_forward_hook(lambda _, __, x, kinds=kinds: kinds.add(x.dtype))
    ws = generator.mapping(z)
    images, maps = generator.observe(ws, layers="all")
    logits = discriminator(images)
    assert (made, summed, read) == ({torch.bfloat16}, {torch.float32}, {torch.float32})
    assert ws.dtype == images.dtype == logits.dtype == torch.float32
    assert {attention.dtype for attention in maps.values()} == {torch.float32}
    assert (images - exact).abs().max() < 0.1 * exact.abs().max()
    torch.testing.assert_close(logits, exact_logits, rtol=0.05, atol=0.1)


def losses_of_generator(generator, batch, dtype=torch.float32):
    """A loss of the images, and the mean of path lengths."""
    torch.manual_seed(1)
    z, direction = latents(generator, batch).to(dtype), torch.randn(batch, *generator.image_shape).to(dtype)
    noise = of_dtype(noise_of(generator, batch), dtype)

    def of_images(network):
        return (network(z, noise) * direction).mean()

    def of_paths(network):
        mapped = network.mapping(z, noise=noise)
        return path_lengths(lambda ws: network.synthesis(ws, noise), mapped, direction).mean()

    return of_images, of_paths


def losses_of_discriminator(discriminator, batch, dtype=torch.float32):
    """A loss of the logits, and the penalty R1."""
    torch.manual_seed(1)
    images = torch.randn(batch, 3, 16, 16).to(dtype)
    noise = of_dtype(noise_of(discriminator, batch), dtype)

    def of_logits(network):
        return F.softplus(network(images, noise)).mean()

    def of_slopes(network):
        return zero_centered_penalty(lambda x: network(x, noise), images)

    return of_logits, of_slopes


def of_dtype(noise, dtype):
    return {name: of_dtype(x, dtype) if isinstance(x, dict) else x.to(dtype) for name, x in noise.items()}


def check_types(computed, batch, operations):
    """All products are bf16 but some of vectors, one per sample; no operation mixes types."""
    for name, kinds, shapes in computed.other_than(torch.bfloat16):
        assert kinds == {torch.float32}
        assert name in operations
        assert any(batch in shape for shape in shapes)
    assert not computed.mixed


VARIANTS = [
    {},
    {"heads": 2, "integration": "both", "normalization": "instance"},
    {"integration": "add", "normalization": "none", "architecture": "skip", "style": False},
    {"latent_gate": True, "image_gate": True, "noise": False, "final_convolution": False},
    {"integration": "add", "grid": "linear", "grid_dim": 6, "grid_directions": 3, "positions": False},
    {"normalization": "none", "grid": "trainable", "grid_dim": 4, "component_dropout": 0.5},
]


@pytest.mark.parametrize("attention", ["simplex", "kmeans", "duplex"])
@pytest.mark.parametrize("changes", VARIANTS)
def test_types_of_the_generator_in_bf16(attention, changes):
    generator = in_bf16(shaken(small_generator(attention=attention, **changes)))
    for loss in losses_of_generator(generator, 5):
        with ComputedTypes() as computed:
            gradient_of(generator, loss)
        check_types(computed, 5, {"aten.mm"})


@pytest.mark.parametrize("attention", ["simplex", "kmeans", "duplex"])
@pytest.mark.parametrize("changes", VARIANTS)
def test_gradients_of_a_layer_in_bf16(attention, changes):
    """Of one layer: what a network of such layers does with rounding errors is another matter."""
    torch.manual_seed(0)
    wide = {"channel_max": 64, "channel_base": 1024, "latent_dim": 24, "components": 8, **changes}
    generator = small_generator(attention=attention, **wide)
    layer = shaken(generator.attention_layers["layer2"])
    x, ws = torch.randn(4, 64, 8, 8), torch.randn(4, 8, 24)
    of_features, of_latents = torch.randn_like(x), torch.randn_like(ws)

    def of_outputs(layer, ws=ws):
        features = to_compute(x, layer.look.scores.compute_dtype)
        features, factor, read, _ = layer(features, torch.ones(()), ws, generator.positions, None, None, 0.0)
        assert read.dtype == torch.float32
        assert factor.dtype == features.dtype
        return ((features * factor).float() * of_features).mean() + (read * of_latents).mean()

    def of_slopes(layer):
        return torch.func.grad(lambda ws: of_outputs(layer, ws))(ws).square().sum()

    for loss in (of_outputs, of_slopes):
        assert agreement(layer, loss) > 0.99


@pytest.mark.parametrize("attention", ["simplex", "kmeans"])
def test_gradients_of_the_generator_in_bf16(attention):
    """As close as those of weights moved by half a unit of bf16; duplex amplifies any error too much."""
    torch.manual_seed(0)
    wide = {"channel_max": 64, "channel_base": 1024, "latent_dim": 32, "components": 8}
    generator = shaken(small_generator(attention=attention, **wide))
    for loss in losses_of_generator(generator, 4):
        assert agreement(generator, loss) > 0.97


@pytest.mark.parametrize("changes", [{}, {"heads": 2, "positions": False, "grid": "trainable"}])
def test_gradients_of_the_discriminator_in_bf16(changes):
    discriminator = shaken(small_discriminator(**changes))
    for loss in losses_of_discriminator(discriminator, 5):
        assert agreement(discriminator, loss) > 0.99
        with ComputedTypes() as computed:
            gradient_of(in_bf16(discriminator), loss)
        check_types(computed, 5, {"aten.mm", "aten.addmm"})
        assert len(computed.other_than(torch.bfloat16)) == 3  # the last layer, forward and back


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("attention", ["simplex", "kmeans", "duplex"])
def test_without_a_compute_type_all_has_the_type_of_the_parameters(dtype, attention):
    generator = shaken(small_generator(attention=attention)).to(dtype)
    discriminator = shaken(small_discriminator()).to(dtype)
    for network, losses in (
        (generator, losses_of_generator(generator, 2, dtype)),
        (discriminator, losses_of_discriminator(discriminator, 2, dtype)),
    ):
        for loss in losses:
            with ComputedTypes() as computed:
                gradient_of(network, loss)
            assert computed.products
            assert not computed.other_than(dtype)


def test_lives_on_the_meta_device():
    with torch.device("meta"):
        generator, discriminator = small_generator(attention="duplex"), small_discriminator()
        assert discriminator(generator(latents(generator, 5))).shape == (5,)
