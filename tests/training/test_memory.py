"""Memory worked out without memory."""

import pytest
import torch

from gantx import models
from gantx.config import presets
from gantx.training.memory import PeakMeter, peaks
from gantx.training.optimized_network import OptimizedNetwork
from gantx.training.phases import phases

MIB = 2**20


def test_what_is_alive_at_once_is_counted():
    with PeakMeter() as meter:
        a = torch.empty(MIB, device="meta")  # 4 MiB
        b = a + 1
        del a
        c = b * 2
        assert meter.alive == 8 * MIB
        del b, c
    assert meter.peak == 8 * MIB
    assert meter.alive == 0


def test_what_was_there_before_is_not_counted():
    weight = torch.empty(MIB, device="meta")
    with PeakMeter() as meter:
        weight.t().add_(1)
    assert meter.peak == 0


def test_what_autograd_keeps_is_alive_and_views_cost_nothing():
    x = torch.empty(MIB, device="meta", requires_grad=True)
    with PeakMeter() as meter:
        y = x.exp().view(-1, 2).sin().sum()  # exp keeps what it gives, and sin keeps the same
        assert 4 * MIB <= meter.alive < 5 * MIB
        y.backward()
        del y
        assert meter.alive == 4 * MIB  # the gradient of x
        x.grad = None
    assert meter.alive == 0
    assert 8 * MIB <= meter.peak < 17 * MIB


def found(*overrides):
    settings = presets.load("transgan-tiny", overrides=overrides)
    with torch.device("meta"):
        networks = models.build(settings.generator), models.build(settings.discriminator)
    sides = (settings.optimizer.generator, settings.optimizer.discriminator)
    optimized = [OptimizedNetwork(network, side) for network, side in zip(networks, sides, strict=True)]
    return {phase.name: peaks(phase, settings.data.resolution) for phase in phases(settings, *optimized)}


def test_levers_take_memory_from_where_they_say():
    wgan = [
        "objective.r1=null",
        "objective.r2=null",
        "objective.loss=wgangp",
        "objective.gradient_penalty={}",
    ]
    plain, halves = found(), found("training.micro_batch=8")
    for name in plain:
        # The gradients of the weights stay; the rest halves.
        assert halves[name][0] < plain[name][0]
    assert found("training.recompute=true")["generator"][0] < 0.8 * plain["generator"][0]
    whole = found(*wgan)["discriminator"]
    first, penalty = found(*wgan, "training.penalty_micro_batch=2")["discriminator"]
    assert penalty < first < whole[0]
    assert found("training.batch=32")["generator"][0] == pytest.approx(2 * plain["generator"][0], rel=0.15)
