"""Losses against their closed forms, written out by hand."""

import math

import pytest
import torch

from gantx.config.schema import ObjectiveConfig
from gantx.training.losses import discriminator_loss, generator_loss

REAL = torch.tensor([0.5, -1.5, 3.0])
FAKE = torch.tensor([-0.25, 2.0, 0.75])


def softplus(x):
    return math.log1p(math.exp(x))


def mean(values):
    return sum(values) / len(values)


PAIRS = list(zip(REAL.tolist(), FAKE.tolist(), strict=True))
EXPECTED_D = {
    "wgangp-eps": mean([f - r for r, f in PAIRS]) + 0.1 * mean(REAL.tolist()) ** 2,
    "wgangp": mean([f - r for r, f in PAIRS]),
    "hinge": mean([max(0, 1 - r) + max(0, 1 + f) for r, f in PAIRS]),
    "lsgan": mean([(r - 1) ** 2 + f**2 for r, f in PAIRS]),
    "non-saturating": mean([softplus(-r) + softplus(f) for r, f in PAIRS]),
    "relativistic": mean([softplus(f - r) for r, f in PAIRS]),
}
EXPECTED_G = {
    "wgangp-eps": -mean(FAKE.tolist()),
    "wgangp": -mean(FAKE.tolist()),
    "hinge": -mean(FAKE.tolist()),
    "lsgan": mean([(f - 1) ** 2 for _, f in PAIRS]),
    "non-saturating": mean([softplus(-f) for _, f in PAIRS]),
    "relativistic": mean([softplus(r - f) for r, f in PAIRS]),
}
NAMES = list(ObjectiveConfig.model_fields["loss"].annotation.__args__)


@pytest.mark.parametrize("name", NAMES)
def test_discriminator_loss_equals_its_formula(name):
    assert discriminator_loss(name, REAL, FAKE, 0.1).item() == pytest.approx(EXPECTED_D[name], rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_generator_loss_equals_its_formula(name):
    assert generator_loss(name, FAKE, REAL).item() == pytest.approx(EXPECTED_G[name], rel=1e-6)


def test_an_unknown_loss_is_refused():
    with pytest.raises(ValueError, match="unknown loss"):
        discriminator_loss("sinkhorn", REAL, FAKE, 0.0)
    with pytest.raises(ValueError, match="unknown loss"):
        generator_loss("sinkhorn", FAKE)
