"""Projection: a latent is found, and its image generated again from the file."""

import pytest
import torch
from helpers.styled_networks import styled
from PIL import Image

from gantx import models
from gantx.config import presets
from gantx.errors import DataError, MissingError, UsageError
from gantx.generation import projection, sampling
from gantx.generation.latents import latents_for

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def transgan():
    torch.manual_seed(0)
    return models.build(presets.load("transgan-tiny").generator).eval().requires_grad_(False)


def image_of(generator, latents):
    (image,) = sampling.from_latents(generator, latents, batch=1, device=CPU)
    return sampling.quantise(image)[0]


@pytest.mark.parametrize("space", ["z", "w", "w+"])
def test_an_image_of_the_generator_is_found(space, tmp_path):
    generator = styled("stylegan2")
    target = image_of(generator, torch.randn(1, 16, generator=torch.Generator().manual_seed(3)))
    found = projection.project(
        generator, target, device=CPU, space=space, steps=60, starts=2, rate=0.1, seed=50
    )
    assert found.distance < 0.75 * found.at_start
    assert found.latents.shape == ((1, 16) if space == "z" else (1, 6, 16))
    if space == "w":
        assert torch.equal(found.latents, found.latents[:, :1].expand_as(found.latents))
    projection.save_latents(tmp_path / "l.safetensors", found.latents)
    again = image_of(generator, latents_for(generator, tmp_path / "l.safetensors"))
    assert torch.equal(again, found.image)


def test_networks_without_styles_are_searched_in_z(transgan):
    target = image_of(
        transgan, torch.randn(1, *transgan.latent_shape, generator=torch.Generator().manual_seed(3))
    )
    seen = []
    found = projection.project(
        transgan, target, device=CPU, steps=10, starts=2, progress=lambda *done: seen.append(done)
    )
    assert found.latents.shape == (1, *transgan.latent_shape)
    assert found.distance < found.at_start
    assert seen[0] == (1, 10)
    assert seen[-1] == (10, 10)
    with pytest.raises(UsageError, match="needs a network with styles"):
        projection.project(transgan, target, device=CPU, space="w")
    with pytest.raises(UsageError, match="use z, w or w\\+"):
        projection.project(transgan, target, device=CPU, space="x")


@pytest.mark.parametrize("rate", [3.0, 1e30])
def test_what_is_found_is_never_worse_than_the_start(rate):
    """A rate that leaps past everything, and features that pull away from the pixels."""
    generator = styled("stylegan2")
    target = torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(4))
    for features in (None, lambda images: -images.flatten(1)[:, :50]):
        found = projection.project(
            generator, target, device=CPU, space="w+", steps=4, starts=3, rate=rate, features=features,
            feature_weight=100,
        )  # fmt: skip
        assert found.distance <= found.at_start + 1e-3
        assert torch.equal(image_of(generator, found.latents), found.image)


def test_arguments_of_a_projection_are_checked(transgan):
    target = torch.zeros(3, 32, 32, dtype=torch.uint8)
    for arguments, words in (
        ({"steps": 0}, "steps 0"),
        ({"steps": 2.5}, "steps 2.5"),
        ({"starts": 0}, "starts 0"),
        ({"rate": float("inf")}, "rate inf: give a finite number"),
        ({"rate": float("nan")}, "rate nan: give a finite number"),
        (
            {"target": target[:, :16]},
            r"the target is \[3, 16, 32\], but images of this generator are \[3, 32, 32\]",
        ),
    ):
        with pytest.raises(UsageError, match=words):
            projection.project(transgan, **{"target": target, "device": CPU, **arguments})


def test_features_of_a_network_take_part():
    generator = styled("vitgan")
    target = image_of(generator, torch.randn(1, 32, generator=torch.Generator().manual_seed(3)))
    weights = torch.randn(3, 8, generator=torch.Generator().manual_seed(1))

    def colours(images):
        return images.mean((2, 3)) @ weights

    def distance(found):
        image, wanted = (colours(part[None] / 127.5 - 1) for part in (found.image, target))
        return (image - wanted).square().mean()

    plain, guided = (
        projection.project(
            generator, target, device=CPU, space="w", steps=15, starts=1, features=features, feature_weight=30
        )
        for features in (None, colours)
    )
    assert distance(guided) < distance(plain)


def test_the_distance_sees_every_scale():
    target = torch.zeros(1, 3, 16, 16)
    checkers = torch.ones(1, 3, 16, 16)
    checkers[..., ::2, ::2] = checkers[..., 1::2, 1::2] = -1
    flat = torch.ones(1, 3, 16, 16)
    fine, coarse = projection.pixel_distance(torch.cat([checkers, flat]), target)
    assert fine == pytest.approx(1 / 3)  # seen at 16 pixels, gone at 8 and 4
    assert coarse == pytest.approx(1.0)


def test_targets_are_cropped_in_the_middle_and_resized(tmp_path):
    image = Image.new("RGB", (60, 20), (255, 0, 0))
    image.paste((0, 0, 255), (20, 0, 40, 20))
    image.save(tmp_path / "wide.png")
    target = projection.read_target(tmp_path / "wide.png", (3, 8, 8))
    assert target.shape == (3, 8, 8)
    assert target[:, 4, 4].tolist() == [0, 0, 255]
    with pytest.raises(MissingError):
        projection.read_target(tmp_path / "nothing.png", (3, 8, 8))
    (tmp_path / "broken.png").write_bytes(b"nonsense")
    with pytest.raises(DataError, match="cannot read the image"):
        projection.read_target(tmp_path / "broken.png", (3, 8, 8))


def test_inception_without_its_weights_says_so():
    with pytest.raises(MissingError):
        projection.inception_features(None, CPU)
