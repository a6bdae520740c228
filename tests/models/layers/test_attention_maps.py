"""Where one place of an image looks: the row that `follow` shows is the one the network uses."""

import math

import pytest
import torch

from gantx import models
from gantx.config.networks import TransGAN2GeneratorConfig, TransGANGeneratorConfig, ViTGANGeneratorConfig
from gantx.models import interfaces, transgan, transgan2
from gantx.models.vitgan.attention import Attention as ViTGANAttention
from gantx.models.vitgan.attention import ReleasedAttention as ViTGANReleasedAttention

VITGAN = {
    "resolution": 16,
    "patch_size": 4,
    "dim": 16,
    "depth": 2,
    "heads": 2,
    "mapping_depth": 2,
    "decoder_dim": 16,
}
TRANSGAN2 = {"latent_dim": 8, "dim": 64, "base_size": 4, "depths": (1, 2, 1), "heads": 2}
SECTIONS = {
    "transgan": TransGANGeneratorConfig(latent_dim=8, base_dim=64, base_size=4, depths=(1, 1, 2), heads=2),
    "transgan2": TransGAN2GeneratorConfig(**TRANSGAN2),
    "transgan2 in windows": TransGAN2GeneratorConfig(
        **TRANSGAN2, windows=(None, 4, 8), noise=True, norm="pixel"
    ),
    "transgan2 with a latent grid": TransGAN2GeneratorConfig(**TRANSGAN2, latent_grid=True),
    **{
        f"vitgan {attention}": ViTGANGeneratorConfig(**VITGAN, attention=attention)
        for attention in ("dot", "l2", "released", "released-dot")
    },
}
ATTENTIONS = (transgan.Attention, transgan2.Attention, ViTGANAttention, ViTGANReleasedAttention)


def build(name):
    """A generator whose layers all do something: every parameter moved away from where it starts."""
    torch.manual_seed(0)
    generator = models.build(SECTIONS[name]).eval().requires_grad_(False)
    for parameter in generator.parameters():
        parameter.add_(0.3 * torch.randn_like(parameter))
    return generator


def given_for(generator, noise=None):
    z = torch.randn(2, *generator.latent_shape)
    return generator.mapping(z, noise=noise) if isinstance(generator, interfaces.StyleBased) else z


def generate(generator, given, noise=None):
    return (
        generator.synthesis(given, noise)
        if isinstance(generator, interfaces.StyleBased)
        else generator(given, noise)
    )


def noise_for(generator):
    return {name: torch.randn(draw.shape) for name, draw in generator.noise_spec(2).items()}


def values_of(layer, tokens, noise=None):
    """Values [B, h, S, S, d] of a layer's tokens, in raster order."""
    side = math.isqrt(tokens.shape[1])
    if isinstance(layer, transgan2.Attention):
        if noise is not None and layer.noise_strength is not None:
            tokens = tokens + layer.noise_strength * noise[:, :, None]
        if layer.window not in (None, side):
            tokens = transgan2.from_windows(tokens, side, layer.window)
    values = layer.value(tokens) if isinstance(layer, ViTGANAttention) else layer.qkv(tokens).chunk(3, 2)[2]
    return values.view(len(tokens), side, side, layer.heads, -1).permute(0, 3, 1, 2, 4)


@pytest.mark.parametrize("query", [(0.0, 0.0), (0.3, 0.9), (0.99, 0.5)])
@pytest.mark.parametrize("name", SECTIONS)
def test_the_row_times_the_values_is_what_the_cell_saw(name, query):
    generator = build(name)
    noise = noise_for(generator)
    given = given_for(generator)
    passed = []

    def keep(layer, arguments, output):
        passed.append((layer, arguments, output))

    for module in generator.modules():
        if isinstance(module, ATTENTIONS):
            module.register_forward_hook(keep)
    _, maps = generator.follow(given, query, noise, layers="all")
    assert len(maps) == len(passed) > 1
    for (layer_name, attention), (layer, arguments, output) in zip(maps.items(), passed, strict=True):
        side = attention.shape[2]
        assert layer_name.startswith(f"{side}x{side}.")
        torch.testing.assert_close(attention.sum((2, 3)), torch.ones(2, 2))
        seen = torch.einsum("bhyx,bhyxd->bhd", attention, values_of(layer, *arguments[:2]))
        window = getattr(layer, "window", None)
        if window not in (None, side):
            output = transgan2.from_windows(output, side, window)
        place = int(query[0] * side) * side + int(query[1] * side)
        torch.testing.assert_close(layer.out(seen.flatten(1)), output[:, place], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SECTIONS)
def test_following_changes_neither_the_image_nor_the_network(name):
    generator = build(name)
    assert isinstance(generator, interfaces.ShowsSelfAttention)
    assert not isinstance(generator, interfaces.ShowsAttention)
    noise, given = noise_for(generator), given_for(generator)
    expected = generate(generator, given, noise)
    images, of_last = generator.follow(given, (0.5, 0.5), noise)
    assert torch.equal(images, expected)
    _, of_all = generator.follow(given, (0.5, 0.5), noise, layers="all")
    ((last, attention),) = of_last.items()
    assert last == list(of_all)[-1]
    assert torch.equal(attention, of_all[last])
    assert not any(module._forward_pre_hooks for module in generator.modules())


def test_no_hook_stays_when_a_pass_fails():
    generator = build("transgan")
    with pytest.raises(RuntimeError):
        generator.follow(torch.zeros(1, 3), (0.5, 0.5))
    assert not any(module._forward_pre_hooks for module in generator.modules())


def test_a_cell_in_a_window_looks_nowhere_else():
    generator = build("transgan2 in windows")
    _, maps = generator.follow(given_for(generator), (0.9, 0.1), layers="all")
    assert list(maps) == ["4x4.0", "8x8.0", "8x8.1", "16x16.0"]
    assert bool(maps["4x4.0"].all())
    for name, window in (("8x8.0", 4), ("16x16.0", 8)):
        inside = torch.zeros_like(maps[name], dtype=torch.bool)
        inside[:, :, -window:, :window] = True
        assert torch.equal(maps[name] > 0, inside)


def test_a_window_of_training_limits_the_last_layer_of_transgan():
    generator = build("transgan")
    generator.attention_window = torch.tensor(2)
    _, maps = generator.follow(given_for(generator), (0.5, 0.5), layers="all")
    assert int((maps["16x16.1"][0, 0] > 0).sum()) == 5  # two tokens to either side along the raster scan
    assert bool(maps["16x16.0"].all())
