"""Paths on the command line, in every command: an empty one is refused by name, `~` is expanded."""

from pathlib import Path
from typing import get_args, get_type_hints

import pytest
from typer.models import ArgumentInfo
from typer.testing import CliRunner

from gantx.cli import app
from gantx.cli.path_arguments import PathRefused, file_path, path_or_name

# Parameters that take a path or a known name, and so are no `Path`.
NAMES_TOO = {"data", "features"}


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def commands(program, words=()):
    """Words and function of every command."""
    for command in program.registered_commands:
        yield (*words, command.name or command.callback.__name__), command.callback
    for group in program.registered_groups:
        yield from commands(group.typer_instance, (*words, group.name))


def path_parameters():
    """Words of the command, name, annotation and declaration of every parameter that may be a path."""
    for words, function in commands(app):
        for name, hint in get_type_hints(function, include_extras=True).items():
            kind, *declared = get_args(hint) or (hint,)
            choices = name == "features" and words == ("project",)  # inception or nothing
            if declared and ("Path" in str(kind) or (name in NAMES_TOO and not choices)):
                yield words, name, kind, declared[0]


def test_every_path_is_parsed_as_one():
    found = list(path_parameters())
    assert {words[0] for words, *_ in found} >= {"train", "sample", "eval", "export", "presets", "import"}
    for words, name, kind, declared in found:
        expected = file_path if "Path" in str(kind) else path_or_name
        assert declared.parser is expected, f"{' '.join(words)}: {name} needs parser={expected.__name__}"


@pytest.mark.parametrize("words", sorted({words for words, *_ in path_parameters()}), ids=" ".join)
def test_an_empty_path_is_refused_by_name(words):
    declarations = [(name, declared) for of, name, _, declared in path_parameters() if of == words]
    for name, declared in declarations:
        if isinstance(declared, ArgumentInfo):
            shown = name.upper()
            before = [name for name, other in declarations if isinstance(other, ArgumentInfo)].index(name)
            result = run(*words, *["x"] * (before + (words == ("presets", "cp"))), "")
        else:
            given = (declared.default, *(declared.param_decls or ()))  # typer takes the first for a default
            flags = [flag for flag in given if str(flag).startswith("--")]
            shown = flags[0] if flags else "--" + name.replace("_", "-")
            result = run(*words, f"{shown}=")
        assert result.exit_code == 2, (shown, result.output)
        assert f"error: {shown} is empty: write a path there" in result.output


def test_a_tilde_is_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert file_path("~/r") == tmp_path / "r"
    assert file_path(Path("runs")) == Path("runs")
    assert path_or_name("~/r") == str(tmp_path / "r")
    assert path_or_name("shapes") == "shapes"
    with pytest.raises(PathRefused, match="~nobody-here/x: that home folder is not known here"):
        file_path("~nobody-here/x")
    made = run("presets", "cp", "transgan-tiny", "~/mine.yaml")
    assert made.exit_code == 0, made.output
    assert (tmp_path / "mine.yaml").is_file()
    shown = run("train", "--config=~/mine.yaml", "--print-config")  # a list of paths
    assert shown.exit_code == 0, shown.output
    refused = run("info", "~nobody-here/x")
    assert refused.exit_code == 2
    assert "error: CHECKPOINT ~nobody-here/x: that home folder is not known here" in refused.output


def test_an_unknown_home_folder_in_a_setting_is_refused_too(tmp_path):
    refused = run(
        "train", "--preset", "transgan-tiny", "data.source=~nobody-here/x", "--out", tmp_path / "run"
    )
    assert refused.exit_code == 2, refused.output
    assert "error: ~nobody-here/x: that home folder is not known here" in refused.output
    assert not (tmp_path / "run").exists()
