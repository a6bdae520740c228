"""`gantx train` from weights that are there: --init, --resume of a checkpoint, --allow-changes."""

import re
import shutil

import pytest
from helpers.small_run import SMALL
from typer.testing import CliRunner

from gantx import checkpoint
from gantx.cli import app
from gantx.config import presets


def train(*arguments):
    return CliRunner().invoke(app, ["train", *(str(argument) for argument in arguments), "--device", "cpu"])


def fails(result, code, *words):
    assert result.exit_code == code, result.output
    message = " ".join(result.stderr.split())
    for word in words:
        assert word in message, message


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A run of two iterations with two checkpoints."""
    folder = tmp_path_factory.mktemp("begun")
    (folder / "small.yaml").write_text("data: {source: shapes}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GANTX_CACHE", str(folder / "cache"))
        values = [*SMALL, "training.kimg=0.016", "training.checkpoint_kimg=0.008"]
        result = train("--config", folder / "small.yaml", "--out", folder / "run", *values)
    assert result.exit_code == 0, result.output
    return folder / "run"


def test_init_takes_the_configuration_of_the_checkpoint_and_goes_on_without_it(begun, tmp_path):
    origin = tmp_path / "origin"
    shutil.copytree(begun, origin)
    out = tmp_path / "run"
    command = ("--init", origin, "--out", out, "--resume", "auto", "training.seed=9")
    result = train(*command, "--kimg", 0.008)
    assert result.exit_code == 0, result.output
    assert "init: generator" in result.stderr
    settings = presets.load(files=[out / "config.yaml"])
    assert (settings.name, settings.data.source, settings.training.seed) == ("small", "shapes", 9)
    assert settings.initialization.checkpoint == str(checkpoint.find(origin))
    # The very same command, once its origin has gone.
    shutil.rmtree(origin)
    result = train(*command, "--kimg", 0.016)
    assert result.exit_code == 0, result.output
    assert "resuming at 0.008 kimg" in result.stderr
    other = ("--init", tmp_path / "other", *command[2:])
    fails(train(*other, "--kimg", 0.024), 2, "other values of initialization.checkpoint")


def test_init_is_refused_early(begun, tmp_path):
    fails(train("--init", tmp_path / "nothing"), 3, "no such checkpoint")
    fails(train("--init", begun, "--resume", begun), 2, "--init starts a new run")
    fails(train("--init", begun, "--preset", "stylegan2-ffhq"), 2, "no weight of", "transgan and transgan")
    fails(train("--init", begun, "--allow-changes"), 2, "--allow-changes is for a run that goes on")
    result = train("--init", begun, "--print-config", "training.threads=1")
    assert re.search(
        r"^initialization:\n  checkpoint: .*0\.016\.safetensors\n  digest: ", result.stdout, re.M
    )


def test_resume_takes_a_checkpoint_of_a_run(begun, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(begun, folder)
    first, second = checkpoint.all_in(folder / "checkpoints")
    result = train("--resume", first)
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == str(folder)
    assert "going back to 0.008 kimg: 1 checkpoint, " in result.stderr
    second.rename(tmp_path / second.name)
    fails(train("--resume", tmp_path / second.name), 2, "not in the checkpoints folder", "--init")
    (tmp_path / "notes.txt").write_text("x")
    fails(train("--resume", tmp_path / "notes.txt"), 2, "is a file, not a run")


def test_allow_changes_with_one_command_that_goes_on(begun, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(begun, folder)
    (tmp_path / "small.yaml").write_text("data: {source: shapes}\noptimizer: {generator: {lr: 0.001}}\n")
    command = ("--config", tmp_path / "small.yaml", "--out", folder, "--resume", "auto", *SMALL)
    values = ("training.checkpoint_kimg=0.008",)
    fails(train(*command, "training.kimg=0.024", *values), 2, "optimizer.generator.lr", "--allow-changes")
    for kimg in (0.024, 0.032):
        result = train(*command, "--allow-changes", f"training.kimg={kimg}", *values)
        assert result.exit_code == 0, result.output
        assert ("optimizer.generator.lr 0.0001 → 0.001" in " ".join(result.stderr.split())) == (kimg == 0.024)
    assert presets.load(files=[folder / "config.yaml"]).optimizer.generator.lr == 0.001


def test_a_resolution_says_what_follows_and_keeps_stdout_yaml(begun):
    result = train("--preset", "transgan-s", "--resolution", 64, "--print-config")
    assert result.exit_code == 0, result.output
    said = " ".join(result.stderr.split())
    assert "resolution 64: generator.base_size=16 discriminator.resolution=64" in said
    assert "resolution: 64" in result.stdout
    assert "base_size=16" not in result.stdout
    fails(train("--preset", "ganformer-tiny", "--resolution", 48), 2, "--resolution 48: ", "32 or 64")
    # Of the weights of another resolution, those that fit are taken.
    result = train("--init", begun, "--resolution", 16, "--print-config")
    assert "generator.base_size=4" in " ".join(result.stderr.split())
    fails(train("--resume", begun, "--resolution", 16), 2, "omit --preset, --config, --resolution")
