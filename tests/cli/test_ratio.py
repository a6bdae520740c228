"""Images that are not square, from training to export: squares for the networks, rectangles for people."""

import json

import numpy as np
import pytest
import torch
from helpers.small_run import SMALL
from PIL import Image
from typer.testing import CliRunner

import gantx
from gantx import checkpoint
from gantx.cli import app
from gantx.config import presets
from gantx.exporting import program
from gantx.exporting.generator import latents_of, morph_of
from gantx.generation import sampling
from gantx.training.state import TrainingState

FAST = ("--features", "random", "--device", "cpu", "--threads", "1")
ROWS = slice(2, 6)  # of 8, at the ratio 0.5


def run(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Twelve pictures, wider than the ratio."""
    folder = tmp_path_factory.mktemp("photos")
    dice = np.random.default_rng(0)
    for index in range(12):
        Image.fromarray(dice.integers(0, 256, (8, 20, 3), np.uint8)).save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory, photos):
    """A run of two iterations on them at the ratio 0.5, scored at its end."""
    runs = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GANTX_CACHE", str(tmp_path_factory.mktemp("cache")))
        settings = runs / "settings.yaml"
        settings.write_text("data: {ratio: 0.5}\n")
        values = ["training.kimg=0.016", "training.evaluate_every=1"]
        values += [f"evaluation.{text}" for text in ("metrics=[fid]", "features=random")]
        values += ["evaluation.num_during_training=24"]
        options = ("--config", settings, "--data", photos, "--runs", runs, "--device", "cpu")
        run("train", *options, *SMALL, *values)
    (folder,) = runs.glob("0001-*")
    return folder


@pytest.fixture(scope="module")
def squares(trained):
    """Images of its averaged generator for the seeds 0 to 7, black rows included: uint8 [8, 3, 8, 8]."""
    network, _ = sampling.open_generator(trained, torch.device("cpu"))
    (images,) = sampling.generate(network, range(8), batch=8, device=torch.device("cpu"))
    return sampling.quantise(images)


def document(target, *arguments):
    return json.loads(run("eval", target, "--json", *FAST, *arguments).stdout)


def pixels(path):
    return np.asarray(Image.open(path))


def test_pictures_of_training_and_samples_hold_the_rows_in_the_middle(trained, squares, tmp_path):
    (picture,) = (trained / "samples").glob("*0.016.png")
    sheet = pixels(picture)
    assert sheet.shape == (2 * 4 + 2, 2 * 8 + 2, 3)
    np.testing.assert_array_equal(sheet[:4, :8], squares[0].permute(1, 2, 0)[ROWS])
    run("sample", trained, "-n", 8, "-o", tmp_path / "images.npy", "--device", "cpu")
    np.testing.assert_array_equal(np.load(tmp_path / "images.npy"), squares.permute(0, 2, 3, 1)[:, ROWS])
    latents = latents_of(gantx.load(trained, device="cpu").network, range(8))
    np.save(tmp_path / "z.npy", latents.numpy())
    run("sample", trained, "--latents", tmp_path / "z.npy", "-o", tmp_path / "l.npy", "--device", "cpu")
    assert np.load(tmp_path / "l.npy").shape == (8, 4, 8, 3)
    run("sample", trained, "-n", 8, "-o", tmp_path / "grid.png", "--device", "cpu")
    assert (
        "the same to the last bit"
        in run("sample", trained, "--from", tmp_path / "grid.png", "--device", "cpu").stdout
    )
    assert "8 px, 4 px high" in run("info", trained).stdout


def test_walks_and_maps_of_attention_too(trained, squares, tmp_path):
    options = ("--device", "cpu", "-o", tmp_path / "walk")
    run("interpolate", trained, "--seeds", "0,1", "--frames", 2, *options)
    frame = pixels(tmp_path / "walk" / "frame-000000.png")
    np.testing.assert_array_equal(frame, squares[0].permute(1, 2, 0)[ROWS])
    run("attend", trained, "--seed", 3, "--device", "cpu", "-o", tmp_path / "maps")
    assert {pixels(path).shape for path in (tmp_path / "maps").iterdir()} == {(4, 8, 3)}
    run("attend", trained, "--seed", 3, "--ratio", 1, "--device", "cpu", "-o", tmp_path / "whole")
    assert {pixels(path).shape for path in (tmp_path / "whole").iterdir()} == {(8, 8, 3)}


def test_an_image_of_the_ratio_is_projected_as_it_is_and_another_is_cropped(trained, squares, tmp_path):
    image = squares[5].permute(1, 2, 0).numpy()
    for name, given in (("crop", image[ROWS]), ("square", image)):
        Image.fromarray(given).save(tmp_path / f"{name}.png")
        found = tmp_path / f"{name}-found.png"
        plain = ("--scale", 1, "--no-labels", "--device", "cpu")
        run("project", tmp_path / f"{name}.png", trained, "-o", found, "--steps", 2, *plain)
        assert pixels(found).shape == (4, 8 + 2 + 8, 3)
        np.testing.assert_array_equal(pixels(found)[:, :8], image[ROWS])


def test_scores_are_taken_of_rectangles_on_both_sides(trained, photos, tmp_path):
    own = document(trained, "--num", 24)
    assert own["protocol"]["ratio"] == own["protocol"]["reference"]["ratio"] == 0.5
    # The same images from a file, and the same real ones, cut to the shape of that file.
    run("sample", trained, "-n", 24, "-o", tmp_path / "images.npy", "--device", "cpu")
    found = document(tmp_path / "images.npy", "--data", photos)
    assert found["protocol"]["ratio"] == 0.5
    score, again = (each["metrics"]["fd_rand"]["value"] for each in (own, found))
    assert again == pytest.approx(score, rel=1e-5)
    # What the run noted at its end was taken in the same way.
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    (noted,) = [line for line in lines if "scores" in line]
    assert noted["protocol_hash"] == own["protocol_hash"]
    assert noted["scores"]["fd_rand"] == pytest.approx(score, rel=1e-5)


def test_statistics_made_elsewhere_have_to_be_of_the_same_ratio(trained, photos, tmp_path):
    for ratio in ("0.5", "1"):
        path = tmp_path / f"{ratio}.safetensors"
        options = ("--resolution", 8, "--ratio", ratio, "-o", path)
        run("stats", photos, *options, "--features", "random", "--device", "cpu", "--threads", 1)
    by_file = document(trained, "--num", 24, "--reference", tmp_path / "0.5.safetensors")
    by_data = document(trained, "--num", 24, "--data", photos)
    assert by_file["protocol_hash"] == by_data["protocol_hash"]
    refused = CliRunner().invoke(
        app, ["eval", str(trained), "--reference", str(tmp_path / "1.safetensors"), *FAST]
    )
    assert refused.exit_code == 2
    assert "another ratio (1.0, here 0.5)" in " ".join(refused.stderr.split())


def test_modes_of_cut_shapes_come_with_a_warning(tmp_path):
    settings = presets.load(overrides=[*SMALL, "data.ratio=0.5"], settings={"data.source": "shapes"})
    TrainingState(settings, torch.device("cpu")).save(
        tmp_path / "checkpoints" / checkpoint.checkpoint_name(0),
        {"name": "shapes", "digest": "", "images": 37},
    )
    found = json.loads(
        run("eval", tmp_path, "--metric", "modes", "--num", 16, "--json", "--device", "cpu").stdout
    )
    assert found["protocol"]["ratio"] == 0.5
    assert any("shapes are cut to the ratio 0.5" in warning for warning in found["warnings"])


def test_portraits_are_trained_sampled_and_scored(tmp_path):
    dice = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for index in range(12):
        Image.fromarray(dice.integers(0, 256, (8, 5, 3), np.uint8)).save(tmp_path / "photos" / f"{index}.png")
    (tmp_path / "settings.yaml").write_text("data: {ratio: 2}\n")
    options = ("--config", tmp_path / "settings.yaml", "--data", tmp_path / "photos", "--device", "cpu")
    run("train", *options, "--out", tmp_path / "run", *SMALL, "training.kimg=0.016")
    (picture,) = (tmp_path / "run" / "samples").glob("*0.016.png")
    assert pixels(picture).shape == (2 * 8 + 2, 2 * 4 + 2, 3)
    run("sample", tmp_path / "run", "-n", 24, "-o", tmp_path / "images.npy", "--device", "cpu")
    assert np.load(tmp_path / "images.npy").shape == (24, 8, 4, 3)
    assert "4 px, 8 px high" in run("info", tmp_path / "run").stdout
    own = document(tmp_path / "run", "--num", 24)
    found = document(tmp_path / "images.npy", "--data", tmp_path / "photos")
    assert own["protocol"]["ratio"] == found["protocol"]["ratio"] == 2
    score, again = (each["metrics"]["fd_rand"]["value"] for each in (own, found))
    assert again == pytest.approx(score, rel=1e-5)


def test_exports_have_the_crop_built_in(trained, squares, tmp_path):
    run("export", trained, "-o", tmp_path / "m.pt2", "--pixels", "uint8")
    entry = json.loads((tmp_path / "export.json").read_text())["files"]["m.pt2"]
    assert entry["output"]["shape"] == ["batch", 3, 4, 8]
    generator, _ = sampling.open_generator(trained, torch.device("cpu"))
    images = program.open_program(tmp_path / "m.pt2")(latents_of(generator, range(8)))
    assert int((images.int() - squares[:, :, ROWS].int()).abs().max()) <= 1
    morph = morph_of(generator, ratio=0.5)
    z = latents_of(generator, [1])
    assert morph(z, z, torch.zeros(1)).shape == (1, *morph.image_shape) == (1, 3, 4, 8)


def test_weights_to_pass_on_are_cropped_by_whoever_opens_them(trained, squares, tmp_path):
    run("export", trained, "-o", tmp_path / "hub", "--format", "hf")
    assert "A generator of 8×4 images" in (tmp_path / "hub" / "README.md").read_text(encoding="utf-8")
    assert pixels(tmp_path / "hub" / "samples.png").shape == (4 * 4 + 3 * 2, 4 * 8 + 3 * 2, 3)
    assert torch.equal(gantx.sample(tmp_path / "hub", 8), squares[:, :, ROWS])
