"""A wrong command is answered before torch is imported, which takes seconds."""

import json
import os
import subprocess
import sys

import pytest

# A command, its exit code, and words of its message. The folder `images` has a file `cat.png`.
CASES = [
    ("train --preset nosuch --data images", 2, "no preset named 'nosuch'"),
    ("train --preset transgan-tiny --data nowhere", 3, "there is no data at nowhere"),
    ("train --preset transgan-tiny", 2, "no data"),
    ("train --data images", 2, "no recipe"),
    ("train --preset transgan-tiny --data images training.bach=3", 2, "unknown key 'training.bach'"),
    ("train --preset transgan-tiny --data images --kimg -1", 2, "kimg"),
    ("train --preset transgan-tiny --data images --device gpu", 2, "unknown device 'gpu'"),
    ("train --preset transgan-tiny --data images --max-time soon", 2, "--max-time"),
    ("train --preset transgan-tiny --data images --out images", 2, "already exists and is not empty"),
    ("train --preset transgan-tiny --data images --runs images/cat.png", 2, "cat.png is a file"),
    ("train --preset transgan-tiny --data images --out images/cat.png/run", 2, "cat.png is a file"),
    ("train --resume nowhere", 3, "nowhere is not a run"),
    ("sample nowhere", 3, "no such checkpoint or run: nowhere"),
    ("sample images/cat.png", 4, "cat.png"),
    ("sample nowhere -o grid.bmp", 2, "cannot write '.bmp' files"),
    ("sample nowhere -o missing/grid.png", 3, "make the folder missing first"),
    ("sample nowhere -o images/cat.png/grid.png", 3, "images/cat.png is a file, not a folder"),
    ("sample nowhere --seeds one", 2, "seeds 'one'"),
    ("sample nowhere --device cuda:x", 2, "unknown device 'cuda:x'"),
    ("sample nowhere --weights best", 2, "no weights 'best'"),
    ("sample nowhere -n 0", 2, "give 1 or more"),
    ("sample nowhere --latents nowhere.npy", 3, "nowhere.npy"),
    ("sample nowhere --truncation-cutoff 2", 2, "cutoff"),
    ("interpolate nowhere", 3, "no such checkpoint or run: nowhere"),
    ("interpolate nowhere -o walk.avi", 2, "cannot write '.avi' files"),
    ("interpolate nowhere --seeds 1-", 2, "seeds '1-'"),
    ("mix nowhere --layers 0-3", 3, "no such checkpoint or run: nowhere"),
    ("mix nowhere --layers x", 2, "seeds 'x'"),
    ("attend nowhere", 3, "no such checkpoint or run: nowhere"),
    ("attend nowhere -o missing/maps.png", 3, "make the folder missing first"),
    ("project images/cat.png nowhere", 3, "no such checkpoint or run: nowhere"),
    ("project nowhere.png nowhere", 3, "there is no image at nowhere.png"),
    ("export nowhere -o model.onnx", 3, "no such checkpoint or run: nowhere"),
    ("export nowhere -o model.tflite", 2, "cannot export to 'model.tflite'"),
    ("export nowhere -o model.onnx --pixels float16", 2, "no pixels 'float16'"),
    ("export nowhere -o missing/model.onnx", 3, "make the folder missing first"),
    ("import nowhere.pth --preset transgan2-cifar10 -o g.safetensors", 3, "nowhere.pth"),
    ("import images/cat.png --preset nosuch -o g.safetensors", 2, "no preset named 'nosuch'"),
    ("import images/cat.png --preset transgan2-cifar10 -o missing/g.safetensors", 3, "folder missing first"),
    ("info nowhere", 3, "no such checkpoint or run: nowhere"),
    ("eval nowhere", 3, "there is no run, checkpoint or set of images at nowhere"),
    ("eval", 3, "no run with a checkpoint"),
    ("eval images --metric fod", 2, "no metric 'fod' (did you mean 'fid'?)"),
    ("eval images --protocol clean", 2, "clean-50k"),
    ("eval images --features nowhere.onnx", 3, "there is no feature network at nowhere.onnx"),
    ("eval images --reference nowhere.safetensors", 3, "nowhere.safetensors"),
    ("eval images --data nowhere", 3, "there is no data at nowhere"),
    ("eval images --data images --junit missing/out.xml", 3, "make the folder missing first"),
    ("eval images --data images --fail-above fid", 2, "fid"),
    ("stats nowhere --resolution 32 -o s.safetensors", 3, "there is no data at nowhere"),
    ("stats images --resolution 32 -o missing/s.safetensors", 3, "make the folder missing first"),
    ("stats images --resolution 32 -o s.npz", 2, "statistics are a .safetensors file"),
    ("bench train --preset nosuch", 2, "no preset named 'nosuch'"),
    ("bench sample --preset transgan-tiny --device tpu", 2, "unknown device 'tpu'"),
    ("assets fetch incepton", 2, "inception"),
    ("presets show nosuch", 2, "no preset named 'nosuch'"),
    ("presets cp transgan-tiny missing/mine.yaml", 3, "make the folder missing first"),
    ("data check nowhere", 3, "there is no data at nowhere"),
    ("data preview images --preset transgan-tiny -o missing/seen.png", 3, "make the folder missing first"),
    ("trian", 2, "train"),
]

SCRIPT = """
import importlib.abc, json, sys
from typer.testing import CliRunner

class Refused(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise AssertionError("torch is imported")

sys.meta_path.insert(0, Refused())
from gantx.cli import app

answers = {}
for command in json.load(sys.stdin):
    result = CliRunner().invoke(app, command.split())
    answers[command] = result.exit_code, result.output
json.dump(answers, sys.stdout)
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("usage")
    (folder / "images").mkdir()
    (folder / "images" / "cat.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        input=json.dumps([command for command, _, _ in CASES]),
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout) | {"left": sorted(path.name for path in folder.iterdir())}


@pytest.mark.parametrize(("command", "code", "words"), CASES)
def test_a_wrong_command_is_answered_without_torch(answers, command, code, words):
    exit_code, output = answers[command]
    assert words in " ".join(output.split())
    assert exit_code == code


def test_a_wrong_command_makes_no_file(answers):
    assert answers["left"] == ["images"]
