"""Files of ViTGAN's training script become checkpoints."""

import re
import shlex

import pytest
import torch
from helpers.golden_file import GoldenFile
from safetensors.torch import save_file

from gantx import models
from gantx.config import presets
from gantx.errors import CheckpointError, DataError, MissingError
from gantx.generation import sampling
from gantx.importing import files
from gantx.importing.vitgan import vitgan_discriminator, vitgan_generator

CPU = torch.device("cpu")
RELEASED = (
    "data.resolution=32",
    "generator={family: vitgan, residual: released, attention: released, activation: silu,"
    " spectral_norm: released, norm_eps: 0.001, decoder_noise: true}",
    "discriminator={family: stylegan2, channel_base: 4096}",
)
SMALL = (
    *RELEASED, "generator.dim=48", "generator.depth=2", "generator.decoder_dim=64",
    "discriminator.channel_base=256", "discriminator.channel_max=24",
)  # fmt: skip
# What the released code keeps beside the weights that count.
BESIDE = {
    "layers.0.attn.to_qkv.module.weight": torch.zeros(144, 48),
    "layers.1.ff.net.3.module.weight": torch.zeros(48, 192),
}


def training_run(folder, norms=True):
    """The files of a training run with the golden networks, and the outputs that belong to them."""
    painter, judge = GoldenFile("vitgan/g_inr"), GoldenFile("vitgan/d_stylegan2")
    folder.mkdir()
    state = painter.prefix("state.") | BESIDE
    torch.save({f"module.{key}": tensor for key, tensor in state.items()}, folder / "gen.pt")
    torch.save(state, folder / "gen_ema.pt")
    torch.save(judge.prefix("state.") | {"projection.0.weight": torch.zeros(3)}, folder / "dis.pt")
    torch.save({"state": {}}, folder / "optim.pt")
    if norms:
        known = painter.prefix("mult.")
        each = {f"gen.{layer}": norm for layer, norm in known.items()}
        each |= {f"gen_ema.{layer}": norm.clone() for layer, norm in known.items()}
        save_file(each, folder / "spectral_norms.safetensors")
    outputs = folder / "outputs.safetensors"
    image = painter["out.image_train"]
    tensors = {"input.z": painter["in.z"], "output.gen": image, "output.gen_ema": image.clone()}
    save_file(tensors | {"input.x": judge["in.x"], "output.dis": judge["out.logit"]}, outputs)
    return outputs


def test_an_official_run_generates_and_discriminates_as_before(tmp_path):
    outputs = training_run(tmp_path / "run")
    settings = presets.load(overrides=SMALL)
    conversion = files.convert(tmp_path / "run", settings)
    assert conversion.skipped == ("optim.pt",)
    differences = files.compare(conversion, outputs)
    assert [difference.name for difference in differences] == ["output.gen", "output.gen_ema", "output.dis"]
    files.require_close(differences, outputs)

    files.write(tmp_path / "c.safetensors", conversion, settings)
    generator, header = sampling.open_generator(tmp_path / "c.safetensors", CPU)
    golden = GoldenFile("vitgan/g_inr")
    torch.testing.assert_close(
        generator(golden["in.z"]) / 2 + 0.5, golden["out.image_train"], rtol=1e-4, atol=1e-5
    )
    assert header.data["imported_from"]["file"] == "run"
    assert header.digests.keys() == {"generator", "generator_ema", "discriminator"}


def test_every_key_is_imported_or_ignored_for_a_reason(tmp_path):
    training_run(tmp_path / "run")
    conversion = files.convert(tmp_path / "run", presets.load(overrides=SMALL))
    for name, part in (("gen", "generator"), ("dis", "discriminator")):
        state = torch.load(tmp_path / "run" / f"{name}.pt", weights_only=True)
        imported = conversion.parts[part]
        keys = {key.removeprefix("module.") for key in state}
        assert imported.names.keys() | imported.ignored.keys() == keys
        assert not imported.names.keys() & imported.ignored.keys()
        held = set(imported.names.values()) | imported.computed.keys()
        assert held == models.build(imported.section).state_dict().keys()
    assert BESIDE.keys() < conversion.parts["generator"].ignored.keys()
    assert "projection.0.weight" in conversion.parts["discriminator"].ignored


def test_norms_that_were_not_saved_are_estimated(tmp_path):
    training_run(tmp_path / "run", norms=False)
    imported = files.convert(tmp_path / "run", presets.load(overrides=SMALL)).parts["generator_ema"]
    target = imported.tensors["blocks.0.attention.qkv.spectral.target"]
    assert float(target) == pytest.approx(144**0.5 + 48**0.5)
    known = GoldenFile("vitgan/g_inr").prefix("mult.")
    assert float(target) == pytest.approx(float(known["layers.0.attn.to_qkv"]), rel=0.1)
    assert "estimated" in imported.computed["blocks.0.attention.qkv.spectral.target"]


def test_the_average_style_is_that_of_the_mapping(tmp_path):
    training_run(tmp_path / "run")
    imported = files.convert(tmp_path / "run", presets.load(overrides=SMALL)).parts["generator_ema"]
    network = models.build(imported.section)
    network.load_state_dict(imported.tensors)
    styles = network.mapping(torch.randn(4096, 48))[:, 0]
    assert (styles.mean(0) - network.w_avg).abs().max() < 0.1 * styles.std()


def test_a_generator_alone(tmp_path):
    outputs = training_run(tmp_path / "run")
    settings = presets.load(overrides=SMALL)
    conversion = files.convert(tmp_path / "run" / "gen_ema.pt", settings)
    assert set(conversion.parts) == {"generator", "generator_ema"}
    files.require_close(files.compare(conversion, outputs), outputs)
    files.write(tmp_path / "c.safetensors", conversion, settings)
    assert sampling.open_generator(tmp_path / "c.safetensors", CPU, "raw")[1].config == settings


def test_the_decoder_of_convolutions_generates_as_before():
    golden = GoldenFile("vitgan/g_conv")
    wanted = presets.load(overrides=[*RELEASED, "generator.heads=4"]).generator
    imported = vitgan_generator(golden.prefix("state."), wanted, golden.prefix("mult."))
    assert (imported.section.decoder, imported.section.decoder_dim, imported.section.resolution) == (
        "conv",
        24,
        32,
    )
    network = models.build(imported.section)
    network.load_state_dict(imported.tensors)
    made, expected = network(golden["in.z"]) / 2 + 0.5, golden["out.image_train"]
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


def test_other_settings_are_answered_with_the_overrides_that_fit(tmp_path):
    outputs = training_run(tmp_path / "run")
    overrides = [
        "data.resolution=64",
        "generator={family: vitgan, resolution: 64, patch_size: 8}",
        "discriminator={family: vitgan, resolution: 64, patch_size: 8}",
    ]
    with pytest.raises(CheckpointError) as told:
        files.convert(tmp_path / "run", presets.load(overrides=overrides))
    fitting = shlex.split(re.search(r": add (.*)$", str(told.value))[1])
    # That the patches of an implicit decoder are smaller is in no tensor.
    known = ["data.resolution=32", "generator.resolution=32", "generator.patch_size=4"]
    settings = presets.load(overrides=[*overrides, *fitting, *known])
    files.require_close(files.compare(files.convert(tmp_path / "run", settings), outputs), outputs)


def test_a_number_of_heads_that_tensors_do_not_tell_is_found_by_the_check(tmp_path):
    outputs = training_run(tmp_path / "run")
    conversion = files.convert(tmp_path / "run", presets.load(overrides=[*SMALL, "generator.heads=4"]))
    with pytest.raises(files.CheckFailed, match=r"output\.gen differs"):
        files.require_close(files.compare(conversion, outputs), outputs)


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_malicious_file_is_refused_without_running_it(tmp_path):
    training_run(tmp_path / "run")
    torch.save({"style.1.weight": Evil(tmp_path / "created")}, tmp_path / "run" / "dis.pt")
    with pytest.raises(CheckpointError, match="could run code"):
        files.convert(tmp_path / "run", presets.load(overrides=SMALL))
    assert not (tmp_path / "created").exists()


def test_files_that_are_no_run_of_vitgan(tmp_path):
    settings = presets.load(overrides=SMALL)
    training_run(tmp_path / "run")
    with pytest.raises(CheckpointError, match="no ViTGAN generator: it has no style"):
        files.convert(tmp_path / "run" / "dis.pt", settings)
    with pytest.raises(CheckpointError, match=r"optim\.pt is not a dictionary of tensors"):
        files.convert(tmp_path / "run" / "optim.pt", settings)
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingError, match=r"no gen_ema\.pt"):
        files.convert(tmp_path / "empty", settings)
    with pytest.raises(MissingError, match="no checkpoint at"):
        files.convert(tmp_path / "absent", settings)


@pytest.mark.parametrize("content", [{}, {"gen.layers.0.attn.to_qkv": torch.ones(2)}, None])
def test_spectral_norms_that_do_not_fit(tmp_path, content):
    training_run(tmp_path / "run")
    norms = tmp_path / "run" / "spectral_norms.safetensors"
    if content is None:
        norms.write_text("text")
    else:
        save_file(content, norms)
    with pytest.raises(DataError, match=r"spectral_norms\.safetensors"):
        files.convert(tmp_path / "run", presets.load(overrides=SMALL))


@pytest.mark.parametrize("missing", ["layers.2.conv1.0.weight", "layers.1.skip.1.weight", "linear.l2.bias"])
def test_a_missing_key_of_the_discriminator_is_named(missing):
    state = GoldenFile("vitgan/d_stylegan2").prefix("state.")
    del state[missing]
    with pytest.raises(CheckpointError, match=re.escape(missing)):
        vitgan_discriminator(state, presets.load(overrides=SMALL).discriminator)
