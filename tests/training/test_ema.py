"""The running average."""

import pytest
import torch
from helpers.golden_file import GoldenFile
from torch import nn

from gantx.config.schema import AdamConfig, EMAConfig, OptimizerConfig
from gantx.training import ema, schedules
from gantx.training.optimized_network import OptimizedNetwork


def averaged(network):
    return ema.Average(OptimizedNetwork(network, AdamConfig(lr=0.1)))


def update(average, beta):
    average.set_beta(beta)
    average.update()


def test_average_starts_equal_and_moves_by_its_weight():
    network = nn.BatchNorm1d(3)
    average = averaged(network)
    assert not any(p.requires_grad for p in average.network.parameters())
    with torch.no_grad():
        network.weight.fill_(5.0)
        network.running_mean.fill_(2.0)
    update(average, 0.75)
    torch.testing.assert_close(average.network.weight, torch.full((3,), 0.75 * 1 + 0.25 * 5))
    torch.testing.assert_close(average.network.running_mean, torch.full((3,), 2.0))
    assert network.weight[0] == 5.0


def test_weight_zero_copies_and_weight_one_keeps():
    network = nn.Linear(2, 2)
    average = averaged(network)
    before = average.network.weight.clone()
    with torch.no_grad():
        network.weight.add_(1)
    update(average, 1.0)
    torch.testing.assert_close(average.network.weight, before)
    update(average, 0.0)
    torch.testing.assert_close(average.network.weight, network.weight)


def test_average_warm_up_and_half_life_agree_with_the_official_code_of_vitgan():
    with GoldenFile("vitgan/ema_warmup") as golden:
        network = nn.Module()
        network.a = nn.Linear(5, 4)
        network.register_buffer("buf", torch.zeros(3))
        average = averaged(network)
        average.network.load_state_dict(golden.prefix("init.dst."))
        network.load_state_dict(golden.prefix("init.src."))  # moves to `step0` before the first update
        for step, beta in enumerate(golden.config["decays"]):
            network.load_state_dict(golden.prefix(f"step{step}.src."))
            update(average, beta)
            for name, expected in golden.prefix(f"step{step}.dst.").items():
                found = average.network.state_dict()[name]
                torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-5)

        for (batch, half_life), expected in zip(
            golden["halflife.batch_kimg"].tolist(), golden["halflife.decay"].tolist(), strict=True
        ):
            settings = EMAConfig(kind="half-life", half_life_kimg=half_life)
            assert schedules.ema_beta(settings, 10**9, int(batch)) == pytest.approx(expected, rel=2e-5)

        # The official counter of steps starts at 1 and one is added: its first step is our third.
        batch, steps = 64, golden.config["warmup"]
        settings = OptimizerConfig(warmup_kimg=steps * batch / 1000)
        for step, expected in zip(golden["warmup.steps"].tolist(), golden["warmup.lr"].tolist(), strict=True):
            factor = schedules.learning_rate_factor(settings, int(step + 1) * batch, 1e6)
            assert golden.config["lr"] * factor == pytest.approx(expected, rel=1e-6)


def test_average_of_styles_goes_a_small_part_of_its_way():
    w_avg = torch.tensor([1.0, 0.0])
    ema.follow_styles(w_avg, torch.tensor([3.0, -2.0]))
    torch.testing.assert_close(w_avg, torch.tensor([1.01, -0.01]))
