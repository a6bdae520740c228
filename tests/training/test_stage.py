"""Players and statistics."""

import math

import pytest
import torch
from torch import nn

from gantx.config import AdamConfig
from gantx.training.stage import Player, Statistics


def test_gradients_are_views_of_one_buffer_and_clipping_equals_torchs():
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    twin = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    twin.load_state_dict(network.state_dict())
    player = Player(network, AdamConfig(lr=0.1, clip_norm=0.5))
    plain = torch.optim.Adam(twin.parameters(), lr=0.1, betas=(0.0, 0.99))
    images = torch.randn(5, 3)
    for _ in range(3):
        player.gradient.zero_()
        (network(images).square().sum()).backward()
        norm = player.step()
        plain.zero_grad()
        (twin(images).square().sum()).backward()
        expected = nn.utils.clip_grad_norm_(twin.parameters(), 0.5)
        plain.step()
        torch.testing.assert_close(norm, expected)
    for mine, theirs in zip(network.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)
    assert network[0].weight.grad.untyped_storage().data_ptr() == player.gradient.untyped_storage().data_ptr()


def test_the_rate_follows_the_schedule_factor():
    player = Player(nn.Linear(1, 1), AdamConfig(lr=0.5))
    player.set_rate(0.25)
    assert player.optimizer.param_groups[0]["lr"] == pytest.approx(0.125)


def test_adamw_decays_weights():
    network = nn.Linear(2, 1, bias=False)
    nn.init.ones_(network.weight)
    player = Player(network, AdamConfig(name="adamw", lr=0.1, weight_decay=0.5))
    player.step()
    torch.testing.assert_close(network.weight.detach(), torch.full((1, 2), 0.95))


def test_statistics_average_and_keep_what_is_not_finite():
    statistics = Statistics()
    assert statistics.means() == {}
    statistics.add("a", torch.tensor(1.0), 0.25)
    statistics.add("a", torch.tensor(3.0), 0.75)
    statistics.add("a", torch.tensor(4.5))
    statistics.add("b", torch.tensor(math.inf))
    assert statistics.means()["a"] == pytest.approx((0.25 + 2.25 + 4.5) / 2)
    assert statistics.means()["b"] == math.inf
    statistics.clear()
    assert statistics.means() == {}
