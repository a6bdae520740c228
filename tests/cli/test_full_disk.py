"""A disk that fills up while a command writes: one sentence, exit code 3, nothing unfinished left."""

import contextlib

import numpy as np
import pytest
from helpers.styled_networks import save_styled
from PIL import Image
from typer.testing import CliRunner

from gantx.cli import app

resource = pytest.importorskip("resource")

ROOM = 200  # bytes of one file


@contextlib.contextmanager
def full_disk():
    """A limit on the size of files stands in for the disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A model and a folder of images."""
    folder = tmp_path_factory.mktemp("inputs")
    save_styled(folder / "run" / "checkpoints", "ganformer")
    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    for number in range(20):
        pixels = rng.integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number:02}.png")
    return folder


COMMANDS = [
    "sample RUN -n 4 -o OUT/grid.png",
    "sample RUN -n 4 -o OUT/all.npy",
    "sample RUN -n 4 -o OUT/all.zip",
    "sample RUN -n 4 -o OUT/folder",
    "interpolate RUN --seeds 1,2 --frames 3 -o OUT/walk.gif",
    "interpolate RUN --seeds 1,2 --frames 3 -o OUT/walk.mp4",
    "interpolate RUN --seeds 1,2 --frames 3 -o OUT/frames",
    "mix RUN -o OUT/mix.png",
    "attend RUN -o OUT/maps",
    "export RUN -o OUT/g.safetensors",
    "export RUN -o OUT/hub --format hf",
    "presets cp ganformer-tiny OUT/mine.yaml",
    *(
        pytest.param(command, marks=pytest.mark.slow)
        for command in (
            "interpolate RUN --seeds 1,2 --frames 3 -o OUT/walk.webp",
            "attend RUN -o OUT/maps.png",
            "project IMAGES/00.png RUN --steps 1 --starts 1 -o OUT/projection.png",
            "export RUN -o OUT/g.pt2",
            "export RUN -o OUT/g.onnx",
        )
    ),
]
AFTER_PREPARING = [
    "stats IMAGES --resolution 16 --features random -o OUT/s.safetensors",
    "eval IMAGES --data IMAGES --features random --metric fid -o OUT/e.json",
    "eval IMAGES --data IMAGES --features random --metric fid --junit OUT/e.xml",
    "data preview shapes --preset vitgan-tiny --set data.shapes.count=100 -o OUT/preview.png",
]


def run(command, inputs, out):
    for name, path in {"RUN": inputs / "run", "IMAGES": inputs / "images", "OUT": out}.items():
        command = command.replace(name, str(path))
    return CliRunner().invoke(app, command.split())


def fails(result, out):
    assert result.exit_code == 3, result.output
    assert "cannot write" in result.stderr, result.stderr
    assert not [path for path in out.rglob("*") if path.is_file() or path.name.startswith(".")]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_output(inputs, tmp_path, command):
    with full_disk():
        result = run(command, inputs, tmp_path)
    fails(result, tmp_path)


@pytest.mark.parametrize("command", AFTER_PREPARING)
def test_every_output_after_what_is_cached(inputs, tmp_path, command):
    (tmp_path / "before").mkdir()
    assert run(command, inputs, tmp_path / "before").exit_code == 0
    (tmp_path / "after").mkdir()
    with full_disk():
        result = run(command, inputs, tmp_path / "after")
    fails(result, tmp_path / "after")


def test_bad_images_are_named_without_room_for_their_list(tmp_path):
    for number in range(40):
        (tmp_path / f"{number:02}.png").write_bytes(b"no image")
    command = f"train --preset vitgan-tiny --data {tmp_path} --runs {tmp_path / 'runs'} --device cpu"
    with full_disk():
        result = CliRunner().invoke(app, command.split())
    assert result.exit_code == 4
    said = " ".join(result.stderr.split())
    assert "cannot use 40 of 40 images: " in said
    assert "00.png" in said
    assert "all in" not in said
