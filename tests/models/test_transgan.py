import pytest
import torch
from helpers.golden_file import GoldenFile
from torch.nn.attention import SDPBackend, sdpa_kernel

from gantx import models
from gantx.config.networks import TransGANDiscriminatorConfig, TransGANGeneratorConfig
from gantx.importing.transgan import transgan_v1_discriminator, transgan_v1_generator
from gantx.models import interfaces
from gantx.models.layers.pixel_shuffle import pixel_shuffle
from gantx.models.transgan import band_distance, neighbourhood_distance
from gantx.runtime.precision import set_compute_dtype
from gantx.training.losses import discriminator_loss, generator_loss
from gantx.training.regularizers import gradient_penalty, input_gradient

# The released schedules of the attention window: (until epoch, window).
SHORT = ((22, 4), (32, 6), (42, 8), (60, 10))
CELEBA = ((5, 8), (10, 12), (15, 16), (20, 20))


def small_generator(**changes):
    settings = {
        "latent_dim": 8,
        "base_dim": 32,
        "base_size": 4,
        "depths": (1, 2),
        "heads": 2,
        **changes,
    }
    return models.build(TransGANGeneratorConfig(**settings))


def small_discriminator(**changes):
    settings = {"resolution": 8, "patch_size": 4, "dim": 16, "depth": 2, "heads": 2, **changes}
    return models.build(TransGANDiscriminatorConfig(**settings))


def shaken(network):
    """Move every parameter so that none is trivially zero or one."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def parameter_count(network):
    return sum(parameter.numel() for parameter in network.parameters())


def built(imported):
    network = models.build(imported.section)
    network.load_state_dict(imported.tensors)
    return network


# --- the released code ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "schedule"), [("v1_SML_G", SHORT), ("v1_XL_G", SHORT), ("v1_celeba64_G", CELEBA)]
)
def test_generator_agrees_with_the_official_code(name, schedule):
    with GoldenFile(f"transgan/{name}") as golden:
        generator = built(transgan_v1_generator(golden.prefix("state."), golden.config["num_heads"]))
        assert generator.latent_shape == (golden.config["latent_dim"],)
        for epoch, expected in golden.prefix("output.epoch").items():
            window = next((window for until, window in schedule if int(epoch) < until), None)
            generator.attention_window = None if window is None else torch.tensor(window)
            with torch.no_grad():
                images = generator(golden["input.z"])
            torch.testing.assert_close(images, expected, rtol=0, atol=float(1e-4 * expected.abs().max()))
        generator.attention_window = None
        z = golden["input.z"].requires_grad_()
        # LayerNorm over CelebA's last two channels amplifies rounding until fused and plain attention differ
        # by more than the limit; the official code attends the plain way.
        with sdpa_kernel(SDPBackend.MATH):
            (gradient,) = torch.autograd.grad(generator(z).sum(), z)
        expected = golden["grad.z"]
        torch.testing.assert_close(gradient, expected, rtol=0, atol=float(1e-4 * expected.abs().max()))


def test_discriminator_agrees_with_the_official_code():
    with GoldenFile("transgan/v1_D") as golden:
        imported = transgan_v1_discriminator(golden.prefix("state."), golden.config["num_heads"])
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
        for name, key in (("hinge", "hinge_d"), ("lsgan", "lsgan_d"), ("non-saturating", "standard_d")):
            check(discriminator_loss(name, on_real, on_fake, 0.0), f"loss.{key}")
        check(generator_loss("wgangp-eps", on_fake), "loss.g_total")

        penalty = gradient_penalty(discriminator, real, fake, golden["loss.alpha"].flatten(), 1.0)
        check(penalty, "loss.gradient_penalty")
        total = discriminator_loss("wgangp-eps", on_real, on_fake, 1e-3) + 10 * penalty
        check(total, "loss.d_total")
        total.backward()
        parameters = dict(discriminator.named_parameters())
        ordered = [parameters[imported.names[official]] for official in golden.config["param_order"]]
        norms = torch.stack([parameter.grad.norm() for parameter in ordered])
        check(norms, "loss.d_param_grad_norms")
        check(norms.norm(), "loss.d_total_grad_norm")


def test_band_agrees_with_the_official_masks():
    with GoldenFile("transgan/locality_mask") as golden:
        for key, expected in golden.prefix("mask.N").items():
            tokens, window = (int(number) for number in key.split(".w"))
            allowed = band_distance(int(tokens**0.5), torch.device("cpu")) <= window
            assert torch.equal(allowed, expected.bool())


# The published counts hold 2·base_dim parameters of a normalisation that is never called.
@pytest.mark.parametrize(
    ("base_dim", "base_size", "depths", "published"),
    [
        pytest.param(384, 8, (5, 2, 2), 34_368_939, id="S"),
        pytest.param(512, 8, (5, 2, 2), 49_861_859, id="M"),
        pytest.param(768, 8, (5, 2, 2), 86_902_611, id="L"),
        pytest.param(1024, 8, (5, 4, 2), 133_594_563, id="XL"),
        pytest.param(768, 12, (5, 2, 2), 150_062_931, id="STL-10"),
        pytest.param(1024, 8, (5, 3, 3, 2), 132_927_219, id="CelebA-64"),
    ],
)
def test_generator_has_the_published_number_of_parameters(base_dim, base_size, depths, published):
    sizes = {"base_dim": base_dim, "base_size": base_size, "depths": depths}
    with torch.device("meta"):
        plain = models.build(TransGANGeneratorConfig(**sizes, super_resolution=False))
        resolving = models.build(TransGANGeneratorConfig(**sizes, super_resolution=True))
    assert parameter_count(plain) == published - 2 * base_dim
    assert parameter_count(resolving) == parameter_count(plain) + (3 + 1) * base_dim // 4


@pytest.mark.parametrize(("resolution", "published"), [(32, 12_458_497), (48, 12_489_217), (64, 12_532_225)])
def test_discriminator_has_the_published_number_of_parameters(resolution, published):
    with torch.device("meta"):
        discriminator = models.build(TransGANDiscriminatorConfig(resolution=resolution))
    assert parameter_count(discriminator) == published


# --- interface --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"init": "compact"},
        {"rgb_patch": 2, "heads": (4, 1)},
        {"depths": (1, 1, 1), "mlp_ratio": 2},
        {"depths": (1,), "super_resolution": False},
        {"base_dim": 24, "heads": 1, "init": "compact"},  # 6 channels: 2 of them without a sine
    ],
)
def test_generator_generates_images_of_its_resolution(changes):
    section = TransGANGeneratorConfig(
        **{"latent_dim": 8, "base_dim": 32, "base_size": 4, "depths": (1, 2), "heads": 2, **changes}
    )
    generator = models.build(section)
    images = generator(torch.randn(3, *generator.latent_shape), {}, None)
    assert images.shape == (3, *generator.image_shape)
    assert generator.image_shape == (3, section.resolution, section.resolution)
    assert generator.noise_spec(3) == {}


@pytest.mark.parametrize("init", ["released", "compact"])
def test_discriminator_discriminates_each_image_on_its_own(init):
    discriminator = shaken(small_discriminator(init=init))
    images = torch.randn(3, 3, 8, 8)
    logits = discriminator(images, {}, None)
    assert logits.shape == (3,)
    assert discriminator.noise_spec(3) == {}
    torch.testing.assert_close(discriminator(images[1:2]), logits[1:2])


def test_discriminator_sees_every_pixel():
    images = torch.randn(1, 3, 8, 8, requires_grad=True)
    shaken(small_discriminator())(images).sum().backward()
    assert images.grad.abs().min() > 0


def test_pixel_shuffle_is_that_of_images():
    tokens = torch.randn(2, 9, 8)
    as_image = torch.nn.functional.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, (3, 3)), 2)
    assert torch.equal(pixel_shuffle(tokens, 3, 2), as_image.flatten(2).transpose(1, 2))


# --- super-resolution -------------------------------------------------------------------------------------


def test_upscale_generates_from_low_resolution():
    generator = shaken(small_generator(super_resolution=True))
    assert isinstance(generator, interfaces.SuperResolves)
    assert generator.low_resolution == 8
    low = torch.randn(2, 3, 8, 8)
    images = generator.upscale(low)
    assert images.shape == (2, *generator.image_shape)
    assert not torch.equal(images, generator.upscale(-low))
    images.sum().backward()
    idle = {name for name, parameter in generator.named_parameters() if parameter.grad is None}
    assert idle == {
        name for name, _ in generator.named_parameters() if name.startswith(("to_tokens", "stages.0"))
    }


def test_a_generator_without_the_entry_cannot_upscale():
    generator = small_generator(super_resolution=False)
    assert not isinstance(generator, interfaces.SuperResolves)
    with pytest.raises(ValueError, match="super_resolution=True"):
        generator.upscale(torch.randn(2, 3, 8, 8))


# --- attention window -------------------------------------------------------------------------------------


def test_neighbourhood_counts_rows_and_columns_and_the_band_the_raster_scan():
    cpu = torch.device("cpu")
    band, neighbourhood = band_distance(4, cpu), neighbourhood_distance(4, cpu)
    # token 3 ends the first row, token 4 starts the second, token 7 is below token 3
    assert (band[3, 4], neighbourhood[3, 4]) == (1, 3)
    assert (band[3, 7], neighbourhood[3, 7]) == (4, 1)
    for distance in (band, neighbourhood):
        assert torch.equal(distance, distance.T)
        assert not distance.diagonal().any()


@pytest.mark.parametrize("locality", ["band", "neighbourhood"])
def test_the_window_limits_what_the_last_block_sees(locality):
    generator = shaken(small_generator(locality=locality))
    assert isinstance(generator, interfaces.RelaxesAttention)
    z = torch.randn(2, 8)
    unlimited = generator(z)
    generator.attention_window = torch.tensor(64)
    torch.testing.assert_close(generator(z), unlimited)
    generator.attention_window.fill_(1)
    narrow = generator(z)
    assert not torch.allclose(narrow, unlimited, atol=1e-4)
    generator.attention_window = torch.tensor(1.0)
    torch.testing.assert_close(generator(z), narrow)
    assert "attention_window" not in generator.state_dict()
    generator.attention_window = None
    assert torch.equal(generator(z), unlimited)


def test_without_locality_the_window_does_nothing():
    generator = shaken(small_generator(locality="none"))
    z = torch.randn(2, 8)
    unlimited = generator(z)
    generator.attention_window = torch.tensor(1)
    assert torch.equal(generator(z), unlimited)


# --- initialisation ---------------------------------------------------------------------------------------


def test_released_initialisation():
    torch.manual_seed(0)
    generator = models.build(TransGANGeneratorConfig(latent_dim=64, base_dim=256, depths=(1, 1)))
    discriminator = models.build(TransGANDiscriminatorConfig(depth=1))

    def bound(tensor):
        return tensor.abs().max().item()

    first = generator.stages[0].blocks[0]
    assert bound(first.attention.qkv.weight) == pytest.approx(256**-0.5, rel=0.01)
    assert bound(first.mlp[2].bias) == pytest.approx(1024**-0.5, rel=0.05)
    assert bound(generator.to_tokens.weight) == pytest.approx(64**-0.5, rel=0.01)
    assert bound(generator.to_rgb.weight) == pytest.approx((6 / (64 + 3)) ** 0.5, rel=0.05)
    assert bound(generator.to_rgb.bias) <= 64**-0.5
    assert generator.to_rgb.bias.any()
    assert generator.stages[1].positions.std().item() == pytest.approx(0.02, rel=0.02)

    patches = discriminator.from_patches
    assert bound(patches.weight) == pytest.approx((6 / (3 * 16 + 384 * 16)) ** 0.5, rel=0.01)
    assert 0.9 * 48**-0.5 < bound(patches.bias) <= 48**-0.5
    block = discriminator.blocks[0]
    for layer in (block.attention.qkv, block.attention.out, block.mlp[0], block.mlp[2]):
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert not any(layer.bias.any() for layer in (block.attention.out, block.mlp[0], discriminator.head))
    assert discriminator.head.weight.std().item() == pytest.approx(0.02, rel=0.15)
    assert discriminator.positions.std().item() == pytest.approx(0.02, rel=0.05)
    assert discriminator.class_token.std().item() == pytest.approx(0.02, rel=0.15)


def test_compact_initialisation():
    torch.manual_seed(0)
    generator = models.build(
        TransGANGeneratorConfig(latent_dim=64, base_dim=96, depths=(1, 1), rgb_patch=2, init="compact")
    )
    discriminator = models.build(
        TransGANDiscriminatorConfig(patch_size=8, dim=96, depth=1, heads=6, init="compact")
    )
    for network in (generator, discriminator):
        for layer in network.modules():
            if isinstance(layer, torch.nn.Linear):
                assert layer.weight.abs().max() <= (6 / sum(layer.weight.shape)) ** 0.5
                assert layer.bias is None or not layer.bias.any()
    assert not discriminator.class_token.any()
    assert 0 < discriminator.positions[0, 0].std() < 0.04
    for positions, side in ((generator.stages[1].positions, 16), (discriminator.positions[:, 1:], 4)):
        grid = positions.detach().unflatten(1, (side, side))[0]  # [y, x, D]
        rows, columns = grid.chunk(2, dim=-1)
        assert torch.equal(rows, rows[:, :1].expand_as(rows))
        assert torch.equal(rows.transpose(0, 1), columns)
        assert grid.abs().max() <= 0.5
        assert torch.cdist(grid.flatten(0, 1), grid.flatten(0, 1)).fill_diagonal_(1).min() > 0.1


# --- gradients, precision, compilation --------------------------------------------------------------------


def test_slope_agrees_with_double_backward():
    discriminator = shaken(small_discriminator())
    images = torch.randn(3, 3, 8, 8)
    parameters = list(discriminator.parameters())

    def gradients(of):
        """Of the squared slope; zero for biases that only shift the logit."""
        return torch.autograd.grad(of.square().sum(), parameters, materialize_grads=True)

    functional = gradients(input_gradient(discriminator, images))
    images.requires_grad_()
    with sdpa_kernel(SDPBackend.MATH):
        (direct,) = torch.autograd.grad(discriminator(images).sum(), images, create_graph=True)
    for one, other in zip(functional, gradients(direct), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("window", [None, 3])
def test_bf16_is_close_to_fp32(window):
    generator, discriminator = shaken(small_generator()), shaken(small_discriminator())
    if window is not None:
        generator.attention_window = torch.tensor(window)
    z, shown = torch.randn(4, 8), torch.ones(2, 3, 8, 8)
    exact, exact_logits = generator(z), discriminator(shown)
    set_compute_dtype(generator, torch.bfloat16)
    set_compute_dtype(discriminator, torch.bfloat16)
    images, logits = generator(z), discriminator(shown)
    assert images.dtype == logits.dtype == torch.float32
    assert (images - exact).abs().max() < 0.03 * exact.abs().max()
    torch.testing.assert_close(logits, exact_logits, rtol=0.03, atol=0.03)


def test_compiles_whole():
    generator, discriminator = shaken(small_generator()), shaken(small_discriminator())
    generator.attention_window = torch.tensor(2)

    def judge(z):
        return discriminator(generator(z))

    z = torch.randn(2, 8)
    compiled = torch.compile(judge, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(z), judge(z))
    generator.attention_window.fill_(3)  # a new value, no new graph
    with torch.compiler.set_stance("fail_on_recompile"):
        torch.testing.assert_close(compiled(z), judge(z))


def test_lives_on_the_meta_device():
    with torch.device("meta"):
        generator, discriminator = small_generator(init="compact"), small_discriminator(init="compact")
        assert discriminator(generator(torch.randn(5, 8))).shape == (5,)
