"""Networks from files are not larger than the files."""

import pytest
from helpers.small_run import SMALL

from gantx import models
from gantx.config import presets
from gantx.models.bounded import TooLargeError, check_within


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
    import torch

    with torch.device("meta"):
        return sum(tensor.numel() for tensor in models.build(section).state_dict().values())
