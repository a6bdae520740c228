"""The registry: every section builds its network."""

import pytest
import torch

from gantx import models
from gantx.config.networks import DISCRIMINATORS, GENERATORS
from gantx.models.interfaces import Discriminator, Generator

SECTIONS = [
    pytest.param(kind, section, id=f"{family}-{kind.__name__}")
    for kind, sections in ((Generator, GENERATORS), (Discriminator, DISCRIMINATORS))
    for family, section in sections.items()
]


@pytest.mark.parametrize(("kind", "section"), SECTIONS)
def test_every_section_builds_its_network(kind, section):
    with torch.device("meta"):
        network = models.build(section())
    assert isinstance(network, kind)
    family = section.model_fields["family"].default
    assert type(network).__module__.startswith(f"gantx.models.{family}")


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
