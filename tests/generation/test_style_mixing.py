"""Tables of style mixing: which seed contributes which styles."""

import pytest
import torch
from helpers.styled_networks import SECTIONS, styled

from gantx import models
from gantx.config import presets
from gantx.errors import MissingError, UsageError
from gantx.generation import sampling, style_mixing
from gantx.generation.latents import spec_of_one
from gantx.generation.truncation import Truncation
from gantx.runtime.random import for_seeds
from gantx.runtime.seeds import Seeds

CPU = torch.device("cpu")


def table(generator, rows, columns, **what):
    images = style_mixing.table(generator, rows, columns, batch=8, device=CPU, **what)
    return images.view(1 + len(rows), 1 + len(columns), *images.shape[1:])


def samples(generator, seeds, truncation=None):
    return torch.cat(list(sampling.sample(generator, seeds, batch=8, device=CPU, truncation=truncation)))


@pytest.mark.parametrize("family", SECTIONS)
def test_margins_are_the_images_of_the_seeds(family):
    generator = styled(family)
    truncation = Truncation(0.8)
    found = table(generator, [1, 2], [5, 6, 7], layers=[0], truncation=truncation)
    assert (found[0, 0] == 255).all()
    assert torch.equal(found[0, 1:], samples(generator, [5, 6, 7], truncation))
    assert torch.equal(found[1:, 0], samples(generator, [1, 2], truncation))


def test_rows_and_columns_may_have_a_class_each():
    torch.manual_seed(0)
    generator = models.build(SECTIONS["stylegan2"].model_copy(update={"classes": 3})).eval()
    found = table(generator, [1], [5, 6], layers=[0], classes=(2, 0))
    for images, seeds, label in ((found[1:, 0], [1], 2), (found[0, 1:], [5, 6], 0)):
        expected = sampling.sample(generator, seeds, batch=8, device=CPU, labels=[label] * len(seeds))
        assert torch.equal(images, torch.cat(list(expected)))
    assert not torch.equal(found[1, 1], table(generator, [1], [5, 6], layers=[0], classes=(2, 1))[1, 1])
    with pytest.raises(UsageError, match="this model has 3 classes"):
        table(generator, [1], [5], layers=[0])


def test_a_table_of_images_that_are_not_square_is_cropped():
    generator = styled("stylegan2")
    whole, cropped = (table(generator, [1], [5, 6], layers=[0], ratio=ratio) for ratio in (1.0, 0.5))
    side = whole.shape[-1]
    assert torch.equal(cropped, whole[..., side // 4 : side - side // 4, :])


@pytest.mark.parametrize("family", ["stylegan2", "ganformer"])
def test_the_layers_named_come_from_the_column_and_the_noise_from_the_row(family):
    generator = styled(family)
    found = table(generator, [1], [5], layers=[0, 2])[1, 1]
    z = for_seeds(spec_of_one(generator), [1] * 8 + [5] * 8, CPU)
    row, column = generator.mapping(z["z"]).split(8)
    mixed = row.clone()
    mixed[..., [0, 2], :] = column[..., [0, 2], :]
    noise = {name: part[:8] for name, part in z["noise"].items()}
    expected = sampling.quantise(generator.synthesis(mixed, noise))[0]
    assert (found.int() - expected.int()).abs().max() <= 1
    assert not torch.equal(found, samples(generator, [1])[0])


def test_components_can_be_exchanged_alone():
    generator = styled("ganformer")
    local = table(generator, [1], [5], components=[0])[1, 1]
    whole = table(generator, [1], [5], components=[0, 1, 2, 3])[1, 1]
    some = table(generator, [1], [5], components=[0, 1, 2, 3], layers=[0])[1, 1]
    assert torch.equal(some, table(generator, [1], [5], layers=[0])[1, 1])
    assert len({image.numpy().tobytes() for image in (local, whole, some, samples(generator, [1])[0])}) == 4


@pytest.mark.parametrize(
    ("family", "what", "words"),
    [
        ("stylegan2", {"layers": [9]}, "layers 0 to 5"),
        ("stylegan2", {"components": [0]}, "several latents"),
        ("stylegan2", {}, "say what to take"),
        ("ganformer", {"components": [4]}, "components 0 to 3"),
    ],
)
def test_what_cannot_be_mixed(family, what, words):
    with pytest.raises(UsageError, match=words):
        table(styled(family), [1], [2], **what)


def test_a_table_that_cannot_fit_is_refused_at_once():
    many = Seeds([range(10**10)])
    with pytest.raises(MissingError, match="name fewer --rows or --columns"):
        table(styled("stylegan2"), many, many, layers=[0])


def test_mixing_needs_styles():
    with pytest.raises(UsageError, match="needs a network with styles"):
        table(models.build(presets.load("transgan-tiny").generator), [1], [2], layers=[0])
