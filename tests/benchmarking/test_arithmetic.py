"""Operations are counted as the algorithm needs them, second derivatives included."""

import pytest
import torch
from helpers.small_run import SMALL

from gantx import models
from gantx.benchmarking import arithmetic
from gantx.benchmarking.arithmetic import FlopCounter, flops_of_stages, matmul_ceiling
from gantx.config import presets
from gantx.training.dry_run import forward_gflop

CPU = torch.device("cpu")


def small(*overrides):
    return presets.load(overrides=[*SMALL, *overrides])


def test_a_product_counts_two_operations_a_multiplication():
    with FlopCounter() as counter:
        torch.ones(3, 4) @ torch.ones(4, 5)
    assert counter.total == 2 * 3 * 4 * 5


def test_derivatives_of_slopes_count():
    x, weight = torch.ones(3, 4), torch.ones(4, 5, requires_grad=True)
    with FlopCounter() as counter:
        slope = torch.func.grad(lambda x: (x @ weight).square().sum())(x)
        slope.square().sum().backward()
    # x W; its slope; on the way back through the slope: to x W and to W; and from x W to W.
    assert counter.total == 5 * 2 * 3 * 4 * 5


def test_a_generator_step_is_both_networks_there_and_back():
    settings = small("generator.super_resolution=false")
    with torch.device("meta"):
        generator, discriminator = models.build(settings.generator), models.build(settings.discriminator)
    once = forward_gflop(generator, (1, *generator.latent_shape)) + forward_gflop(discriminator, (1, 3, 8, 8))
    # G: once there, twice back; D stands still: once there, once back.
    assert 2 < flops_of_stages(settings)["generator"] / 1e9 / (8 * once) < 3


def test_every_stage_is_counted_for_its_whole_batch():
    found = flops_of_stages(small())
    assert set(found) == {"discriminator", "r1_every_3", "generator"}
    assert found == flops_of_stages(small("training.micro_batch=2"))
    assert found == flops_of_stages(small("training.micro_batch=8"))
    twice = flops_of_stages(small("training.batch=16"))
    assert twice == {name: 2 * count for name, count in found.items()}


def test_the_ceiling_is_the_fastest_product(monkeypatch):
    monkeypatch.setattr(arithmetic, "durations", lambda work, device, times: [0.5, 0.25, 0.75])
    assert matmul_ceiling(CPU, "fp32", side=16) == pytest.approx(2 * 16**3 / 0.25 / 1e12)


def test_the_ceiling_is_measured_in_the_asked_precision(monkeypatch):
    seen = set()

    def durations(work, device, times):
        seen.add(work().dtype)
        return [1.0]

    monkeypatch.setattr(arithmetic, "durations", durations)
    assert matmul_ceiling(CPU, "bf16", side=8) > 0
    assert seen == {torch.bfloat16}
