"""Figures of a discriminator."""

import json
import math

import pytest
import torch
from torch import nn

from gantx import models
from gantx.config import presets
from gantx.training import run
from gantx.training.diagnostics import diagnose

VIT = "{family: vitgan, resolution: 16, dim: 24, depth: 2, heads: 2}"


class Linear(nn.Module):
    """A critic whose slope is its weight, everywhere."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(12, 1)

    def forward(self, images, noise=None, labels=None):
        return self.linear(images.flatten(1))[:, 0]


def test_the_slope_and_the_norm_of_a_linear_critic_are_those_of_its_weight():
    critic = Linear()
    found = diagnose(critic, torch.randn(3, 3, 2, 2))
    norm = critic.linear.weight.norm().item()
    assert found == {
        "diagnostics/spectral_norm/linear": pytest.approx(norm, rel=1e-5),
        "diagnostics/input_gradient": pytest.approx(norm, rel=1e-5),
    }


def test_a_vit_discriminator_tells_effective_weights_and_entropy():
    network = models.build(presets.load(overrides=["data.resolution=16", f"discriminator={VIT}",
        "generator={base_size: 4, base_dim: 64, depths: [1, 1, 1]}"]).discriminator)  # fmt: skip
    images = torch.rand(2, 3, 16, 16)
    before = diagnose(network, images)
    with torch.no_grad():
        for block in network.blocks:
            block.attention.query.weight.mul_(3)  # which spectral normalisation undoes ...
    network.update_state()
    after = diagnose(network, images)
    assert after == pytest.approx(before, rel=1e-3)
    entropies = [value for name, value in after.items() if "entropy" in name]
    assert len(entropies) == 2
    assert all(0 < value <= 1 for value in entropies)
    with torch.no_grad():
        for block in network.blocks:
            block.attention.query.weight.zero_()
            block.attention.query.spectral = None  # ... until it is gone: all keys are equally near
    flat = diagnose(network, images)
    assert flat["diagnostics/attention_entropy/blocks.0"] == pytest.approx(1)


@pytest.mark.parametrize("wanted", [True, False])
def test_metrics_hold_diagnostics_on_request(wanted, tmp_path):
    settings = presets.load(
        overrides=[
            *("data.resolution=16", "data.shapes.count=16", f"discriminator={VIT}"),
            "generator={base_size: 4, base_dim: 64, depths: [1, 1, 1], latent_dim: 8}",
            *("training.batch=4", "training.kimg=0.008", "training.report_kimg=0.004", "training.samples=2"),
            f"training.diagnostics={str(wanted).lower()}",
        ],
        settings={"data.source": "shapes"},
    )
    folder = run.start(
        settings, parent=tmp_path, out=None, device=torch.device("cpu"), command=["gantx"], log=print
    )
    for line in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()):
        assert ("diagnostics/input_gradient" in line) is wanted
        assert ("diagnostics/spectral_norm/head" in line) is wanted
        assert all(math.isfinite(value) for name, value in line.items() if name.startswith("diagnostics"))
