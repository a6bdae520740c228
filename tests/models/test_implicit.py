"""The implicit generator: a function of the coordinates whose pixels attend to components."""

import pytest
import torch

from gantx import models
from gantx.config.networks import ImplicitGeneratorConfig
from gantx.models.interfaces import ShowsAttention, StyleBased


def build(**sizes):
    torch.manual_seed(0)
    return models.build(
        ImplicitGeneratorConfig(
            latent_dim=8, style_dim=16, width=8, **{"resolution": 8, "categories": (4, 2)} | sizes
        )
    )


def test_it_is_the_function_that_its_docstring_describes():
    generator = build(depth=1, components=2)
    z = torch.randn(1, 8)
    images = generator(z)
    style = generator.mapping_network(z)[0]
    row, column = 2, 5
    point = torch.tensor([(column + 0.5) / 4 - 1, (row + 0.5) / 4 - 1, 1.0])  # x, y, 1
    weights = generator.from_coordinates.weights(style).view(3, 8)
    unit = torch.nn.functional.leaky_relu(point @ weights, 0.2)
    (layer,) = generator.layers
    unit = (unit * layer.scale(style)) @ layer.weight + layer.bias(style)
    unit = torch.nn.functional.leaky_relu(unit, 0.2)
    own = generator.attend.from_style(style).view(2, 11)
    shares = ((generator.attend.keys + 0.3 * own[:, :8]) @ unit).softmax(0)
    expected = shares @ (generator.attend.colours + own[:, 8:])
    torch.testing.assert_close(images[0, :, row, column], expected)


def test_attention_is_a_segmentation_of_the_image():
    generator = build(components=3)
    assert isinstance(generator, StyleBased)
    assert isinstance(generator, ShowsAttention)
    z = torch.randn(2, 8)
    ws = generator.mapping(z)
    images, maps = generator.observe(ws)
    assert torch.equal(images, generator(z))
    assert maps.keys() == {"8x8.0"}
    assert maps["8x8.0"].shape == (2, 1, 3, 8, 8)
    torch.testing.assert_close(maps["8x8.0"].sum(2), torch.ones(2, 1, 8, 8))
    assert torch.equal(maps["8x8.0"], generator.attention(z)["8x8.0"])


def test_every_use_of_the_style_has_an_effect_of_its_own():
    generator = build(depth=2)
    ws = generator.mapping(torch.randn(1, 8))
    assert ws.shape == (1, 4, 16)
    before = generator.synthesis(ws)
    for use in range(4):
        moved = ws.clone()
        moved[:, use] += 1
        assert not torch.allclose(generator.synthesis(moved), before)


def test_the_same_weights_generate_at_any_resolution():
    small, large = build(), build(resolution=24)
    large.load_state_dict(small.state_dict())
    z = torch.randn(2, 8)
    # The centre of every third pixel of the large image is the centre of a pixel of the small one.
    torch.testing.assert_close(large(z)[:, :, 1::3, 1::3], small(z))


def test_bf16_keeps_pixels_in_float32_and_near():
    from gantx.runtime.precision import set_compute_dtype

    generator = build()
    z = torch.randn(2, 8)
    exact = generator(z).detach()
    set_compute_dtype(generator, torch.bfloat16)
    rounded = generator(z).detach()
    assert rounded.dtype == torch.float32
    assert float((rounded - exact).abs().mean()) == pytest.approx(0, abs=0.02)


def test_the_largest_of_the_leading_numbers_is_a_discrete_latent():
    generator = build(categories=(3, 2))
    z = torch.tensor([[0.5, 0.1, 0.2, -1.0, 0.0, 0.0, 0.0, 0.0]])
    network = generator.mapping_network
    with torch.no_grad():
        network.layers[0].weight[:, :5] = 0  # so that these numbers have no other effect
    for largest in range(3):
        expected = network.layers[0](z)[0] + network.embeddings[0][largest] + network.embeddings[1][1]
        for layer in network.layers[1:]:
            expected = layer(torch.nn.functional.leaky_relu(expected, 0.2))
        moved = z.clone()
        moved[0, largest] = 2
        torch.testing.assert_close(network(moved)[0], torch.nn.functional.leaky_relu(expected, 0.2))


def test_more_categories_than_numbers_are_refused():
    with pytest.raises(ValueError, match="categories need 9 numbers of z, one each, but latent_dim is 8"):
        build(categories=(5, 4))
