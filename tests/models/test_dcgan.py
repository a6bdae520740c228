"""The discriminator of strided convolutions."""

import pytest
import torch

from gantx import models
from gantx.config.networks import DCGANDiscriminatorConfig
from gantx.models.interfaces import MinibatchDependent
from gantx.training.regularizers import zero_centered_penalty


def build(**sizes):
    torch.manual_seed(0)
    return models.build(DCGANDiscriminatorConfig(**{"resolution": 16, "channels": 4} | sizes))


def test_it_halves_down_to_four_and_doubles_its_channels():
    network = build(resolution=64, channels=4, channel_max=10)
    assert [layer.out_channels for layer in network.convolutions] == [4, 8, 10, 10]
    assert network.out.in_features == 10 * 4 * 4
    assert network(torch.zeros(2, 3, 64, 64)).shape == (2,)


def test_it_compares_the_images_of_a_part_and_of_no_other():
    network = build()
    assert isinstance(network, MinibatchDependent)
    torch.manual_seed(1)
    real, fake = torch.randn(4, 3, 16, 16), torch.randn(4, 3, 16, 16)
    together = network(torch.cat([real, fake]), parts=2)
    torch.testing.assert_close(together, torch.cat([network(real), network(fake)]))
    assert not torch.allclose(network(torch.cat([real, fake])), together)


def test_penalties_can_be_differentiated():
    network = build()
    penalty = zero_centered_penalty(lambda x: network(x), torch.randn(4, 3, 16, 16))
    penalty.backward()
    assert penalty.item() > 0
    assert all(p.grad is not None for name, p in network.named_parameters() if name.endswith("weight"))


@pytest.mark.parametrize("resolution", [12, 4])
def test_sizes_that_do_not_fit_are_refused(resolution):
    with pytest.raises(ValueError, match="resolution"):
        DCGANDiscriminatorConfig(resolution=resolution)
