"""Zips and arrays that are damaged, or would unpack to too much."""

import io
import struct
import zipfile

import numpy as np
import pytest

from gantx.io import archives
from gantx.io.arrays import read_npy, read_npz


def zipped(path, *entries, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return path


def test_an_entry_is_read_up_to_the_limit(tmp_path):
    path = zipped(tmp_path / "x.zip", ("small", b"12345"), ("large", bytes(10_000)))
    with archives.open_zip(path) as archive:
        small, large = archive.infolist()
        assert archives.read_entry(archive, small, 5) == b"12345"
        with pytest.raises(ValueError, match=r"unpacks to 10,000 bytes, more than the 9,999 "):
            archives.read_entry(archive, large, 9_999)


def test_an_entry_that_unpacks_to_more_than_it_says(tmp_path):
    path = zipped(tmp_path / "x.zip", ("large", bytes(10_000)))
    path.write_bytes(path.read_bytes().replace(struct.pack("<I", 10_000), struct.pack("<I", 10)))
    with archives.open_zip(path) as archive, pytest.raises(ValueError, match=r"CRC|more than"):
        archives.read_entry(archive, archive.infolist()[0], 100)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda content: content.replace(b"name", b"\0ame"), "without a name"),
        (lambda content: content[:40], "not a zip"),
        (lambda content: content[:-30] + bytes(8) + content[-22:], r"\w"),
    ],
)
def test_a_damaged_directory(tmp_path, damage, words):
    path = zipped(tmp_path / "x.zip", ("name", b"12345"))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=words):
        archives.open_zip(path)


def test_an_unknown_method(tmp_path):
    path = zipped(tmp_path / "x.zip", ("name", b"12345"), method=zipfile.ZIP_STORED)
    content = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        at = content.index(signature) + offset
        content[at : at + 2] = struct.pack("<H", 99)
    path.write_bytes(content)
    with archives.open_zip(path) as archive, pytest.raises(ValueError, match="compression"):
        archives.read_entry(archive, archive.infolist()[0])


def test_a_name_without_end(tmp_path):
    with pytest.raises(ValueError, match="a name of 1,001 characters"):
        archives.open_zip(zipped(tmp_path / "x.zip", ("x" * 1001, b"")))


def npy(array):
    written = io.BytesIO()
    np.save(written, array)
    return written.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        npy(np.zeros(3)).replace(b"}", b" "),  # numpy's parser raises an error of Python's tokenizer
        npy(np.zeros(3)).replace(b"(3,)", b"(9,)"),
        npy(np.zeros(3))[:-1],
        b"PK\x03\x04" + bytes(30),
        b"\x93NUMPY",
        b"",
    ],
)
def test_a_damaged_array(tmp_path, content):
    (tmp_path / "x.npy").write_bytes(content)
    with pytest.raises(ValueError, match=r"\w"):
        read_npy(tmp_path / "x.npy")


def test_arrays_of_an_npz(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "x.npz", mu=np.arange(3), sigma=np.eye(3))
    mu, sigma = read_npz(tmp_path / "x.npz", "mu", "sigma")
    assert mu.tolist() == [0, 1, 2]
    assert sigma.shape == (3, 3)
    with pytest.raises(ValueError, match="contains no cov"):
        read_npz(tmp_path / "x.npz", "mu", "cov")
    monkeypatch.setattr("gantx.io.arrays.LARGEST_ARRAY", 190)
    with pytest.raises(ValueError, match="more than the 190 that gantx reads"):
        read_npz(tmp_path / "x.npz", "sigma")
