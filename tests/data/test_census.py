"""What is said of a set of images before training."""

import numpy as np
import pytest
from PIL import Image

from gantx.config.schema import DataConfig
from gantx.data.census import difference_hash, examine


def photo(seed, width=40, height=32):
    """Smooth random colours, as in photographs."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def folder(tmp_path):
    """Two classes with a fault of every kind planted among sound images."""
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
    for number in range(6):
        photo(number).save(tmp_path / "cat" / f"{number}.png")
    photo(3).save(tmp_path / "dog" / "copy.bmp")
    photo(4, 80, 64).save(tmp_path / "dog" / "again.jpg", quality=85)
    photo(7, 12, 10).save(tmp_path / "dog" / "tiny.png")
    turned = photo(8)
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "dog" / "turned.jpg", exif=exif)
    photo(9).convert("L").save(tmp_path / "dog" / "grey.png")
    clear = photo(10).convert("RGBA")
    clear.putalpha(100)
    clear.save(tmp_path / "dog" / "clear.png")
    (tmp_path / "dog" / "broken.png").write_bytes(b"no image")
    (tmp_path / "notes.md").write_text("text")
    return tmp_path


def examined(folder, resolution=None, **settings):
    return examine(DataConfig(source=str(folder), **settings), resolution=resolution)


def names(paths):
    return [path.rsplit("/", 1)[-1] for path in paths]


def test_every_planted_fault_is_found_and_nothing_else(folder):
    census = examined(folder, resolution=32)
    assert census.images == 13
    assert census.usable == 11
    assert census.classes == {"cat": 6, "dog": 6}
    assert names(name for name, _ in census.unreadable) == ["broken.png"]
    assert names(census.small) == ["tiny.png"]
    assert [names(group) for group in census.duplicates] == [["3.png", "copy.bmp"]]
    assert [names(pair[:2]) for pair in census.near] == [["4.png", "again.jpg"]]
    assert (census.alpha, census.grey, census.rotated) == (1, 1, 1)
    assert census.cropped == 12
    assert census.sizes[0] == (40, 32, 9)
    assert (32, 40, 1) in census.sizes  # upright
    assert "1 .md" in census.notes[0]


def test_the_largest_resolution_is_what_the_smallest_image_reaches(folder):
    assert examined(folder).largest is None  # tiny.png has a height of 10
    (folder / "dog" / "tiny.png").unlink()
    assert examined(folder).largest == 32
    assert examined(folder, ratio=0.5).largest == 48 - 16  # 40 wide, 20 high


def test_nothing_is_too_small_where_no_resolution_is_named(folder):
    assert examined(folder).small == ()


def test_plain_images_do_not_look_alike(tmp_path):
    for number in range(5):
        Image.new("RGB", (32, 32), (50 * number, 0, 0)).save(tmp_path / f"{number}.png")
    assert examined(tmp_path).near == ()


def test_progress_ends_at_the_number_of_images(folder):
    calls = []
    examine(DataConfig(source=str(folder)), resolution=None, progress=lambda *state: calls.append(state))
    assert calls[-1] == (13, 13)


def test_the_hash_of_a_resized_image_is_nearly_the_same():
    first, second = difference_hash(photo(1)), difference_hash(photo(1).resize((120, 96)))
    assert np.bitwise_count(first ^ second).sum() <= 10
    assert np.bitwise_count(first ^ difference_hash(photo(2))).sum() > 60


def test_classes_are_those_that_a_label_file_gives(folder):
    images = sorted(path.relative_to(folder).as_posix() for path in folder.glob("*/*"))
    (folder / "labels.csv").write_text(
        "file,label\n" + "".join(f"{name},{'ab'[name > 'd']}\n" for name in images)
    )
    assert examined(folder).classes == {"a": 6, "b": 6}


def test_a_label_file_that_fits_no_image_is_a_note(folder):
    (folder / "labels.csv").write_text("file,label\nother.png,a\ncat/0.png,b\n")
    census = examined(folder)
    assert census.classes == {}
    assert any("classes cannot be used: labels.csv" in note and "12 of 13" in note for note in census.notes)
