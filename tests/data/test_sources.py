"""What is accepted as a set of images, how it is listed, and what is refused."""

import functools
import hashlib
import http.server
import io
import os
import pickle
import shutil
import tarfile
import threading
import urllib.error
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torchvision.datasets
from PIL import Image

from gantx.config.schema import DataConfig
from gantx.data.sources import open_source
from gantx.errors import DataError, MissingError, UsageError
from gantx.io.cache import cache_folder


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


# --- published sets ---------------------------------------------------------------------------------------


def md5(content):
    return hashlib.md5(content).hexdigest()


class Trap:
    """A pickle of this creates a file when it is opened."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def cifar_files(kind, per_file=3):
    """Files like those of CIFAR, `per_file` images each: name -> pickled bytes."""
    generator = np.random.default_rng(0)
    key = "labels" if kind is torchvision.datasets.CIFAR10 else "fine_labels"
    names = [name for name, _ in (*kind.train_list, *kind.test_list)]
    files = {}
    for name in names:
        pixels = generator.integers(0, 256, (per_file, 3072), dtype=np.uint8)
        files[name] = pickle.dumps({"data": pixels, key: list(range(per_file))})
    files[kind.meta["filename"]] = pickle.dumps({kind.meta["key"]: ["ape", "bee", "cow"]})
    return files


def publish(monkeypatch, kind, files):
    """Make torchvision believe that these files are the published ones; returns their archive."""
    monkeypatch.setattr(kind, "train_list", [[name, md5(files[name])] for name, _ in kind.train_list])
    if all(name in files for name, _ in kind.test_list):
        monkeypatch.setattr(kind, "test_list", [[name, md5(files[name])] for name, _ in kind.test_list])
    if hasattr(kind, "meta"):
        meta = files[kind.meta["filename"]]
        monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": md5(meta)})
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"{kind.base_folder}/{name}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    monkeypatch.setattr(kind, "tgz_md5", md5(archive.getvalue()))
    return archive.getvalue()


@pytest.mark.parametrize(
    ("kind", "name", "count"),
    [(torchvision.datasets.CIFAR10, "cifar10", 15), (torchvision.datasets.CIFAR100, "cifar100", 3)],
)
def test_cifar_archive_and_folder_are_the_same_set(tmp_path, monkeypatch, kind, name, count):
    files = cifar_files(kind)
    (tmp_path / "any-name.tar.gz").write_bytes(publish(monkeypatch, kind, files))
    archive = opened(tmp_path / "any-name.tar.gz")
    folder = tmp_path / kind.base_folder
    folder.mkdir()
    for file, content in files.items():
        (folder / file).write_bytes(content)
    sources = [archive, opened(folder), opened(tmp_path)]
    assert {source.name for source in sources} == {name}
    assert len({source.fingerprint() for source in sources}) == 1
    expected = pickle.loads(files[kind.train_list[0][0]])["data"][1].reshape(3, 32, 32)
    for source in sources:
        assert len(source) == count
        assert source.class_names == ("ape", "bee", "cow")
        assert source.label(2) == 2
        np.testing.assert_array_equal(source.read(1), expected.transpose(1, 2, 0))
    assert [path.name for path in (cache_folder() / "unpacked").iterdir()] == [f"{name}-{kind.tgz_md5[:8]}"]


@pytest.mark.parametrize("kind", [torchvision.datasets.CIFAR10, torchvision.datasets.CIFAR100])
def test_cifar_test_images(tmp_path, monkeypatch, kind):
    files = cifar_files(kind)
    (tmp_path / "any-name.tar.gz").write_bytes(publish(monkeypatch, kind, files))
    archive = opened(tmp_path / "any-name.tar.gz", split="test")
    assert len(archive) == 3
    folder = cache_folder() / "unpacked" / f"{archive.name}-{kind.tgz_md5[:8]}" / kind.base_folder
    expected = pickle.loads(files[kind.test_list[0][0]])["data"].reshape(3, 3, 32, 32).transpose(0, 2, 3, 1)
    for source in (archive, opened(folder, split="test"), opened(folder.parent, split="test")):
        np.testing.assert_array_equal(source.read_run(0, 3), expected)
        assert source.label(2) == 2
        assert source.class_names == ("ape", "bee", "cow")
        assert "test image 1" in source.identify(1)


def test_no_pickle_of_cifar_is_opened_unless_its_digest_is_published(tmp_path, monkeypatch):
    kind = torchvision.datasets.CIFAR10
    files = cifar_files(kind)
    publish(monkeypatch, kind, files)
    folder = tmp_path / kind.base_folder
    folder.mkdir()
    for name in files:
        for file, content in files.items():
            (folder / file).write_bytes(content)
        (folder / name).write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
        with pytest.raises(DataError, match=f"{name} does not have the published MD5") as caught:
            len(opened(folder))
        assert caught.value.exit_code == 4
    assert not (tmp_path / "sprung").exists()
    (folder / name).unlink()
    with pytest.raises(DataError, match=f"{name} is missing"):
        len(opened(folder))
    pickle.loads(pickle.dumps(Trap(tmp_path / "sprung")))
    assert (tmp_path / "sprung").exists()  # the trap works


def test_archive_of_another_digest_is_not_unpacked(tmp_path, monkeypatch):
    kind = torchvision.datasets.CIFAR10
    files = cifar_files(kind)
    files["data_batch_1"] = pickle.dumps(Trap(tmp_path / "sprung"))
    archive = publish(monkeypatch, kind, files)
    (tmp_path / kind.filename).write_bytes(archive + b"\0")
    with pytest.raises(DataError, match=r"not the published archive.*MD5") as caught:
        opened(tmp_path / kind.filename)
    assert caught.value.exit_code == 4
    assert not (cache_folder() / "unpacked").exists()
    assert not (tmp_path / "sprung").exists()


def stl_files():
    generator = np.random.default_rng(0)
    make = lambda count: generator.integers(0, 256, (count, 3, 96, 96), dtype=np.uint8).tobytes()  # noqa: E731
    images = {"train_X.bin": make(2), "unlabeled_X.bin": make(3), "test_X.bin": make(4)}
    return {**images, "train_y.bin": bytes([1, 2]), "test_y.bin": bytes(4)}


def test_stl_is_train_and_unlabeled(tmp_path, monkeypatch):
    kind = torchvision.datasets.STL10
    files = stl_files()
    (tmp_path / "stl.tgz").write_bytes(publish(monkeypatch, kind, files))
    source = opened(tmp_path / "stl.tgz")
    assert (source.name, len(source), source.class_names, source.label(0)) == ("stl10", 5, (), None)
    run = source.read_run(1, 4)  # across both files
    assert run.shape == (3, 96, 96, 3)
    train = np.frombuffer(files["train_X.bin"], np.uint8).reshape(2, 3, 96, 96)
    unlabeled = np.frombuffer(files["unlabeled_X.bin"], np.uint8).reshape(3, 3, 96, 96)
    np.testing.assert_array_equal(run[0], train[1].transpose(2, 1, 0))  # stored column by column
    np.testing.assert_array_equal(run[2], unlabeled[1].transpose(2, 1, 0))
    np.testing.assert_array_equal(source.read(4), unlabeled[2].transpose(2, 1, 0))


def test_stl_test_images(tmp_path, monkeypatch):
    files = stl_files()
    (tmp_path / "stl.tgz").write_bytes(publish(monkeypatch, torchvision.datasets.STL10, files))
    source = opened(tmp_path / "stl.tgz", split="test")
    assert (len(source), source.class_names, source.label(0)) == (4, (), None)
    expected = np.frombuffer(files["test_X.bin"], np.uint8).reshape(4, 3, 96, 96).transpose(0, 3, 2, 1)
    np.testing.assert_array_equal(source.read_run(0, 4), expected)


def test_stl_of_another_digest(tmp_path, monkeypatch):
    files = stl_files()
    publish(monkeypatch, torchvision.datasets.STL10, files)
    fill(tmp_path, "stl10_binary/readme.txt")
    for name, content in files.items():
        (tmp_path / "stl10_binary" / name).write_bytes(content[:-1] + b"!")
    with pytest.raises(DataError, match=r"train_X\.bin does not have the published MD5"):
        len(opened(tmp_path))


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "stl10"])
def test_download_without_network_says_what_to_do_instead(name):
    with pytest.raises(MissingError, match=r"cannot download .* give its path to --data") as caught:
        len(open_source(DataConfig(source=name)))
    assert caught.value.exit_code == 3
    assert list((cache_folder() / "downloads").iterdir()) == []


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A web server on this machine that serves tmp_path; gives its address."""
    monkeypatch.setenv("no_proxy", "*")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = functools.partial(Quiet, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_download_is_kept_and_verified(tmp_path, monkeypatch, served):
    kind = torchvision.datasets.CIFAR10
    archive = publish(monkeypatch, kind, cifar_files(kind))
    monkeypatch.setattr(kind, "url", f"{served}/{kind.filename}")
    (tmp_path / kind.filename).write_bytes(archive[:-1])
    with pytest.raises(MissingError, match="cannot download"):
        len(open_source(DataConfig(source="cifar10")))
    assert list((cache_folder() / "downloads").iterdir()) == []
    (tmp_path / kind.filename).write_bytes(archive)
    seen = []
    assert len(open_source(DataConfig(source="cifar10"), lambda *numbers: seen.append(numbers))) == 15
    assert seen[-1] == (len(archive), len(archive))
    (tmp_path / kind.filename).unlink()
    assert len(open_source(DataConfig(source="cifar10"))) == 15  # from what was unpacked
    shutil.rmtree(cache_folder() / "unpacked")
    assert len(open_source(DataConfig(source="cifar10"))) == 15  # from the archive that was kept


def test_download_error_is_one_plain_sentence(monkeypatch):
    def refuse(*args, **kwargs):
        raise urllib.error.URLError(OSError("Name or service\nnot known"))

    monkeypatch.setattr("gantx.data.downloads.urlopen", refuse)
    with pytest.raises(MissingError) as caught:
        len(open_source(DataConfig(source="cifar10")))
    assert "\n" not in str(caught.value)
    assert "(Name or service not known)" in str(caught.value)
