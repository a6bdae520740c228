"""The running average."""

import torch
from torch import nn

from gantx.training import ema


def test_average_starts_equal_and_moves_by_its_weight():
    network = nn.BatchNorm1d(3)
    average = ema.averaged(network)
    assert not any(p.requires_grad for p in average.parameters())
    with torch.no_grad():
        network.weight.fill_(5.0)
        network.running_mean.fill_(2.0)
    ema.update(average, network, 0.75)
    torch.testing.assert_close(average.weight, torch.full((3,), 0.75 * 1 + 0.25 * 5))
    torch.testing.assert_close(average.running_mean, torch.full((3,), 2.0))
    assert network.weight[0] == 5.0


def test_weight_zero_copies_and_weight_one_keeps():
    network = nn.Linear(2, 2)
    average = ema.averaged(network)
    before = average.weight.clone()
    with torch.no_grad():
        network.weight.add_(1)
    ema.update(average, network, 1.0)
    torch.testing.assert_close(average.weight, before)
    ema.update(average, network, 0.0)
    torch.testing.assert_close(average.weight, network.weight)
