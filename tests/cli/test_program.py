"""The program as a whole: quick, torch-free help and documented exit codes."""

import json
import os
import resource
import subprocess
import sys

import pytest
from typer.testing import CliRunner

import gantx
from gantx.cli import app

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def cpu_seconds_of_children():
    """What a quiet machine would show on its clock, whatever else this one does."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_help_is_instant_and_loads_no_torch():
    script = (
        "import sys\n"
        "from gantx.cli import app\n"
        "try:\n    app(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'torchvision', 'numpy', 'PIL'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)\n"
    )
    times = []
    for _ in range(3):
        start = cpu_seconds_of_children()
        result = subprocess.run(
            [sys.executable, "-c", script], env=ENVIRONMENT, capture_output=True, text=True, check=False
        )
        times.append(cpu_seconds_of_children() - start)
        assert result.returncode == 0, result.stderr
        assert "train" in result.stdout
    assert min(times) < 0.5, times


def test_version():
    assert run("--version").output.strip() == f"gantx {gantx.__version__}"


def test_an_unknown_command_is_a_usage_error():
    result = run("trian")
    assert result.exit_code == 2
    assert "train" in result.output


@pytest.mark.parametrize(
    "command",
    [
        "train",
        "sample",
        "eval",
        "interpolate",
        "stats",
        "assets",
        "import",
        "mix",
        "project",
        "info",
        "presets",
    ],
)
def test_every_command_explains_itself(command):
    result = run(command, "--help")
    assert result.exit_code == 0
    assert "Usage" in result.output


def test_a_bug_is_reported_as_one_without_a_traceback(monkeypatch):
    from gantx.config import presets

    monkeypatch.setattr(presets, "preset_names", lambda: 1 / 0)
    result = run("presets", "ls")
    assert result.exit_code == 70
    assert "this is a bug in gantx: ZeroDivisionError" in result.output
    assert "Traceback" not in result.output
    monkeypatch.setenv("GANTX_DEBUG", "1")
    assert "Traceback" in run("presets", "ls").output


def test_ctrl_c_ends_with_130(monkeypatch):
    from gantx.config import presets

    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(presets, "preset_names", interrupted)
    assert run("presets", "ls").exit_code == 130


def test_presets_ls_shows_and_copies(tmp_path):
    assert "transgan-tiny" in run("presets", "ls").output
    document = json.loads(run("presets", "ls", "--json").output)
    assert document["schema"] == "gantx.presets/1"
    assert "transgan-s" in [row["name"] for row in document["presets"]]
    assert "# " in run("presets", "show", "transgan-s").output
    copy = run("presets", "cp", "transgan-s", tmp_path)
    assert copy.output.strip().endswith("transgan-s.yaml")
    again = run("presets", "cp", "transgan-s", tmp_path)
    assert again.exit_code == 2
    assert "already exists" in again.output


def test_an_unknown_preset_names_the_closest():
    result = run("presets", "show", "transgan-x")
    assert result.exit_code == 2
    assert "did you mean 'transgan-xl'" in result.output
