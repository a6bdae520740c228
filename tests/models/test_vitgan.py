import contextlib
import copy
import math
import re

import pytest
import torch
import torch.nn.functional as F
from helpers.computed_types import ComputedTypes, agreement, in_bf16
from helpers.golden_file import GoldenFile

from gantx.config.networks import ViTGANDiscriminatorConfig, ViTGANGeneratorConfig
from gantx.config.schema import AdamConfig
from gantx.models import interfaces, vitgan
from gantx.models.layers.attention import twice_differentiable
from gantx.models.layers.spectral_norm import ReleasedSpectralNorm, SpectralNorm, top_singular
from gantx.models.vitgan.attention import (
    Attention,
    ReleasedAttention,
    attend,
    attention_logits,
    near_products,
)
from gantx.models.vitgan.blocks import SelfModulatedLayerNorm, StyledBlock, perceptron
from gantx.models.vitgan.decoder import ModulatedConv, ModulatedLinear, build_decoder, fold
from gantx.models.vitgan.linear import EqualizedLinear, advance_spectral_norms
from gantx.models.vitgan.mapping import Mapping
from gantx.models.vitgan.patches import overlapping_patches
from gantx.models.vitgan.positions import SineGrid
from gantx.runtime.precision import set_compute_dtype
from gantx.runtime.random import draw
from gantx.training import ema
from gantx.training.optimized_network import OptimizedNetwork
from gantx.training.regularizers import input_gradient, zero_centered_penalty

# --- small networks ---------------------------------------------------------------------------------------

GENERATOR = {
    "resolution": 16,
    "patch_size": 4,
    "dim": 16,
    "depth": 2,
    "heads": 2,
    "mlp_ratio": 2,
    "mapping_depth": 2,
    "mapping_lr": 0.01,
    "positions": "sine",
    "residual": "prenorm",
    "attention": "dot",
    "activation": "gelu",
    "spectral_norm": "none",
    "norm_eps": 1e-5,
    "decoder": "inr",
    "decoder_dim": 24,
    "decoder_noise": False,
    "output": "linear",
}
RELEASED = {
    "residual": "released",
    "attention": "released",
    "activation": "silu",
    "spectral_norm": "released",
    "norm_eps": 1e-3,
    "decoder_noise": True,
}
DISCRIMINATOR = {
    "resolution": 16,
    "patch_size": 4,
    "overlap": 2,
    "padding": "zeros",
    "dim": 16,
    "depth": 2,
    "heads": 2,
    "mlp_ratio": 2,
    "attention": "l2",
    "qk_std": None,
    "spectral_norm": "improved",
}


def small_generator(**changes):
    return vitgan.Generator(ViTGANGeneratorConfig(**{**GENERATOR, **changes}))


def small_discriminator(**changes):
    return vitgan.Discriminator(ViTGANDiscriminatorConfig(**{**DISCRIMINATOR, **changes}))


def shaken(network):
    """Move every parameter so that none is trivially zero or one."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def parameter_count(network):
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.fixture
def _float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


# --- the released code ------------------------------------------------------------------------------------


def check_output(actual, expected, limit=2e-5):
    """The tolerance of the golden files for outputs."""
    atol = limit * max(1.0, float(expected.detach().abs().max()))
    expected = expected.view_as(actual).to(actual.dtype)
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


def check_gradient(actual, expected, limit=2e-4):
    """The tolerance of the golden files for gradients."""
    atol = limit * float(expected.detach().abs().max())
    expected = expected.view_as(actual).to(actual.dtype)
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


# What turns an official name into ours, applied one after the other.
RENAMED = [
    (r"^cips\.conv1", "decoder.layers.0"),
    (r"^cips\.layers\.1", "decoder.layers.2"),
    (r"^cips\.layers\.0", "decoder.layers.1"),
    (r"^cips\.to_rgbs\.0", "decoder.to_rgb"),
    (r"^cips\.", "decoder."),
    (r"^convs\.", "decoder.layers."),
    (r"^to_rgb\.", "decoder.to_rgb."),
    (r"decoder\.lff\.ffm\.conv", "decoder.coordinates"),
    (r"^lff\.ffm\.conv", "positions"),
    (r"^style\.", "mapping_network.style."),
    (r"^decoder\.style\.", "decoder.mapping.style."),
    (r"style\.(\d)", lambda match: f"layers.{int(match[1]) - 1}"),
    (r"^layers\.", "blocks."),
    (r"layernorm", "norm"),
    (r"mlp_gamma", "gain"),
    (r"mlp_beta", "bias"),
    (r"attn\.", "attention."),
    (r"to_qkv(\.module)?", "qkv"),
    (r"to_out\.0(\.module)?", "out"),
    (r"ff\.net\.", "mlp."),
    (r"mlp\.0\.module", "mlp.0"),
    (r"mlp\.3\.module", "mlp.2"),
    (r"weight_bar", "weight"),
    (r"weight_u", "spectral.u"),
    (r"(?<!\w)conv\.(weight|modulation)", r"\1"),
    (r"activate\.bias", "bias"),
    (r"noise\.weight", "noise_strength"),
]


def our_name(official):
    for pattern, replacement in RENAMED:
        official = re.sub(pattern, replacement, official)
    return official


def load_official(module, state, norms=None):
    """Load official tensors; `norms` are the spectral norms the wrapped layers started with."""
    wanted = module.state_dict()
    ours = {}
    for official, value in state.items():
        if official.endswith("blur.kernel"):
            check_output(value, 4 * torch.outer(BLUR, BLUR) / 64)
        elif not official.endswith("weight_v"):  # recomputed before use
            name = our_name(official)
            # Constants that the released code adds to a bias are where ours starts.
            added = 1 if name.endswith(("gain.bias", "modulation.bias")) else 0
            ours[name] = value.view_as(wanted[name]) + added
    if "w_avg" in wanted:  # nothing of the kind is released
        ours["w_avg"] = wanted["w_avg"]
    for official, sigma in (norms or {}).items():
        ours[f"{our_name(f'{official}.module')}.spectral.target"] = sigma.squeeze()
    module.load_state_dict(ours)
    return module


BLUR = torch.tensor([1.0, 3.0, 3.0, 1.0])


def official_generator(golden, decoder):
    """The generator of a golden file."""
    config = golden.config
    generator = vitgan.Generator(
        ViTGANGeneratorConfig(
            **{
                **GENERATOR,
                **RELEASED,
                "resolution": config["size"],
                "patch_size": config["size"] // config["token_width"],
                "dim": config["dim"],
                "depth": config["num_layers"],
                "heads": config["heads"],
                "mlp_ratio": 4,
                "mapping_depth": config["n_mlp"],
                "decoder": decoder,
                "decoder_dim": config["cips_channels"] if decoder == "inr" else config["dim"],
            }
        )
    )
    state = golden.prefix("state.")
    if decoder == "conv":  # the official decoder paints in [0, 1]
        state["to_rgb.conv.weight"] = 2 * state["to_rgb.conv.weight"]
        state["to_rgb.bias"] = 2 * state["to_rgb.bias"] - 1
    load_official(generator, state, golden.prefix("mult."))
    return generator


# The weights of g_conv make attention logits of 350, so that rounding in float32 takes half of the tolerance.
@pytest.mark.parametrize(
    ("name", "decoder", "dtype"), [("g_inr", "inr", torch.float32), ("g_conv", "conv", torch.float64)]
)
def test_generator_agrees_with_the_official_code(name, decoder, dtype):
    with GoldenFile(f"vitgan/{name}") as golden:
        generator = official_generator(golden, decoder).to(dtype)
        z = golden["in.z"].to(dtype).requires_grad_()
        for key, buffer in generator.named_buffers():
            buffer.requires_grad_(key.endswith("spectral.u"))
        style = generator.mapping_network(z)
        check_output(style, golden["out.w"])
        tokens = generator.positions()[None]
        check_output(
            tokens.expand(len(z), -1, -1), golden["out.pos_features_bchw"].flatten(2).transpose(1, 2)
        )
        for place, block in enumerate(generator.blocks):
            tokens = block(tokens, style)
            check_output(tokens, golden[f"out.block{place}"])
        check_output(generator.norm(tokens, style), golden["out.final_norm"])

        images = generator(z) / 2 + 0.5
        check_output(images, golden["out.image_train"])
        check_output(images.clamp(0, 1) if decoder == "inr" else images, golden["out.image_eval"])
        (images * golden["in.R"]).sum().backward()
        ours = {"z": z, **dict(generator.named_parameters()), **dict(generator.named_buffers())}
        for official, expected in golden.prefix("grad.").items():
            gradient = ours[our_name(official)].grad
            if official == "to_rgb.conv.weight" and decoder == "conv":
                gradient = 2 * gradient
            # In g_conv a sum of large terms of both signs, which in float32 hangs on the order of operations.
            limit = 1e-3 if official.endswith("temperature") else 2e-4
            check_gradient(gradient, expected, limit)


def test_blocks_agree_with_the_official_code():
    with GoldenFile("vitgan/blocks") as golden:
        dim, heads = golden.config["dim"], golden.config["heads"]

        def load(case, official, ours, module, norms=None):
            """Load a case's tensors into a module, as if it stood in the generator under its two names."""
            state = {f"{official}.{key}": value for key, value in golden.prefix(f"{case}.state.").items()}
            load_official(torch.nn.ModuleDict({ours: module}), state, norms)

        def check(prefix, module, *arguments):
            load_official(module, golden.prefix(f"{prefix}.state."), golden.prefix(f"{prefix}.mult."))
            check_output(module(*arguments), golden[f"{prefix}.out.y"])

        for prefix, spectral, by_distance in (
            ("attn_l2", "none", True),
            ("attn_l2_sn", "released", True),
            ("attn_dot", "none", False),
            ("attn_dot_sn", "released", False),
        ):
            attention = ReleasedAttention(dim, heads, spectral, by_distance)
            check(prefix, attention, golden[f"{prefix}.in.x"])
        released = ("released", "released", "silu", "released", 1e-3)
        block = StyledBlock(dim, heads, 2, *released)
        check("block", block, golden["block.in.x"], golden["block.in.w"])
        check("sln", SelfModulatedLayerNorm(dim, 1e-3), golden["sln.in.x"], golden["sln.in.w"])

        mlp = perceptron(dim, 2, "silu", "released")
        load("ff", "ff", "mlp", mlp, {f"ff.{key}": value for key, value in golden.prefix("ff.mult.").items()})
        check_output(mlp(golden["ff.in.x"]), golden["ff.out.y"])
        mapping = Mapping(dim, 3)
        load("map", "style", "mapping_network", mapping)
        check_output(mapping(golden["map.in.z"]), golden["map.out.w"])
        positions = SineGrid(5, dim)
        load("lff", "lff", "positions", positions)
        check_output(positions.coordinates, golden["lff.in.coords"].flatten(2)[0].T)
        check_output(positions(), golden["lff.out.y"].flatten(2)[0].T)

        check("lin", EqualizedLinear(dim, 24), golden["lin.in.x"])
        activated = EqualizedLinear(dim, 24, lr_multiplier=0.01, gain=math.sqrt(2))
        load_official(activated, golden.prefix("lin_lr.state."))
        check_output(F.leaky_relu(activated(golden["lin_lr.in.x"]), 0.2), golden["lin_lr.out.y"])
        offset = load_official(EqualizedLinear(dim, 24), golden.prefix("lin_bias1.state."))
        check_output(offset(golden["lin_bias1.in.x"]) + 1, golden["lin_bias1.out.y"])

        normalized = EqualizedLinear(dim, 56, spectral="released")
        load("sn", "to_qkv", "qkv", normalized, {"to_qkv": golden["sn.mult"]})
        normalized.spectral.u.requires_grad_()
        outputs = normalized(golden["sn.in.x"])
        (outputs * golden["sn.in.R"]).sum().backward()
        check_output(outputs, golden["sn.out.y"])
        effective = normalized.effective_weight() * dim**0.5
        check_output(effective, golden["sn.out.effective_weight_before_equalised_scale"])
        estimate = normalized.spectral.target / normalized.spectral(normalized.weight)
        check_output(estimate, golden["sn.out.sigma_est"])
        check_gradient(normalized.weight.grad, golden["sn.grad.weight_bar"])
        check_gradient(normalized.spectral.u.grad, golden["sn.grad.weight_u"])
        check_gradient(normalized.bias.grad, golden["sn.grad.bias"])


def test_modulated_layers_agree_with_the_official_code():
    with GoldenFile("vitgan/modulated_and_inr_head") as golden:
        config = golden.config
        width, out, style_dim = config["in_ch"], config["out_ch"], config["style_dim"]
        w, images = golden["in.w"], golden["in.x"]
        pixels = images.flatten(2).transpose(1, 2)

        def as_image(points):
            return points.transpose(1, 2).unflatten(2, images.shape[2:])

        def linear(prefix, noisy=False, out=out, **options):
            layer = ModulatedLinear(width, out, style_dim, noisy=noisy, **options)
            state = {"bias": torch.zeros(out), **golden.prefix(f"{prefix}.state.")}
            return load_official(layer, state)

        check_output(as_image(linear("mod1_demod")(pixels, w)), golden["mod1_demod.out.y"])
        plain = linear("mod1_nodemod", demodulate=False)
        check_output(as_image(plain(pixels, w)), golden["mod1_nodemod.out.y"])
        noisy = linear("style", noisy=True, gain=math.sqrt(2))
        styled = F.leaky_relu(noisy(pixels, w, golden["style.in.noise"].flatten(1)), 0.2)
        check_output(as_image(styled), golden["style.out.y"])
        rgb = as_image(linear("rgb", out=3, demodulate=False)(pixels, w))
        check_output(rgb, golden["rgb.out.y_noskip"])
        check_output(rgb + golden["rgb.in.skip"], golden["rgb.out.y"])

        for prefix, upsample in (("mod3_demod", False), ("mod3_up", True)):
            conv = ModulatedConv(width, out, style_dim, upsample=upsample, gain=1.0, noisy=False)
            load_official(conv, {"bias": torch.zeros(out), **golden.prefix(f"{prefix}.state.")})
            check_output(conv(images, w), golden[f"{prefix}.out.y"])

        grid, patch = config["grid"], config["patch"]
        head = build_decoder("inr", style_dim, config["cips_channels"], grid, patch, noisy=True)
        state = {f"cips.{key}": value for key, value in golden.prefix("head.state.").items()}
        load_official(torch.nn.ModuleDict({"decoder": head}), state)
        tokens = golden["head.in.tokens"]
        check_output(head.mapping(tokens), golden["head.out.token_style"])
        expected_images = head(tokens.unflatten(0, (2, -1)), None) / 2 + 0.5
        check_output(expected_images, golden["head.out.image_train"])
        patches = golden["head.out.patches_train"]
        check_output(fold(patches.flatten(2).transpose(1, 2).unflatten(0, (2, -1)), patch), expected_images)
        check_output(patches.clamp(0, 1), golden["head.out.patches_eval"])


# --- the formulas of the recommended model ----------------------------------------------------------------

EXACT = 1e-10  # relative tolerance of the golden files in float64


@pytest.mark.usefixtures("_float64")
def test_attention_agrees_with_the_direct_formulas():
    with GoldenFile("vitgan/l2_attention") as golden:
        dim, heads = golden.config["dim"], golden.config["heads"]
        for other in ("neg_dist.", "pos_sq.", "pos_dist_literal.", "sq_dist"):
            golden.prefix(other)  # readings of the printed equation that gantx does not offer
        attention = Attention(dim, heads, "l2", qk_std=dim**-0.5)
        names = {"query": "w.qk", "value": "w.v", "out": "w.out"}
        with torch.no_grad():
            for name, official in names.items():
                attention.get_submodule(name).weight.copy_(golden[official] * dim**0.5)
            attention.out.bias.copy_(golden["b.out"])
        x = golden["in.x"].clone().requires_grad_()
        attended = attention(x)
        check_output(attention.weights(x), golden["neg_sq.attn"], EXACT)
        check_output(attended, golden["neg_sq.out"], EXACT)
        torch.testing.assert_close(attention(x, keep=2), attended[:, :2])
        (attended * golden["in.R"]).sum().backward()
        assert x.grad.isfinite().all()
        check_output(attended, golden["sdpa_identity.out"], EXACT)
        check_gradient(x.grad, golden["neg_sq.grad.x"], EXACT)
        for name, official in names.items():
            gradient = attention.get_submodule(name).weight.grad * dim**0.5
            check_gradient(gradient, golden[f"neg_sq.grad.{official}"], EXACT)


def advance(norm, weight):
    """One power step of a spectral norm for this weight."""
    layer = EqualizedLinear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight, layer.spectral = torch.nn.Parameter(weight.detach()), norm
    advance_spectral_norms(layer)


@pytest.mark.usefixtures("_float64")
def test_spectral_norms_agree_with_the_formulas():
    with GoldenFile("vitgan/spectral_norm") as golden:
        for place in range(golden.config["matrices"]):
            case = golden.prefix(f"m{place}.")
            weight, coefficients = case["w"].requires_grad_(), case["C"]
            check_output(top_singular(weight)[1], case["sigma"], EXACT)

            plain = SpectralNorm(weight, target=1.0)
            check_output(weight * plain(weight), case["sn"], EXACT)

            improved = SpectralNorm(case["w_init"])
            check_output(improved.target, case["sigma_init"], EXACT)
            improved.u, improved.v = plain.u, plain.v
            normalized = weight * improved(weight)
            check_output(normalized, case["isn"], EXACT)
            (gradient,) = torch.autograd.grad((normalized * coefficients).sum(), weight)
            check_gradient(gradient, case["isn_grad_w"], EXACT)

            improved.u = case["u0"].clone()
            sigmas = []
            for _ in range(10):
                with torch.no_grad():
                    advance(improved, weight)
                    sigmas.append(improved.target / improved(weight))
            check_output(torch.stack(sigmas), case["power_sigma_1_to_10"], EXACT)
            check_output(improved.u, case["u10"], EXACT)

            released = ReleasedSpectralNorm(case["w_init"])
            released.u = case["u0"].clone()
            check_output(released.target / released(weight), case["official_onestep_sigma"], EXACT)
            check_output(weight * released(weight), case["official_onestep_isn"], EXACT)
        check_output(top_singular(golden["conv.w"].flatten(1))[1], golden["conv.sigma"], EXACT)


def test_patches_overlap_as_in_the_formulas():
    with GoldenFile("vitgan/overlap_patches") as golden:
        images = golden["in.image"]
        for side, overlap in golden.config["cases"]:
            tokens = overlapping_patches(images, side, overlap)
            assert torch.equal(tokens, golden[f"P{side}_o{overlap}.tokens"])
        mirrored = overlapping_patches(images, 4, 2, "reflect")
        assert torch.equal(mirrored, golden["P4_o2.tokens_reflect"])


# Names of the formula files and ours, applied one after the other.
FORMULA = [
    (r"^embed", "from_patches"),
    (r"^cls", "class_token"),
    (r"^map\.", "mapping_network.layers."),
    (r"^fourier\.", "decoder.coordinates."),
    (r"^inr\.0", "decoder.layers.0"),
    (r"^inr\.1", "decoder.to_rgb"),
    (r"attn\.qk?\.", "attention.query."),
    (r"attn\.k\.", "attention.key."),
    (r"attn\.v\.", "attention.value."),
    (r"attn\.", "attention."),
    (r"fc1", "0"),
    (r"fc2", "2"),
    (r"gamma", "gain"),
    (r"beta", "bias"),
    (r"\.style\.", ".modulation."),
    (r"sigma_init", "spectral.target"),
]


def load_formula(network, state):
    """Load the tensors of a formula file, where weights are not equalised.

    Returns for each key our name and how much larger the gradient is in the file.
    """
    ratios = {}
    tensors = {}
    for key, value in state.items():
        name = key
        for pattern, replacement in FORMULA:
            name = re.sub(pattern, replacement, name)
        if name in ("positions", "pos"):
            name = "positions" if "positions" in network.state_dict() else "positions.table"
        owner, _, leaf = name.rpartition(".")
        layer = network.get_submodule(owner.removesuffix(".spectral"))
        ratio = 1.0
        if isinstance(layer, EqualizedLinear) and leaf != "bias" and "mapping" not in owner:
            # A style's layer holds the constant of the layer it modulates.
            ratio = len(layer.weight[0]) ** -0.5 if "modulation" in owner else layer.scale
        elif isinstance(layer, ModulatedLinear) and leaf == "weight":
            ratio = len(layer.weight[0]) ** -0.5
        added = 1 if name.endswith("gain.bias") else 0
        tensors[name] = (value / ratio).view_as(network.state_dict()[name]) + added
        ratios[key] = (name, ratio)
        if isinstance(layer, EqualizedLinear) and layer.spectral and leaf == "weight":
            u, _, v = top_singular(value)
            tensors |= {f"{owner}.spectral.u": u, f"{owner}.spectral.v": v}
    if "w_avg" in network.state_dict():
        tensors["w_avg"] = network.state_dict()["w_avg"]
    network.load_state_dict(tensors)
    return ratios


@pytest.mark.usefixtures("_float64")
def test_discriminator_agrees_with_the_formulas():
    with GoldenFile("vitgan/vit_discriminator") as golden:
        config, state = golden.config, golden.prefix("state.")
        settings = {
            "resolution": config["image"],
            "patch_size": config["patch"],
            "overlap": config["overlap"],
            "dim": config["dim"],
            "depth": config["depth"],
            "heads": config["heads"],
            "mlp_ratio": config["mlp"] // config["dim"],
        }
        discriminator = small_discriminator(**settings)
        ratios = load_formula(discriminator, state)
        images = golden["in.image"].requires_grad_()
        tokens = discriminator.tokens(images)
        check_output(tokens, golden["out.tokens0"], EXACT)
        for place, block in enumerate(discriminator.blocks):
            tokens = block(tokens)
            check_output(tokens, golden[f"out.block{place}"], EXACT)
        check_output(discriminator.norm(tokens)[:, 0], golden["out.cls"], EXACT)
        logits = discriminator(images)
        check_output(logits, golden["out.logit"], EXACT)

        parameters = dict(discriminator.named_parameters())

        def check_gradients(of, prefix):
            for key, expected in golden.prefix(prefix).items():
                name, ratio = ratios[key]
                (gradient,) = torch.autograd.grad(of, parameters[name], retain_graph=True)
                check_gradient(gradient / ratio, expected, EXACT)

        check_gradients(logits.sum(), "grad_logit_sum.")
        check_output(input_gradient(discriminator, images), golden["out.grad_input"], EXACT)
        penalty = input_gradient(discriminator, images).square().sum((1, 2, 3)).mean()
        check_output(penalty, golden["out.r1"], EXACT)
        check_gradients(penalty, "grad_r1.")

        unnormalized = small_discriminator(**settings, spectral_norm="none")
        load_formula(unnormalized, {key: value for key, value in state.items() if "sigma_init" not in key})
        check_output(unnormalized(images), golden["out.logit_without_isn"], EXACT)


@pytest.mark.usefixtures("_float64")
def test_generator_agrees_with_the_formulas():
    with GoldenFile("vitgan/vit_generator_paper") as golden:
        config = golden.config
        generator = small_generator(
            resolution=config["grid"] * config["patch"],
            patch_size=config["patch"],
            dim=config["dim"],
            depth=config["depth"],
            heads=config["heads"],
            mlp_ratio=config["mlp"] // config["dim"],
            mapping_depth=config["n_map"],
            mapping_lr=config["map_lr_mul"],
            norm_eps=config["ln_eps"],
            positions="table",
            decoder="inr-sine",
            decoder_dim=config["inr_hidden"],
        )
        ratios = load_formula(generator, golden.prefix("state."))
        z = golden["in.z"].requires_grad_()
        style = generator.mapping_network(z)
        check_output(style, golden["out.w"], EXACT)
        tokens = generator.positions()[None]
        for place, block in enumerate(generator.blocks):
            tokens = block(tokens, style)
            check_output(tokens, golden[f"out.block{place}"], EXACT)
        embedded = generator.norm(tokens, style)
        check_output(embedded, golden["out.patch_embeddings"], EXACT)
        decoder = generator.decoder
        hidden = decoder.layers[0](decoder.coordinates()[None], embedded.flatten(0, 1)).sin()
        check_output(hidden, golden["out.inr_hidden"], EXACT)
        images = generator(z)
        check_output(images, golden["out.image"], EXACT)
        (images * golden["in.R"]).sum().backward()
        check_gradient(z.grad, golden["grad.z"], EXACT)
        parameters = dict(generator.named_parameters())
        for key, expected in golden.prefix("grad.").items():
            if key != "z":
                name, ratio = ratios[key]
                check_gradient(parameters[name].grad / ratio, expected, EXACT)


# --- sizes ------------------------------------------------------------------------------------------------

PAPER = {"dim": 384, "heads": 6, "mlp_ratio": 4, "mapping_depth": 8, "decoder_dim": 512}
SIZES = {
    32: {"resolution": 32, "patch_size": 4, "depth": 4},
    64: {"resolution": 64, "patch_size": 8, "depth": 6},
}


@pytest.mark.parametrize(
    ("resolution", "decoder", "published"),
    [(32, "inr", 12_987_786), (64, "inr", 17_714_060), (32, "conv", 16_982_411), (64, "conv", 24_659_343)],
)
def test_generator_has_the_released_number_of_parameters(resolution, decoder, published):
    sizes = {**PAPER, **SIZES[resolution], "decoder": decoder}
    if decoder == "conv":
        sizes["decoder_dim"] = 384
    with torch.device("meta"):
        recommended = small_generator(**sizes)
        released = small_generator(**{**sizes, **RELEASED})
    biases = (
        len(released.blocks) * 3 * 384
    )  # of queries, keys and values; the published count leaves them out
    assert parameter_count(released) == published + biases
    extras = len(released.blocks) + len(released.decoder.layers)  # temperatures, strengths of the noise
    assert parameter_count(recommended) == published - extras


@pytest.mark.parametrize(("resolution", "computed"), [(32, 6_604_033), (64, 10_076_929)])
def test_discriminator_has_the_computed_number_of_parameters(resolution, computed):
    sizes = {**SIZES[resolution], "dim": 384, "heads": 6, "mlp_ratio": 4}
    with torch.device("meta"):
        discriminator = small_discriminator(**sizes, overlap=sizes["patch_size"] // 2)
    assert parameter_count(discriminator) == computed


# --- interface --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"positions": "table"},
        {"decoder": "inr-sine"},
        {"decoder": "conv"},
        {"decoder": "conv", "patch_size": 8},
        {"patch_size": 1, "decoder": "conv"},
        {"patch_size": 8, "heads": 1, "depth": 1},
        {"attention": "l2", "spectral_norm": "improved"},
        RELEASED,
    ],
)
def test_generator_generates_images_of_its_resolution(changes):
    torch.manual_seed(0)
    generator = small_generator(**changes)
    z = torch.randn(3, *generator.latent_shape)
    images = generator(z)
    assert images.shape == (3, *generator.image_shape) == (3, 3, 16, 16)
    torch.testing.assert_close(generator.synthesis(generator.mapping(z[1:2])), images[1:2])


@pytest.mark.parametrize("decoder", ["inr", "inr-sine", "conv"])
def test_noise_enters_the_decoder_by_its_learned_strength(decoder):
    assert small_generator(decoder=decoder).noise_spec(3) == {}
    generator = small_generator(decoder=decoder, decoder_noise=True)
    noise = draw(generator.noise_spec(3), seed=0, stream="test", step=0, device=torch.device("cpu"))
    z = torch.randn(3, 16)
    plain = generator(z)
    torch.testing.assert_close(generator(z, noise), plain)  # strengths start at zero
    for layer in generator.decoder.layers:
        torch.nn.init.constant_(layer.noise_strength, 0.1)
    assert not torch.allclose(generator(z, noise), plain)
    assert torch.equal(generator(z), plain)


def test_tanh_keeps_pixels_in_range():
    torch.manual_seed(0)
    generator = small_generator(output="tanh")
    linear = copy.deepcopy(generator)
    linear.output = "linear"
    z = torch.randn(4, 16)
    torch.testing.assert_close(generator(z), linear(z).tanh())


@pytest.mark.parametrize(
    "changes", [{}, {"padding": "reflect"}, {"attention": "dot"}, {"spectral_norm": "none"}]
)
def test_discriminator_discriminates_each_image_on_its_own(changes):
    discriminator = shaken(small_discriminator(**changes))
    images = torch.randn(3, 3, 16, 16)
    logits = discriminator(images, {}, None)
    assert logits.shape == (3,)
    assert discriminator.noise_spec(3) == {}
    torch.testing.assert_close(discriminator(images[1:2]), logits[1:2])


def test_discriminator_sees_every_pixel():
    images = torch.randn(1, 3, 16, 16, requires_grad=True)
    shaken(small_discriminator())(images).sum().backward()
    assert images.grad.abs().min() > 0


@pytest.mark.parametrize("attention", ["l2", "dot"])
def test_discriminator_shows_its_attention(attention):
    discriminator = shaken(small_discriminator(attention=attention))
    images = torch.randn(2, 3, 16, 16)
    maps = discriminator.attention(images)
    assert list(maps) == ["blocks.0", "blocks.1"]
    for weights in maps.values():
        assert weights.shape == (2, 2, 17, 17)
        torch.testing.assert_close(weights.sum(3), torch.ones(2, 2, 17))
    # What is shown is what is used: weights on values make the attention's output.
    block = discriminator.blocks[0]
    tokens = block.norm1(discriminator.tokens(images))
    values = block.attention.value(tokens).unflatten(2, (2, -1)).transpose(1, 2)
    seen = block.attention.out((maps["blocks.0"] @ values).transpose(1, 2).flatten(2))
    torch.testing.assert_close(block.attention(tokens), seen)


# --- attention by distance --------------------------------------------------------------------------------


@pytest.mark.usefixtures("_float64")
def test_attention_by_distance_equals_the_direct_formula():
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 11, 5, requires_grad=True) for _ in range(3))
    towards = torch.randn(2, 3, 11, 5)
    direct = (-(q[:, :, :, None] - k[:, :, None]).square().sum(4) / 5**0.5).softmax(3) @ v
    for context in (contextlib.nullcontext(), twice_differentiable()):
        with context:
            seen = attend(near_products(q, k), v)
        gradients = torch.autograd.grad((seen * towards).sum(), (q, k, v), retain_graph=True)
        torch.testing.assert_close(seen, direct, rtol=0, atol=1e-10)
        expected = torch.autograd.grad((direct * towards).sum(), (q, k, v), retain_graph=True)
        torch.testing.assert_close(gradients, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("context", [contextlib.nullcontext, twice_differentiable])
@pytest.mark.parametrize("tokens", [65, 300])
def test_attention_by_distance_survives_bf16(tokens, context):
    torch.manual_seed(0)
    # Close to each other and far from the origin: ‖k‖²/2 is near 300, where bf16 counts in twos, and logits
    # differ by little more than one.
    k = (3 + 0.3 * torch.randn(1, 2, tokens, 64)).bfloat16()
    v = torch.randn(1, 2, tokens, 64).bfloat16()
    exact = attention_logits("l2", k.double(), k.double()).softmax(3) @ v.double()
    with context():
        seen = attend(near_products(k, k), v)
    assert seen.dtype == torch.bfloat16
    assert (seen.double() - exact).abs().max() < 0.01 * exact.abs().max()


def test_what_all_tokens_share_changes_no_distance():
    torch.manual_seed(0)
    attention = Attention(16, 2, "l2", qk_std=0.2)
    tokens, shared = torch.randn(2, 9, 16), 3 * torch.randn(16)
    for keep in (None, 2):
        q, k = attention._queries_and_keys(tokens, keep)
        shifted_q, shifted_k = attention._queries_and_keys(tokens + shared, keep)
        torch.testing.assert_close(shifted_q, q, rtol=0, atol=1e-4)
        torch.testing.assert_close(shifted_k, k, rtol=0, atol=1e-4)
        assert torch.equal(q, k[:, :, :keep])


def test_tokens_start_by_looking_around():
    torch.manual_seed(0)
    tokens = F.layer_norm(torch.randn(4, 65, 384), (384,))

    def entropy(qk_std):
        weights = Attention(384, 6, "l2", qk_std).weights(tokens).detach()
        return float(-(weights * weights.clamp_min(1e-30).log()).sum(3).mean() / math.log(65))

    assert entropy(None) > 0.9
    assert entropy(384**-0.5) < 0.01  # every token at itself alone, and spectral normalisation would keep it


# --- spectral normalisation -------------------------------------------------------------------------------


def equalized_layers(network):
    return [module for module in network.modules() if isinstance(module, EqualizedLinear)]


@torch.no_grad()
def effective_norms(network):
    """The spectral norms of what multiplies activations."""
    weights = [layer.effective_weight() for layer in equalized_layers(network)]
    return torch.stack([torch.linalg.matrix_norm(weight, 2) for weight in weights])


def trained(network, steps, inputs):
    """Move the weights by some steps of Adam, the state after each of them."""
    optimizer = torch.optim.Adam(network.parameters(), lr=0.003)
    for _ in range(steps):
        optimizer.zero_grad()
        network(inputs).square().mean().neg().backward()
        optimizer.step()
        network.update_state()
    return network


@pytest.mark.parametrize("kind", ["improved", "plain", "none"])
def test_normalized_weights_keep_their_norm(kind):
    torch.manual_seed(0)
    discriminator = small_discriminator(spectral_norm=kind)
    before = effective_norms(discriminator)
    if kind == "plain":
        torch.testing.assert_close(before, torch.ones_like(before))
    trained(discriminator, 60, torch.randn(4, 3, 16, 16))
    change = (effective_norms(discriminator) / before - 1).abs().max()
    assert (change > 0.1) if kind == "none" else (change < 0.05)


def test_vectors_converge_to_those_of_the_weights():
    torch.manual_seed(0)
    discriminator = small_discriminator()
    layers = equalized_layers(discriminator)
    with torch.no_grad():
        for layer in layers:
            layer.weight.copy_(torch.randn_like(layer.weight))

    @torch.no_grad()
    def errors():
        """Of the norms the layers go by, relative to the exact ones."""
        assumed = torch.stack([layer.spectral.target / layer.spectral(layer.weight) for layer in layers])
        exact = torch.stack([torch.linalg.matrix_norm(layer.weight, 2) for layer in layers])
        return (assumed / exact - 1).abs()

    assert errors().max() > 0.1
    for _ in range(300):
        discriminator.update_state()
    assert errors().max() < 1e-4


def test_a_pass_changes_nothing():
    generator = small_generator(attention="l2", spectral_norm="improved")
    discriminator = small_discriminator()
    before = copy.deepcopy((generator.state_dict(), discriminator.state_dict()))
    discriminator(generator(torch.randn(2, 16))).sum().backward()
    for old, network in zip(before, (generator, discriminator), strict=True):
        for name, value in network.state_dict().items():
            assert torch.equal(value, old[name]), name


@pytest.mark.parametrize("changes", [{}, {"attention": "l2", "spectral_norm": "improved"}, RELEASED])
def test_state_is_all_there_is(changes):
    torch.manual_seed(0)
    generator, discriminator = small_generator(**changes), small_discriminator()
    z, images = torch.randn(2, 16), torch.randn(2, 3, 16, 16)
    assert isinstance(generator, interfaces.KeepsState)
    trained(generator, 3, z)
    trained(discriminator, 3, images)

    restored = small_generator(**changes), small_discriminator()
    restored[0].load_state_dict(generator.state_dict())
    restored[1].load_state_dict(discriminator.state_dict())
    assert torch.equal(restored[0](z), generator(z))
    assert torch.equal(restored[1](images), discriminator(images))
    # The next step is the same as well.
    trained(restored[1], 1, images)
    trained(discriminator, 1, images)
    assert torch.equal(restored[1](images), discriminator(images))

    average = ema.Average(OptimizedNetwork(generator, AdamConfig(lr=0.1)))
    trained(generator, 1, z)
    average.set_beta(0.0)
    average.update()
    assert torch.equal(average.network(z), generator(z))
    assert torch.equal(copy.deepcopy(generator)(z), generator(z))


# --- gradients, precision, compilation --------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["l2", "dot"])
def test_slope_agrees_with_double_backward(attention):
    discriminator = shaken(small_discriminator(attention=attention))
    images = torch.randn(3, 3, 16, 16)
    parameters = list(discriminator.parameters())

    def gradients(of):
        """Of the squared slope; zero for biases that only shift the logit."""
        return torch.autograd.grad(of.square().sum(), parameters, allow_unused=True, materialize_grads=True)

    functional = gradients(input_gradient(discriminator, images))
    images.requires_grad_()
    with twice_differentiable():
        (direct,) = torch.autograd.grad(discriminator(images).sum(), images, create_graph=True)
    for one, other in zip(functional, gradients(direct), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("_float64")
def test_penalty_has_the_gradient_of_finite_differences():
    discriminator = shaken(small_discriminator())
    images = torch.randn(2, 3, 16, 16)
    weight = discriminator.blocks[0].attention.query.weight
    (gradient,) = torch.autograd.grad(zero_centered_penalty(discriminator, images), weight)
    towards, step = torch.randn_like(weight), 1e-6
    penalties = []
    for sign in (1, -1):
        with torch.no_grad():
            weight.add_(towards, alpha=sign * step)
            penalties.append(zero_centered_penalty(discriminator, images))
            weight.sub_(towards, alpha=sign * step)
    expected = (penalties[0] - penalties[1]) / (2 * step)
    torch.testing.assert_close((gradient * towards).sum(), expected, rtol=1e-5, atol=1e-10)


@pytest.mark.slow  # as test_rehearsal, which CI runs with R1 and R2
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_compiles_whole_with_r1(dtype):
    generator, discriminator = shaken(small_generator(depth=1)), shaken(small_discriminator(depth=1))
    set_compute_dtype(generator, dtype)
    set_compute_dtype(discriminator, dtype)
    near = {"rtol": 1e-4, "atol": 1e-6} if dtype is None else {"rtol": 0.05, "atol": 0.01}
    parameters = [*generator.parameters(), *discriminator.parameters()]

    def loss(real, z):
        on_fake = discriminator(generator(z))
        on_real = discriminator(real)
        adversarial = F.softplus(-on_real).mean() + F.softplus(on_fake).mean()
        return adversarial + 0.1 * zero_centered_penalty(discriminator, real)

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)

    def check():
        real, z = torch.randn(3, 3, 16, 16), torch.randn(3, 16)
        eager_loss, compiled_loss = loss(real, z), compiled(real, z)
        torch.testing.assert_close(compiled_loss, eager_loss, **near)
        expected = torch.autograd.grad(eager_loss, parameters)
        gradients = torch.autograd.grad(compiled_loss, parameters)
        torch.testing.assert_close(gradients, expected, **near)

    check()
    discriminator.update_state()  # new vectors, no new graph
    with torch.compiler.set_stance("fail_on_recompile"):
        check()


# --- bf16 -------------------------------------------------------------------------------------------------

GENERATORS = {
    "plain": {},
    "noisy": {"decoder_noise": True},
    "sine": {"decoder": "inr-sine"},
    "convolutions": {"decoder": "conv", "decoder_noise": True},
    "by distance": {"attention": "l2", "spectral_norm": "improved"},
    "released": RELEASED,
}


def some_noise(generator):
    noise = draw(generator.noise_spec(8), seed=0, stream="test", step=0, device=torch.device("cpu"))
    return noise or None


@pytest.mark.parametrize("name", GENERATORS)
def test_generator_in_bf16_is_close_to_float32(name):
    torch.manual_seed(0)
    generator = small_generator(**GENERATORS[name])
    z, noise = torch.randn(8, 16), some_noise(generator)
    exact, rounded = generator(z, noise), in_bf16(generator)(z, noise)
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, exact)
    assert (rounded - exact).norm() < 0.05 * exact.norm()


def test_styles_are_float32_in_bf16():
    generator = in_bf16(small_generator())
    assert generator.mapping(torch.randn(2, 16)).dtype == torch.float32


@pytest.mark.parametrize("attention", ["l2", "dot"])
def test_discriminator_in_bf16_is_close_to_float32(attention):
    torch.manual_seed(0)
    discriminator = small_discriminator(attention=attention)
    images = torch.randn(4, 3, 16, 16)
    exact, logits = discriminator(images), in_bf16(discriminator)(images)
    assert logits.dtype == torch.float32
    assert not torch.equal(logits, exact)
    torch.testing.assert_close(logits, exact, rtol=0.03, atol=0.03)


@pytest.mark.parametrize("name", GENERATORS)
def test_generator_has_the_gradient_of_float32_in_bf16(name):
    torch.manual_seed(0)
    generator = small_generator(**GENERATORS[name])
    z, noise = torch.randn(8, 16), some_noise(generator)
    assert agreement(generator, lambda network: network(z, noise).square().mean()) > 0.99


@pytest.mark.parametrize("attention", ["l2", "dot"])
def test_discriminator_has_the_gradients_of_float32_in_bf16(attention):
    torch.manual_seed(0)
    discriminator = shaken(small_discriminator(attention=attention))
    images = torch.randn(8, 3, 16, 16)
    assert agreement(discriminator, lambda network: F.softplus(network(images)).mean()) > 0.999
    assert agreement(discriminator, lambda network: zero_centered_penalty(network, images)) > 0.99


@pytest.mark.parametrize("qk_std", [0.05, 0.25])
def test_penalty_in_bf16_survives_what_all_tokens_share(qk_std):
    torch.manual_seed(0)
    discriminator = shaken(small_discriminator(qk_std=qk_std))
    with torch.no_grad():
        for block in discriminator.blocks:
            block.norm1.bias.add_(3 * torch.randn(16))
    images = torch.randn(8, 3, 16, 16)
    exact, rounded = (
        torch.autograd.grad(
            zero_centered_penalty(network, images), [block.attention.query.weight for block in network.blocks]
        )
        for network in (discriminator, in_bf16(discriminator))
    )
    for one, other in zip(exact, rounded, strict=True):
        assert F.cosine_similarity(one.flatten(), other.flatten(), dim=0) > 0.99


class Types(ComputedTypes):
    """Also the types in which is normalised."""

    def __init__(self):
        super().__init__()
        self.normalised = set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name = operation.overloadpacket.__name__
        if "softmax" in name or "layer_norm" in name:
            self.normalised |= {(name, x.dtype) for x in args if isinstance(x, torch.Tensor)}
        return super().__torch_dispatch__(operation, types, args, kwargs)


def float32_products(watch):
    """The products that are not of bf16, by shapes, after what holds for all operations."""
    assert not watch.mixed
    assert {kind for _, kind in watch.normalised} == {torch.float32}
    assert {name for name, _ in watch.normalised} >= {
        *("_softmax", "_softmax_backward_data", "native_layer_norm", "native_layer_norm_backward")
    }
    others = watch.other_than(torch.bfloat16)
    assert all(kinds == {torch.float32} for _, kinds, _ in others)
    return [
        shapes for name, _, shapes in others if name != "aten.dot"
    ]  # which is the spectral norm of a weight


@pytest.mark.parametrize("name", GENERATORS)
def test_types_of_the_generator(name):
    generator = in_bf16(small_generator(**GENERATORS[name]))
    noise = some_noise(generator)
    with Types() as watch:
        generator(torch.randn(8, 16), noise).square().mean().backward()
    demodulated = [
        layer
        for layer in generator.modules()
        if isinstance(layer, ModulatedConv) or getattr(layer, "demodulate", False)
    ]
    assert len(float32_products(watch)) == 3 * len(demodulated)  # energies and their two derivatives


@pytest.mark.parametrize("attention", ["l2", "dot"])
def test_types_of_the_discriminator(attention):
    discriminator = in_bf16(small_discriminator(attention=attention))
    images = torch.randn(8, 3, 16, 16)
    losses = (lambda: discriminator(images).mean(), lambda: zero_centered_penalty(discriminator, images))
    for loss in losses:
        with Types() as watch:
            loss().backward()
        products = float32_products(watch)
        assert len(products) == 3
        assert all(any(1 in shape for shape in shapes) for shapes in products)  # logits


@pytest.mark.parametrize("name", ["plain", "released"])
def test_types_of_maps_and_attention(name):
    generator, discriminator = in_bf16(small_generator(**GENERATORS[name])), in_bf16(small_discriminator())
    _, rows = generator.follow(generator.mapping(torch.randn(2, 16)), (0.5, 0.5), layers="all")
    maps = discriminator.attention(torch.randn(2, 3, 16, 16))
    for shown in (*rows.values(), *maps.values()):
        assert shown.dtype == torch.float32
    for weights in maps.values():
        torch.testing.assert_close(weights.sum(3), torch.ones(2, 2, 17))


def test_spectral_norm_is_computed_in_float32():
    torch.manual_seed(0)
    for kind in ("improved", "plain", "released"):
        layer = EqualizedLinear(64, 64, spectral=kind)
        rounded = in_bf16(layer)
        assert torch.equal(rounded.effective_weight(), layer.effective_weight())
        if kind != "released":
            advance_spectral_norms(torch.nn.ModuleList([layer, rounded]))
            assert torch.equal(rounded.spectral.u, layer.spectral.u)


@pytest.mark.parametrize("changes", [{}, RELEASED, {"decoder": "conv"}])
def test_lives_on_the_meta_device(changes):
    with torch.device("meta"):
        generator, discriminator = small_generator(**changes), small_discriminator()
        assert discriminator(generator(torch.randn(5, 16))).shape == (5,)
