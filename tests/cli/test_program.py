"""The program as a whole: quick, torch-free help and documented exit codes."""

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

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


def test_a_lack_of_memory_is_no_bug(monkeypatch):
    from gantx.config import presets

    monkeypatch.setattr(presets, "preset_names", lambda: bytearray(1 << 62))
    result = run("presets", "ls")
    assert result.exit_code == 3
    assert "error: this command needs more memory than it gets here" in result.output


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


def test_a_stopping_signal_ends_with_75(monkeypatch):
    from gantx.config import presets

    monkeypatch.setattr(presets, "preset_names", lambda: signal.raise_signal(signal.SIGTERM))
    result = run("presets", "ls")
    assert result.exit_code == 75
    assert "stopped; complete files stay" in result.stderr


def shell(line):
    """Run a line in which `gantx` is this program; its exit code is that of gantx."""
    return subprocess.run(
        ["bash", "-c", f'gantx() {{ "{sys.executable}" -m gantx "$@"; }}; {line}'],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ("gantx presets ls >/dev/full", 3, "error: cannot write to standard output: No space left on device"),
        ("gantx --help >/dev/full", 3, "error: cannot write the answer: No space left on device"),
        ("gantx trian 2>/dev/full", 3, ""),
        ("gantx presets show transgan-x 2>/dev/full", 2, ""),
        ("gantx presets ls >&- 2>&- <&-", 0, ""),
        ("gantx presets ls | head -1 >/dev/null; exit ${PIPESTATUS[0]}", 0, ""),
        ("gantx --help | true; exit ${PIPESTATUS[0]}", 0, ""),
    ],
)
def test_an_output_that_is_full_closed_or_not_read(line, code, said):
    result = shell(line)
    assert result.returncode == code, result.stderr
    assert said in result.stderr
    for word in ("Traceback", "bug", "Exception ignored"):
        assert word not in result.stderr


def test_a_signal_during_the_start_leaves_without_a_traceback():
    """The importer of typer stands for any moment of the imports."""
    script = (
        "import os, signal, sys\n"
        "from gantx.__main__ import main\n"
        "class Finder:\n"
        "    def find_spec(name, *rest):\n"
        "        if name == 'typer':\n"
        "            signal.raise_signal(int(sys.argv[1]))\n"
        "sys.meta_path.insert(0, Finder)\n"
        "main()\n"
    )
    for number, code in ((signal.SIGTERM, 75), (signal.SIGINT, 130)):
        result = subprocess.run(
            [sys.executable, "-c", script, str(int(number))],
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == code
        assert result.stderr == "stopped before anything was done\n"


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
