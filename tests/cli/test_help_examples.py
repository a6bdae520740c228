"""Every example in the help of the commands that take a checkpoint runs, in order.

They are about the demo; RUN stands for a conditional run with the classes cat and dog.
"""

import importlib
import re
import shlex
from pathlib import Path

import pytest
from helpers.styled_networks import SECTIONS
from PIL import Image
from typer.testing import CliRunner

from gantx import checkpoint, models
from gantx.cli import app
from gantx.config import presets

MODULES = ("info", "sample", "interpolate", "mix", "attend", "project", "export", "evaluate")
# What makes an example quick; the rest of it is run as it stands.
SMALLER = {
    "-n 50000": "-n 8",
    "-n 1000": "-n 12",
    "--num 1000": "--num 12",
    "0-999": "0-9",
    "--frames 600": "--frames 4",
    "--seeds 0-31": "--seeds 0-15",
}
QUICK = {
    "interpolate demo --seeds 1,5,9 --loop": "--frames 6",
    "interpolate demo --seeds 7": "--frames 4",
    "project": "--steps 4",
    "eval demo --metric modes": "--num 50",
    "attend demo --seeds 0-7": "--seeds 0-1",
    "interpolate RUN": "--frames 4",
    "eval RUN": "--metric kid --features random --num 24",
}


def examples(module):
    """The command lines in the docstring of a command, without `gantx`."""
    command = getattr(importlib.import_module(f"gantx.cli.{module}"), module)
    return re.findall(r"^ +gantx (.+)$", command.__doc__, re.MULTILINE)


def shortened(line):
    """The same with less work, and without what only a shell understands."""
    line = line.partition(" > ")[0]
    for long, short in SMALLER.items():
        line = line.replace(long, short)
    return " ".join([line, *(more for start, more in QUICK.items() if line.startswith(start))])


def conditional_run(folder):
    """An untrained run of the classes cat and dog, with its data."""
    for label, name in enumerate(("cat", "dog")):
        (folder / "pets" / name).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (16, 16), (99 * label, number, 0)).save(folder / "pets" / name / f"{number}.png")
    classes = {"classes": 2, "names": ["cat", "dog"], "counts": [3, 3]}
    section = SECTIONS["stylegan2"].model_copy(update={"classes": 2})
    given = {"data.source": str(folder / "pets"), "conditioning": classes}
    tree = presets.load("transgan-tiny", settings=given).model_dump(mode="json")
    tree |= {"generator": section.model_dump(mode="json")}
    tree["data"]["resolution"] = tree["discriminator"]["resolution"] = section.resolution
    path = folder / "RUN" / "checkpoints" / checkpoint.checkpoint_name(0)
    path.parent.mkdir(parents=True)
    network = models.build(section).state_dict()
    tensors = {f"generator_ema.{name}": value for name, value in network.items()}
    checkpoint.write(path, tensors, config=presets.validate(tree), progress={"images": 0}, data={})


@pytest.mark.parametrize("module", MODULES)
def test_every_example_runs_on_the_demo(module, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GANTX_CACHE", str(tmp_path / "cache"))
    lines = examples(module)
    assert lines
    if any(" RUN" in line for line in lines):
        conditional_run(tmp_path)
    for line in map(shortened, lines):
        if "--format web" in line:
            continue  # downloads a runtime; tests/exporting/test_export_page.py has one of its own
        if "--features" in line and "RUN" not in line:
            continue  # computes statistics of all 32,768 real images; tests/cli/test_cli_eval.py has fewer
        if "model.onnx" in line:
            pytest.importorskip("onnxscript", reason="comes with gantx[onnx]")
        result = CliRunner().invoke(app, shlex.split(line))
        # A gate may fail with this few images.
        assert result.exit_code in ((0, 1) if "--fail-" in line else (0,)), (line, result.output)


def test_a_path_of_this_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert checkpoint.find(Path("demo")) == checkpoint.DEMO
    (tmp_path / "demo").write_bytes(checkpoint.DEMO.read_bytes())
    assert checkpoint.find(Path("demo")) == Path("demo")


def test_the_demo_is_small_and_holds_nothing_but_the_average():
    assert checkpoint.DEMO.stat().st_size < 3e6
    assert set(checkpoint.read_header(checkpoint.DEMO).digests) == {"generator_ema"}
