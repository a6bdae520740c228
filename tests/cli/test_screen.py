"""What a person sees in terminals of 80 and 120 columns, and a program in a pipe."""

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest
import typer
from helpers.small_run import SMALL
from rich.console import Console
from typer.testing import CliRunner

from gantx.cli import app, tables
from gantx.cli.help import continued
from gantx.cli.status import StatusDisplay
from gantx.config import presets

ANSI = re.compile(r"\x1b\[[\d;?]*[A-Za-z]")


def in_terminal(columns, *arguments, cwd=None):
    """Run gantx in a pseudo-terminal; what it wrote to stdout and stderr together."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    environment = {
        name: value for name, value in os.environ.items() if name not in ("CI", "COLUMNS", "NO_COLOR")
    }
    environment |= {"TERM": "xterm-256color", "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-m", "gantx", *map(str, arguments)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=cwd,
        env=environment,
    ) as program:
        os.close(theirs)
        written = b""
        while True:
            try:
                part = os.read(ours, 1 << 16)
            except OSError:  # the last one to write has closed it
                break
            if not part:
                break
            written += part
    os.close(ours)
    assert program.returncode == 0, written.decode()
    return written.decode().replace("\r\n", "\n")


def commands():
    """Every command by the words that call it."""
    root = typer.main.get_command(app)

    def below(command, words):
        yield words
        for name, sub in getattr(command, "commands", {}).items():
            yield from below(sub, [*words, name])

    return list(below(root, []))


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_help_fits_80_columns_and_cuts_nothing(monkeypatch, words):
    monkeypatch.setenv("COLUMNS", "80")
    result = CliRunner().invoke(app, [*words, "--help"])
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert all(line == line.rstrip() for line in lines)
    assert "…" not in result.stdout
    assert "\x1b" not in result.stdout
    command = typer.main.get_command(app)
    for word in words:
        command = command.commands[word]
    said = set(result.stdout.replace(",", " ").split())
    for parameter in command.params:
        if parameter.param_type_name == "option" and not getattr(parameter, "hidden", False):
            assert set(parameter.opts) <= said


def test_an_example_is_continued_as_a_shell_continues_it():
    command = "gantx train --preset transgan-s --data ./cifar --out runs/a --resume auto --max-time 3h50m"
    parts = continued(command, 60)
    assert max(map(len, parts)) <= 60
    assert all(part.endswith(" \\") for part in parts[:-1])
    assert parts[1].lstrip().startswith("--")  # an option stays with its value
    assert " ".join(" ".join(parts).replace("\\", "").split()) == command
    assert continued("gantx info RUN", 60) == ["gantx info RUN"]


def test_a_table_wraps_its_last_column():
    rows = [("a", "a text of several words that is long"), ("bcd", "short")]
    lines = tables.table_lines(("name", "summary"), rows, width=30)
    assert lines == [
        "name  summary",
        "a     a text of several words",
        "      that is long",
        "bcd   short",
    ]
    assert tables.table_lines(("name", "summary"), rows, width=None)[1] == f"a     {rows[0][1]}"


def test_a_table_keeps_paths_whole():
    rows = [("a", "/a/long/path/to/some/file.bin"), ("b", "/b")]
    assert tables.table_lines(("name", "file"), rows, width=20, whole=True) == [
        "name",
        "a",
        "  /a/long/path/to/some/file.bin",
        "b",
        "  /b",
    ]
    right = tables.table_lines(("name", "n"), [("a", "1"), ("b", "12")], width=80, right={"n"})
    assert right == ["name   n", "a      1", "b     12"]


@pytest.mark.parametrize("columns", [80, 120])
def test_presets_in_a_terminal(columns):
    shown = in_terminal(columns, "presets", "ls")
    lines = shown.splitlines()
    assert max(map(len, lines)) <= columns
    assert ("paper" in lines[0]) == (columns == 120)
    row = next(line for line in lines if line.startswith("transgan-s "))
    assert row.endswith("the smallest TransGAN of the paper, CIFAR-10")
    assert "…" not in shown


def test_presets_in_a_pipe():
    result = CliRunner().invoke(app, ["presets", "ls"])
    lines = result.stdout.splitlines()
    assert len(lines) == 1 + sum(line[0] != " " for line in lines[1:])
    assert all(line == line.rstrip() for line in lines)
    assert "\x1b" not in result.stdout


def test_assets_in_a_terminal(monkeypatch):
    folder = "/a/folder/with/a/name/that/is/longer/than/a/terminal/is/wide/and/more"
    monkeypatch.setenv("GANTX_CACHE", folder)
    lines = in_terminal(80, "assets", "ls").splitlines()
    assert f"  {folder}/assets/inception-2015-12-05.pt" in lines
    assert len(lines) == 5


def test_training_in_a_terminal(tmp_path):
    recipe = tmp_path / "small.yaml"
    recipe.write_text(presets.load(overrides=SMALL).to_yaml())
    written = in_terminal(
        *(80, "train", "--config", recipe, "--data", "shapes", "--device", "cpu", "--out", tmp_path / "run")
    )
    plain = ANSI.sub("", written)
    lines = re.split(r"[\r\n]+", plain)
    live = [line for line in lines if line.startswith("kimg ")]
    wanted = re.compile(r"kimg [\d.]+ of 0.2 \d+% eta \S+ img/s [\d,.]+ loss_d \S+ loss_g")
    assert any(wanted.match(line) for line in live)
    assert all(len(line) <= 80 for line in live)
    last = ANSI.sub("", written.rpartition("\x1b[2K")[2]).split()
    assert last == [str(tmp_path / "run")]  # no stale line after the end
    log = (tmp_path / "run" / "train.log").read_text().splitlines()
    assert [line.split(" ", 1)[1].split()[:5] for line in log if " kimg " in line and "eta" in line] == [
        ["kimg", "0.2", "of", "0.2", "eta"]
    ]


def test_a_command_in_a_pipe_says_what_it_does_in_lines():
    out = io.StringIO()
    status = StatusDisplay(Console(file=out, width=20))
    with status.working("converting a network to another format"):
        pass
    with status.working("loading", noted=False):
        pass
    status.show("generating", 1, 2)
    assert out.getvalue() == "converting a network to another format\n"


def test_a_command_in_a_terminal_counts(monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    out = io.StringIO()
    status = StatusDisplay(Console(file=out, force_terminal=True, width=80))
    status.show("measuring real images", 12_000, 50_000)
    with status.working("computing the Fréchet distance"):
        pass
    status.log("done")
    plain = ANSI.sub("", out.getvalue())
    assert re.search(r"measuring real images [━╸]+ 12,000 of 50,000 ", plain)
    assert "computing the Fréchet distance 0:00:00" in plain
    assert plain.endswith("done\n")
