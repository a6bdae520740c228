import copy

import pytest
import torch
import torch.nn.functional as F
from helpers.computed_types import ComputedTypes, agreement, gradient_of, in_bf16
from helpers.golden_file import GoldenFile
from helpers.golden_ganformer import stylegan2_discriminator, stylegan2_generator, vitgan_discriminator

from gantx.config.networks import StyleGAN2DiscriminatorConfig, StyleGAN2GeneratorConfig
from gantx.models import interfaces
from gantx.models.layers.equalized import GAIN, SLOPE, EqualLinear
from gantx.models.layers.minibatch_std import minibatch_standard_deviation
from gantx.models.layers.modulation import FinalToRGB, ModulatedConvolution, ToRGB
from gantx.models.layers.resampling import SMALL, Resample, filter_matrix
from gantx.models.stylegan2 import Discriminator, Generator
from gantx.training.losses import discriminator_loss, generator_loss
from gantx.training.regularizers import input_gradient, zero_centered_penalty


def small_generator(**changes):
    settings = {
        "resolution": 16,
        "latent_dim": 8,
        "mapping_layers": 2,
        "channel_base": 128,
        "channel_max": 12,
        "architecture": "resnet",
        "noise": True,
        "final_convolution": True,
        **changes,
    }
    return Generator(StyleGAN2GeneratorConfig(**settings))


def small_discriminator(**changes):
    settings = {
        "resolution": 16,
        "channel_base": 128,
        "channel_max": 12,
        "group_size": 4,
        "group_channels": 1,
        "classes": 0,
        **changes,
    }
    return Discriminator(StyleGAN2DiscriminatorConfig(**settings))


def shaken(network):
    """Move every parameter so that none is trivially zero or one."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def silence(generator, batch):
    """Noise that is zero everywhere."""
    return {name: torch.zeros(draw.shape) for name, draw in generator.noise_spec(batch).items()}


def parameter_count(network):
    return sum(parameter.numel() for parameter in network.parameters())


def check(value, expected, limit=1e-4):
    """Close within `limit` of the largest expected number."""
    assert value.shape == expected.shape
    torch.testing.assert_close(value, expected, rtol=0, atol=float(limit * expected.abs().max()))


# --- the released code ------------------------------------------------------------------------------------


def test_generator_agrees_with_the_official_code():
    with GoldenFile("gansformer/g_stylegan2_skip_16") as golden:
        generator = Generator(
            StyleGAN2GeneratorConfig(
                resolution=16,
                latent_dim=24,
                mapping_layers=9,
                channel_base=256,
                channel_max=16,
                architecture="skip",
                noise=True,
                final_convolution=True,
            )
        )
        generator.load_state_dict(stylegan2_generator(golden.prefix("param/"), 16, "skip"))
        assert parameter_count(generator) == golden.config["params"]
        assert generator.synthesis_network.styles == golden.config["num_ws"]

        z = golden["in/z"][:, 0].requires_grad_()
        ws = generator.mapping(z)
        check(ws[:, None], golden["out/ws"])
        check(torch.lerp(generator.w_avg, ws, 0.7)[:, :1], golden["out/ws_psi0.7"])
        truncated = torch.cat([torch.lerp(generator.w_avg, ws[:, :3], 0.5), ws[:, 3:]], dim=1)
        check(truncated[:, None], golden["out/ws_psi0.5_cutoff3"])

        seen = {}
        for level, block in enumerate(generator.synthesis_network.blocks):
            block.register_forward_hook(lambda _, __, x, side=4 << level: seen.update({f"b{side}.x": x}))
        final = generator.synthesis_network.to_rgb[-1].convolution
        image = generator(z, silence(generator, 3))
        check(image, golden["out/img_none"])
        features, factor = final(seen["b16.x"], ws[:, -2])
        check(features * factor, golden["act/b16.x"])  # the official code calls this a part of the block
        check(seen["b4.x"], golden["act/b4.x"])
        check(seen["b8.x"], golden["act/b8.x"])

        gradient = torch.autograd.grad((image * golden["in/coef"]).sum(), z, retain_graph=True)[0]
        check(gradient, golden["grad/z"][:, 0], 1e-3)
        (image * golden["in/coef"]).sum().backward()
        gradients = {name: parameter.grad for name, parameter in generator.named_parameters()}
        for name, expected in stylegan2_generator(golden.prefix("grad_param/"), 16, "skip").items():
            check(gradients[name], expected, 1e-3)

        with torch.no_grad():
            check(generator(z), golden["out/img_const"])
            check(generator.synthesis(golden["in/ws_mixed"][:, 0], silence(generator, 3)),
                  golden["out/img_ws_mixed_none"])  # fmt: skip
            truncated = torch.lerp(generator.w_avg, ws, 0.7)
            check(generator.synthesis(truncated, silence(generator, 3)), golden["out/img_psi0.7_none"])


@pytest.mark.parametrize("name", ["d_resnet_16", "d_resnet_32_cond"])
def test_discriminator_agrees_with_the_official_code(name):
    with GoldenFile(f"gansformer/{name}") as golden:
        config = golden.config
        resolution, classes = config["res"], config.get("c_dim", 0)
        discriminator = Discriminator(
            StyleGAN2DiscriminatorConfig(
                resolution=resolution,
                channel_base=config["channel_base"],
                channel_max=config["channel_max"],
                group_size=config["mbstd_group_size"],
                group_channels=config.get("mbstd_num_channels", 1),
                classes=classes,
            )
        )
        discriminator.load_state_dict(stylegan2_discriminator(golden.prefix("param/"), resolution))
        assert parameter_count(discriminator) == config["params"]
        labels = golden["in/c"].argmax(1) if classes else None
        seen = []
        for block in discriminator.blocks:
            block.register_forward_hook(lambda _, __, x: seen.append(x))
        images = golden["in/img"]
        check(discriminator(images, labels=labels), golden["out/logits"][:, 0])
        for features, side in zip(seen, (resolution >> level for level in range(9)), strict=False):
            check(features, golden[f"act/b{side}.x"])

        steep = input_gradient(lambda x: discriminator(x, labels=labels), images)
        check(steep, golden["grad/img"], 1e-3)
        check(steep.square().sum((1, 2, 3)), golden["out/r1_penalty"], 1e-3)
        gamma = 10
        penalty = gamma * zero_centered_penalty(lambda x: discriminator(x, labels=labels), images)
        penalty.backward()
        gradients = {name: parameter.grad for name, parameter in discriminator.named_parameters()}
        expected_gradients = stylegan2_discriminator(golden.prefix("grad_r1_param/"), resolution)
        for key, expected in expected_gradients.items():
            made = torch.zeros_like(expected) if gradients[key] is None else gradients[key]
            check(made, expected, 1e-3)


def test_discriminator_agrees_with_that_of_vitgan():
    with GoldenFile("vitgan/d_stylegan2") as golden:
        discriminator = Discriminator(
            StyleGAN2DiscriminatorConfig(
                resolution=32, channel_base=256, channel_max=24, group_size=4, group_channels=1, classes=0
            )
        )
        discriminator.load_state_dict(vitgan_discriminator(golden.prefix("state.")))

        def critic(x):
            return discriminator(2 * x - 1)  # the official one takes images in [0, 1]

        images = golden["in.x"]
        check(critic(images), golden["out.logit"][:, 0], 2e-5)
        check(input_gradient(critic, images), golden["out.grad_input"], 2e-4)
        r1 = 2 * zero_centered_penalty(critic, images)
        check(r1, golden["out.r1"][0], 2e-5)
        r1.backward()
        gradients = vitgan_names(discriminator)
        for key, expected in golden.prefix("grad_r1.").items():
            check(gradients[key].view_as(expected), expected, 2e-4)


def vitgan_names(discriminator):
    """The two gradients that the file has, under its names."""
    return {
        "layers.0.0.weight": discriminator.from_rgb.weight.grad,
        "linear.l1.weight": discriminator.epilogue.linear.weight.grad,
    }


@pytest.mark.parametrize(
    ("resolution", "base", "published"),
    [
        (32, 4096, 13_918_849),  # the narrow one for CIFAR-10
        (64, 32768, 26_488_833),
        (128, 32768, 28_389_121),
        (256, 32768, 28_864_129),
    ],
)
def test_discriminator_has_the_published_number_of_parameters(resolution, base, published):
    with torch.device("meta"):
        assert (
            parameter_count(
                Discriminator(
                    StyleGAN2DiscriminatorConfig(
                        resolution=resolution,
                        channel_base=base,
                        channel_max=512,
                        group_size=4,
                        group_channels=1,
                        classes=0,
                    )
                )
            )
            == published
        )


@pytest.mark.parametrize(
    ("resolution", "published"), [(64, 29_917_208), (128, 30_312_477), (256, 30_510_114)]
)
def test_generator_has_the_published_number_of_parameters(resolution, published):
    with torch.device("meta"):
        generator = Generator(
            StyleGAN2GeneratorConfig(
                resolution=resolution,
                latent_dim=512,
                mapping_layers=9,
                channel_base=32768,
                channel_max=512,
                architecture="skip",
                noise=True,
                final_convolution=True,
            )
        )
    assert parameter_count(generator) == published


# --- single operations of the released code ---------------------------------------------------------------

OF_ATTENTION = ("assign/", "attnorm/", "attup/", "mask/", "norm/", "posenc/", "resnetfc/")
NOT_IN_GANTX = (
    "biasact/elu", "biasact/relu", "biasact/selu", "biasact/sigmoid", "biasact/softplus", "biasact/swish",
    "biasact/tanh", "biasact/lrelu_gain0.5_clamp0.7", "loss/g_hinge", "loss/g_logistic",
)  # fmt: skip


def test_single_operations_agree_with_the_official_code():
    with GoldenFile("gansformer/ops") as ops:
        for prefix in (*OF_ATTENTION, *NOT_IN_GANTX):
            ops.prefix(prefix)
        check_filters(ops)
        check_convolutions(ops)
        check_modulation(ops)
        check_linear_layers(ops)
        check_deviations(ops)
        check_losses(ops)


def check_filters(ops):
    x = ops["upfirdn/x"]

    def resampled(row, up, down, left, right, top, bottom, gain):
        tall, wide = x.shape[2:]
        rows = filter_matrix(row, tall, up, down, top, bottom)
        columns = filter_matrix(row, wide, up, down, left, right)
        return gain * (rows @ x @ columns.T)

    for name, row in ops.config.items():
        row = torch.tensor(row, dtype=torch.float32) / sum(row)
        more, less = len(row) // 2, (len(row) - 1) // 2
        check(row.outer(row), ops[f"{name}/filter"])
        for way in ("conv", "flip"):  # all these filters are symmetric
            check(resampled(row, 1, 1, more, less, more, less, 1), ops[f"{name}/filter_{way}"])
            after_up = (len(row) + 1) // 2, (len(row) - 2) // 2
            check(resampled(row, 2, 1, *after_up, *after_up, 4), ops[f"{name}/up2_{way}"])
            after_down = (len(row) - 1) // 2, (len(row) - 2) // 2
            check(resampled(row, 1, 2, *after_down, *after_down, 1), ops[f"{name}/down2_{way}"])
        check(resampled(row, 3, 2, 1, 2, 0, 3, 1.5), ops[f"{name}/raw_up3_down2_pad1_2_0_3_gain1.5"])


def check_convolutions(ops):
    x, w3, w1 = ops["conv/x"], ops["conv/w3"], ops["conv/w1"][:, :, 0, 0]

    def mixed(x):
        return torch.einsum("oi, bihw -> bohw", w1, x)

    check(F.conv2d(x, w3, padding=1), ops["conv/plain_k3"])
    check(F.conv2d(Resample(3, 8, before=2, after=2)(x), w3, stride=2), ops["conv/down2_k3"])
    check(mixed(Resample(3, 8, down=2, before=1, after=1)(x)), ops["conv/down2_k1"])
    check(Resample(5, 8, up=2, before=2, after=1)(mixed(x)), ops["conv/up2_k1"])
    doubling = ModulatedConvolution(3, 5, None, 8, double=True)
    doubling.weight.data = w3
    made, factor = doubling(x, torch.empty(2, 0))
    check(made, ops["conv/up2_k3"])
    check(made, ops["modconv/unmodulated_k3_up2"])
    assert factor.item() == pytest.approx(27**-0.5)  # the official weights come without it


def check_modulation(ops):
    x, styles = ops["conv/x"], ops["modconv/styles"]
    for double, up, noise in ((False, "", ops["modconv/noise"]), (True, "_up2", ops["modconv/noise_up"])):
        layer = ModulatedConvolution(3, 5, 3, 8, double=double)
        layer.weight.data = ops["conv/w3"]
        # The official weights come without 1/sqrt(fan_in): hand over styles that undo it.
        layer.to_style.load_state_dict(
            {"weight": 3**0.5 / layer.scale * torch.eye(3), "bias": torch.zeros(3)}
        )
        made, factor = layer(x, styles)
        for way in ("fused", "unfused"):
            check(made * factor + noise, ops[f"modconv/demod_k3{up}_noise_{way}"])
            if not double:
                check(made * factor, ops[f"modconv/demod_k3_{way}"])
    colours = ToRGB(3, 3)
    colours.weight.data = ops["conv/w1"][:3, :, 0, 0] / colours.scale
    colours.to_style.load_state_dict({"weight": 3**0.5 * torch.eye(3), "bias": torch.zeros(3)})
    for way in ("fused", "unfused"):
        check(colours(x, styles[:, None]), ops[f"modconv/nodemod_k1_{way}"][:, :3])


def check_linear_layers(ops):
    for name, leaky, rate, weight_gain in (
        ("fc_linear", False, 1.0, 1.0),
        ("fc_lrelu_gain", True, 1.0, 0.5),  # its latent stem, not in gantx
        ("fc_lrelu_lr0.01", True, 0.01, 1.0),
    ):
        layer = EqualLinear(8, 5, leaky=leaky, lr_multiplier=rate)
        weight, bias = weight_gain * ops[f"fc/{name}/weight"], ops[f"fc/{name}/bias"]
        layer.load_state_dict({"weight": weight, "bias": bias})
        check(layer(ops["fc/in"]), ops[f"fc/{name}/out"])
    x = ops["conv/x"] + ops["biasact/b"][:, None, None]
    check(x, ops["biasact/linear"])
    check(F.leaky_relu(x, SLOPE) * GAIN, ops["biasact/lrelu"])


def check_deviations(ops):
    for key, group, count, name in (
        ("x", 2, 1, "g2_f1"), ("x", 4, 1, "g4_f1"), ("x", 4, 2, "g4_f2"), ("x", 8, 3, "g8_f3"),
        ("x", 8, 1, "gNone_f1"), ("x3", 4, 1, "x3_g4_f1"),
    ):  # fmt: skip
        x = ops[f"mbstd/{key}"]
        channels = minibatch_standard_deviation(x, group, count, parts=1)[:, :, None, None]
        check(torch.cat([x, channels.expand(-1, -1, *x.shape[2:])], dim=1), ops[f"mbstd/{name}"])


def check_losses(ops):
    logits = ops["loss/logits"]
    for ours, theirs in (("hinge", "hinge"), ("non-saturating", "logistic")):
        pairs = zip(logits.split(1), logits.flip(0).split(1), strict=True)
        total = torch.stack([discriminator_loss(ours, real, fake, 0.0) for real, fake in pairs])
        check(total, ops[f"loss/d_{theirs}_real"] + ops[f"loss/d_{theirs}_fake"].flip(0))
    for ours, theirs in (("wgangp", "wgan"), ("non-saturating", "logistic_ns")):
        total = torch.stack([generator_loss(ours, fake) for fake in logits.split(1)])
        check(total, ops[f"loss/g_{theirs}"])


# --- generator --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["skip", "resnet", "orig"])
@pytest.mark.parametrize("noise", [True, False])
@pytest.mark.parametrize("final_convolution", [True, False])
def test_generator_generates_images_of_its_resolution(architecture, noise, final_convolution):
    generator = shaken(
        small_generator(architecture=architecture, noise=noise, final_convolution=final_convolution)
    )
    spec = generator.noise_spec(3)
    assert bool(spec) == noise
    z, drawn = (
        torch.randn(3, *generator.latent_shape),
        {name: torch.randn(d.shape) for name, d in spec.items()},
    )
    images = generator(z, drawn)
    assert images.shape == (3, *generator.image_shape)
    assert torch.equal(images, generator(z)) == (not noise)
    images.square().sum().backward()
    idle = [name for name, parameter in generator.named_parameters() if not parameter.grad.any()]
    assert not idle


def test_every_sample_has_noise_of_its_own_and_without_any_there_is_a_constant():
    generator = shaken(small_generator())
    z = torch.randn(1, 8).expand(2, -1)
    noise = {name: torch.randn(draw.shape) for name, draw in generator.noise_spec(2).items()}
    one, other = generator(z, noise)
    assert not torch.allclose(one, other, atol=1e-3)
    one, other = generator(z)
    torch.testing.assert_close(one, other)
    silent = copy.deepcopy(generator)
    with torch.no_grad():
        for name, parameter in silent.named_parameters():
            if name.endswith("strength"):
                parameter.zero_()
    torch.testing.assert_close(silent(z, noise), generator(z, silence(generator, 2)))


def test_each_layer_reads_its_own_style():
    generator = shaken(small_generator(architecture="skip"))
    ws = generator.mapping(torch.randn(2, 8)).contiguous()
    assert ws.shape == (2, generator.synthesis_network.styles, 8)
    images = generator.synthesis(ws)
    for index in range(ws.shape[1]):
        changed = ws.clone()
        changed[:, index] += 1
        assert not torch.allclose(generator.synthesis(changed), images, atol=1e-4), index


def test_modulation_is_that_of_the_weights():
    layer = shaken(ModulatedConvolution(6, 5, 4, 8))
    x, w = torch.randn(3, 6, 8, 8), torch.randn(3, 4)
    made, factor = layer(x, w)
    styled = layer.weight * layer.scale * layer.to_style(w)[:, None, :, None, None]  # [B, out, in, 3, 3]
    normalized = styled * (styled.square().sum((2, 3, 4), keepdim=True) + 1e-8).rsqrt()
    expected = torch.cat([F.conv2d(x[i : i + 1], normalized[i], padding=1) for i in range(3)])
    torch.testing.assert_close(made * factor, expected)


@pytest.mark.parametrize("style_dim", [4, None])
def test_final_convolution_and_colours_are_multiplied_together(style_dim):
    final = shaken(FinalToRGB(6, style_dim, 8))
    x, ws = torch.randn(3, 6, 8, 8), torch.randn(3, 2, 4)
    convolved, factor = final.convolution(x, ws[:, 0])
    torch.testing.assert_close(final(x, ws), final.to_rgb(convolved * factor, ws[:, 1:]))


def test_features_neither_fade_nor_explode():
    torch.manual_seed(0)
    generator = Generator(
        StyleGAN2GeneratorConfig(
            resolution=32,
            latent_dim=64,
            mapping_layers=4,
            channel_base=4096,
            channel_max=128,
            architecture="resnet",
            noise=True,
            final_convolution=True,
        )
    )
    discriminator = Discriminator(
        StyleGAN2DiscriminatorConfig(
            resolution=32, channel_base=4096, channel_max=128, group_size=4, group_channels=1, classes=0
        )
    )
    seen = []
    for block in (*generator.synthesis_network.blocks, *discriminator.blocks):
        block.register_forward_hook(lambda _, __, x: seen.append(x.square().mean().item()))
    discriminator(generator(torch.randn(8, 64)))
    assert len(seen) == 4 + 3
    assert all(0.1 < power < 3 for power in seen), seen


@pytest.mark.parametrize(
    "change",
    [
        {"before": 2, "after": 2},
        {"before": 1, "after": 1, "gain": 4.0},
        {"before": 1, "after": 1, "down": 2},
        {"before": 2, "after": 1, "up": 2},
    ],
)
def test_large_features_are_resampled_as_small_ones(change):
    side = SMALL + 1
    large, exact = Resample(2, side, **change), Resample(2, side, **change, twice=True)
    assert (large.by_matrix, exact.by_matrix) == (False, True)
    x = torch.randn(2, 2, side, side)
    torch.testing.assert_close(large(x), exact(x))


def test_forward_changes_nothing():
    generator = shaken(small_generator())
    assert isinstance(generator, interfaces.StyleBased)
    before = copy.deepcopy(generator.state_dict())
    z = torch.randn(5, 8)
    ws = generator.mapping(z)
    generator.synthesis(ws)
    for name, tensor in generator.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert "w_avg" in generator.state_dict()


# --- discriminator ----------------------------------------------------------------------------------------


def test_parts_of_a_batch_do_not_see_each_other():
    discriminator = shaken(small_discriminator())
    real, fake = torch.randn(2, 4, 3, 16, 16)
    together = discriminator(torch.cat([real, fake]), parts=2)
    torch.testing.assert_close(together, torch.cat([discriminator(real), discriminator(fake)]))
    mixed = discriminator(torch.cat([real, fake]))
    assert not torch.allclose(mixed, together, atol=1e-4)


@pytest.mark.parametrize(("batch", "group"), [(8, 4), (6, 3), (7, 1), (2, 2), (9, 3)])
def test_a_group_is_as_large_as_the_batch_allows(batch, group):
    x = torch.randn(batch, 3, 4, 4)
    grouped = x.view(group, batch // group, -1)
    expected = (grouped.var(0, correction=0) + 1e-8).sqrt().mean(1).repeat(group)
    torch.testing.assert_close(minibatch_standard_deviation(x, 4, 1, parts=1)[:, 0], expected)


def test_labels_pick_the_logit():
    discriminator = shaken(small_discriminator(classes=3))
    images = torch.randn(2, 3, 16, 16)
    each = torch.stack([discriminator(images, labels=label.expand(2)) for label in torch.arange(3)])
    assert torch.equal(
        discriminator(images, labels=torch.tensor([2, 0])), torch.stack([each[2, 0], each[0, 1]])
    )
    with pytest.raises(ValueError, match="3 classes"):
        discriminator(images)


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


def path_lengths(generator, ws, noise, direction):
    """How much the image moves along `direction` when w moves, as path-length regularisation asks."""
    moved = torch.func.grad(lambda ws: (generator.synthesis(ws, noise) * direction).sum())(ws)
    return moved.square().sum(2).mean(1).sqrt()


@pytest.mark.parametrize("architecture", ["skip", "resnet"])
def test_path_length_has_the_derivative_of_finite_differences(architecture):
    generator = shaken(small_generator(architecture=architecture, channel_max=4)).double()
    ws = generator.mapping(torch.randn(2, 8, dtype=torch.double)).detach().clone()
    noise = {name: tensor.double() for name, tensor in silence(generator, 2).items()}
    direction = torch.randn(2, 3, 16, 16, dtype=torch.double)
    weight = generator.synthesis_network.blocks[1].layers[0].convolution.weight
    (gradient,) = torch.autograd.grad(path_lengths(generator, ws, noise, direction).sum(), weight)
    step = torch.randn_like(weight)
    values = []
    for sign in (1, -1):
        moved = copy.deepcopy(generator)
        moved.synthesis_network.blocks[1].layers[0].convolution.weight.data += sign * 1e-6 * step
        values.append(path_lengths(moved, ws, noise, direction).sum())
    torch.testing.assert_close((gradient * step).sum(), (values[0] - values[1]) / 2e-6, rtol=1e-5, atol=0)


def losses_of_generator(generator, batch, dtype=torch.float32):
    """A loss of the images, and the mean of path lengths."""
    torch.manual_seed(1)
    z, direction = torch.randn(batch, 8), torch.randn(batch, *generator.image_shape)
    noise = {name: torch.randn(draw.shape).to(dtype) for name, draw in generator.noise_spec(batch).items()}
    z, direction = z.to(dtype), direction.to(dtype)

    def of_images(network):
        return (network(z, noise) * direction).mean()

    def of_paths(network):
        return path_lengths(network, network.mapping(z), noise, direction).mean()

    return of_images, of_paths


def losses_of_discriminator(batch, dtype=torch.float32):
    """A loss of the logits, and the penalty R1."""
    torch.manual_seed(1)
    images = torch.randn(batch, 3, 16, 16).to(dtype)

    def of_logits(network):
        return F.softplus(network(images)).mean()

    def of_slopes(network):
        return zero_centered_penalty(network, images)

    return of_logits, of_slopes


def test_bf16_is_close_to_fp32():
    generator, discriminator = shaken(small_generator()), shaken(small_discriminator())
    z = torch.randn(4, 8)
    exact = generator(z)
    exact_logits = discriminator(exact)
    generator, discriminator = in_bf16(generator), in_bf16(discriminator)
    made, summed = set(), set()
    for network, kinds in ((generator.synthesis_network, made), (discriminator, summed)):
        for block in network.blocks:
            block.register_forward_hook(lambda _, __, x, kinds=kinds: kinds.add(x.dtype))
    ws = generator.mapping(z)
    images = generator.synthesis(ws)
    logits = discriminator(images)
    assert (made, summed) == ({torch.bfloat16}, {torch.float32})
    assert ws.dtype == images.dtype == logits.dtype == torch.float32
    assert (images - exact).abs().max() < 0.05 * exact.abs().max()
    torch.testing.assert_close(logits, exact_logits, rtol=0.05, atol=0.1)


@pytest.mark.parametrize("architecture", ["skip", "resnet", "orig"])
@pytest.mark.parametrize("final_convolution", [True, False])
def test_gradients_of_the_generator_in_bf16(architecture, final_convolution):
    generator = shaken(small_generator(architecture=architecture, final_convolution=final_convolution))
    for loss in losses_of_generator(generator, 5):
        assert agreement(generator, loss) > 0.99
        with ComputedTypes() as computed:
            gradient_of(in_bf16(generator), loss)
        assert not computed.mixed
        for name, kinds, shapes in computed.other_than(torch.bfloat16):
            # The norms of modulated kernels, one per sample, and their derivatives.
            assert kinds == {torch.float32}
            assert name == "aten.mm"
            assert any(5 in shape for shape in shapes)


def test_float32_products_of_the_generator_are_one_per_modulated_kernel():
    generator = shaken(small_generator())
    modulated = [module for module in generator.modules() if isinstance(module, ModulatedConvolution)]
    with ComputedTypes() as computed, torch.no_grad():
        in_bf16(generator)(torch.randn(5, 8))
    assert len(computed.other_than(torch.bfloat16)) == len(modulated)


def test_gradients_of_the_discriminator_in_bf16():
    discriminator = shaken(small_discriminator())
    for loss in losses_of_discriminator(5):
        assert agreement(discriminator, loss) > 0.99
        with ComputedTypes() as computed:
            gradient_of(in_bf16(discriminator), loss)
        assert not computed.mixed
        wide = computed.other_than(torch.bfloat16)
        assert all(kinds == {torch.float32} for _, kinds, _ in wide)
        assert len(wide) == 3  # the last layer, forward and back


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_a_compute_type_all_has_the_type_of_the_parameters(dtype):
    generator, discriminator = small_generator(architecture="skip"), small_discriminator()
    for network, losses in (
        (generator, losses_of_generator(generator, 2, dtype)),
        (discriminator, losses_of_discriminator(2, dtype)),
    ):
        shaken(network).to(dtype)
        for loss in losses:
            with ComputedTypes() as computed:
                gradient_of(network, loss)
            assert computed.products
            assert not computed.other_than(dtype)
            assert not computed.mixed


def test_lives_on_the_meta_device():
    with torch.device("meta"):
        generator, discriminator = small_generator(), small_discriminator()
        assert discriminator(generator(torch.randn(5, 8))).shape == (5,)
