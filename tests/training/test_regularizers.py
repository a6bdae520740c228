"""Penalties on critics whose slope is known."""

import pytest
import torch

from gantx.training.regularizers import gradient_penalty, slope, zero_centered_penalty

REAL = torch.linspace(-1, 1, 2 * 3 * 4 * 4).view(2, 3, 4, 4)
FAKE = REAL.flip(0) * 0.5
ALPHA = torch.tensor([0.25, 0.75])


def quadratic(weight):
    """A critic whose slope is 2·weight·x."""
    return lambda x: (weight * x.square()).sum((1, 2, 3))


def test_the_slope_of_a_quadratic_is_linear():
    torch.testing.assert_close(slope(quadratic(1.5), REAL), 3 * REAL)


def test_gradient_penalty_at_the_mixture():
    mixed = ALPHA.view(2, 1, 1, 1) * REAL + (1 - ALPHA).view(2, 1, 1, 1) * FAKE
    norms = (2 * mixed).square().sum((1, 2, 3)).sqrt()
    for target in (1.0, 2.0):
        expected = ((norms - target) ** 2).mean() / target**2
        torch.testing.assert_close(gradient_penalty(quadratic(1.0), REAL, FAKE, ALPHA, target), expected)


def test_zero_centered_penalty_is_half_the_squared_slope():
    expected = (2 * REAL).square().sum((1, 2, 3)).mean() / 2
    torch.testing.assert_close(zero_centered_penalty(quadratic(1.0), REAL), expected)


@pytest.mark.parametrize("penalty", ["mixed", "real"])
def test_penalties_have_a_gradient_in_the_critics_weights(penalty):
    weight = torch.tensor(0.7, requires_grad=True)

    def value(w):
        if penalty == "mixed":
            return gradient_penalty(quadratic(w), REAL, FAKE, ALPHA, 1.0)
        return zero_centered_penalty(quadratic(w), REAL)

    value(weight).backward()
    step = 1e-3
    with torch.no_grad():
        numeric = (value(weight + step) - value(weight - step)) / (2 * step)
    assert weight.grad.item() == pytest.approx(numeric.item(), rel=1e-2)


def test_a_slope_of_zero_does_not_make_the_gradient_nan():
    weight = torch.tensor(0.0, requires_grad=True)
    gradient_penalty(quadratic(weight), REAL, FAKE, ALPHA, 1.0).backward()
    assert torch.isfinite(weight.grad)
