import json
import re

import pytest
import torch
from helpers.golden_file import ROOT, GoldenFile, find_golden

from gantx import models
from gantx.config import presets
from gantx.config.networks import TransGAN2DiscriminatorConfig
from gantx.errors import CheckpointError
from gantx.importing.transgan import (
    transgan_v1_discriminator,
    transgan_v1_generator,
    transgan_v2_discriminator,
    transgan_v2_generator,
)
from gantx.models.transgan2 import Discriminator


def official_generator():
    """A small official state dict with stages of 2 and 1 blocks."""
    block = {
        "norm1.weight": (1,), "norm1.bias": (1,), "attn.qkv.weight": (3, 1), "attn.proj.weight": (1, 1),
        "attn.proj.bias": (1,), "norm2.weight": (1,), "norm2.bias": (1,), "mlp.fc1.weight": (4, 1),
        "mlp.fc1.bias": (4,), "mlp.fc2.weight": (1, 4), "mlp.fc2.bias": (1,),
    }  # fmt: skip
    state = {
        "l1.weight": torch.randn(64, 5),
        "l1.bias": torch.randn(64),
        "pos_embed_1": torch.randn(1, 4, 16),
        "pos_embed_2": torch.randn(1, 16, 4),
        "deconv.0.weight": torch.randn(3, 4, 1, 1),
        "deconv.0.bias": torch.randn(3),
        "to_rgb.0.weight": torch.randn(16),
        "to_rgb.0.num_batches_tracked": torch.tensor(7),
    }
    for place, dim in (("blocks.0", 16), ("blocks.1", 16), ("upsample_blocks.0.0", 4)):
        for key, shape in block.items():
            state[f"{place}.{key}"] = torch.randn([dim * times if times > 0 else 1 for times in shape])
    return state


def official_discriminator():
    """A small official state dict of version 2: CelebA-HQ, whose blocks are the least alike."""
    sizes = {
        "resolution": 32, "patch_size": 2, "overlap": True, "dim": 16, "shares": (1, 1, 2), "heads": 2,
        "depths": (1, 2, 1), "windows": (4, 4, None), "global_blocks": (0, 1, 0), "mlp_ratio": 2,
        "norm": "layer", "relative_positions": False, "noise": False,
    }  # fmt: skip
    ours = Discriminator(TransGAN2DiscriminatorConfig(**sizes)).state_dict()
    words = {
        "class_token": "cls_token",
        "stages.0.windowed_blocks": "blocks_1",
        "stages.1.windowed_blocks": "blocks_2",
        "stages.1.global_blocks": "blocks_21",
        "stages.2.global_blocks": "blocks_3",
        "last_block": "last_block.0",
        ".attention.qkv": ".attn.qkv",
        ".attention.out": ".attn.proj",
        "norm1": "norm1.norm",
        "norm2": "norm2.norm",
        "mlp.0": "mlp.fc1",
        "mlp.2": "mlp.fc2",
        **{f"from_patches.{stage}": f"fRGB_{stage + 1}" for stage in range(3)},
        **{f"stages.{stage}.positions": f"pos_embed_{stage + 1}" for stage in range(3)},
    }
    state = {"Hz_fbank": torch.zeros(4, 43)}
    for key, tensor in ours.items():
        for our, theirs in words.items():
            key = key.replace(our, theirs)
        state[key.replace("norm.", "norm.norm.", 1) if key.startswith("norm.") else key] = tensor
    return state, ours, sizes


def test_every_key_of_version_2_is_imported_or_ignored_for_a_reason():
    state, ours, sizes = official_discriminator()
    state = {f"module.{key}": tensor for key, tensor in state.items()}
    imported = transgan_v2_discriminator(state, heads=2)
    assert dict(imported.section) == {"family": "transgan2", **sizes, "classes": 0}
    assert set(imported.names) | set(imported.ignored) == {key.removeprefix("module.") for key in state}
    assert set(imported.ignored) == {"Hz_fbank"}
    assert imported.tensors.keys() == ours.keys()
    assert all(torch.equal(imported.tensors[key], tensor) for key, tensor in ours.items())


@pytest.mark.parametrize(
    "missing",
    [
        "fRGB_2.weight",
        "pos_embed_1",
        "blocks_21.0.norm1.norm.bias",
        "last_block.0.mlp.fc2.weight",
        "head.bias",
    ],
)
def test_a_missing_key_of_version_2_is_named(missing):
    state, _, _ = official_discriminator()
    del state[missing]
    with pytest.raises(CheckpointError, match=re.escape(missing)):
        transgan_v2_discriminator(state, heads=2)


def test_one_version_is_not_the_other():
    with pytest.raises(CheckpointError, match="no TransGAN v2 generator: it has no blocks_2"):
        transgan_v2_generator(official_generator())
    with pytest.raises(CheckpointError, match="no TransGAN v1 discriminator"):
        transgan_v1_discriminator(official_discriminator()[0])


def test_every_key_is_imported_or_ignored_for_a_reason():
    state = official_generator()
    imported = transgan_v1_generator({f"module.{key}": tensor for key, tensor in state.items()})
    assert imported.section.depths == (2, 1)
    assert imported.section.base_size == 2
    assert imported.section.latent_dim == 5
    assert set(imported.names) | set(imported.ignored) == set(state)
    assert set(imported.ignored) == {"to_rgb.0.weight", "to_rgb.0.num_batches_tracked"}
    assert all("never calls" in reason for reason in imported.ignored.values())
    models.build(imported.section).load_state_dict(imported.tensors)
    assert torch.equal(imported.tensors["to_rgb.weight"], state["deconv.0.weight"][:, :, 0, 0])
    assert torch.equal(
        imported.tensors["stages.1.blocks.0.mlp.2.bias"], state["upsample_blocks.0.0.mlp.fc2.bias"]
    )


@pytest.mark.parametrize(
    "missing",
    ["l1.weight", "l1.bias", "pos_embed_2", "blocks.0.norm1.bias", "upsample_blocks.0.0.attn.proj.bias"],
)
def test_a_missing_key_is_named(missing):
    state = official_generator()
    del state[missing]
    with pytest.raises(CheckpointError, match=re.escape(missing)):
        transgan_v1_generator(state)


def test_an_unknown_key_is_named():
    with pytest.raises(CheckpointError, match=r"unknown blocks\.0\.attn\.noise_strength_1"):
        transgan_v1_generator(official_generator() | {"blocks.0.attn.noise_strength_1": torch.zeros(())})


def test_a_wrong_shape_is_named():
    with pytest.raises(CheckpointError, match=r"blocks\.1\.norm2\.bias .*\[15\].*\[16\]"):
        transgan_v1_generator(official_generator() | {"blocks.1.norm2.bias": torch.zeros(15)})


def test_heads_that_cannot_share_the_channels_are_refused():
    with pytest.raises(CheckpointError, match="3 heads cannot share"):
        transgan_v1_generator(official_generator(), heads=3)


def test_a_generator_is_no_discriminator():
    with pytest.raises(CheckpointError, match=r"pos_embed, patch_embed\.weight"):
        transgan_v1_discriminator(official_generator())


def full_size(name):
    """The state dict of a released network, without its numbers."""
    path = ROOT.parent / "shared" / "specs" / "keys" / f"{name}.json"
    if not path.is_file():
        pytest.skip(f"key list {name} is not here")
    listed = json.loads(path.read_text(encoding="utf-8"))
    return {key: torch.empty(entry["shape"], device="meta") for key, entry in listed.items()}


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("v1_cifar_XL_G", {"latent_dim": 1024, "base_dim": 1024, "base_size": 8, "depths": (5, 4, 2)}),
        ("v1_stl48_G", {"latent_dim": 1024, "base_dim": 768, "base_size": 12, "depths": (5, 2, 2)}),
        ("v1_celeba64_G", {"latent_dim": 1024, "base_dim": 1024, "base_size": 8, "depths": (5, 3, 3, 2)}),
        ("v1_cifar_XL_D", {"resolution": 32, "patch_size": 4, "dim": 384, "depth": 7, "mlp_ratio": 4}),
        ("v1_stl48_D", {"resolution": 48, "patch_size": 4, "dim": 384, "depth": 7}),
        ("v1_celeba64_D", {"resolution": 64, "patch_size": 4, "dim": 384, "depth": 7}),
    ],
)
def test_the_key_lists_of_the_full_size_networks_are_understood(name, fields):
    importer = transgan_v1_generator if name.endswith("_G") else transgan_v1_discriminator
    state = full_size(name)
    imported = importer(state)
    assert fields.items() <= dict(imported.section).items()
    assert set(imported.names) | set(imported.ignored) == set(state)


@pytest.mark.parametrize(
    ("name", "preset"),
    [
        ("v2_cifar", "transgan2-cifar10"),
        ("v2_stl", "transgan2-stl10"),
        ("v2_church256", "transgan2-church256"),
        ("v2_celebahq256", "transgan2-celebahq256"),
    ],
)
def test_the_presets_of_version_2_are_the_released_networks(name, preset):
    settings = presets.load(preset)
    for importer, kind, section in (
        (transgan_v2_generator, "G", settings.generator),
        (transgan_v2_discriminator, "D", settings.discriminator),
    ):
        state = full_size(f"{name}_{kind}")
        imported = importer(state)
        assert imported.section == section
        assert set(imported.names) | set(imported.ignored) == set(state)


@pytest.mark.parametrize(
    ("name", "generator", "discriminator"),
    [
        ("checkpoint_v1_tiny", transgan_v1_generator, transgan_v1_discriminator),
        ("checkpoint_v2_cifar_tiny", transgan_v2_generator, transgan_v2_discriminator),
    ],
)
def test_an_official_checkpoint_generates_and_discriminates_as_the_official_code(
    name, generator, discriminator
):
    checkpoint = torch.load(find_golden(f"transgan/{name}.pth"), weights_only=True)
    with GoldenFile(f"transgan/{name}") as golden, torch.no_grad():
        for key, importer, entry, given in (
            ("gen", generator, "gen_state_dict", golden["input.z"]),
            ("avg_gen", generator, "avg_gen_state_dict", golden["input.z"]),
            ("dis", discriminator, "dis_state_dict", golden["input.x"]),
        ):
            imported = importer(checkpoint[entry])
            network = models.build(imported.section)
            network.load_state_dict(imported.tensors)
            expected = golden[f"output.{key}"]
            made = network(given).view_as(expected)
            torch.testing.assert_close(made, expected, rtol=0, atol=float(1e-4 * expected.abs().max()))
