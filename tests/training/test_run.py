"""Runs: what a run leaves behind, stopping, resuming to the bit, extending, diverging."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from gantx import checkpoint, config
from gantx.errors import DataError, DivergedError, MissingError, Stopped, UsageError
from gantx.training import run

CPU = torch.device("cpu")
SMALL = [
    "name=small",
    "data.resolution=8",
    "data.mirror=true",
    "data.shapes.count=37",
    "generator.latent_dim=8",
    "generator.base_dim=32",
    "generator.base_size=2",
    "generator.depths=[1,1,1]",
    "generator.heads=2",
    "discriminator.resolution=8",
    "discriminator.dim=16",
    "discriminator.depth=1",
    "discriminator.heads=2",
    "augment.policy=[translation,cutout,color]",
    "objective.n_critic=2",
    "objective.r1={gamma: 0.1, every: 3}",
    "ema={kind: half-life, half_life_kimg: 0.1, ramp: 0.05}",
    "optimizer.warmup_kimg=0.02",
    "training.attention_window={steps: [[0.05, 2], [0.1, 4]], of_kimg: 0.2}",
    "training.batch=8",
    "training.kimg=0.2",
    "training.micro_batch=4",
    "training.report_kimg=0.03",
    "training.sample_kimg=0.05",
    "training.checkpoint_kimg=0.04",
    "training.keep_checkpoints=2",
    "training.samples=4",
    "training.threads=1",
]
TIMINGS = {"seconds", "images_per_second", "memory_gb"}


def start(folder, *overrides, data="shapes"):
    settings = config.load(overrides=[*SMALL, *overrides], settings={"data.source": data})
    return run.start(
        settings, parent=folder, out=folder / "run", device=CPU, command=["gantx", "train"], say=print
    )


def resume(folder, *overrides, **changes):
    return run.resume(
        folder, changes=changes, overrides=overrides, device=CPU, command=["gantx", "train"], say=print
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
    assert config.load(files=[folder / "config.yaml"]).name == "small"
    assert "data: 37 images" in (folder / "train.log").read_text()
    assert json.loads((folder / "env.json").read_text())["torch"] == torch.__version__
    assert "gantx train" in (folder / "command.txt").read_text()
    assert "done: 0.2 kimg" in capsys.readouterr().err


def test_runs_are_numbered(tmp_path):
    settings = config.load(overrides=[*SMALL, "training.kimg=0.008"], settings={"data.source": "shapes"})
    made = [
        run.start(settings, parent=tmp_path, out=None, device=CPU, command=[], say=print).name
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

    def terminate():
        while not (tmp_path / "stopped" / "run" / "metrics.jsonl").exists():
            time.sleep(0.002)
        os.kill(os.getpid(), signal.SIGTERM)

    killer = threading.Thread(target=terminate)
    killer.start()
    with pytest.raises(Stopped, match="gantx train --resume") as stopped:
        start(tmp_path / "stopped")
    killer.join()
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


@pytest.mark.slow
def test_resume_is_bit_identical_after_sigkill_at_random_moments(tmp_path):
    whole = start(tmp_path / "whole", "training.kimg=0.4")
    command = [sys.executable, "-m", "gantx", "train", "--data", "shapes", "--device", "cpu"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    empty = tmp_path / "settings.yaml"
    empty.write_text("{}\n")
    chance = random.Random(time.time_ns())
    folder = tmp_path / "killed"
    extra = [*SMALL, "training.kimg=0.4"]
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
            time.sleep(chance.uniform(0, 0.3))
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
    with pytest.raises(UsageError, match=r"already complete at 0\.04 kimg"):
        resume(folder)
    resume(folder, **{"training.kimg": 0.08})
    assert checkpoint.read_header(checkpoint.find(folder)).images == 80


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
    with pytest.raises(DataError, match="does not hold the images"):
        resume(folder, **{"training.kimg": 1})
    with pytest.raises(MissingError, match="is no run"):
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


def test_divergence_stops_with_the_last_good_checkpoint_named(tmp_path):
    # The rate is still zero at G's first step; its second, in iteration 7, ruins it.
    values = ["optimizer.generator.lr=1e18", "objective.n_critic=7", "training.kimg=2"]
    with pytest.raises(DivergedError, match=r"last good checkpoint is .*kimg-000000\.040") as diverged:
        start(tmp_path, *values)
    assert diverged.value.exit_code == 5
    for path in checkpoint.all_in(tmp_path / "run" / "checkpoints"):
        assert all(bool(torch.isfinite(value).all()) for value in load_file(path).values())
    assert "diverged" in (tmp_path / "run" / "train.log").read_text()
