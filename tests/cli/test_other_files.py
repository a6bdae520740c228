"""A file that is no checkpoint, where each command expects one."""

import pytest
import torch
from helpers.small_run import SMALL
from typer.testing import CliRunner

from gantx import checkpoint
from gantx.cli import app
from gantx.config import presets
from gantx.training.state import TrainingState


def fails(code, words, *arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    assert words in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "`git lfs pull`"),
        ("a.safetensors", b"<!DOCTYPE html>", "is a web page"),
        ("a.safetensors", b"", "is empty"),
        ("a.pth", b"\x80\x02}q\x00.", "gantx import"),
    ],
)
def test_every_command_says_what_the_file_is(tmp_path, name, content, words):
    path = tmp_path / name
    path.write_bytes(content)
    for command in (
        ["info"],
        ["sample", "-o", tmp_path / "g.png"],
        ["eval"],
        ["export", "-o", tmp_path / "m.onnx"],
    ):
        fails(4, words, command[0], path, *command[1:])
    fails(2, words, "train", "--resume", path)
    assert list(tmp_path.iterdir()) == [path]


def test_a_cut_off_checkpoint_names_the_one_before(tmp_path):
    state = TrainingState(presets.load(overrides=SMALL), torch.device("cpu"))
    for images in (0, 1000):
        state.save(
            tmp_path / "checkpoints" / checkpoint.checkpoint_name(images),
            {"name": "shapes", "digest": "", "images": 9},
        )
    older, newest = checkpoint.all_in(tmp_path / "checkpoints")
    whole = newest.read_bytes()
    newest.write_bytes(whole[:-100])
    words = f"is cut off: {len(whole) - 100:,} of {len(whole):,} bytes; the checkpoint before is {older}"
    fails(4, words, "info", tmp_path)
    fails(4, words, "sample", tmp_path, "-o", tmp_path / "g.png")
