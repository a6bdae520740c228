"""What pickles and files of torch.save announce is compared with what they hold, before they are opened."""

import io
import pickle
import struct
import zipfile

import pytest
import torch

from gantx.io import torch_files
from gantx.io.pickles import check_pickle

NESTED = b"\x80\x04)q\x00" + b"".join(b"h%ch%c\x86q%c" % (i, i, i + 1) for i in range(60)) + b"}h<Ns."


@pytest.mark.parametrize("protocol", range(6))
def test_whole_pickles_pass(protocol):
    content = pickle.dumps({"a": [1, 2.5, 10**30], "b": ("x", {3: b"y" * 300}), "c": {1, 2}}, protocol)
    assert check_pickle(b"12" + content + b"rest", 2) == 2 + len(content)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\x80\x04N\x72" + struct.pack("<I", 40_000_000) + b".", "numbers more objects"),
        (b"\x80\x04\x8e" + struct.pack("<Q", 671_000_000) + b".", "announces 671,000,000 bytes where"),
        (NESTED, "contain one another too often"),
        (b"\x80\x04" + b")" + b"\x85" * 5000 + b".", "too deep"),
        (b"\x80\x04N", "cut off"),
        (b"\x80\x04h\x07.", "not there"),
        (b"\x80\x04\x86.", "missing"),
        (b"\xff", "no instruction"),
    ],
)
def test_what_a_pickle_cannot_hold(content, words):
    with pytest.raises(ValueError, match=words):
        check_pickle(content)


def saved(content, zipped=True):
    written = io.BytesIO()
    torch.save(content, written, _use_new_zipfile_serialization=zipped)
    return written


@pytest.mark.parametrize("zipped", [True, False])
def test_files_of_torch(zipped):
    shared = torch.arange(6.0)
    found = torch_files.load_stream(saved({"a": shared, "b": shared[2:]}, zipped))
    assert found["b"].tolist() == [2, 3, 4, 5]
    with pytest.raises(ValueError, match=r"announces tensors of more than 40,000,000,000 bytes in"):
        torch_files.load_stream(saved({"a": torch.zeros(10).expand(10**9, 10)}, zipped))


def test_a_weight_that_is_compressed(monkeypatch):
    monkeypatch.setattr("gantx.io.pickles.ALLOWANCE", 2**20)
    packed = io.BytesIO()
    with (
        zipfile.ZipFile(saved({"a": torch.zeros(3_000_000)})) as source,
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        for entry in source.infolist():
            archive.writestr(entry.filename, source.read(entry))
    with pytest.raises(ValueError, match=r"bytes that unpack to 12,000,"):
        torch_files.load_stream(packed)
