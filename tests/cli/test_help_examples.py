"""Every example in the help of the commands that take a checkpoint runs, in order, on the demo."""

import importlib
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gantx import checkpoint
from gantx.cli import app

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


@pytest.mark.parametrize("module", MODULES)
def test_every_example_runs_on_the_demo(module, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GANTX_CACHE", str(tmp_path / "cache"))
    lines = examples(module)
    assert lines
    for line in map(shortened, lines):
        if "--format web" in line:
            continue  # downloads a runtime; tests/exporting/test_export_page.py has one of its own
        if "--features" in line:
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
