"""Images of one and of four channels, from a folder to a score."""

import json

import numpy as np
import onnxruntime
import pytest
import torch
from helpers.small_run import SMALL
from PIL import Image
from typer.testing import CliRunner

from gantx.cli import app
from gantx.config import presets
from gantx.generation import sampling

FAST = ("--features", "random", "--device", "cpu", "--threads", "1", "--no-intervals")


def attempt(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def run(*arguments):
    result = attempt(*arguments)
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Twelve translucent pictures of noise."""
    folder = tmp_path_factory.mktemp("pictures")
    noise = np.random.default_rng(0)
    for index in range(12):
        Image.fromarray(noise.integers(0, 256, (8, 8, 4), np.uint8)).save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """A small run."""
    file = tmp_path_factory.mktemp("settings") / "small.yaml"
    file.write_text(presets.load(overrides=SMALL).to_yaml())
    return file


@pytest.fixture(scope="module", params=[1, 4], ids=["grey", "rgba"])
def trained(tmp_path_factory, pictures, settings, request):
    """A run of two iterations on them, and its number of channels."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GANTX_CACHE", str(tmp_path_factory.mktemp("cache")))
        options = ("--config", settings, "--data", pictures, "--channels", request.param, "--kimg", 0.016)
        run("train", *options, "--out", folder, "--device", "cpu")
    return folder, request.param


def generated(folder):
    """Images of the averaged generator for the seeds 0 to 3: uint8 [4, C, 8, 8]."""
    network, _ = sampling.open_generator(folder, torch.device("cpu"))
    return next(sampling.sample(network, range(4), batch=4, device=torch.device("cpu")))


def test_samples_have_the_channels(trained, tmp_path):
    folder, channels = trained
    images = generated(folder)
    assert images.shape[1] == channels
    sheet = tmp_path / "sheet.png"
    run("sample", folder, "-n", 4, "--scale", 1, "-o", sheet, "--device", "cpu")
    picture = Image.open(sheet)
    assert picture.mode == {1: "L", 4: "RGBA"}[channels]
    np.testing.assert_array_equal(
        np.asarray(picture).reshape(18, 18, channels)[:8, :8], images[0].permute(1, 2, 0)
    )
    run("sample", "--from", sheet, folder, "--device", "cpu")
    run("sample", folder, "-n", 4, "-o", tmp_path / "images.npy", "--device", "cpu")
    np.testing.assert_array_equal(np.load(tmp_path / "images.npy"), images.permute(0, 2, 3, 1))
    run("sample", folder, "-n", 4, "-o", tmp_path / "sheet.jpg", "--device", "cpu")
    assert Image.open(tmp_path / "sheet.jpg").mode == {1: "L", 4: "RGB"}[channels]
    walk = ("interpolate", folder, "--frames", 2, "--seeds", "0,1", "--device", "cpu")
    for name in ("walk.webp", "walk.gif"):
        run(*walk, "-o", tmp_path / name)
        with Image.open(tmp_path / name) as frames:
            frames.seek(frames.n_frames - 1)
            assert frames.convert("RGB").getbbox()


def test_scores_are_those_in_rgb_and_say_so(trained):
    folder, channels = trained
    document = json.loads(run("eval", folder, "--metric", "fid", "--num", 16, *FAST, "--json").stdout)
    assert document["protocol"]["channels"] == channels
    assert document["protocol"]["reference"]["channels"] == channels
    said = {1: "grey: scores are those of the value repeated", 4: "those of the images composited over white"}
    assert any(said[channels] in warning for warning in document["warnings"])


def test_an_export_has_the_channels(trained, tmp_path):
    folder, channels = trained
    if channels == 4:
        pytest.skip("one of them is enough")
    run("export", folder, "-o", tmp_path / "model.onnx", "--pixels", "uint8")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    z = np.random.default_rng(0).standard_normal((2, 8), np.float32)
    (images,) = session.run(None, {"z": z})
    assert images.shape == (2, 1, 8, 8)
    record = json.loads((tmp_path / "export.json").read_text())
    assert record["files"]["model.onnx"]["output"]["channels"] == "grey"


def test_a_run_keeps_its_channels_and_another_takes_what_fits(trained, tmp_path):
    folder, channels = trained
    if channels == 4:
        pytest.skip("one of them is enough")
    result = attempt("train", "--resume", folder, "--kimg", 1, "--channels", 3)
    assert result.exit_code == 2
    assert "data.channels" in result.stderr
    options = ("--init", folder, "--channels", 3, "--out", tmp_path / "rgb", "--device", "cpu")
    result = run("train", *options, "training.kimg=0.008")
    assert "of another shape, so drawn: generator.to_rgb.weight" in result.stderr


def test_other_numbers_of_channels_are_refused():
    result = attempt("train", "--preset", "transgan-tiny", "--data", "shapes", "--channels", 2)
    assert result.exit_code == 2
    assert "--channels 2: use 1, 3 or 4" in result.stderr


def test_a_check_says_what_becomes_of_grey_and_transparent_images(pictures, tmp_path):
    assert (
        "transparent  12 composited over white; data.channels=4 keeps"
        in run("data", "check", pictures).stdout
    )
    assert "12 kept as the fourth channel" in run("data", "check", pictures, "--channels", 4).stdout
    grey = tmp_path / "grey"
    grey.mkdir()
    Image.new("RGB", (8, 8), (9, 9, 9)).save(grey / "a.png")
    assert "grey         1 without colours: every image is grey" in run("data", "check", grey).stdout
    Image.new("RGBA", (8, 8), (200, 9, 9, 255)).save(grey / "b.png")
    assert "transparent" not in run("data", "check", grey).stdout
    assert "1 without colours; 1 others become grey" in run("data", "check", grey, "--channels", 1).stdout


def test_a_preview_keeps_transparency(pictures, settings, tmp_path):
    sheet = tmp_path / "seen.png"
    run("data", "preview", pictures, "--config", settings, "-n", 4, "--channels", 4, "-o", sheet)
    assert Image.open(sheet).mode == "RGBA"
