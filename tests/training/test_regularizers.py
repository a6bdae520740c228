"""Penalties on critics whose slope is known."""

import pytest
import torch
from helpers.golden_file import GoldenFile

from gantx.training.losses import discriminator_loss, generator_loss
from gantx.training.regularizers import (
    gradient_penalty,
    inconsistency,
    input_gradient,
    path_length_penalty,
    path_lengths,
    zero_centered_penalty,
)

REAL = torch.linspace(-1, 1, 2 * 3 * 4 * 4).view(2, 3, 4, 4)
FAKE = REAL.flip(0) * 0.5
ALPHA = torch.tensor([0.25, 0.75])


def quadratic(weight):
    """A critic whose slope is 2·weight·x."""
    return lambda x: (weight * x.square()).sum((1, 2, 3))


def test_the_slope_of_a_quadratic_is_linear():
    torch.testing.assert_close(input_gradient(quadratic(1.5), REAL), 3 * REAL)


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


class Judge(torch.nn.Module):
    """The discriminator of ViTGAN's golden file: two linear layers and a tanh."""

    def __init__(self, state):
        super().__init__()
        self.l1, self.l2 = torch.nn.Linear(48, 10), torch.nn.Linear(10, 1)
        self.load_state_dict(state)

    def forward(self, images):
        return self.l2(self.l1(images.flatten(1)).tanh())[:, 0]


def test_losses_penalties_and_gradients_agree_with_the_official_code_of_vitgan():
    def close(value, expected):
        limit = 2e-5 * max(1.0, float(expected.abs().max()))
        torch.testing.assert_close(value.view(expected.shape), expected, rtol=0, atol=limit)

    def same_gradient(value, expected):
        torch.testing.assert_close(value, expected, rtol=0, atol=2e-4 * float(expected.abs().max()))

    with GoldenFile("vitgan/losses") as g:
        real, fake = g["in.real"], g["in.fake"]
        for case, settings in g.config["cases"].items():
            judge = Judge(g.prefix("state."))
            on_real, on_fake = judge(real), judge(fake)
            close(on_real, g["out.logits_real"])
            close(on_fake, g["out.logits_fake"])
            loss = discriminator_loss("non-saturating", on_real, on_fake, 0)
            penalty = settings["r1_gamma"] * zero_centered_penalty(judge, real)
            if settings["penalty"] == "bcr":
                again_real, again_fake = (judge(images.flip(3) * 0.8 + 0.05) for images in (real, fake))
                penalty = penalty + settings["lambda_real"] * inconsistency(on_real, again_real)
                penalty = penalty + settings["lambda_fake"] * inconsistency(on_fake, again_fake)
            close(loss, g[f"{case}.d_loss"])
            close(penalty, g[f"{case}.penalty"])
            close(loss + penalty, g[f"{case}.total"])
            (loss + penalty).backward()
            for name, parameter in judge.named_parameters():
                same_gradient(parameter.grad, g[f"{case}.grad.{name}"])
        close(discriminator_loss("hinge", on_real, on_fake, 0), g["d_hinge.loss"])
        for case, name in (("g_nonsat", "non-saturating"), ("g_hinge", "hinge")):
            fake.requires_grad_().grad = None
            loss = generator_loss(name, judge(fake))
            close(loss, g[f"{case}.loss"])
            loss.backward()
            same_gradient(fake.grad, g[f"{case}.grad_fake"])


def test_path_lengths_of_a_linear_synthesis_are_those_of_its_matrix():
    matrix = torch.randn(3 * 4 * 4, 6)
    ws, direction = torch.randn(2, 3, 6), torch.randn(2, 3, 4, 4)
    lengths = path_lengths(lambda s: (s.sum(1) @ matrix.T).view(-1, 3, 4, 4), ws, direction)
    # Every one of the three uses has the same slope, so their mean is that of one.
    expected = (direction.flatten(1) / 4 @ matrix).norm(dim=1)
    torch.testing.assert_close(lengths, expected)
    penalty, mean = path_length_penalty(lengths, torch.tensor(1.0), 0.1)
    torch.testing.assert_close(mean, 0.9 + 0.1 * expected.mean())
    torch.testing.assert_close(penalty, (expected - mean).square().mean())
