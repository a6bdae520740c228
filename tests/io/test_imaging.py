"""Pictures: layout, formats, provenance, and outputs that cannot be written."""

import threading
import weakref
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from gantx.errors import MissingError, UsageError
from gantx.io import imaging

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


def test_array_zip_and_folder_contain_the_same_pixels(tmp_path):
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


def test_an_array_is_what_numpy_writes(tmp_path):
    for images in (IMAGES, IMAGES.float() / 7):
        imaging.save_images(tmp_path / "a.npy", images.split(2), SEEDS, TEXT)
        np.save(tmp_path / "b.npy", images.permute(0, 2, 3, 1).numpy())
        assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()
    with pytest.raises(ValueError, match="4 images came instead of 5"):
        imaging.save_images(tmp_path / "c.npy", [IMAGES[:4]], SEEDS, TEXT)
    assert not (tmp_path / "c.npy").exists()


@pytest.mark.parametrize("name", ["a.npy", "a.zip", "folder"])
def test_memory_does_not_grow_with_the_number_of_images(tmp_path, name):
    refs, most = [], 0

    def batches():
        nonlocal most
        for number in range(300):
            batch = torch.full((1, 3, 2, 2), number % 256, dtype=torch.uint8)
            refs.append(weakref.ref(batch))
            most = max(most, sum(ref() is not None for ref in refs))
            yield batch

    imaging.save_images(tmp_path / name, batches(), range(300), TEXT)
    assert most < 50


def test_equal_images_make_equal_archives_in_the_order_of_their_seeds(tmp_path):
    images = torch.randint(0, 256, (24, 3, 150, 150), dtype=torch.uint8)  # each a group of its own
    seeds = list(range(40, 16, -1))
    for name in ("a.zip", "b.zip"):
        imaging.save_images(tmp_path / name, images.split(5), seeds, TEXT)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert archive.namelist() == [f"seed-{seed:06d}.png" for seed in seeds]
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}


def test_a_seed_asked_for_several_times_is_one_file_of_a_folder(tmp_path):
    images = IMAGES[:1].repeat(30, 1, 50, 50)
    imaging.save_images(tmp_path / "folder", images.split(4), [7] * 30, TEXT)
    (file,) = (tmp_path / "folder").iterdir()
    assert np.array_equal(np.asarray(Image.open(file)), images[0].permute(1, 2, 0).numpy())


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_a_failure_leaves_no_half_written_file_and_no_thread(tmp_path, failure):
    def broken():
        yield IMAGES[:2]
        raise failure("the generator failed")

    for name in ("a.zip", "a.npy", "a.png"):
        with pytest.raises(failure):
            imaging.save_images(tmp_path / name, broken(), SEEDS, TEXT)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(failure):
        imaging.save_images(tmp_path / "folder", broken(), SEEDS, TEXT)
    assert {path.suffix for path in (tmp_path / "folder").glob("*")} <= {".png"}
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]


def test_a_picture_of_a_folder_that_cannot_be_written_is_reported(tmp_path):
    (tmp_path / "folder" / "seed-000004.png").mkdir(parents=True)
    with pytest.raises(MissingError, match="cannot write into"):
        imaging.save_images(tmp_path / "folder", [IMAGES], SEEDS, TEXT)
    assert not list((tmp_path / "folder").glob(".*"))


def test_an_output_is_checked_without_leaving_anything_but_its_folder(tmp_path):
    imaging.check_output(tmp_path / "new" / "a.png")
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "a.png").write_bytes(b"kept")
    imaging.check_output(tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == b"kept"
    with pytest.raises(MissingError, match="cannot write"):
        imaging.check_output(tmp_path / "a.png" / "b.png")
    with pytest.raises(UsageError, match="is a folder"):
        imaging.check_output(tmp_path / "new")


def test_unknown_suffix_and_unwritable_folder_are_reported(tmp_path):
    with pytest.raises(UsageError, match=r"cannot write '\.jpg'"):
        imaging.save_images(tmp_path / "a.jpg", [IMAGES], SEEDS, TEXT)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(MissingError, match="cannot write"):
        imaging.save_images(tmp_path / "file" / "a.png", [IMAGES], SEEDS, TEXT)
