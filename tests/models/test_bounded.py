"""Networks from files are not larger than the files."""

import subprocess
import sys

import pytest
import torch
from helpers.small_run import SMALL

from gantx import models
from gantx.config import presets
from gantx.models import bounded
from gantx.models.bounded import TooLargeError, check_within
from gantx.training.conditioning import with_assumed_classes


@pytest.mark.parametrize(
    "preset",
    ["transgan-tiny", "vitgan-tiny", "ganformer-tiny", "transgan2-cifar10", "vitgan-stylegan2d-cifar10"],
)
def test_every_family_fits_its_own_weights(preset):
    config = presets.load(preset)
    for section in (config.generator, config.discriminator):
        numbers = _numbers(section)
        check_within(section, numbers)
        with pytest.raises(TooLargeError, match=f"more than the {numbers // 5:,} weights"):
            check_within(section, numbers // 5)


def test_a_thousand_blocks_are_not_built():
    small = presets.load("transgan-s", overrides=SMALL)
    deep = presets.load(base=small, overrides=["generator.depths=[1024,1024,1024]"])
    with pytest.raises(TooLargeError):
        check_within(deep.generator, _numbers(small.generator))


def _numbers(section):
    with torch.device("meta"):
        return sum(tensor.numel() for tensor in models.build(section).state_dict().values())


def _sections():
    for name in ("transgan-s", "transgan2-cifar10", "vitgan-cifar10", "ganformer-tiny", "implicit-tiny"):
        config = with_assumed_classes(presets.load(name))
        yield from (config.generator, config.discriminator)
    yield presets.load("stylegan2-ffhq").generator


def test_the_shapes_are_those_of_the_network():
    for section in _sections():
        with torch.device("meta"):
            expected = models.build(section).state_dict()
        with torch.device("meta"), bounded._ShapesOnly():
            found = models.build(section).state_dict()
        assert {name: value.shape for name, value in found.items()} == {
            name: value.shape for name, value in expected.items()
        }


IMPORTS = """
import sys
from gantx.config import presets
from gantx.models.bounded import check_within
for name in ("transgan-s", "vitgan-cifar10", "ganformer-tiny", "implicit-tiny", "stylegan2-ffhq"):
    check_within(presets.load(name).generator, 10**9)
assert "torch._dynamo" not in sys.modules
assert "sympy" not in sys.modules
"""


def test_a_generator_is_checked_without_the_compiler():
    """Importing that takes a second and a half."""
    subprocess.run([sys.executable, "-c", IMPORTS], check=True)
