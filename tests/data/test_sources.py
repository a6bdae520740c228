"""What is accepted as a set of images, how it is listed, and what is refused."""

import io
import os
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from gantx.config.schema import DataConfig
from gantx.data.sources import open_source
from gantx.errors import DataError, MissingError, UsageError


def png(colour=(10, 20, 30), side=8):
    file = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(file, "PNG")
    return file.getvalue()


def fill(root, *names):
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png((number, 0, 0)) if path.suffix.lower() in (".png", ".webp", ".jpg") else b"text")
    return root


def packed(path, entries):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return path


def opened(path, **settings):
    return open_source(DataConfig(source=str(path), **settings))


def listed(source):
    return [Path(source.identify(index)).name for index in range(len(source))]


# --- folders ----------------------------------------------------------------------------------------------


def test_folder_is_read_at_any_depth_in_the_order_of_names(tmp_path):
    fill(tmp_path / "set", "b.PNG", "deep/down/a.jpg", "a.png", ".hidden.png", ".dir/x.png", "__MACOSX/y.png")
    fill(tmp_path / "set", "notes.txt", "Thumbs.db")
    source = opened(tmp_path / "set")
    assert listed(source) == ["a.png", "b.PNG", "a.jpg"]
    assert source.name == "set"
    assert source.class_names == ()
    assert source.label(0) is None
    assert [note for note in source.notes if "2 files" in note and "ignored" in note]


def test_class_folders_become_labels(tmp_path):
    source = opened(fill(tmp_path, "dog/1.png", "cat/1.png", "cat/2.png"))
    assert source.class_names == ("cat", "dog")
    assert [source.label(index) for index in range(3)] == [0, 0, 1]


@pytest.mark.parametrize("stray", ["loose.png", "cat/kitten/1.png"])
def test_an_image_outside_the_class_folders_means_no_labels(tmp_path, stray):
    source = opened(fill(tmp_path, "dog/1.png", "cat/1.png", stray))
    assert source.class_names == ()
    assert source.label(0) is None
    assert len(source) == 3


def test_a_folder_that_wraps_everything_is_looked_through(tmp_path):
    source = opened(fill(tmp_path, "all/data/dog/1.png", "all/data/cat/1.png"))
    assert source.class_names == ("cat", "dog")
    assert opened(fill(tmp_path / "flat", "photos/1.png", "photos/2.png")).class_names == ()


@pytest.mark.parametrize("held_out", ["test", "val"])
@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_train_is_taken_beside_a_held_out_folder(tmp_path, held_out, kind):
    names = ["train/cat/1.png", "train/dog/2.png", f"{held_out}/cat/3.png"]
    if kind == "folder":
        source = opened(fill(tmp_path / "set", *names))
    else:
        source = opened(packed(tmp_path / "set.zip", [(name, png()) for name in names]))
    assert listed(source) == ["1.png", "2.png"]
    assert source.class_names == ("cat", "dog")
    assert any("only train/ is used" in note and f"{held_out}/" in note for note in source.notes)


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_test_images_are_those_held_out(tmp_path, kind):
    names = ["train/cat/1.png", "train/dog/2.png", "test/cat/3.png", "test/dog/4.png", "val/dog/5.png"]
    if kind == "folder":
        path = fill(tmp_path / "set", *(f"wrapped/{name}" for name in names))
    else:
        path = packed(tmp_path / "set.zip", [(name, png()) for name in names])
    source = opened(path, split="test")
    assert listed(source) == ["3.png", "4.png", "5.png"]
    assert source.class_names == ("cat", "dog")
    assert [source.label(index) for index in range(3)] == [0, 1, 1]
    assert any("train/ and test/ and val/: train/ is left out" in note for note in source.notes)
    assert source.fingerprint() != opened(path).fingerprint()


@pytest.mark.parametrize(
    "names", [("1.png",), ("cat/1.png", "dog/2.png"), ("train/1.png", "plane/1.png"), ("test/1.png",)]
)
def test_no_test_images(tmp_path, names):
    fill(tmp_path / "set", *names)
    packed(tmp_path / "set.zip", [(name, png()) for name in names])
    for path in (tmp_path / "set", tmp_path / "set.zip"):
        with pytest.raises(DataError, match=r"no test images.*the split train") as caught:
            opened(path, split="test")
        assert str(path) in str(caught.value)


def test_fingerprints_of_training_are_what_they_were(tmp_path):
    """Others would have every cached set made anew."""
    names = ("train/cat/1.png", "train/dog/2.png", "test/cat/3.png")
    entries = [(name, b"abc" + name.encode()) for name in names]
    fingerprints = {
        packed(tmp_path / "set.zip", entries): "f1996b4d55a30bd7d5f3bcaaba508386",
        "cifar10": "66be4af484778147aa3285f92d7e09df",
        "cifar100": "f2a97defd5a621d8c544003d0ae01ca5",
        "stl10": "b0884aee7c8dbd39275927075efd9f78",
    }
    for source, fingerprint in fingerprints.items():
        assert opened(source).fingerprint() == fingerprint
        assert opened(source, split="test").fingerprint() != fingerprint


def test_train_and_other_classes_are_classes(tmp_path):
    assert opened(fill(tmp_path, "train/1.png", "plane/1.png")).class_names == ("plane", "train")


def test_links_are_followed_but_not_round_in_circles(tmp_path):
    fill(tmp_path / "set", "a/1.png")
    fill(tmp_path / "elsewhere", "2.png")
    (tmp_path / "set" / "b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "a" / "up").symlink_to(tmp_path / "set")
    (tmp_path / "set" / "a" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    assert listed(opened(tmp_path / "set")) == ["1.png", "gone.png", "2.png"]


def test_folder_fingerprint_follows_names_sizes_and_times(tmp_path):
    fill(tmp_path, "1.png", "2.png")
    first = opened(tmp_path).fingerprint()
    assert opened(tmp_path).fingerprint() == first
    fill(tmp_path, "3.png")
    os.utime(tmp_path / "1.png", ns=(1, 1))
    with_third = opened(tmp_path).fingerprint()
    assert with_third != first
    os.utime(tmp_path / "1.png", ns=(2, 2))
    touched = opened(tmp_path).fingerprint()
    assert touched != with_third
    (tmp_path / "3.png").rename(tmp_path / "4.png")
    assert opened(tmp_path).fingerprint() != touched


def test_names_are_made_safe_for_folders_of_runs(tmp_path):
    assert opened(fill(tmp_path / "Müll & Co (final)", "1.png")).name == "M-ll-Co-final"


# --- what is not there, or not a set ----------------------------------------------------------------------


def test_nothing_named():
    with pytest.raises(UsageError, match="--data") as caught:
        open_source(DataConfig())
    assert caught.value.exit_code == 2


def test_missing_path_names_the_closest_sibling(tmp_path):
    fill(tmp_path, "flowers/1.png")
    with pytest.raises(MissingError, match="did you mean 'flowers'") as caught:
        opened(tmp_path / "flower")
    assert caught.value.exit_code == 3


def test_misspelt_name_suggests_the_known_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingError, match="did you mean 'cifar10'"):
        open_source(DataConfig(source="cifar-10"))


def test_a_known_name_wins_over_a_folder_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fill(tmp_path, "shapes/1.png")
    assert len(open_source(DataConfig(source="shapes"))) == 32768
    assert len(open_source(DataConfig(source="./shapes"))) == 1


def test_folder_without_images(tmp_path):
    fill(tmp_path, "a.txt")
    with pytest.raises(DataError, match="no image in") as caught:
        opened(tmp_path)
    assert caught.value.exit_code == 4


def test_suffixes_that_were_left_out_are_named(tmp_path):
    fill(tmp_path, "a.heic", "b.HEIC", "below/c.eps", "README")
    words = "and left out 2 .heic, 1 .*, 1 .*"
    with pytest.raises(DataError, match=words) as caught:
        opened(tmp_path)
    assert "1 .eps" in str(caught.value)
    assert "1 without a suffix" in str(caught.value)
    fill(tmp_path, "d.png")
    (note,) = opened(tmp_path).notes
    assert note.startswith("4 files in")
    assert "2 .heic" in note


def test_single_file_is_no_set(tmp_path):
    fill(tmp_path, "one.png")
    with pytest.raises(DataError, match="single file"):
        opened(tmp_path / "one.png")


# --- zips -------------------------------------------------------------------------------------------------


def test_zip_is_listed_like_a_folder(tmp_path):
    entries = [
        ("dog/2.png", png()),
        ("cat/1.png", png((7, 8, 9))),
        ("__MACOSX/cat/1.png", b""),
        ("cat/", b""),
    ]
    source = opened(packed(tmp_path / "pets.zip", [*entries, ("readme.md", b"hello")]))
    assert source.name == "pets"
    assert source.class_names == ("cat", "dog")
    assert [source.label(index) for index in range(2)] == [0, 1]
    assert source.identify(0) == f"{tmp_path}/pets.zip:cat/1.png"
    assert source.read(0).getpixel((0, 0)) == (7, 8, 9)
    assert any("1 file" in note for note in source.notes)


def test_of_repeated_names_the_last_entry_counts(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate"):
        packed(tmp_path / "twice.zip", [("1.png", png((1, 1, 1))), ("1.png", png((2, 2, 2)))])
    source = opened(tmp_path / "twice.zip")
    assert len(source) == 1
    assert source.read(0).getpixel((0, 0)) == (2, 2, 2)
    assert any("1 image name repeated" in note and "last entry" in note for note in source.notes)


@pytest.mark.parametrize("name", ["/etc/1.png", "../1.png", "a/../../1.png", "..\\1.png", "C:\\1.png"])
def test_names_that_point_outside_are_refused(tmp_path, name):
    with pytest.raises(DataError, match="points outside"):
        opened(packed(tmp_path / "bad.zip", [("ok.png", png()), (name, png())]))


def test_backslashes_separate_folders(tmp_path):
    source = opened(packed(tmp_path / "win.zip", [("cat\\1.png", png()), ("dog\\1.png", png())]))
    assert source.class_names == ("cat", "dog")
    assert source.read(1).size == (8, 8)


def test_zip64_entries_are_read(tmp_path):
    with (
        zipfile.ZipFile(tmp_path / "big.zip", "w") as archive,
        archive.open("1.png", "w", force_zip64=True) as f,
    ):
        f.write(png((3, 4, 5)))
    assert opened(tmp_path / "big.zip").read(0).getpixel((0, 0)) == (3, 4, 5)


def test_zip_without_images(tmp_path):
    with pytest.raises(DataError, match="no image in"):
        opened(packed(tmp_path / "texts.zip", [("a.txt", b"a")]))


def test_damaged_zips_are_refused(tmp_path):
    whole = packed(tmp_path / "whole.zip", [("1.png", png())]).read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[:-30])
    with pytest.raises(DataError, match="cut off"):
        opened(tmp_path / "cut.zip")
    at = whole.index(b"PK\x01\x02")  # start of the directory
    (tmp_path / "directory.zip").write_bytes(whole[:at] + b"XX" + whole[at + 2 :])
    with pytest.raises(DataError, match="damaged zip"):
        opened(tmp_path / "directory.zip")


def test_zip_with_a_password_is_refused(tmp_path):
    content = bytearray(packed(tmp_path / "locked.zip", [("1.png", png())]).read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1  # the flag of an encrypted entry
    (tmp_path / "locked.zip").write_bytes(content)
    with pytest.raises(DataError, match="password"):
        opened(tmp_path / "locked.zip")


def test_zip_fingerprint_follows_content_and_not_the_file(tmp_path):
    first = opened(packed(tmp_path / "a.zip", [("1.png", png((1, 1, 1)))])).fingerprint()
    assert opened(packed(tmp_path / "b.zip", [("1.png", png((1, 1, 1)))])).fingerprint() == first
    assert opened(packed(tmp_path / "c.zip", [("1.png", png((2, 1, 1)))])).fingerprint() != first
    assert opened(packed(tmp_path / "d.zip", [("2.png", png((1, 1, 1)))])).fingerprint() != first
