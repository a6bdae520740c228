"""Stored images are checked before they are scored."""

import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from gantx.errors import DataError, MissingError
from gantx.evaluation.image_sets import open_images


def picture(mode="RGB", size=(8, 8), value=7):
    return Image.new(mode, size, value if mode in ("L", "I;16") else (value,) * len(mode))


def test_a_folder_a_zip_and_an_array_give_the_same_images(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 6, 4, 3), np.uint8)
    folder = tmp_path / "images"
    folder.mkdir()
    for index, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{index}.png")
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for path in folder.iterdir():
            archive.write(path, path.name)
    np.save(tmp_path / "last.npy", pixels)
    np.save(tmp_path / "first.npy", pixels.transpose(0, 3, 1, 2))
    expected = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    for path in (folder, tmp_path / "images.zip", tmp_path / "last.npy", tmp_path / "first.npy"):
        images = open_images(path)
        assert (len(images), images.height, images.width) == (5, 6, 4)
        batches = list(images.batches([0, 1, 4], 2))
        assert [len(batch) for batch in batches] == [2, 1]
        torch.testing.assert_close(torch.cat(batches), expected[[0, 1, 4]], rtol=0, atol=0)


def test_images_of_other_sizes_are_refused_by_name(tmp_path):
    for index in range(3):
        picture().save(tmp_path / f"{index}.png")
    picture(size=(100, 20)).save(tmp_path / "grid.png")
    with pytest.raises(DataError, match=r"differ in size \(8×8: 3, 100×20: 1; for example .*grid\.png"):
        open_images(tmp_path)


@pytest.mark.parametrize(
    ("image", "complaint"),
    [
        (picture("RGBA"), "has transparency"),
        (picture("LA"), "has transparency"),
        (picture("I;16"), "more than 8 bits"),
    ],
)
def test_pixels_that_have_no_single_meaning_are_refused(tmp_path, image, complaint):
    picture().save(tmp_path / "0.png")
    image.save(tmp_path / "1.png")
    with pytest.raises(DataError, match=rf"1\.png .*{complaint}"):
        open_images(tmp_path)


def test_jpeg_and_grey_images_are_warned_about(tmp_path):
    picture().save(tmp_path / "0.png")
    picture().save(tmp_path / "1.jpg")
    picture("L").save(tmp_path / "2.png")
    images = open_images(tmp_path)
    assert any("1 of 3 images" in text and "JPEG" in text for text in images.warnings)
    assert any("1 images" in text and "grey" in text for text in images.warnings)
    grey = torch.cat(list(images.batches([2], 1)))
    assert grey.shape == (1, 3, 8, 8)
    assert (grey == 7).all()


def test_images_sorted_by_class_are_warned_about(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        picture().save(tmp_path / name / "0.png")
    images = open_images(tmp_path)
    assert any("folder by folder (2 of them)" in text for text in images.warnings)


def test_a_broken_image_is_named(tmp_path):
    picture().save(tmp_path / "0.png")
    whole = (tmp_path / "0.png").read_bytes()
    (tmp_path / "1.png").write_bytes(whole[: len(whole) // 2 + 8])
    images = open_images(tmp_path)  # its header is whole
    with pytest.raises(DataError, match=r"cannot read .*1\.png"):
        list(images.batches([0, 1], 2))
    (tmp_path / "1.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"cannot read .*1\.png"):
        open_images(tmp_path)


@pytest.mark.parametrize("pixels", [np.zeros((2, 8, 8, 3), np.float32), np.zeros((2, 8, 8, 4), np.uint8)])
def test_arrays_of_another_kind_are_refused(tmp_path, pixels):
    np.save(tmp_path / "images.npy", pixels)
    with pytest.raises(DataError, match="images are uint8"):
        open_images(tmp_path / "images.npy")


def test_an_array_that_would_run_code_is_not_loaded(tmp_path):
    np.save(tmp_path / "images.npy", np.array([print], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"not a readable \.npy"):
        open_images(tmp_path / "images.npy")


def test_nothing_there(tmp_path):
    with pytest.raises(MissingError, match="nowhere"):
        open_images(tmp_path / "nowhere")
