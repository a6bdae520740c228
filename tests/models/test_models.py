"""The registry: every section builds its network, and says exactly what the network takes."""

import inspect

import pytest
import torch

from gantx import models
from gantx.architectures import DISCRIMINATORS, GENERATORS

SECTIONS = [
    pytest.param(section, id=f"{family}-{kind}")
    for kind, sections in (("generator", GENERATORS), ("discriminator", DISCRIMINATORS))
    for family, section in sections.items()
]


@pytest.mark.parametrize("section", SECTIONS)
def test_fields_are_the_arguments_of_the_network(section):
    taken = set(inspect.signature(models._CLASSES[section].__init__).parameters) - {"self"}
    assert set(section.model_fields) - {"family"} == taken
    with torch.device("meta"):
        network = models.build(section())
    assert isinstance(network, models._CLASSES[section])


@pytest.mark.parametrize("family", GENERATORS)
def test_generators_say_what_they_take_and_give(family):
    section = GENERATORS[family]()
    with torch.device("meta"):
        network = models.build(section)
        images = network(torch.zeros(2, *network.latent_shape))
    assert network.image_shape == (3, section.resolution, section.resolution)
    assert images.shape == (2, *network.image_shape)


@pytest.mark.parametrize("family", DISCRIMINATORS)
def test_discriminators_give_one_logit_an_image(family):
    section = DISCRIMINATORS[family]()
    with torch.device("meta"):
        network = models.build(section)
        logits = network(torch.zeros(4, 3, section.resolution, section.resolution))
    assert logits.shape == (4,)
