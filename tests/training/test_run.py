"""Runs: what a run leaves behind, stopping, resuming to the bit, extending, diverging."""

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from helpers.small_run import SMALL
from PIL import Image
from safetensors.torch import load_file

from gantx import checkpoint
from gantx.config import presets
from gantx.errors import CheckpointError, DataError, DivergedError, MissingError, Stopped, UsageError
from gantx.runtime import signals
from gantx.training import run, run_folder, schedules

CPU = torch.device("cpu")
TIMINGS = {"seconds", "images_per_second", "memory_gb"}


def start(folder, *overrides, data="shapes"):
    settings = presets.load(overrides=[*SMALL, *overrides], settings={"data.source": data})
    return run.start(
        settings, parent=folder, out=folder / "run", device=CPU, command=["gantx", "train"], log=print
    )


def resume(folder, *overrides, **changes):
    return run.resume(
        folder, changes=changes, overrides=overrides, device=CPU, command=["gantx", "train"], log=print
    )


def final_tensors(folder):
    return load_file(checkpoint.latest_in(folder / "checkpoints"))


def metrics(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in TIMINGS} for line in lines]


def samples(folder):
    return {path.name: path.read_bytes() for path in (folder / "samples").iterdir()}


def assert_equal_runs(one, two):
    a, b = final_tensors(one), final_tensors(two)
    assert a.keys() == b.keys()
    different = [key for key in a if not torch.equal(a[key], b[key])]
    assert not different
    assert metrics(one) == metrics(two)
    assert samples(one) == samples(two)


def test_a_run_leaves_a_complete_record(tmp_path, capsys):
    folder = start(tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == [
        ".lock",
        "checkpoints",
        "command.txt",
        "config.yaml",
        "env.json",
        "metrics.jsonl",
        "samples",
        "train.log",
    ]
    assert [path.name for path in checkpoint.all_in(folder / "checkpoints")] == [
        "kimg-000000.160.safetensors",
        "kimg-000000.200.safetensors",
    ]
    assert set(samples(folder)) == {f"kimg-000000.{n}.png" for n in ("056", "104", "152", "200")}
    lines = metrics(folder)
    assert [line["images"] for line in lines] == [32, 64, 96, 120, 152, 184, 200]
    assert {"discriminator/loss", "generator/loss", "discriminator/gradient_norm", "r1_every_3/r1"} <= set(
        lines[-1]
    )
    assert presets.load(files=[folder / "config.yaml"]).name == "small"
    assert "data: 37 images" in (folder / "train.log").read_text()
    assert json.loads((folder / "env.json").read_text())["torch"] == torch.__version__
    assert "gantx train" in (folder / "command.txt").read_text()
    said = capsys.readouterr().err
    assert "done: 0.2 kimg" in said
    assert f"look at {folder / 'samples' / 'kimg-000000.200.png'}" in said.replace("\n", "")


def test_runs_are_numbered(tmp_path):
    settings = presets.load(overrides=[*SMALL, "training.kimg=0.008"], settings={"data.source": "shapes"})
    made = [
        run.start(settings, parent=tmp_path, out=None, device=CPU, command=[], log=print).name
        for _ in range(2)
    ]
    assert made == ["0001-small-shapes", "0002-small-shapes"]


def test_equal_seeds_make_equal_runs_and_other_seeds_do_not(tmp_path):
    one, two = start(tmp_path / "1"), start(tmp_path / "2")
    assert_equal_runs(one, two)
    other = start(tmp_path / "3", "training.seed=1")
    assert not torch.equal(
        final_tensors(one)["generator.to_rgb.weight"], final_tensors(other)["generator.to_rgb.weight"]
    )


def test_sigterm_saves_and_resume_ends_like_an_uninterrupted_run(tmp_path):
    whole = start(tmp_path / "whole")

    with (
        pytest.raises(Stopped, match="gantx train --resume") as stopped,
        terminated_at_first_report(tmp_path / "stopped" / "run"),
    ):
        start(tmp_path / "stopped")
    folder = tmp_path / "stopped" / "run"
    assert stopped.value.exit_code == 75
    before = final_tensors(folder)
    assert 32 <= checkpoint.read_header(checkpoint.find(folder)).images < 200

    # What a kill after the checkpoint could have left behind is cut back.
    (folder / "samples").mkdir(exist_ok=True)
    (folder / "samples" / "kimg-000000.199.png").write_bytes(b"newer")
    (folder / "checkpoints" / ".kimg.part").write_bytes(b"unfinished")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"images": 199}\n{"images": 20')
    resume(folder)
    assert_equal_runs(whole, folder)
    assert not list(folder.rglob("*.part"))
    after = final_tensors(folder)
    assert any(not torch.equal(before[key], after[key]) for key in before if key.startswith("generator."))


@contextlib.contextmanager
def terminated_at_first_report(folder):
    """Send this process SIGTERM once the run in `folder` has written metrics; give up after a while."""
    over = threading.Event()

    def terminate():
        while not over.wait(0.002):
            if (folder / "metrics.jsonl").exists():
                os.kill(os.getpid(), signal.SIGTERM)
                return

    killer = threading.Thread(target=terminate, daemon=True)
    killer.start()
    try:
        yield
    finally:
        over.set()
        killer.join()


VARIANTS = {
    "bf16": ["training.precision=bf16"],
    "relativistic, streamed": [
        "objective.loss=relativistic",
        "objective.gradient_penalty=null",
        "objective.r2={gamma: 0.1, every: 3}",
        "data.resident=stream",
        "generator.super_resolution=false",
        "training.attention_window=null",
    ],
    "other batch, two threads": [
        "training.generator_batch=12",
        "generator.locality=neighbourhood",
        "training.threads=2",
    ],
}


@pytest.mark.parametrize(
    "variant",
    [
        pytest.param(name, marks=pytest.mark.slow) if name == "other batch, two threads" else name
        for name in VARIANTS
    ],
)
def test_every_kind_of_run_resumes_to_the_bit(tmp_path, variant):
    values = VARIANTS[variant]
    whole = start(tmp_path / "whole", *values)
    folder = tmp_path / "stopped" / "run"
    with pytest.raises(Stopped), terminated_at_first_report(folder):
        start(tmp_path / "stopped", *values)
    resume(folder)
    assert_equal_runs(whole, folder)


@pytest.mark.slow  # as test_kill_storm, which stops runs in every way
def test_resume_is_bit_identical_after_sigkill_at_random_moments(tmp_path):
    whole = start(tmp_path / "whole", "training.kimg=1.6")
    command = [sys.executable, "-m", "gantx", "train", "--data", "shapes", "--device", "cpu"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    empty = tmp_path / "settings.yaml"
    empty.write_text("{}\n")
    seed = time.time_ns()
    print(f"moments of the kills: random.Random({seed})")  # shown where the test fails
    moments = random.Random(seed)
    folder = tmp_path / "killed"
    extra = [*SMALL, "training.kimg=1.6"]
    kills = 0
    for attempt in range(12):
        arguments = (
            ["--resume", str(folder)] if folder.exists() else ["--out", str(folder), "--config", str(empty)]
        )
        values = extra if attempt == 0 or not folder.exists() else []
        process = subprocess.Popen(
            [*command, *arguments, *values],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        if kills < 3:
            deadline = time.monotonic() + 60
            size = _progress(folder)
            while process.poll() is None and _progress(folder) == size and time.monotonic() < deadline:
                time.sleep(0.005)
            time.sleep(moments.uniform(0, 0.1))
            process.kill()
        _, errors = process.communicate()
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, errors.decode()
        kills += 1
    assert kills == 3, "the run ended before it could be killed three times"
    assert_equal_runs(whole, folder)


def _progress(folder):
    path = folder / "metrics.jsonl"
    return path.stat().st_size if path.exists() else 0


def test_resume_refuses_a_changed_configuration_and_names_the_keys(tmp_path):
    folder = start(tmp_path, "training.kimg=0.008")
    with pytest.raises(UsageError, match=r"optimizer\.generator\.lr"):
        resume(folder, "optimizer.generator.lr=1", **{"training.kimg": 1})
    with pytest.raises(UsageError, match=r"training\.batch"):
        resume(folder, **{"training.batch": 16})


def test_resume_refuses_a_complete_run_and_extends_it(tmp_path):
    folder = start(tmp_path, "training.kimg=0.04")
    for shorter in ({}, {"training.kimg": 0.02}):
        with pytest.raises(UsageError, match=r"already complete at 0\.04 kimg: extend it with --kimg 0\.08"):
            resume(folder, **shorter)
    resume(folder, **{"training.kimg": 0.08})
    assert checkpoint.read_header(checkpoint.find(folder)).images == 80


def test_an_extension_survives_a_kill_before_its_first_checkpoint(tmp_path):
    folder = start(tmp_path, "training.kimg=0.04")
    extended = presets.load(files=[folder / "config.yaml"], overrides=["training.kimg=0.08"])
    (folder / "config.yaml").write_text(extended.to_yaml())  # what the killed resume had written
    resume(folder)
    assert checkpoint.read_header(checkpoint.find(folder)).images == 80


def test_an_edited_config_file_is_refused_by_key(tmp_path):
    folder = start(tmp_path, "training.kimg=0.008")
    edited = presets.load(files=[folder / "config.yaml"], overrides=["objective.drift=1"])
    (folder / "config.yaml").write_text(edited.to_yaml())
    with pytest.raises(UsageError, match=r"objective\.drift"):
        resume(folder, **{"training.kimg": 1})


def test_two_processes_cannot_train_one_run(tmp_path):
    folder = start(tmp_path, "training.kimg=0.008")
    with run_folder.claimed(folder), pytest.raises(UsageError, match=f"by process {os.getpid()}"):
        resume(folder, **{"training.kimg": 1})
    resume(folder, **{"training.kimg": 0.016})


def test_a_damaged_newest_checkpoint_names_the_one_before(tmp_path):
    folder = start(tmp_path, "training.kimg=0.1")
    older, newest = checkpoint.all_in(folder / "checkpoints")
    newest.write_bytes(newest.read_bytes()[:-9])
    with pytest.raises(
        CheckpointError, match=f"go on from there with: gantx train --resume {re.escape(str(older))}"
    ):
        resume(folder, **{"training.kimg": 0.2})
    newest.unlink()
    resume(folder)
    assert checkpoint.read_header(checkpoint.find(folder)).images == 104


def test_what_changed_since_the_checkpoint_is_said(tmp_path, capsys):
    folder = start(tmp_path, "training.kimg=0.008")
    resume(folder, **{"training.kimg": 0.016, "training.threads": 2})
    assert "resuming with threads 1 → 2" in (folder / "train.log").read_text()


@pytest.mark.parametrize("limit", ["checkpoint", pytest.param("picture", marks=pytest.mark.slow)])
def test_a_full_disk_stops_with_advice_and_leaves_nothing_half_written(tmp_path, limit):
    """A limit on file size stands in for the disk; the child ignores the signal and sees the error."""
    script = (
        "import resource, signal, sys\n"
        "size = int(sys.argv.pop(1))\n"
        "from gantx.training import run\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "train = run.train\n"
        "def limited(*args):\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))\n"
        "    train(*args)\n"
        "run.train = limited\n"
        "from gantx.cli import main\n"
        "main()\n"
    )
    settings = tmp_path / "settings.yaml"
    settings.write_text("{}\n")
    folder = tmp_path / "run"
    size = {"checkpoint": 20_000, "picture": 700}[limit]
    values = [*SMALL, "training.report_kimg=10", "training.sample_kimg=0.02", "training.samples=16"]
    arguments = [
        "train",
        "--config",
        str(settings),
        "--data",
        "shapes",
        "--device",
        "cpu",
        "--out",
        str(folder),
    ]
    result = subprocess.run(
        [sys.executable, "-c", script, str(size), *arguments, *values],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 3, result.stderr
    assert "cannot write" in result.stderr
    assert f"gantx train --resume {folder}" in result.stderr
    assert "Traceback" not in result.stderr
    assert not list(folder.rglob("*.part"))
    assert not list(folder.rglob("*.safetensors"))
    resume(folder)
    assert checkpoint.read_header(checkpoint.find(folder)).images == 200


def test_resume_without_a_checkpoint_starts_over(tmp_path):
    whole = start(tmp_path / "1", "training.kimg=0.04")
    folder = start(tmp_path / "2", "training.kimg=0.04")
    for path in (folder / "checkpoints").iterdir():
        path.unlink()
    resume(folder)
    assert_equal_runs(whole, folder)


def test_resume_refuses_other_images_and_no_run(tmp_path):
    folder = start(tmp_path, "training.kimg=0.008")
    path = checkpoint.find(folder)
    header = checkpoint.read_header(path)
    checkpoint.write(
        path,
        load_file(path),
        config=header.config,
        progress=header.progress,
        data={**header.data, "digest": "other images"},
    )
    with pytest.raises(DataError, match="does not contain the images that"):
        resume(folder, **{"training.kimg": 1})
    with pytest.raises(MissingError, match="is not a run"):
        resume(tmp_path)


def test_resume_finds_the_images_elsewhere(tmp_path):
    for index in range(5):
        picture = Image.new("RGB", (8, 8), (index * 50, 0, 90))
        (tmp_path / "here").mkdir(exist_ok=True)
        picture.save(tmp_path / "here" / f"{index}.png")
    folder = start(tmp_path, "training.kimg=0.008", data=str(tmp_path / "here"))
    (tmp_path / "here").rename(tmp_path / "there")
    with pytest.raises(MissingError, match="here"):
        resume(folder, **{"training.kimg": 0.016})
    for path in (tmp_path / "there").iterdir():
        os.utime(path, (1, 1))
    resume(folder, **{"training.kimg": 0.016, "data.source": str(tmp_path / "there")})
    assert checkpoint.read_header(checkpoint.find(folder)).images == 16


def test_a_used_output_folder_is_refused(tmp_path):
    start(tmp_path, "training.kimg=0.008")
    with pytest.raises(UsageError, match="already exists and is not empty"):
        start(tmp_path)


def test_no_data_is_said(tmp_path):
    with pytest.raises(UsageError, match="add --data"):
        start(tmp_path, data=None)


def test_divergence_stops_with_the_last_good_checkpoint_named(tmp_path, monkeypatch):
    # G's first step moves nothing; its second, in iteration 7, ruins it.
    monkeypatch.setattr(schedules, "learning_rate_factor", lambda settings, images, *_: float(images > 0))
    values = ["optimizer.generator.lr=1e18", "objective.n_critic=7", "training.kimg=2"]
    with pytest.raises(DivergedError, match=r"last good checkpoint is .*kimg-000000\.040") as diverged:
        start(tmp_path, *values)
    assert diverged.value.exit_code == 5
    for path in checkpoint.all_in(tmp_path / "run" / "checkpoints"):
        assert all(bool(torch.isfinite(value).all()) for value in load_file(path).values())
    assert "diverged" in (tmp_path / "run" / "train.log").read_text()


def test_weights_that_are_not_finite_stop_the_run_like_losses_do(tmp_path):
    # G's first step, at a rate beyond all floats, is followed by no loss before the checkpoint.
    values = ["optimizer.generator.lr=3e38", "optimizer.warmup_kimg=0", "training.checkpoint_kimg=0.008"]
    with pytest.raises(DivergedError, match=r"not finite.*no checkpoint was written.*lower learning rate"):
        start(tmp_path, *values)


def test_runs_are_numbered_beyond_four_digits(tmp_path):
    (tmp_path / "9999-a").mkdir()
    (tmp_path / "10000-b").mkdir()
    assert run_folder.create_folder(tmp_path, "c").name == "10001-c"


def test_sigterm_while_images_are_prepared_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("GANTX_CACHE", str(tmp_path / "cache"))

    def terminate(done, total):
        os.kill(os.getpid(), signal.SIGTERM)

    settings = presets.load(overrides=SMALL, settings={"data.source": "shapes"})
    with pytest.raises(Stopped, match="the same command starts again"):
        run.start(
            settings,
            parent=tmp_path / "runs",
            out=None,
            device=CPU,
            command=[],
            log=print,
            progress=terminate,
        )
    assert not (tmp_path / "runs").exists()
    assert not list((tmp_path / "cache" / "prepared").iterdir())


def test_a_second_ctrl_c_stops_at_once(tmp_path):
    said = []
    with signals.StopAfterIteration(said.append, tmp_path) as stop:
        assert stop.reason() is None
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.reason().exit_code == 130
        assert str(tmp_path) in str(stop.reason())
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert len(said) == 1
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
