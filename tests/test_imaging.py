"""Pictures: layout, formats, provenance, and outputs that cannot be written."""

import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from gantx import imaging
from gantx.errors import MissingError, UsageError

IMAGES = torch.arange(5 * 3 * 4 * 4, dtype=torch.uint8).view(5, 3, 4, 4)
SEEDS = [3, 4, 5, 6, 7]
TEXT = {"gantx:digest": "abc"}


def test_grid_shapes():
    assert imaging.grid_shape(64) == (8, 8)
    assert imaging.grid_shape(5) == (3, 2)
    assert imaging.grid_shape(5, "5x1") == (5, 1)
    assert imaging.grid_shape(0, "3X2") == (3, 2)
    with pytest.raises(UsageError, match="columns x rows"):
        imaging.grid_shape(4, "4by1")
    with pytest.raises(UsageError, match="4 places for 5 images"):
        imaging.grid_shape(5, "2x2")


def test_grid_places_images_in_reading_order_on_white():
    sheet = imaging.grid(IMAGES, 3, 2, gap=1)
    assert sheet.shape == (3, 2 * 5 - 1, 3 * 5 - 1)
    torch.testing.assert_close(sheet[:, :4, 5:9], IMAGES[1])
    torch.testing.assert_close(sheet[:, 5:9, :4], IMAGES[3])
    assert (sheet[:, 4] == 255).all()
    assert (sheet[:, 5:, 10:] == 255).all(), "the place without an image stays white"


def test_a_grid_file_tells_its_seeds(tmp_path):
    imaging.save_images(tmp_path / "g.png", [IMAGES[:2], IMAGES[2:]], SEEDS, TEXT, (5, 1))
    picture = Image.open(tmp_path / "g.png")
    assert picture.size == (5 * 6 - 2, 4)
    assert picture.text == {"gantx:digest": "abc", "gantx:seeds": "3-7"}


def test_array_zip_and_folder_hold_the_same_pixels(tmp_path):
    for name in ("a.npy", "a.zip", "folder"):
        imaging.save_images(tmp_path / name, [IMAGES[:2], IMAGES[2:]], SEEDS, TEXT)
    expected = IMAGES.permute(0, 2, 3, 1).numpy()
    assert np.array_equal(np.load(tmp_path / "a.npy"), expected)
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert archive.namelist() == [f"seed-{seed:06d}.png" for seed in SEEDS]
        with archive.open("seed-000004.png") as file:
            one = Image.open(file)
            assert np.array_equal(np.asarray(one), expected[1])
            assert one.text == {"gantx:digest": "abc", "gantx:seed": "4"}
    names = sorted(path.name for path in (tmp_path / "folder").iterdir())
    assert names == [f"seed-{seed:06d}.png" for seed in SEEDS]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "folder" / "seed-000007.png")), expected[4])


def test_a_failure_leaves_no_half_written_file(tmp_path):
    def broken():
        yield IMAGES[:2]
        raise RuntimeError("the generator failed")

    for name in ("a.zip", "a.npy", "a.png"):
        with pytest.raises(RuntimeError):
            imaging.save_images(tmp_path / name, broken(), SEEDS, TEXT)
    assert list(tmp_path.iterdir()) == []


def test_unknown_suffix_and_unwritable_folder_are_said(tmp_path):
    with pytest.raises(UsageError, match=r"cannot write '\.jpg'"):
        imaging.save_images(tmp_path / "a.jpg", [IMAGES], SEEDS, TEXT)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(MissingError, match="cannot write"):
        imaging.save_images(tmp_path / "file" / "a.png", [IMAGES], SEEDS, TEXT)
