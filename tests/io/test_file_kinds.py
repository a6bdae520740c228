"""What a file is that cannot be read as a checkpoint."""

import io
import pickle

import pytest
import torch
from safetensors.torch import save_file

from gantx.io.file_kinds import recognized


def torch_file(legacy):
    buffer = io.BytesIO()
    torch.save({"a": torch.ones(2)}, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "`git lfs pull`"),
        (b"\n<!DOCTYPE html><html>404</html>", "is a web page"),
        (b"<html><body>sign in</body></html>", "is a web page"),
        (pickle.dumps({"a": 1}), "gantx import"),
        (torch_file(legacy=False), "is a PyTorch checkpoint"),
        (torch_file(legacy=True), "gantx import"),
        (torch_file(legacy=False)[:300], "cut off or damaged"),
        (b"\x89PNG\r\n\x1a\n" + bytes(99), "is a picture, not a checkpoint"),
    ],
)
def test_other_files_are_named_with_advice(tmp_path, content, words):
    (tmp_path / "file").write_bytes(content)
    assert words in recognized(tmp_path / "file")


def test_a_cut_off_file_tells_its_size_and_that_of_the_whole(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.ones(100)}, path)
    whole = path.read_bytes()
    assert recognized(path) is None
    path.write_bytes(whole[:-1])
    assert recognized(path) == f"is cut off: {len(whole) - 1} of {len(whole)} bytes"
    path.write_bytes(whole[:20])
    assert "is cut off in its header: 20 bytes" in recognized(path)


@pytest.mark.parametrize(
    "content",
    [
        b"noise",
        b"\x02" + bytes(7) + b"{}",
        b"\x03" + bytes(7) + b"{]}",
        b"\x02" + bytes(7) + b"[]",
        b"\xff" * 40,
        bytes(40),
        b"\x09" + bytes(7) + b'{"a":"b"}',
    ],
)
def test_unknown_files_are_left_to_the_caller(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    assert recognized(tmp_path / "file") is None
    assert recognized(tmp_path / "absent") is None
