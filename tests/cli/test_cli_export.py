"""`gantx export` from the command line: outputs, exit codes, and that every command takes what it wrote."""

import json

import pytest
from helpers.exported_networks import save
from typer.testing import CliRunner

from gantx.cli import app
from gantx.exporting import program


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    save(folder, "transgan")
    return folder


def test_weights_alone_are_taken_by_other_commands(run_folder, tmp_path):
    path = tmp_path / "g.safetensors"
    result = run("export", run_folder, "-o", path, "--license", "mit")
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == str(path)
    assert "checks recorded in" in result.stderr
    for target, name in ((run_folder, "a.npy"), (path, "b.npy")):
        sampled = run("sample", target, "-n", "3", "-o", tmp_path / name, "--device", "cpu")
        assert sampled.exit_code == 0, sampled.output
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()
    document = json.loads(run("info", path, "--json").stdout)
    assert document["data"]["license"] == "mit"
    again = run("export", path, "-o", tmp_path / "m.pt2", "--pixels", "unit")
    assert again.exit_code == 0, again.output
    assert json.loads((tmp_path / "export.json").read_text())["files"]["m.pt2"]["output"]["values"] == "0..1"


def test_a_failed_check_is_exit_code_1(run_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(program, "open_program", lambda path: lambda z: z.new_zeros(len(z), 3, 8, 8))
    result = run("export", run_folder, "-o", tmp_path / "m.pt2")
    assert result.exit_code == 1
    assert "nothing was written" in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "no output"),
        (["-o", "m.pt2", "--pixels", "int4"], 2, "no pixels 'int4'"),
        (["-o", "m.pt2", "--cutoff", "2"], 2, "give the truncation too"),
        (["-o", "m.pt2", "--truncation", "0.7"], 2, "needs a network with styles"),
        (["-o", "hub", "--scores", "nothing.json"], 3, "there is no result at"),
        (["-o", "x.zip"], 2, "cannot export to"),
    ],
)
def test_what_cannot_be_exported(arguments, code, words, run_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run("export", run_folder, *arguments)
    assert result.exit_code == code, result.output
    assert words in " ".join(result.stderr.split())
    assert list(tmp_path.iterdir()) == []
