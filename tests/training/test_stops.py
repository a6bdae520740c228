"""What stops a run saves it, what should not stop it does not, and one call starts or goes on."""

import io
import os
import signal
import subprocess
import sys

import pytest
import torch
from helpers.small_run import SMALL

from gantx import checkpoint
from gantx.config import presets
from gantx.errors import Interrupted, Stopped, UsageError
from gantx.runtime import devices
from gantx.training import run, run_folder

CPU = torch.device("cpu")
SIGNALS = [name for name in ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU") if hasattr(signal, name)]


def start_or_resume(folder, *overrides, data="shapes", values=(), **changes):
    """As the command does: `values` are those of a preset, `overrides` and `changes` are given."""
    changes["data.source"] = data
    return run.start_or_resume(
        presets.load(base=presets.load(overrides=[*SMALL, *values]), overrides=overrides, settings=changes),
        folder,
        changes=changes,
        overrides=overrides,
        device=CPU,
        command=["gantx", "train"],
        log=print,
    )


def images(folder):
    return checkpoint.read_header(checkpoint.find(folder)).images


@pytest.fixture
def signalled(monkeypatch):
    """Let a signal arrive while the given iteration runs; 0 is the first."""

    def arrange(name, at):
        plain = run.build_steps

        def build(settings, state, **options):
            steps = plain(settings, state, **options)
            average = steps.average

            def averaged():
                average()
                if state.iteration == at:
                    signal.raise_signal(getattr(signal, name))

            averaged.forget = average.forget
            steps.average = averaged
            return steps

        monkeypatch.setattr(run, "build_steps", build)

    return arrange


@pytest.mark.parametrize("name", SIGNALS)
def test_every_stopping_signal_saves_the_iteration(tmp_path, signalled, name):
    signalled(name, 2)
    with pytest.raises(Stopped) as stopped:
        start_or_resume(tmp_path / "run")
    assert stopped.value.exit_code == 75
    assert images(tmp_path / "run") == 24


@pytest.mark.parametrize(("name", "error"), [("SIGTERM", Stopped), ("SIGINT", Interrupted)])
def test_in_the_first_iteration_there_is_nothing_to_save(tmp_path, signalled, monkeypatch, name, error):
    folder = tmp_path / "run"
    with monkeypatch.context():
        signalled(name, 0)
        with pytest.raises(error, match="nothing is lost, go on with: gantx train --resume"):
            start_or_resume(folder)
    assert checkpoint.latest_in(folder / "checkpoints") is None
    assert "stopped before an iteration was finished" in (folder / "train.log").read_text()
    assert not list(folder.rglob("*.part"))
    monkeypatch.undo()
    monkeypatch.setenv("GANTX_CACHE", str(tmp_path / "cache"))
    start_or_resume(folder)  # from the folder alone
    assert images(folder) == 200


def test_a_stop_while_the_networks_are_built_names_the_run(tmp_path, monkeypatch):
    def stopped(*_):
        signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(run, "TrainingState", stopped)
        with pytest.raises(Stopped, match="go on with: gantx train --resume"):
            start_or_resume(tmp_path / "run")
    with run_folder.claimed(tmp_path / "run"):
        pass


def test_a_stop_before_the_configuration_is_written_leaves_no_folder(tmp_path, monkeypatch):
    def stopped(*_):
        assert (tmp_path / "run" / ".lock").exists()
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "_write_text", stopped)
    with pytest.raises(KeyboardInterrupt):
        start_or_resume(tmp_path / "run")
    assert not (tmp_path / "run").exists()


class Gone(io.StringIO):
    """A terminal that was closed."""

    def write(self, *text):
        raise OSError(5, "Input/output error")

    flush = write


class NoReader(Gone):
    def write(self, *text):
        raise BrokenPipeError(32, "Broken pipe")

    flush = write


@pytest.mark.parametrize("stream", [Gone, NoReader])
def test_training_goes_on_without_its_terminal(tmp_path, monkeypatch, stream):
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stream())
        start_or_resume(tmp_path / "run", "training.report_kimg=0.008")
    log = (tmp_path / "run" / "train.log").read_text()
    assert "starting:" in log
    assert "done: 0.2 kimg" in log


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")  # noqa: PTH110
def test_a_full_log_device_and_a_closed_stdout_stop_nothing(tmp_path):
    settings = tmp_path / "settings.yaml"
    settings.write_text("{}\n")
    folder = tmp_path / "run"
    arguments = ["--config", settings, "--data", "shapes", "--device", "cpu", "--out", folder, *SMALL]
    with open("/dev/full", "w") as full:  # noqa: PTH123
        result = subprocess.run(
            [sys.executable, "-m", "gantx", "train", *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=full,
            stderr=full,
            check=False,
        )
    assert result.returncode == 0
    assert images(folder) == 200


def test_one_call_starts_resumes_and_does_nothing(tmp_path, signalled, monkeypatch, capsys):
    folder = tmp_path / "run"
    folder.mkdir()  # made by a batch system
    signalled("SIGTERM", 4)
    with pytest.raises(Stopped):
        start_or_resume(folder)
    assert images(folder) == 40
    assert start_or_resume(folder) == folder
    assert images(folder) == 200
    before = checkpoint.find(folder).stat().st_mtime_ns
    capsys.readouterr()
    assert start_or_resume(folder) == folder
    assert "is complete at 0.2 kimg: nothing to do" in capsys.readouterr().out
    assert checkpoint.find(folder).stat().st_mtime_ns == before
    start_or_resume(folder, "training.kimg=0.24")
    assert images(folder) == 240
    start_or_resume(folder)  # shorter again: still complete
    assert images(folder) == 240


def test_values_left_to_the_program_are_no_contradiction(tmp_path):
    given = ["training.precision=auto", "training.micro_batch=auto", "training.threads=auto"]
    folder = start_or_resume(tmp_path / "run", *given, "training.kimg=0.008")
    start_or_resume(folder, *given, "training.kimg=0.016")
    assert images(folder) == 16


def test_a_precision_that_this_machine_replaces_is_no_contradiction(tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "pick_precision", lambda *_: ("fp32", "only emulates bf16"))
    for kimg in ("0.008", "0.016"):
        start_or_resume(tmp_path / "run", "training.precision=bf16", f"training.kimg={kimg}")
    assert images(tmp_path / "run") == 16


def test_contradictions_are_refused_by_name(tmp_path):
    folder = start_or_resume(tmp_path / "run", "training.kimg=0.008")
    with pytest.raises(UsageError, match=r"other values of training\.seed"):
        start_or_resume(folder, "training.seed=4")
    with pytest.raises(UsageError, match=r"other values of optimizer\.generator\.lr"):  # another preset
        start_or_resume(folder, values=["optimizer.generator.lr=1"])


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        start_or_resume(tmp_path)
