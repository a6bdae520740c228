import re

import pytest
import torch
import torch.nn.functional as F
from helpers.golden_file import GoldenFile
from torch.nn.attention import SDPBackend, sdpa_kernel

from gantx import models
from gantx.config import networks
from gantx.config.networks import TransGAN2DiscriminatorConfig, TransGAN2GeneratorConfig
from gantx.importing.transgan import transgan_v2_discriminator, transgan_v2_generator
from gantx.models.layers.token_resampling import build_upsampling
from gantx.models.layers.windows import from_windows, to_windows
from gantx.models.transgan2 import Attention, Discriminator, Generator, PixelNorm, RelativePositions, Stage
from gantx.runtime.precision import set_compute_dtype
from gantx.runtime.random import draw, take
from gantx.training.losses import discriminator_loss, generator_loss
from gantx.training.regularizers import gradient_penalty, input_gradient

# The released networks at full size.
CIFAR_G = {
    "latent_dim": 256, "normalize_latent": False, "dim": 1024, "base_size": 8, "depths": (5, 4, 2),
    "upsampling": ("shuffle", "shuffle"), "windows": None, "heads": 4, "mlp_ratio": 4, "norm": "layer",
    "noise": False, "latent_grid": False,
}  # fmt: skip
STL_G = CIFAR_G | {"latent_dim": 512, "base_size": 12, "depths": (7, 5, 3), "norm": "pixel"}
CHURCH_G = CIFAR_G | {
    "latent_dim": 512, "depths": (5, 4, 4, 4, 4, 4), "norm": "pixel", "noise": True,
    "upsampling": ("bicubic", "bicubic", "shuffle", "shuffle", "shuffle"),
    "windows": (None, None, None, 16, 16, 16),
}  # fmt: skip
CELEBAHQ_G = CHURCH_G | {
    "depths": (0, 4, 4, 4, 4, 4), "latent_grid": True,
    "upsampling": ("bicubic", "bicubic", "shuffle", "blur-shuffle", "blur-shuffle"),
}  # fmt: skip
CELEBA128_G = CHURCH_G | {
    "depths": (5, 4, 4, 4, 4),
    "upsampling": ("bicubic", "bicubic", "shuffle", "shuffle"),
    "windows": (None, None, None, 16, 16),
}
CIFAR_D = {
    "resolution": 32, "patch_size": 2, "overlap": False, "dim": 384, "shares": (3, 1), "depths": (3, 3),
    "windows": None, "global_blocks": None, "heads": 4, "mlp_ratio": 4, "norm": "layer",
    "relative_positions": True, "noise": True,
}  # fmt: skip
STL_D = CIFAR_D | {"resolution": 48, "norm": "pixel"}
CHURCH_D = CIFAR_D | {
    "resolution": 256, "patch_size": 4, "shares": (6, 1, 1), "depths": (3, 3, 4), "noise": False,
    "windows": (16, None, None), "global_blocks": (1, 0, 0),
}  # fmt: skip
CELEBAHQ_D = CHURCH_D | {
    "patch_size": 2, "overlap": True, "shares": (1, 1, 2), "relative_positions": False,
    "windows": (4, 4, None), "global_blocks": (0, 1, 0),
}  # fmt: skip
CELEBA128_D = CHURCH_D | {"resolution": 128, "patch_size": 2}

# The same topologies, small.
SMALL_G = {
    "cifar": CIFAR_G | {"latent_dim": 8, "dim": 32, "base_size": 4, "depths": (1, 2), "heads": 2,
                        "upsampling": ("shuffle",)},
    "church": CHURCH_G | {"latent_dim": 8, "dim": 16, "base_size": 2, "depths": (1, 1, 2), "heads": 2,
                          "upsampling": ("bicubic", "shuffle"), "windows": (None, None, 4)},
    "celebahq": CELEBAHQ_G | {"latent_dim": 8, "dim": 32, "base_size": 2, "depths": (0, 1, 1), "heads": 2,
                              "upsampling": ("bicubic", "blur-shuffle"), "windows": (None, None, 4)},
}  # fmt: skip
SMALL_D = {
    "cifar": CIFAR_D | {"resolution": 8, "dim": 16, "depths": (1, 1), "heads": 2},
    "church": CHURCH_D | {"resolution": 8, "patch_size": 1, "dim": 16, "depths": (2, 1, 1), "heads": 2,
                          "windows": (4, None, None)},
    "celebahq": CELEBAHQ_D | {"resolution": 16, "dim": 16, "depths": (1, 2, 1), "heads": 2,
                              "windows": (4, 2, None)},
}  # fmt: skip
CPU = torch.device("cpu")


def shaken(network):
    """Move every parameter so that none is trivially zero or one."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def small_generator(kind, **changes):
    torch.manual_seed(0)
    return shaken(Generator(TransGAN2GeneratorConfig(**SMALL_G[kind] | changes)))


def small_discriminator(kind, **changes):
    torch.manual_seed(0)
    return shaken(Discriminator(TransGAN2DiscriminatorConfig(**SMALL_D[kind] | changes)))


def noise_for(network, batch, step=0):
    return draw(network.noise_spec(batch), seed=0, stream="test", step=step, device=CPU)


def built(imported):
    network = models.build(imported.section)
    network.load_state_dict(imported.tensors)
    return network


def close(made, expected):
    """Assert agreement to 1e-4 of the largest value."""
    torch.testing.assert_close(made, expected, rtol=0, atol=float(1e-4 * expected.abs().max()))


# --- the released code ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["cifar_G_ln", "cifar_G_fulltopology", "cifar_G_latentnorm", "stl_G_pn", "church_G", "celebahq_G"],
)
def test_generator_agrees_with_the_official_code(name):
    with GoldenFile(f"transgan/v2_{name}") as golden:
        imported = transgan_v2_generator(
            golden.prefix("state."), golden.config["num_heads"], golden.config["latent_norm"]
        )
        generator = built(imported)
        assert generator.latent_shape == (golden.config["latent_dim"],)
        z = golden["input.z"].requires_grad_()
        images = generator(z)
        close(images, golden["output"])
        close(torch.autograd.grad(images.sum(), z)[0], golden["grad.z"])


def test_noise_of_the_generator_agrees_with_the_official_code():
    with GoldenFile("transgan/v2_church_G_noise") as golden:
        generator = built(transgan_v2_generator(golden.prefix("state."), golden.config["num_heads"]))
        noise = {
            f"stage{stage + 1}": golden[f"noise.{stage}"].view(2, 1, -1)  # one block each
            for stage in range(len(golden.config["windows"]))
        }
        assert {name: draw.shape for name, draw in generator.noise_spec(2).items()} == {
            name: tuple(value.shape) for name, value in noise.items()
        }
        close(generator(golden["input.z"], noise), golden["output"])


@pytest.mark.parametrize("name", ["cifar_D_ln", "cifar_D_fulltopology", "stl_D_pn", "church_D", "celebahq_D"])
def test_discriminator_agrees_with_the_official_code(name):
    with GoldenFile(f"transgan/v2_{name}") as golden:
        imported = transgan_v2_discriminator(golden.prefix("state."), golden.config["num_heads"])
        discriminator = built(imported)

        def check(value, key):
            torch.testing.assert_close(value, golden[key].view_as(value), rtol=1e-4, atol=1e-6)

        images = golden["input.x"].requires_grad_()
        logits = discriminator(images)
        check(logits, "output")
        check(torch.autograd.grad(logits.sum(), images)[0], "grad.x")

        real, fake = golden["loss.real"], golden["loss.fake"]
        on_real, on_fake = discriminator(real), discriminator(fake)
        check(on_real, "loss.d_real")
        check(on_fake, "loss.d_fake")
        for kind, key in (("hinge", "hinge_d"), ("lsgan", "lsgan_d"), ("non-saturating", "standard_d")):
            check(discriminator_loss(kind, on_real, on_fake, 0.0), f"loss.{key}")
        check(generator_loss("wgangp-eps", on_fake), "loss.g_total")

        penalty = gradient_penalty(discriminator, real, fake, golden["loss.alpha"].flatten(), 1.0)
        check(penalty, "loss.gradient_penalty")
        total = discriminator_loss("wgangp-eps", on_real, on_fake, 1e-3) + 10 * penalty
        check(total, "loss.d_total")
        total.backward()
        expected = golden["loss.d_param_grad_norms"]
        parameters = dict(discriminator.named_parameters())
        ordered = [parameters[imported.names[official]] for official in golden.config["param_order"]]
        gradients = [p.grad for p in ordered]
        # A norm of -1 stands for no recorded gradient.
        norms = torch.stack([n if n < 0 else g.norm() for n, g in zip(expected, gradients, strict=True)])
        check(norms, "loss.d_param_grad_norms")
        check(norms[norms >= 0].norm(), "loss.d_total_grad_norm")


def test_noise_of_the_discriminator_agrees_with_the_official_code():
    with GoldenFile("transgan/v2_cifar_D_ln_noise") as golden:
        discriminator = built(transgan_v2_discriminator(golden.prefix("state."), golden.config["num_heads"]))
        noise = {
            "stage1": golden["noise.0"].view(4, 1, 64),
            "stage2": golden["noise.1"].view(4, 1, 16),
            "last": golden["noise.2"].view(4, 17),
        }
        assert {name: draw.shape for name, draw in discriminator.noise_spec(4).items()} == {
            name: tuple(value.shape) for name, value in noise.items()
        }
        close(discriminator(golden["input.x"], noise), golden["output"].flatten())


def test_relative_positions_agree_with_the_official_code():
    with GoldenFile("transgan/relpos") as golden:
        for key, expected in golden.prefix("index.w").items():
            side = int(key)
            positions = RelativePositions(side, heads=2)
            with torch.no_grad():
                positions.table.copy_(torch.arange((2 * side - 1) ** 2)[:, None].expand(-1, 2))
            assert torch.equal(positions(), expected.float().expand(2, -1, -1))

        attention = Attention(
            16, heads=4, window=golden.config["window"], relative_positions=True, noise=False
        )
        official = {
            "qkv.weight": "qkv.weight",
            "proj.weight": "out.weight",
            "proj.bias": "out.bias",
            "relative_position_bias_table": "relative_positions.table",
        }
        attention.load_state_dict({ours: golden[f"attn.{theirs}"] for theirs, ours in official.items()})
        close(attention(golden["attn.input.x"]), golden["attn.output"])


@pytest.mark.parametrize(
    ("section", "published"),
    [
        pytest.param(TransGAN2GeneratorConfig(**CIFAR_G), 83_312_495, id="CIFAR-10 G"),
        pytest.param(TransGAN2GeneratorConfig(**STL_G), 168_466_623, id="STL-10 G"),
        pytest.param(TransGAN2GeneratorConfig(**CHURCH_G), 205_291_952, id="church G"),
        # The released code has 20 more: noise strengths of cross-attention that it never uses.
        pytest.param(TransGAN2GeneratorConfig(**CELEBAHQ_G), 212_903_275 - 20, id="CelebA-HQ G"),
        pytest.param(TransGAN2DiscriminatorConfig(**CIFAR_D), 10_210_400, id="CIFAR-10 D"),
        pytest.param(TransGAN2DiscriminatorConfig(**STL_D), 10_341_536, id="STL-10 D"),
        pytest.param(TransGAN2DiscriminatorConfig(**CHURCH_D), 17_754_569, id="church D"),
        pytest.param(TransGAN2DiscriminatorConfig(**CELEBAHQ_D), 13_334_593, id="CelebA-HQ D"),
    ],
)
def test_networks_have_the_published_number_of_parameters(section, published):
    with torch.device("meta"):
        network = models.build(section)
    assert sum(parameter.numel() for parameter in network.parameters()) == published


def test_our_celeba_networks_fit_together():
    with torch.device("meta"):
        generator, discriminator = (
            Generator(TransGAN2GeneratorConfig(**CELEBA128_G)),
            Discriminator(TransGAN2DiscriminatorConfig(**CELEBA128_D)),
        )
        assert generator.image_shape == (3, 128, 128)
        assert discriminator(generator(torch.randn(2, 512))).shape == (2,)


# --- interface --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("network", "changes", "words"),
    [
        ("G", {"depths": (5, 4)}, "upsampling must name 1 steps"),
        ("G", {"windows": (8, 16)}, "windows must name 3 stages, as many as depths, not 2"),
        ("G", {"windows": (None, 5, None)}, "windows of 5 tokens a side do not tile the grid of stage 2, 16"),
        ("G", {"dim": 24, "heads": 2}, "stage 3 takes a quarter of the 6 channels"),
        ("G", {"dim": 64, "heads": 8}, "stage 3 has 4 channels, which 8 heads cannot share"),
        ("D", {"shares": (1, 1, 2)}, "shares must name 2 stages, as many as depths, not 3"),
        ("D", {"global_blocks": (1,)}, "global_blocks must name 2 stages, as many as depths, not 1"),
        ("D", {"global_blocks": (0, 4)}, "global_blocks wants 4 blocks of stage 2, which has 3"),
        (
            "D",
            {"resolution": 34},
            "patches of stage 2 are 4 pixels wide, which does not divide resolution 34",
        ),
        ("D", {"windows": (6, None)}, "windows of 6 tokens a side do not tile the grid of stage 1, 16"),
        ("D", {"patch_size": 1, "overlap": True}, "overlap needs an even patch_size, not 1"),
        ("D", {"dim": 30}, "dim 30 cannot be split in proportions"),
        ("D", {"dim": 8}, "stage 1 has 6 channels, which 4 heads cannot share"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(network, changes, words):
    section = networks.TransGAN2GeneratorConfig if network == "G" else networks.TransGAN2DiscriminatorConfig
    with pytest.raises(ValueError, match=re.escape(words)):
        section(**changes)


@pytest.mark.parametrize("kind", SMALL_G)
def test_generator_generates_each_image_on_its_own(kind):
    generator = small_generator(kind)
    z = torch.randn(3, *generator.latent_shape)
    spec, noise = generator.noise_spec(3), noise_for(generator, 3)
    assert bool(spec) == SMALL_G[kind]["noise"]
    images = generator(z, noise, None)
    assert images.shape == (3, *generator.image_shape)
    torch.testing.assert_close(generator(z[1:2], take(noise, spec, slice(1, 2))), images[1:2])


@pytest.mark.parametrize("kind", SMALL_D)
def test_discriminator_discriminates_each_image_on_its_own(kind):
    discriminator = small_discriminator(kind)
    side = SMALL_D[kind]["resolution"]
    images = torch.randn(3, 3, side, side)
    spec, noise = discriminator.noise_spec(3), noise_for(discriminator, 3)
    assert bool(spec) == SMALL_D[kind]["noise"]
    logits = discriminator(images, noise, None)
    assert logits.shape == (3,)
    torch.testing.assert_close(discriminator(images[1:2], take(noise, spec, slice(1, 2))), logits[1:2])


@pytest.mark.parametrize("kind", SMALL_D)
def test_discriminator_sees_every_pixel(kind):
    side = SMALL_D[kind]["resolution"]
    images = torch.randn(1, 3, side, side, requires_grad=True)
    small_discriminator(kind)(images).sum().backward()
    assert images.grad.abs().min() > 0


@pytest.mark.parametrize(
    ("build", "kind", "shape"),
    [(small_generator, "church", (2, 8)), (small_discriminator, "cifar", (2, 3, 8, 8))],
)
def test_noise_counts_by_its_strengths(build, kind, shape):
    network, given = build(kind), torch.randn(shape)
    noise, other, silence = noise_for(network, 2), noise_for(network, 2, step=1), network(given)
    first = network(given, noise)
    for name in noise:  # every draw is heard
        assert not torch.allclose(network(given, noise | {name: other[name]}), first, atol=1e-6)
    zero = {name: torch.zeros_like(values) for name, values in noise.items()}
    torch.testing.assert_close(network(given, zero), silence)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("noise_strength"):
                parameter.zero_()
    torch.testing.assert_close(network(given, noise), silence)


def test_a_normalised_latent_has_only_a_direction():
    z = torch.randn(2, 8)
    generator = small_generator("cifar", normalize_latent=True)
    images = generator(z)
    torch.testing.assert_close(generator(3 * z), images)
    of_length = z / z.norm(dim=1, keepdim=True) * 8**0.5
    torch.testing.assert_close(small_generator("cifar")(of_length), images)


def test_every_block_looks_at_the_latent_grid():
    generator = small_generator("celebahq")
    generator(torch.randn(2, 8), noise_for(generator, 2)).square().sum().backward()
    idle = {name for name, parameter in generator.named_parameters() if not parameter.grad.any()}
    assert not idle


# --- parts ------------------------------------------------------------------------------------------------


def test_windows_are_squares_in_raster_order_and_come_back():
    tokens = torch.arange(36.0).view(1, 36, 1)
    windows = to_windows(tokens, side=6, window=3)
    assert windows[0, 9:18, 0].tolist() == [3, 4, 5, 9, 10, 11, 15, 16, 17]
    assert torch.equal(from_windows(windows, side=6, window=3), tokens)


def test_windowed_blocks_keep_windows_apart_and_global_blocks_join_them():
    def reached(global_blocks):
        discriminator = small_discriminator("church", global_blocks=(global_blocks, 0, 0))
        stage = discriminator.stages[0]
        assert isinstance(stage, Stage)
        tokens = torch.randn(1, 64, 12, requires_grad=True)
        stage(tokens).unflatten(1, (8, 8))[:, :4, :4].square().sum().backward()
        return (tokens.grad[0].abs().sum(1) > 0).view(8, 8)

    corner = torch.zeros(8, 8, dtype=torch.bool)
    corner[:4, :4] = True
    assert torch.equal(reached(global_blocks=0), corner)
    assert reached(global_blocks=1).all()


def test_upsampling_is_that_of_images():
    image = torch.randn(2, 8, 6, 6)

    def upsampled(kind):
        tokens = build_upsampling(kind, 6)(image.flatten(2).transpose(1, 2))
        return tokens.transpose(1, 2).unflatten(2, (12, 12))

    def check(kind, expected):
        torch.testing.assert_close(upsampled(kind), expected, rtol=0, atol=1e-5)

    check("bicubic", F.interpolate(image, scale_factor=2, mode="bicubic"))
    check("shuffle", F.pixel_shuffle(image, 2))
    blurred = F.avg_pool2d(F.interpolate(image, scale_factor=4, mode="bicubic"), 4)
    check("blur-shuffle", F.pixel_shuffle(blurred, 2))
    with pytest.raises(ValueError, match="nearest"):
        build_upsampling("nearest", 6)


def test_pixel_norm_brings_every_token_to_one():
    tokens = torch.randn(2, 5, 16, dtype=torch.bfloat16) * 7
    normal = PixelNorm(16)(tokens)
    assert normal.dtype == torch.float32
    torch.testing.assert_close(normal.square().mean(2), torch.ones(2, 5))
    torch.testing.assert_close(F.cosine_similarity(normal, tokens.float(), dim=2), torch.ones(2, 5))
    assert not list(PixelNorm(16).parameters())


def test_gradient_of_relative_positions_is_that_of_a_look_up():
    positions = RelativePositions(4, heads=2)
    torch.nn.init.normal_(positions.table)
    weight = torch.randn(2, 16, 16)
    (positions() * weight).sum().backward()
    y, x = torch.arange(16) // 4, torch.arange(16) % 4
    index = (y[:, None] - y + 3) * 7 + x[:, None] - x + 3
    table = positions.table.detach().clone().requires_grad_()
    looked_up = table[index].permute(2, 0, 1)
    assert torch.equal(looked_up, positions())
    (looked_up * weight).sum().backward()
    torch.testing.assert_close(positions.table.grad, table.grad)


# --- initialisation ---------------------------------------------------------------------------------------


def test_released_initialisation():
    torch.manual_seed(0)
    generator = Generator(
        TransGAN2GeneratorConfig(
            **CELEBAHQ_G | {"latent_dim": 64, "dim": 256, "heads": 1, "windows": (None,) * 6}
        )
    )
    discriminator = Discriminator(TransGAN2DiscriminatorConfig(**CIFAR_D))

    def bound(tensor):
        return tensor.abs().max().item()

    block = generator.stages[1].global_blocks[0]
    for layer in (block.attention.qkv, block.cross_attention.k, block.mlp[0], generator.to_latents):
        assert bound(layer.weight) == pytest.approx(layer.in_features**-0.5, rel=0.01)
    assert bound(block.mlp[2].bias) == pytest.approx(1024**-0.5, rel=0.05)
    assert bound(generator.to_rgb.weight) <= (6 / (4 + 3)) ** 0.5
    assert generator.to_rgb.bias.any()
    assert not generator.latent_positions.any()
    assert block.attention.noise_strength == 0
    for positions in (generator.stages[0].positions, block.attention.relative_positions.table):
        assert positions.std().item() == pytest.approx(0.02, rel=0.06)

    first, second = discriminator.from_patches
    assert bound(first.weight) == pytest.approx((6 / (4 * (3 + 288))) ** 0.5, rel=0.01)
    assert bound(second.weight) == pytest.approx((6 / (16 * (3 + 96))) ** 0.5, rel=0.01)
    assert 0.9 * 12**-0.5 < bound(first.bias) <= 12**-0.5
    block = discriminator.stages[0].global_blocks[0]
    for layer in (block.attention.qkv, block.attention.out, block.mlp[0], block.mlp[2]):
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert not any(layer.bias.any() for layer in (block.attention.out, block.mlp[0], discriminator.head))
    assert discriminator.head.weight.std().item() == pytest.approx(0.02, rel=0.15)
    assert discriminator.class_token.std().item() == pytest.approx(0.02, rel=0.15)
    assert discriminator.stages[1].positions.std().item() == pytest.approx(0.02, rel=0.05)
    assert discriminator.last_block.attention.noise_strength == 0


# --- gradients, precision, compilation --------------------------------------------------------------------


@pytest.mark.parametrize("kind", SMALL_D)
def test_slope_agrees_with_double_backward(kind):
    discriminator = small_discriminator(kind)
    side = SMALL_D[kind]["resolution"]
    images, noise = torch.randn(2, 3, side, side), noise_for(discriminator, 2)
    parameters = list(discriminator.parameters())

    def critic(x):
        return discriminator(x, noise)

    def gradients(of):
        """Of the squared slope; zero for biases that only shift the logit."""
        return torch.autograd.grad(of.square().sum(), parameters, materialize_grads=True)

    functional = gradients(input_gradient(critic, images))
    images.requires_grad_()
    with sdpa_kernel(SDPBackend.MATH):
        (direct,) = torch.autograd.grad(critic(images).sum(), images, create_graph=True)
    for one, other in zip(functional, gradients(direct), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", SMALL_G)
def test_bf16_is_close_to_fp32(kind):
    generator, discriminator = small_generator(kind), small_discriminator(kind)
    z, side = torch.randn(4, 8), SMALL_D[kind]["resolution"]
    shown = torch.randn(2, 3, side, side)
    exact, exact_logits = generator(z), discriminator(shown)
    set_compute_dtype(generator, torch.bfloat16)
    set_compute_dtype(discriminator, torch.bfloat16)
    images, logits = generator(z), discriminator(shown)
    assert images.dtype == logits.dtype == torch.float32
    assert (images - exact).abs().max() < 0.03 * exact.abs().max()
    torch.testing.assert_close(logits, exact_logits, rtol=0.03, atol=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["cifar", "celebahq"])
def test_compiles_whole_with_a_slope_inside(kind):
    discriminator, side = small_discriminator(kind), SMALL_D[kind]["resolution"]
    images, noise = torch.randn(2, 3, side, side), noise_for(discriminator, 2)

    def penalty(images, noise):
        return input_gradient(lambda x: discriminator(x, noise), images).square().sum()

    compiled = torch.compile(penalty, backend="aot_eager", fullgraph=True, dynamic=False)
    torch.testing.assert_close(compiled(images, noise), penalty(images, noise))
    parameters = list(discriminator.parameters())
    for one, other in zip(
        torch.autograd.grad(compiled(images, noise), parameters, materialize_grads=True),
        torch.autograd.grad(penalty(images, noise), parameters, materialize_grads=True),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_generator_compiles_whole():
    generator, z = small_generator("celebahq"), torch.randn(2, 8)
    noise = noise_for(generator, 2)
    compiled = torch.compile(generator, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(z, noise), generator(z, noise))
