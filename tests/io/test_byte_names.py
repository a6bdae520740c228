"""File names that are not UTF-8: every command reads and writes them."""

import os
import sys
from pathlib import Path

import pytest
import torch
from helpers.small_run import SMALL
from PIL import Image
from typer.testing import CliRunner

import gantx
from gantx.cli import app
from gantx.exporting import export
from gantx.io.atomic import replacing
from gantx.io.byte_names import utf8_name, utf8_path

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="names are bytes on Linux only")


def named(folder, name):
    return folder / os.fsdecode(name)


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def succeed(*arguments):
    result = run(*arguments)
    assert result.exit_code == 0, result.output.encode(errors="replace")
    return result.stdout_bytes


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on a folder of images, with no name in UTF-8."""
    folder = tmp_path_factory.mktemp("names")
    data = named(folder, b"\xe4pfel")
    data.mkdir()
    for index in range(9):
        Image.new("RGB", (8, 8), (20 * index, 40, 90)).save(named(data, b"\xe9%d.png" % index))
    settings = named(folder, b"\xe9.yaml")
    settings.write_text("name: small\n")
    out = named(folder, b"l\xe4uf")
    words = ("train", "--config", settings, "--data", data, "--out", out, "--device", "cpu")
    assert b"l\xe4uf" in succeed(*words, *SMALL, "training.kimg=0.008")
    return out


def test_a_run_trains_and_resumes(trained, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gantx", "train", "--resume", str(trained)])
    succeed("train", "--resume", trained, "--kimg", "0.016")
    assert b"l\xe4uf" in (trained / "command.txt").read_bytes()
    assert b"resuming" in (trained / "train.log").read_bytes()
    assert rb"l\udce4uf/checkpoints/" in succeed("info", trained)  # escaped for terminals


def test_pictures_and_checkpoints_are_written_and_read(trained, tmp_path):
    images = gantx.load(trained, device="cpu").sample(4)
    for suffix in (b"png", b"zip", b"npy", b"gif"):
        command = "interpolate" if suffix == b"gif" else "sample"
        succeed(
            command,
            trained,
            *(["-n", 4] if command == "sample" else []),
            "-o",
            named(tmp_path, b"\xf6." + suffix),
        )
    succeed("sample", "--from", named(tmp_path, b"\xf6.zip"), trained)
    exported = named(tmp_path, b"m\xe9.safetensors")
    succeed("export", trained, "-o", exported)
    assert torch.equal(gantx.load(exported, device="cpu").sample(4), images)


def test_an_export_is_made_in_a_folder_with_a_utf8_path(tmp_path):
    """torch.export and onnxruntime accept no other."""
    with export._aside(named(tmp_path, b"m\xe9.pt2")) as scratch:
        str(scratch).encode()
        assert scratch.is_dir()
    assert list(tmp_path.iterdir()) == []


def test_a_usual_name_stays(tmp_path):
    with utf8_path(tmp_path / "ä") as path:
        assert path == tmp_path / "ä"
    assert utf8_name("ä") == "ä"


def test_a_temporary_name_is_utf8(tmp_path):
    folder = named(tmp_path, b"l\xe4uf")
    with replacing(named(folder, b"\xe9")) as beside:
        str(beside).encode()
        beside.write_text("x")
    assert [os.fsencode(path.name) for path in Path(folder).iterdir()] == [b"\xe9"]
