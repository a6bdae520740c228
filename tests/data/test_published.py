"""Published sets: what is read from archives, folders and downloads; nothing unverified is opened."""

import functools
import hashlib
import http.server
import io
import pickle
import shutil
import tarfile
import threading
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torchvision.datasets

from gantx.config.schema import DataConfig
from gantx.data.sources import open_source
from gantx.errors import DataError, MissingError
from gantx.io.cache import cache_folder


def opened(path, **settings):
    return open_source(DataConfig(source=str(path), **settings))


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
        np.testing.assert_array_equal(source.read_range(0, 3), expected)
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
    run = source.read_range(1, 4)  # across both files
    assert run.shape == (3, 96, 96, 3)
    train = np.frombuffer(files["train_X.bin"], np.uint8).reshape(2, 3, 96, 96)
    unlabeled = np.frombuffer(files["unlabeled_X.bin"], np.uint8).reshape(3, 3, 96, 96)
    np.testing.assert_array_equal(run[0], train[1].transpose(2, 1, 0))  # stored column by column
    np.testing.assert_array_equal(run[2], unlabeled[1].transpose(2, 1, 0))
    np.testing.assert_array_equal(source.read(4), unlabeled[2].transpose(2, 1, 0))


@pytest.mark.parametrize(("split", "labels"), [("train", [0, 1]), ("test", [8, 9, 0, 1])])
def test_the_labelled_part_of_stl(split, labels, tmp_path, monkeypatch):
    files = {**stl_files(), "test_y.bin": bytes([9, 10, 1, 2])}
    (tmp_path / "stl.tgz").write_bytes(publish(monkeypatch, torchvision.datasets.STL10, files))
    settings = DataConfig(source=str(tmp_path / "stl.tgz"), split=split)
    source = open_source(settings, labelled=True)
    assert source.fingerprint() != open_source(settings).fingerprint()
    assert [source.label(index) for index in range(len(source))] == labels
    assert source.class_names[8:] == ("ship", "truck")
    assert source.read(1).shape == (96, 96, 3)


def test_stl_test_images(tmp_path, monkeypatch):
    files = stl_files()
    (tmp_path / "stl.tgz").write_bytes(publish(monkeypatch, torchvision.datasets.STL10, files))
    source = opened(tmp_path / "stl.tgz", split="test")
    assert (len(source), source.class_names, source.label(0)) == (4, (), None)
    expected = np.frombuffer(files["test_X.bin"], np.uint8).reshape(4, 3, 96, 96).transpose(0, 3, 2, 1)
    np.testing.assert_array_equal(source.read_range(0, 4), expected)


def test_stl_of_another_digest(tmp_path, monkeypatch):
    files = stl_files()
    publish(monkeypatch, torchvision.datasets.STL10, files)
    (tmp_path / "stl10_binary").mkdir()
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
