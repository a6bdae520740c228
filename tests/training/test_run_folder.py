"""A run's folder belongs to one process."""

import os
import subprocess
import sys

import pytest
import torch
from helpers.small_run import SMALL

from gantx.config import presets
from gantx.errors import MissingError, UsageError
from gantx.io import temporary
from gantx.training import run
from gantx.training.run_folder import RunExistsError, claimed, claimed_for_new_run


def start(parent, *overrides):
    settings = presets.load(overrides=[*SMALL, *overrides], settings={"data.source": "shapes"})
    where = {"parent": parent, "out": parent / "run", "device": torch.device("cpu")}
    return run.start(settings, **where, command=["gantx", "train"], log=print)


STARTER = """
import sys
from pathlib import Path
from gantx.errors import GantxError
from gantx.training.run_folder import claimed_for_new_run
folder = Path(sys.argv[1])
sys.stdin.read(1)
try:
    with claimed_for_new_run(folder):
        (folder / "config.yaml").write_text(sys.argv[2])
        print("won", flush=True)
        sys.stdin.read()
except GantxError as problem:
    print(problem, flush=True)
    sys.exit(problem.exit_code)
"""


def test_of_twenty_starts_at_once_one_gets_the_folder(tmp_path):
    folder = tmp_path / "run"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    starts = [
        subprocess.Popen(
            [sys.executable, "-c", STARTER, folder, str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for number in range(20)
    ]
    for process in starts:
        process.stdin.write("!")
        process.stdin.flush()
    said = [process.stdout.readline() for process in starts]
    ends = [(process.communicate(), process.returncode)[1] for process in starts]
    winner = said.index("won\n")
    assert ends == [0 if number == winner else 2 for number in range(20)]
    assert (folder / "config.yaml").read_text() == str(winner)
    for number, text in enumerate(said):
        if number != winner:
            assert text.startswith(f"{folder} is being trained by process {starts[winner].pid} on ")


def test_a_folder_without_a_configuration_is_removed_again(tmp_path):
    folder = tmp_path / "deep" / "run"
    with pytest.raises(KeyError), claimed_for_new_run(folder):
        raise KeyError
    assert not folder.exists()
    folder.mkdir()
    with pytest.raises(KeyError), claimed_for_new_run(folder):
        raise KeyError
    assert list(folder.iterdir()) == []  # it was there before


def test_what_a_killed_start_left_is_no_obstacle(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / ".lock").write_text(" 1 on elsewhere")
    (folder / f".config.yaml.{temporary._host()}{'0' * 10}.part").write_text("half")
    with claimed_for_new_run(folder):
        assert [path.name for path in folder.iterdir()] == [".lock"]


def test_what_is_in_use_is_refused(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "notes.txt").write_text("")
    with pytest.raises(UsageError, match="is not empty"), claimed_for_new_run(folder):
        pass
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
    (folder / "config.yaml").write_text("")
    with pytest.raises(RunExistsError, match="go on with --resume"), claimed_for_new_run(folder):
        pass
    assert (folder / "notes.txt").exists()


@pytest.mark.parametrize("removed", [False, True])
def test_a_folder_that_vanishes_during_the_start_is_an_error(tmp_path, monkeypatch, removed):
    prepare = run.prepare

    def moved(*args, **options):
        folder = tmp_path / "run"
        assert [path.name for path in folder.iterdir()] == [".lock"]  # claimed before anything is prepared
        if removed:
            (folder / ".lock").unlink()
            folder.rmdir()
        else:
            folder.rename(tmp_path / "renamed")
        return prepare(*args, **options)

    monkeypatch.setattr(run, "prepare", moved)
    with pytest.raises(MissingError, match="was renamed or removed"):
        start(tmp_path, "training.kimg=0.008")
    assert not (tmp_path / "run").exists()


def test_a_folder_that_vanishes_during_training_is_not_made_again(tmp_path, monkeypatch):
    def build(*args, **options):
        (tmp_path / "run").rename(tmp_path / "renamed")
        return build_steps(*args, **options)

    build_steps = run.build_steps
    monkeypatch.setattr(run, "build_steps", build)
    with pytest.raises(MissingError, match="was renamed or removed"):
        start(tmp_path, "training.kimg=0.008")
    assert not (tmp_path / "run").exists()
    with claimed(tmp_path / "renamed"):
        pass
