"""Starting from the weights of another run: what fits is taken, the rest is said, the origin is known."""

import re

import pytest
import torch
from helpers.small_families import small
from helpers.started_runs import CPU, assert_equal_runs, names, resume, start, tensors
from safetensors.torch import load_file

from gantx import checkpoint
from gantx.config import presets
from gantx.errors import CheckpointError, MissingError, UsageError
from gantx.exporting import hub
from gantx.training import run
from gantx.training.initialization import initialize, located
from gantx.training.state import TrainingState

KIMG = "training.kimg=0.04"


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A run of five iterations."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GANTX_CACHE", str(tmp_path_factory.mktemp("cache")))
        return start(tmp_path_factory.mktemp("begun") / "run", KIMG)


def test_a_run_starts_with_the_weights_of_another_and_needs_it_no_more(begun, tmp_path, capsys):
    origin = tmp_path / "origin.safetensors"
    origin.write_bytes(checkpoint.find(begun).read_bytes())
    options = (KIMG, f"initialization.checkpoint={origin}", "training.seed=5", "training.keep_checkpoints=9")
    folder = start(tmp_path / "run", *options)
    first, *_ = checkpoint.all_in(folder / "checkpoints")
    assert first.name == checkpoint.checkpoint_name(0)
    theirs, ours = load_file(origin), load_file(first)
    for key in theirs:
        if key.startswith(("generator", "discriminator")):
            assert torch.equal(theirs[key], ours[key]), key
    assert not any(value.any() for key, value in ours.items() if key.startswith("optimizer."))
    said = " ".join(capsys.readouterr().out.split())
    count = sum(key.startswith("generator.") for key in theirs)
    assert f"init: generator {count} of {count} tensors, its average {count} of {count}" in said
    assert f"from {origin} (small at 0.04 kimg); the optimisers are new" in said
    assert "init: generator" in (folder / "train.log").read_text()
    stored = checkpoint.read_header(checkpoint.find(folder)).config.initialization
    assert (stored.checkpoint, stored.digest) == (str(origin), presets_of(folder).initialization.digest)

    # Without its origin, and with its first checkpoint alone, it ends with the same bits.
    origin.unlink()
    other = tmp_path / "other"
    other.mkdir()
    (other / "checkpoints").mkdir()
    (other / "config.yaml").write_text((folder / "config.yaml").read_text())
    (other / "checkpoints" / first.name).write_bytes(first.read_bytes())
    resume(other)
    assert_equal_runs(folder, other)
    # Before that checkpoint is written, the origin is needed: never are other weights taken in silence.
    (other / "checkpoints").rename(tmp_path / "gone")
    with pytest.raises(MissingError, match="no such checkpoint"):
        resume(other)


def presets_of(folder):
    return presets.load(files=[folder / "config.yaml"])


def test_a_configuration_with_an_origin_repeats_the_run_until_the_file_is_another(begun, tmp_path):
    origin = tmp_path / "origin.safetensors"
    origin.write_bytes(checkpoint.find(begun).read_bytes())
    settings = located(
        presets.load(base=presets_of(begun), settings={"initialization.checkpoint": str(origin)})
    )
    assert located(settings) == settings
    origin.write_bytes(checkpoint.find(start(tmp_path / "another", KIMG, "training.seed=1")).read_bytes())
    with pytest.raises(CheckpointError, match="not the checkpoint that initialization"):
        located(settings)


def test_what_does_not_fit_is_drawn_and_said(begun, tmp_path, capsys):
    # Other heads, and one block more in D.
    values = ("generator.rgb_patch=2", "data.resolution=16", "discriminator.resolution=16")
    folder = start(tmp_path / "run", KIMG, *values, f"initialization.checkpoint={begun}")
    said = " ".join(capsys.readouterr().out.split())
    assert re.search(r"generator (\d+) of (?!\1\b)\d+ tensors", said), said
    assert "not in that checkpoint or of another shape, so drawn: generator.to_rgb.weight" in said
    assert "discriminator.positions" in said
    assert names(folder / "checkpoints")[-1] == "kimg-000000.040"
    theirs = load_file(checkpoint.find(begun))
    state = TrainingState(presets_of(folder), CPU)
    before = {key: value.clone() for key, value in state.tensors().items()}
    initialize(state)
    for key, value in state.tensors().items():
        if key.startswith(("generator", "discriminator")):
            fits = key in theirs and theirs[key].shape == value.shape
            assert torch.equal(value, theirs[key] if fits else before[key]), key


def test_an_exported_generator_has_no_discriminator_and_names_no_paths(begun, tmp_path, capsys):
    header = checkpoint.read_header(checkpoint.find(begun))
    state = TrainingState(header.config, CPU)
    state.restore(header)
    hub.write_weights(tmp_path / "model.safetensors", state.average.network, header, "mit")
    folder = start(tmp_path / "run", KIMG, f"initialization.checkpoint={tmp_path}")
    assert re.search(
        r"its average (\d+) of \1 tensors, discriminator 0 of", " ".join(capsys.readouterr().out.split())
    )
    first = load_file(folder / "checkpoints" / checkpoint.checkpoint_name(40))
    assert first
    ours = checkpoint.read_header(checkpoint.find(folder))
    hub.write_weights(tmp_path / "again.safetensors", state.average.network, ours, "mit")
    shared = checkpoint.read_header(tmp_path / "again.safetensors").config.initialization
    assert shared.checkpoint == "model.safetensors"


def test_the_state_of_a_spectral_norm_stays_with_its_weight(tmp_path):
    settings = small("vitgan", "vitgan")
    source = TrainingState(settings, CPU)
    for key, value in source.discriminator.network.state_dict().items():
        if key.endswith(".spectral.target"):
            value.fill_(7)
    path = tmp_path / checkpoint.checkpoint_name(0)
    source.save(path, {"name": "shapes", "digest": "", "images": 16})
    origin = {"initialization.checkpoint": str(path), "discriminator.mlp_ratio": 2}
    state = TrainingState(located(presets.load(base=settings, settings=origin)), CPU)
    initialize(state)
    stored = state.discriminator.network.state_dict()
    assert stored["blocks.0.attention.query.spectral.target"] == 7
    assert stored["blocks.0.mlp.0.spectral.target"] != 7


def test_networks_of_other_families_are_refused_before_anything_is_made(begun, tmp_path):
    settings = presets.load(
        base=small("stylegan2", "vitgan"), settings={"initialization.checkpoint": str(begun)}
    )
    with pytest.raises(
        UsageError, match="families transgan and transgan, those of the run stylegan2 and vitgan"
    ):
        run.start(settings, parent=tmp_path, out=tmp_path / "run", device=CPU, command=[], log=print)
    assert not (tmp_path / "run").exists()
    half = presets.load(base=small("transgan", "vitgan"), settings={"initialization.checkpoint": str(begun)})
    state = TrainingState(located(half), CPU)
    assert "discriminator 0 of" in initialize(state)[0]
    assert tensors(begun)
