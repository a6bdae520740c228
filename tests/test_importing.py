import json
import re

import pytest
import torch
from golden_file import ROOT, GoldenFile, find_golden

from gantx import models
from gantx.errors import CheckpointError
from gantx.importing import transgan_v1_discriminator, transgan_v1_generator


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
    path = ROOT.parent / "shared" / "specs" / "keys" / f"{name}.json"
    if not path.is_file():
        pytest.skip(f"key list {name} is not here")
    listed = json.loads(path.read_text(encoding="utf-8"))
    state = {key: torch.empty(entry["shape"], device="meta") for key, entry in listed.items()}
    importer = transgan_v1_generator if name.endswith("_G") else transgan_v1_discriminator
    imported = importer(state)
    assert fields.items() <= dict(imported.section).items()
    assert set(imported.names) | set(imported.ignored) == set(state)


def test_an_official_checkpoint_paints_and_judges_as_the_official_code():
    checkpoint = torch.load(find_golden("transgan/checkpoint_v1_tiny.pth"), weights_only=True)
    with GoldenFile("transgan/checkpoint_v1_tiny") as golden, torch.no_grad():
        for key, importer, entry, given in (
            ("gen", transgan_v1_generator, "gen_state_dict", golden["input.z"]),
            ("avg_gen", transgan_v1_generator, "avg_gen_state_dict", golden["input.z"]),
            ("dis", transgan_v1_discriminator, "dis_state_dict", golden["input.x"]),
        ):
            imported = importer(checkpoint[entry])
            network = models.build(imported.section)
            network.load_state_dict(imported.tensors)
            expected = golden[f"output.{key}"]
            made = network(given).view_as(expected)
            torch.testing.assert_close(made, expected, rtol=0, atol=float(1e-4 * expected.abs().max()))
