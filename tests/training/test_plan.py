"""Sizes of every preset against the paper's released code, the differences accounted for one by one."""

import pytest
import torch
from helpers.small_families import small

from gantx import models
from gantx.config import presets
from gantx.training import plan

# Parameters and GFLOP (forward, one image) of the released networks: G, D, G, D.
RELEASED = {
    "transgan-s": (34_368_939, 12_458_497, 1.61, 1.66),
    "transgan-m": (49_861_859, 12_458_497, 2.71, 1.66),
    "transgan-l": (86_902_611, 12_458_497, 5.76, 1.66),
    "transgan-xl": (133_594_563, 12_458_497, 10.89, 1.66),
    "transgan-xl-released": (133_594_563, 12_458_497, 10.89, 1.66),
    "transgan-stl10": (150_062_931, 12_489_217, 14.56, 3.82),
    "transgan-celeba64": (132_927_219, 12_532_225, 12.99, 7.09),
}

# Parameters of version 2, G and D; CelebA-HQ's G without 20 strengths that the released code never uses.
RELEASED_2 = {
    "transgan2-cifar10": (83_312_495, 10_210_400),
    "transgan2-stl10": (168_466_623, 10_341_536),
    "transgan2-celebahq256": (212_903_275 - 20, 13_334_593),
    "transgan2-church256": (205_291_952, 17_754_569),
}


@pytest.fixture(params=[name for name in presets.preset_names() if name.startswith("transgan-")])
def preset(request):
    return presets.load(request.param)


def networks(preset):
    with torch.device("meta"):
        return models.build(preset.generator), models.build(preset.discriminator)


def test_parameters_of_every_preset(preset):
    generator, discriminator = networks(preset)
    if preset.name == "transgan-tiny":  # no paper: a count made by hand, block by block
        block = 2 * 2 * 96 + 4 * 96**2 + 96 + 8 * 96**2 + 5 * 96  # two norms, qkv and out, MLP
        small = 2 * 2 * 24 + 4 * 24**2 + 24 + 8 * 24**2 + 5 * 24
        tokens = 65 * 64 * 96
        positions = 64 * 96 + 256 * 24
        assert plan.parameters(generator) == tokens + positions + 2 * block + small + 25 * 12
        rest = 193 * 96 + 96 + 17 * 96 + 2 * 96 + 97  # patches, class token, positions, norm, head
        assert plan.parameters(discriminator) == 3 * block + rest
        return
    size, judge, _, _ = RELEASED[preset.name]
    never_called = 2 * preset.generator.base_dim  # a BatchNorm that the released G builds and never calls
    dim = preset.generator.base_dim // 4
    entry = 3 * dim + dim if preset.generator.super_resolution else 0  # ours: how small images come in
    assert plan.parameters(generator) == size - never_called + entry
    assert plan.parameters(discriminator) == judge


@pytest.mark.parametrize("name", RELEASED_2)
def test_parameters_of_version_2(name):
    generator, discriminator = networks(presets.load(name))
    assert (plan.parameters(generator), plan.parameters(discriminator)) == RELEASED_2[name]


def test_work_of_every_preset(preset):
    if preset.name not in RELEASED:
        pytest.skip("no released network to compare with")
    generator, discriminator = networks(preset)
    _, _, painting, judging = RELEASED[preset.name]
    assert plan.flops(generator, (1, *generator.latent_shape)) == pytest.approx(painting, abs=0.006)
    side, dim = preset.data.resolution, preset.discriminator.dim
    # Our last block works for the class token alone: no attention, projection and MLP for the patches.
    patches = (side // preset.discriminator.patch_size) ** 2
    spared = patches * (2 + 16) * dim**2 + 4 * patches * (patches + 1) * dim
    ours = plan.flops(discriminator, (1, 3, side, side))
    assert ours == pytest.approx(judging - spared / 1e9, abs=0.006)


def test_a_plan_counts_steps_and_scales_the_window():
    figures = plan.plan(presets.load("transgan-s", overrides=["training.kimg=800"]))
    assert figures["length"] == "800 kimg = 12,500 D steps of 64 images"
    assert figures["generator steps"] == "2,500 of 128 images"
    assert figures["attention window"].startswith("4 until 11 kimg, 6 until 16 kimg")


@pytest.mark.parametrize("family", ["transgan", "transgan2", "vitgan", "stylegan2", "ganformer"])
def test_every_family_is_planned(family):
    settings = presets.load(
        overrides=[f"generator={{family: {family}}}", f"discriminator={{family: {family}, resolution: 32}}"]
        if family in ("transgan", "transgan2")
        else [
            f"generator={{family: {family}, resolution: 32}}",
            f"discriminator={{family: {family}, resolution: 32}}",
        ]
    )
    figures = plan.plan(settings)
    assert "GiB throughout" in figures["memory"]
    assert "GFLOP" in figures["discriminator"]


ALONE = "discriminator.group_size=1"


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ((), "whole batches"),
        (
            ("training.micro_batch=auto",),
            "auto: on a GPU the largest that fits, found when the run starts; elsewhere whole batches",
        ),
        (
            ("training.micro_batch=2",),
            "2 samples; the spread across a batch that D sees: taken from each micro-batch",
        ),
        (
            ("training.micro_batch=2", "objective.loss=wgangp-eps", ALONE),
            "2 samples; the drift of the loss: taken from each micro-batch",
        ),
        (("training.micro_batch=2", "objective.loss=hinge", ALONE), "2 samples"),
    ],
)
def test_what_micro_batches_do_to_losses(overrides, expected):
    loss = () if any("loss" in text for text in overrides) else ("objective.loss=hinge",)
    assert plan.micro_batch(small("stylegan2", "stylegan2", *loss, *overrides)) == expected
