"""Pictures with provenance are generated again and compared."""

import shutil
import zipfile

import numpy as np
import pytest
import torch
from helpers.styled_networks import save_styled
from PIL import Image

import gantx
from gantx import checkpoint
from gantx.errors import CheckFailed, DataError, MissingError, UsageError
from gantx.generation import provenance, sampling
from gantx.io import imaging


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder of two runs."""
    folder = tmp_path_factory.mktemp("runs")
    for family in ("stylegan2", "vitgan"):
        save_styled(folder / f"0001-{family}" / "checkpoints", family)
    (folder / "0001-vitgan" / "statistics.safetensors").write_bytes(b"no checkpoint")
    return folder


@pytest.fixture
def picture(runs, tmp_path):
    """A grid of three truncated images."""
    return generated(runs / "0001-stylegan2", tmp_path / "grid.png", [4, 5, 9], truncation=0.7, cutoff=3)


def generated(run, path, seeds, **truncation):
    model = gantx.load(run, device="cpu")
    images = [sampling.quantise(part) for part in model.generate(seeds, **truncation)]
    shape = (2, 2) if path.suffix == ".png" else None
    imaging.save_images(path, images, seeds, model.provenance(**truncation), shape)
    return path


def compare(path, target, runs):
    pictures = provenance.read_pictures(path)
    file, weights = provenance.find_weights(pictures, target, runs)
    model = gantx.load(file, weights=weights, device="cpu")
    found = provenance.regenerate(model.network, pictures, batch=8, device=model.device)
    return file, list(found)


def test_a_picture_finds_its_checkpoint_and_is_generated_again(picture, runs):
    with Image.open(picture) as image:
        said = image.text
    assert said["gantx:version"] == gantx.__version__
    assert (said["gantx:weights"], said["gantx:truncation"], said["gantx:cutoff"]) == ("ema", "0.7", "3")
    file, (found,) = compare(picture, None, runs)
    assert file.parent.parent.name == "0001-stylegan2"
    assert found.largest == 0
    assert found.differing == 0
    with Image.open(picture) as image:
        assert np.array_equal(found.regenerated.permute(1, 2, 0).numpy(), np.asarray(image))
    for target in (file, file.parent, file.parent.parent):
        assert compare(picture, target, runs)[0] == file


def test_folders_and_archives_of_images(runs, tmp_path):
    run = runs / "0001-vitgan"
    generated(run, tmp_path / "folder", range(5), truncation=0.5)
    shutil.copy(generated(run, tmp_path / "whole.png", [7]), tmp_path / "folder")
    generated(run, tmp_path / "a.zip", range(3))
    _, found = compare(tmp_path / "folder", None, runs)
    assert [one.largest for one in found] == [0] * 6
    _, found = compare(tmp_path / "a.zip", None, runs)
    assert [one.name.rpartition("/")[2] for one in found] == [f"seed-00000{seed}.png" for seed in range(3)]
    assert [one.largest for one in found] == [0] * 3


def test_a_changed_pixel_is_seen(picture, runs, tmp_path):
    with Image.open(picture) as image:
        text = image.text
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    pixels[1, 3, 4] ^= 64
    imaging.write_png(tmp_path / "changed.png", pixels, text)
    _, (found,) = compare(tmp_path / "changed.png", None, runs)
    assert found.largest == 64
    assert found.differing == pytest.approx(1 / pixels.numel())
    imaging.write_png(tmp_path / "cut.png", pixels[:, 1:], text)
    with pytest.raises(DataError, match="cut or resized"):
        compare(tmp_path / "cut.png", None, runs)


def test_weights_that_are_not_there(picture, runs, tmp_path):
    with pytest.raises(MissingError, match=r"no checkpoint in .* has the weights"):
        compare(picture, None, tmp_path)
    with pytest.raises(MissingError, match="has the weights"):
        compare(picture, runs / "0001-vitgan", runs)
    (other,) = (runs / "0001-vitgan" / "checkpoints").iterdir()
    with pytest.raises(CheckFailed, match="not in"):
        compare(picture, other, runs)


def test_pictures_of_two_checkpoints_are_kept_apart(runs, tmp_path):
    for family in ("stylegan2", "vitgan"):
        generated(runs / f"0001-{family}", tmp_path / "both" / f"{family}.png", [1])
    with pytest.raises(UsageError, match="2 different checkpoints"):
        compare(tmp_path / "both", None, runs)


def test_a_picture_of_training_needs_its_checkpoint_named(runs, tmp_path):
    run = runs / "0001-stylegan2"
    path = generated(run, tmp_path / "a.png", [0, 1, 2])
    with Image.open(path) as image:
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        text = {key: image.text[key] for key in ("gantx:preset", "gantx:images", "gantx:seeds")}
    imaging.write_png(path, pixels, text)
    with pytest.raises(MissingError, match="name its run"):
        compare(path, None, runs)
    assert compare(path, run, runs)[1][0].largest == 0
    best = tmp_path / "pruned" / "checkpoints" / checkpoint.best_name("fid")
    best.parent.mkdir(parents=True)
    shutil.copy(checkpoint.find(run), best)
    assert compare(path, tmp_path / "pruned", runs)[0] == best
    imaging.write_png(path, pixels, text | {"gantx:images": "5000"})
    with pytest.raises(MissingError, match=r"has no kimg-000005\.000"):
        compare(path, run, runs)


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ({}, DataError, "does not say where it comes from"),
        ({"gantx:latents": "0-3"}, UsageError, "not generated from seeds"),
        ({"gantx:seeds": "1", "gantx:walk": "1,5"}, UsageError, "not generated from seeds"),
        ({"gantx:seeds": "x"}, DataError, "damaged"),
        ({"gantx:seeds": "0-9999999999"}, DataError, "damaged"),
        ({"gantx:seed": "1", "gantx:truncation": "much"}, DataError, "damaged"),
    ],
)
def test_pictures_that_cannot_be_generated_again(tmp_path, text, error, words):
    imaging.write_png(tmp_path / "a.png", torch.zeros(3, 4, 4, dtype=torch.uint8), text)
    with pytest.raises(error, match=words):
        provenance.read_pictures(tmp_path / "a.png")


def test_what_is_no_picture(tmp_path):
    (tmp_path / "a.png").write_bytes(b"nonsense")
    (tmp_path / "a.zip").write_bytes(b"nonsense")
    (tmp_path / "empty").mkdir()
    with zipfile.ZipFile(tmp_path / "empty.zip", "w"):
        pass
    for name, error in (
        ("a.png", DataError), ("a.zip", DataError), ("empty", MissingError), ("empty.zip", MissingError),
        ("nothing.png", MissingError),
    ):  # fmt: skip
        with pytest.raises(error):
            provenance.read_pictures(tmp_path / name)
