"""The class of an image is found among many, and those that come close are told."""

import pytest
import torch
from helpers.styled_networks import SECTIONS

from gantx import models
from gantx.generation import class_search, projection, sampling
from gantx.generation.class_search import TRIED, search_class

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def generator():
    """A network whose classes differ more than the images of a class."""
    torch.manual_seed(0)
    section = SECTIONS["stylegan2"].model_copy(update={"classes": 9})
    network = models.build(section).eval().requires_grad_(False)
    for parameter in network.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    return network


@pytest.mark.parametrize("labels", [range(9), [5, 2, 5]])
def test_the_class_is_found_among_many_or_few(generator, labels, monkeypatch):
    monkeypatch.setattr(projection, "CANDIDATES", 32)
    monkeypatch.setattr(class_search, "_EACH", 16)
    (image,) = sampling.sample(generator, [70_000], batch=8, device=CPU, labels=[5])
    seen = []
    found = search_class(
        generator, image[0], labels, device=CPU, steps=80, progress=lambda *done: seen.append(done)
    )
    distances = list(found.distances.values())
    assert found.label == 5
    assert distances == sorted(distances)
    assert found.searched == len(set(labels))
    assert len(distances) == min(TRIED, len(set(labels)))
    assert found.steps == 10
    assert seen[-1] == (10 * len(distances), 10 * len(distances))
