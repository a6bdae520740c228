"""Grey and RGBA images through the networks and losses of every family."""

import math

import pytest
import torch
from helpers.small_families import DISCRIMINATORS, GENERATORS, small

from gantx.runtime.random import draw
from gantx.training.phase import run_phase
from gantx.training.phases import phases
from gantx.training.state import TrainingState

CPU = torch.device("cpu")
PAIRS = list(zip(GENERATORS, DISCRIMINATORS, strict=True))


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize(("generator", "discriminator"), PAIRS)
def test_every_family_learns_from_grey_and_rgba(generator, discriminator, channels):
    augmented = "augment.policy=[filter,translation,cutout,color,hue,flip]"
    settings = small(generator, discriminator, f"data.channels={channels}", augmented)
    state = TrainingState(settings, CPU)
    assert state.generator.network.image_shape == (channels, 16, 16)
    for phase in phases(settings, state.generator, state.discriminator, state.path_length):
        draws = draw(phase.spec, seed=0, stream=phase.name, step=0, device=CPU)
        reals = {stream: torch.rand(phase.batch, channels, 16, 16) * 2 - 1 for stream in phase.reals}
        run_phase(phase, reals, draws, state.statistics)
        state.statistics.count([f"{phase.name}/loss", f"{phase.name}/gradient_norm"])
    means = state.statistics.means()
    assert all(math.isfinite(value) for value in means.values())
    assert means["discriminator/gradient_norm"] > 0
    assert means["generator/gradient_norm"] > 0


def test_a_network_without_channels_is_for_rgb():
    state = TrainingState(small("transgan", "dcgan"), CPU)
    assert state.generator.network.image_shape == (3, 16, 16)
