"""Networks at other resolutions: every preset builds with the right shapes, or names the nearest."""

import pytest
import torch

from gantx import models
from gantx.config import presets, resolutions
from gantx.errors import UsageError

SIDES = (32, 48, 64, 96, 128, 256)
# One of each kind of networks, on CPU and paper scale.
BUILT = (
    *("transgan-tiny", "transgan-s", "transgan2-cifar10", "vitgan-tiny", "vitgan-cifar10"),
    *("ganformer-tiny", "ganformer-ffhq", "stylegan2-ffhq", "implicit-tiny"),
)
BLOCKS = {"stylegan2", "ganformer", "dcgan"}  # powers of two


@pytest.mark.parametrize("name", presets.preset_names())
def test_every_preset_has_each_resolution_or_refuses_it_with_the_nearest(name):
    own = presets.load(name)
    families = {own.generator.family, own.discriminator.family}
    for side in SIDES:
        if side in (48, 96) and families & BLOCKS:
            with pytest.raises(UsageError, match=f"--resolution {side}: .*nearest .* built: ") as refused:
                presets.load_at_resolution(side, name)
            lower, upper = str(refused.value).rsplit(": ", 1)[1].split(" or ")
            assert (int(lower), int(upper)) == (side // 3 * 2, side // 3 * 4)
            continue
        settings, chosen = presets.load_at_resolution(side, name)
        assert settings.generator.resolution == settings.discriminator.resolution == side
        # What is printed can be pasted, and nothing is chosen at the preset's own resolution.
        pasted = presets.load(name, overrides=[f"data.resolution={side}", *chosen.split()])
        assert pasted == settings
        assert bool(chosen) == (side != own.data.resolution)


@pytest.mark.parametrize("name", BUILT)
def test_networks_are_built_and_their_shapes_fit(name):
    for side in SIDES if name.endswith("tiny") else (48, 256):
        try:
            settings, _ = presets.load_at_resolution(side, name)
        except UsageError:
            continue
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            generator = models.build(settings.generator)
            discriminator = models.build(settings.discriminator)
        assert generator.image_shape == (3, side, side)
        with torch.no_grad():
            images = generator(torch.empty(2, *generator.latent_shape, device="meta"))
            logits = discriminator(images)
        assert images.shape == (2, 3, side, side)
        assert logits.shape == (2,)


def test_sizes_follow_as_the_papers_have_them():
    def chosen(name, side):
        return presets.load_at_resolution(side, name)[1]

    # transgan-stl10 and vitgan-celeba64 are these, apart from widths and depths.
    assert chosen("transgan-s", 48) == "generator.base_size=12 discriminator.resolution=48"
    assert chosen("transgan2-cifar10", 48) == "generator.base_size=12 discriminator.resolution=48"
    assert "generator.patch_size=8" in chosen("vitgan-cifar10", 64)
    assert "discriminator.patch_size=8 discriminator.overlap=4" in chosen("vitgan-cifar10", 64)
    # A stage more where it keeps 16 channels or more.
    assert "generator.depths=[5,4,2,2]" in chosen("transgan-xl", 64)
    assert "generator.base_size=16" in chosen("transgan-s", 64)


def test_overrides_win_also_those_that_only_fit_the_new_resolution():
    settings, _ = presets.load_at_resolution(64, "vitgan-cifar10", overrides=["generator.patch_size=4"])
    assert settings.generator.patch_size == 4
    settings, _ = presets.load_at_resolution(64, "transgan-s", overrides=["generator.base_size=16"])
    assert settings.generator.resolution == 64


@pytest.mark.parametrize("side", [48, 64, 256])
def test_a_mismatch_prints_overrides_that_mend_it(side):
    for overrides in ([f"data.resolution={side}"], ["generator.base_size=16"]):
        with pytest.raises(UsageError, match=r"pixels a side but data\.resolution is") as mismatch:
            presets.load("transgan-s", overrides=overrides)
        first, second = str(mismatch.value).split("; set ")[1].split(", or ")
        for advice in (first, second):
            presets.load("transgan-s", overrides=[*overrides, *advice.split()])
    with pytest.raises(UsageError, match=r"set data\.resolution=32 .*nearest .* 32 or 64"):
        presets.load("ganformer-tiny", overrides=["data.resolution=48"])


def test_a_resolution_that_no_size_leads_to():
    own = presets.load("transgan-s")
    with pytest.raises(resolutions.Unbuildable, match="family transgan cannot have 62 pixels") as refused:
        resolutions.at_resolution(own.generator, own.discriminator, 62)
    assert refused.value.nearest == [60, 64]
