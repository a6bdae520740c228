"""`gantx sample` and `gantx info` on a checkpoint, and on what is none."""

import json
import shutil
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from gantx import api, checkpoint
from gantx.cli import app
from gantx.config import presets
from gantx.generation.sampling import open_generator
from gantx.training.state import TrainingState


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A run folder with one checkpoint of the tiny preset, untrained."""
    folder = tmp_path_factory.mktemp("runs") / "0001-transgan-tiny-shapes"
    state = TrainingState(presets.load("transgan-tiny"), torch.device("cpu"))
    state.save(
        folder / "checkpoints" / checkpoint.checkpoint_name(0),
        {"name": "shapes", "digest": "", "images": 9},
    )
    return folder


def test_a_grid_from_a_run_a_folder_and_a_file(run_folder, tmp_path):
    file = checkpoint.find(run_folder)
    pictures = []
    for index, target in enumerate((run_folder, run_folder / "checkpoints", file)):
        output = tmp_path / f"{index}.png"
        result = run("sample", target, "-n", "6", "-o", output, "--device", "cpu")
        assert result.exit_code == 0, result.output
        assert result.stdout.strip() == str(output)
        pictures.append(output.read_bytes())
    assert len(set(pictures)) == 1
    picture = Image.open(tmp_path / "0.png")
    assert picture.size == (3 * 132 - 4, 2 * 132 - 4)  # 32 pixels are enlarged to 128
    assert picture.text["gantx:digest"] == checkpoint.read_header(file).digest
    assert picture.text["gantx:seeds"] == "0-5"


def test_seeds_batches_and_formats_agree(run_folder, tmp_path):
    assert run("sample", run_folder, "--seeds", "0-9", "-o", tmp_path / "a.npy").exit_code == 0
    assert (
        run("sample", run_folder, "--seeds", "7,2", "--batch", "1", "-o", tmp_path / "b.zip").exit_code == 0
    )
    assert run("sample", run_folder, "-n", "2", "--seed", "7", "-o", tmp_path / "c").exit_code == 0
    images = np.load(tmp_path / "a.npy")
    assert images.shape == (10, 32, 32, 3)
    with zipfile.ZipFile(tmp_path / "b.zip") as archive, archive.open("seed-000002.png") as file:
        assert np.array_equal(np.asarray(Image.open(file)), images[2])
    for seed in (7, 8):
        assert np.array_equal(np.asarray(Image.open(tmp_path / "c" / f"seed-{seed:06d}.png")), images[seed])


def test_a_grid_option_sets_the_number_of_images(run_folder, tmp_path):
    grid = ("sample", run_folder, "--grid", "4x2", "--scale", "1", "-o", tmp_path / "g.png")
    assert run(*grid).exit_code == 0
    assert Image.open(tmp_path / "g.png").size == (4 * 34 - 2, 2 * 34 - 2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--grid", "2x2", "-n", "9"], "4 places for 9"),
        (["--seeds", "1", "-n", "9"], "omit -n"),
        (["--grid", "2x2", "-o", "x.zip"], "--grid is for a grid in one picture"),
        (["--labels", "-o", "x"], "--labels is for a grid in one picture"),
        (["--scale", "2", "-o", "x.npy"], "--scale enlarges pictures"),
        (["--scale", "0"], "error: --scale 0: give 1 or more"),
        (["--continue", "-o", "x.zip"], "--continue adds the missing seeds to a folder"),
        (["-o", "x.bmp"], "cannot write '.bmp'"),
        (["--seeds", "x"], "write numbers"),
        (["--seeds", "5,5,7", "-o", "dup"], "seed 5 is named twice"),
        (["--seeds", "5-7,6", "-o", "dup.zip"], "seed 6 is named twice"),
        (["-n", "20000000000000000000"], "20,000,000,000,000,000,000 seeds are too many"),
        (["-n", "0"], "error: -n 0: give 1 or more"),
        (["-n", "many"], "error: -n many: give a whole number"),
        (["--seed", "-1"], "error: --seed -1: give 0 or more"),
        (["--truncation", "x"], "error: --truncation x: give a number"),
    ],
)
def test_usage_errors(run_folder, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    result = run("sample", run_folder, *arguments)
    assert result.exit_code == 2, result.output
    assert words in " ".join(result.stderr.split())
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_continued(run_folder, tmp_path, monkeypatch):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    command = ("sample", run_folder, "-n", "40", "--batch", "8", "-o")
    assert run(*command, whole).exit_code == 0

    honest, done = api.Model.generate, []

    def interrupted(model, what, **how):
        for batch in honest(model, what, **how):
            if len(done) == 2:
                raise KeyboardInterrupt
            done.append(batch)
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(api.Model, "generate", interrupted)
        result = run(*command, parts)
    assert result.exit_code == 130
    assert "has 16 images, go on with the same command and --continue" in result.stderr
    assert "train" not in result.stderr
    first = {path.name: path.stat().st_mtime_ns for path in parts.iterdir()}
    assert len(first) == 16

    assert "already exists" in run(*command, parts).stderr
    result = run(*command, parts, "--continue")
    assert result.exit_code == 0, result.output
    assert "16 of 40 images are in" in " ".join(result.stderr.split())
    assert {name: (parts / name).stat().st_mtime_ns for name in first} == first
    pictures = {path.name: path.read_bytes() for path in whole.iterdir()}
    assert {path.name: path.read_bytes() for path in parts.iterdir()} == pictures
    assert run(*command, parts, "--continue").exit_code == 0
    raw = run(*command, parts, "--continue", "--weights", "raw")
    assert raw.exit_code == 2
    assert "not generated by these weights" in raw.stderr


def test_ctrl_c_says_that_an_array_was_not_written(run_folder, tmp_path, monkeypatch):
    def interrupted(*given, **how):
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(api.Model, "generate", interrupted)
    result = run("sample", run_folder, "-n", "8", "-o", tmp_path / "a.npy")
    assert result.exit_code == 130
    assert "a.npy was not written" in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--seeds", "0-9999999999", "-o", "o.npy"], "10,000,000,000 images take 30,720.0 GB or more but"),
        (["-n", "200000000000", "-o", "o.npy", "--dtype", "float32"], "generate fewer images, or write to"),
        (["-n", "20000000000000", "-o", "o.png"], "a grid of 20,000,000,000,000 images takes"),
        (["-n", "20000000000000", "-o", "o.zip"], "20,000,000,000,000 images take"),
    ],
)
def test_what_cannot_fit_is_refused_at_once(run_folder, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    result = run("sample", run_folder, *arguments)
    assert result.exit_code == 3, result.output
    assert words in " ".join(result.stderr.split())
    assert list(tmp_path.iterdir()) == []


def test_a_seed_may_repeat_in_a_grid_and_an_array(run_folder, tmp_path):
    assert run("sample", run_folder, "--seeds", "5,5,7", "-o", tmp_path / "a.npy").exit_code == 0
    images = np.load(tmp_path / "a.npy")
    assert np.array_equal(images[0], images[1])
    assert not np.array_equal(images[0], images[2])


@pytest.mark.parametrize(
    "arguments",
    [
        ["sample", "model", "-o", "no/a.png"],
        ["sample", "model", "-o", "no/folder"],
        ["interpolate", "model", "-o", "no/a.gif"],
        ["mix", "model", "-o", "no/a.png"],
        ["project", "face.png", "model", "-o", "no/a.png"],
        ["project", "face.png", "model", "--latents", "no/a.safetensors"],
        ["attend", "model", "-o", "no/maps"],
        ["export", "model", "-o", "no/model.onnx"],
    ],
)
def test_an_output_in_a_missing_folder_is_refused_before_the_work(tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.exit_code == 3, result.output
    assert "make the folder no first" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_existing_output_is_kept_unless_forced(run_folder, tmp_path):
    output = tmp_path / "grid.png"
    output.write_bytes(b"thesis figure")
    result = run("sample", run_folder, "-n", "1", "-o", output)
    assert result.exit_code == 2
    assert "already exists" in result.stderr
    assert output.read_bytes() == b"thesis figure"
    assert run("sample", run_folder, "-n", "1", "-o", output, "--force").exit_code == 0
    assert Image.open(output).size == (32, 32)


def test_no_such_checkpoint(tmp_path):
    result = run("sample", tmp_path / "nothing")
    assert result.exit_code == 3
    assert "no such checkpoint or run" in result.stderr


@pytest.mark.parametrize("command", ["sample", "info"])
def test_corrupt_and_foreign_files(tmp_path, command):
    corrupt, foreign = tmp_path / "corrupt.safetensors", tmp_path / "foreign.safetensors"
    corrupt.write_bytes(b"nonsense")
    save_file({"weight": torch.ones(1)}, foreign)
    for path, words in ((corrupt, "not a readable safetensors"), (foreign, "no gantx checkpoint")):
        result = run(command, path)
        assert result.exit_code == 4
        assert words in " ".join(result.stderr.split())


def test_info_shows_and_prints_json(run_folder):
    shown = run("info", run_folder)
    assert shown.exit_code == 0
    assert "transgan-tiny" in shown.stdout
    assert "0 of" in shown.stdout
    document = json.loads(run("info", run_folder, "--json").stdout)
    assert document["schema"] == "gantx.info/1"
    assert document["config"]["generator"]["family"] == "transgan"
    assert document["progress"]["images"] == 0
    assert set(document["digests"]) == {"generator", "generator_ema", "discriminator", "optimizer"}


def test_latents_from_a_file_as_the_generator_gives_them(run_folder, tmp_path):
    header = checkpoint.read_header(checkpoint.find(run_folder))
    latents = torch.randn(5, header.config.generator.latent_dim)
    np.save(tmp_path / "z.npy", latents.numpy())
    save_file({"z": latents}, tmp_path / "z.safetensors")
    arrays = []
    for weights, name in (("ema", "z.npy"), ("ema", "z.safetensors"), ("raw", "z.npy")):
        output = tmp_path / f"{len(arrays)}.npy"
        result = run(
            "sample", run_folder, "--latents", tmp_path / name, "--weights", weights, "--dtype", "float32",
            "-o", output, "--device", "cpu",
        )  # fmt: skip
        assert result.exit_code == 0, result.output
        arrays.append(np.load(output))
    generator, _ = open_generator(run_folder, torch.device("cpu"))
    with torch.no_grad():
        expected = generator(latents).permute(0, 2, 3, 1)
    assert arrays[0].dtype == np.float32
    torch.testing.assert_close(torch.from_numpy(arrays[0]), expected)
    assert np.array_equal(arrays[0], arrays[1])
    raw, _ = open_generator(run_folder, torch.device("cpu"), "raw")
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(arrays[2]), raw(latents).permute(0, 2, 3, 1))


@pytest.mark.parametrize(
    ("latents", "code", "complaint"),
    [
        (np.zeros((5, 3), np.float32), 4, "takes latents [N, "),
        (np.full((1, 64), np.nan, np.float32), 4, "finite"),
        (np.array([print], dtype=object), 4, "cannot read latents"),
        (None, 3, "latents at"),
    ],
)
def test_latents_that_do_not_fit(run_folder, tmp_path, latents, code, complaint):
    path = tmp_path / "z.npy"
    if latents is not None:
        dim = checkpoint.read_header(checkpoint.find(run_folder)).config.generator.latent_dim
        latents = np.resize(latents, (1, dim)) if latents.shape == (1, 64) else latents
        np.save(path, latents, allow_pickle=True)
    result = run("sample", run_folder, "--latents", path, "-o", tmp_path / "x.npy", "--device", "cpu")
    assert result.exit_code == code
    assert complaint in result.stderr
    assert not (tmp_path / "x.npy").exists()


def test_latents_leave_no_room_for_seeds_and_floats_need_an_array(run_folder, tmp_path):
    for arguments, complaint in (
        (("--latents", "z.npy", "-n", "3"), "omit -n"),
        (("--dtype", "float32", "-o", tmp_path / "x.png"), "only a .npy"),
        (("--dtype", "half"), "uint8 or float32"),
        (("--weights", "best"), "ema or raw"),
    ):
        result = run("sample", run_folder, *arguments)
        assert result.exit_code == 2
        assert complaint in result.stderr


def test_the_best_checkpoint_by_a_score_instead_of_the_newest(run_folder, tmp_path):
    best = tmp_path / "run" / "checkpoints" / checkpoint.best_name("fid")
    shutil.copytree(run_folder, tmp_path / "run")
    shutil.copy(checkpoint.find(run_folder), best)
    result = run("info", tmp_path / "run", "--best", "fid", "--json")
    assert json.loads(result.stdout)["path"] == str(best)
    output = tmp_path / "one.png"
    assert run("sample", tmp_path / "run", "--best", "fid", "-n", 1, "-o", output).exit_code == 0
    result = run("sample", tmp_path / "run", "--best", "kid", "-o", tmp_path / "two.png")
    assert result.exit_code == 3
    assert "has no best checkpoint by kid, but by fid" in " ".join(result.stderr.split())
