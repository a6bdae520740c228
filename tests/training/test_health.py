"""What is said of a run that explodes or collapses, whose discriminator won or whose average is dead."""

import pytest
import torch
from helpers.small_run import SMALL

from gantx.config import presets
from gantx.training.health import COLLAPSED, HISTORY, PATIENCE, Health, diversity, figures

WELL = {
    "generator/gradient_norm": 0.5,
    "discriminator/gradient_norm": 2.0,
    "discriminator/loss": 1.2,
    "health/generator_pixel_diversity": 0.9,
    "health/generator_feature_diversity": 0.8,
    "health/average_pixel_diversity": 0.9,
    "health/average_feature_diversity": 0.8,
}


def assess(*changes, loss="hinge", well=6, **settings):
    """What is found in healthy reports, and then in reports with these changes, each with its number."""
    overrides = [*SMALL, f"objective.loss={loss}", "objective.gradient_penalty=null", "training.kimg=10"]
    overrides += ["training.generator_batch=null", *(f"{key}={value}" for key, value in settings.items())]
    health = Health(presets.load("transgan-s", overrides=overrides))
    lines = [WELL] * well + [{**WELL, **change} for change in changes]
    return [
        (number - well, finding)
        for number, line in enumerate(lines)
        for finding in health.observe({**line, "images": 1000 * (number + 1)})
    ]


def test_a_healthy_run_is_left_alone():
    wild = [{"generator/gradient_norm": 0.5 * 300 ** (number % 2)} for number in range(30)]
    assert assess(*wild, {"discriminator/loss": 0.001}, {}, {"discriminator/loss": 0.001}) == []
    early = [{name: 0.001 for name in WELL if "diversity" in name}] * 20
    assert assess(*early, well=0) == []  # before images differ, nothing has collapsed


def test_an_explosion_is_found_in_its_first_report():
    exploding = [{"generator/gradient_norm": 0.5 * 1001}] * 3
    ((number, finding),) = assess(*exploding)
    assert (number, finding.kind) == (0, "explosion")
    assert "gradient of the generator is 1,001 times its usual size: lower optimizer.generator.lr" in (
        finding.sentence
    )
    assert len(assess(*exploding, {}, *exploding)) == 2  # once each time
    assert assess(*exploding * HISTORY)[0][0] == 0


@pytest.mark.parametrize("measure", ["pixel", "feature"])
def test_a_collapse_is_found_when_it_lasts(measure):
    collapsed = {f"health/generator_{measure}_diversity": COLLAPSED / 2}
    assert assess(*[collapsed] * (PATIENCE - 1), {}, collapsed) == []
    ((number, finding),) = assess(*[collapsed] * 9)
    assert (number, finding.kind) == (PATIENCE - 1, "collapse")
    assert f"differ by 1.5 % of what real images do in their {measure}s" in finding.sentence


@pytest.mark.parametrize("loss", ["hinge", "lsgan", "non-saturating", "relativistic"])
def test_a_discriminator_that_has_won(loss):
    ((number, finding),) = assess(*[{"discriminator/loss": 0.01}] * 9, loss=loss)
    assert (number, finding.kind) == (PATIENCE - 1, "discriminator_won")


def test_the_losses_of_wgan_have_no_end():
    overrides = [*SMALL, "objective.loss=wgangp"]
    health = Health(presets.load("transgan-s", overrides=overrides))
    assert not any(health.observe({"discriminator/loss": 0.0, "images": images}) for images in range(9))


def test_a_dead_average():
    dead = {"health/average_pixel_diversity": 0.01}
    (found,) = assess(*[dead] * 9, ema="{kind: constant, beta: 0.99}")
    assert (found[0], found[1].kind) == (PATIENCE - 1, "dead_average")
    assert len(assess(*[dead] * 9, ema="{kind: constant, beta: 1}")) == 1
    assert assess(*[dead] * 3, well=0, ema="{kind: constant, beta: 1}") == []  # it may be only slow


def test_lines_of_earlier_versions_are_no_trouble():
    health = Health(presets.load("transgan-s", overrides=SMALL))
    assert health.observe({"images": 8}) == []
    assert health.observe({"images": 16, "generator/gradient_norm": None, "discriminator/loss": "x"}) == []


def test_the_diversity_of_images():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (16, 3, 32, 32), generator=generator, dtype=torch.uint8)
    plain = torch.randint(0, 256, (16, 3, 1, 1), generator=generator, dtype=torch.uint8).expand_as(noise)
    pixel, feature = diversity(noise)
    assert pixel > 0.5
    assert feature < 0.2  # noise looks everywhere the same from afar
    assert min(diversity(plain)) > 0.2
    assert diversity(noise[:1].expand_as(noise)) == (0.0, 0.0)
    found = figures(diversity(noise), noise, noise[:1].expand_as(noise))
    assert found["health/generator_pixel_diversity"] == found["health/generator_feature_diversity"] == 1.0
    assert found["health/average_pixel_diversity"] == 0.0
