"""Sampling: a seed means an image, whatever else is asked for."""

import pytest
import torch

from gantx import config, models, sampling
from gantx.errors import UsageError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def generator():
    torch.manual_seed(0)
    settings = config.load("transgan-tiny")
    return models.build(settings.generator).eval()


def paint(generator, seeds, batch):
    return torch.cat(list(sampling.paint(generator, seeds, batch=batch, device=CPU)))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("batch", [1, 3, 16, 64])
def test_the_image_of_a_seed_depends_on_nothing_else(generator, batch, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        check_independence(generator, batch)
    finally:
        torch.set_num_threads(before)


def check_independence(generator, batch):
    together = paint(generator, range(20), 20)
    assert together.shape == (20, 3, 32, 32)
    assert together.dtype == torch.uint8
    assert torch.equal(paint(generator, range(20), batch), together)
    assert torch.equal(paint(generator, [17, 3], batch), together[[17, 3]])


def test_different_seeds_paint_different_images(generator):
    images = paint(generator, range(8), 8)
    assert len({image.numpy().tobytes() for image in images}) == 8


def test_pixels_are_clamped_and_rounded():
    values = torch.tensor([-9.0, -1.0, 0.0, 1 / 255, 1.0, 9.0])
    assert sampling.quantise(values).tolist() == [0, 0, 128, 128, 255, 255]


@pytest.mark.parametrize(
    ("text", "seeds"), [("7", [7]), ("1,5,9", [1, 5, 9]), ("0-3", [0, 1, 2, 3]), ("4, 6-7", [4, 6, 7])]
)
def test_seed_lists(text, seeds):
    assert sampling.parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "3-", "-3", "5-2", "1;2"])
def test_wrong_seed_lists_are_explained(text):
    with pytest.raises(UsageError, match="seeds"):
        sampling.parse_seeds(text)
