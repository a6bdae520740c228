"""Other values from here on: allowed on demand, recorded, and part of the run from then on."""

import json

import pytest
from helpers.started_runs import assert_equal_runs, resume, start, tensors

from gantx import checkpoint
from gantx.config import presets
from gantx.errors import UsageError
from gantx.runtime import devices
from gantx.training import changes

LR = "optimizer.generator.lr=0.01"


def test_changes_need_a_flag_are_recorded_and_survive_a_kill(tmp_path, capsys):
    folder = start(tmp_path / "run", "training.kimg=0.04")
    with pytest.raises(UsageError, match=r"optimizer\.generator\.lr: leave them out, or add --allow-changes"):
        resume(folder, LR, **{"training.kimg": 0.08})
    values = (LR, "augment.policy=[color]", "objective.r1.every=2", "optimizer.discriminator.betas=[0,0.9]")
    # Killed before its first checkpoint: the record and the configuration are there, the checkpoint is old.
    old = checkpoint.find(folder).read_bytes()
    resume(folder, *values, allow_changes=True, **{"training.kimg": 0.08})
    said = " ".join(capsys.readouterr().out.split())
    assert "changed from 0.04 kimg on: " in said
    assert "optimizer.generator.lr 0.0001 → 0.01" in said
    assert "optimizer.generator.lr 0.0001 → 0.01" in (folder / "train.log").read_text()
    (entry,) = [json.loads(line) for line in (folder / "changes.jsonl").read_text().splitlines()]
    assert entry["images"] == 40
    assert entry["changes"]["objective.r1.every"] == [3, 2]
    killed = tmp_path / "killed"
    (killed / "checkpoints").mkdir(parents=True)
    (killed / "checkpoints" / checkpoint.checkpoint_name(40)).write_bytes(old)
    for name in ("config.yaml", "changes.jsonl"):
        (killed / name).write_bytes((folder / name).read_bytes())
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (killed / "metrics.jsonl").write_text("".join(line for line in lines if json.loads(line)["images"] <= 40))
    resume(killed)
    assert_equal_runs(folder, killed)
    assert len((killed / "changes.jsonl").read_text().splitlines()) == 1
    assert presets.load(files=[killed / "config.yaml"]).optimizer.generator.lr == 0.01
    # They are the run's values now: nothing to allow, and the former ones would be a change.
    resume(folder, LR, **{"training.kimg": 0.088})
    with pytest.raises(UsageError, match="add --allow-changes"):
        resume(folder, "optimizer.generator.lr=0.0001", **{"training.kimg": 0.096})


def test_what_makes_another_run_is_refused_with_the_flag_too(tmp_path):
    folder = start(tmp_path / "run", "training.kimg=0.008")
    for value in ("generator.heads=1", "training.batch=4", "training.seed=3", "data.shapes.seed=2"):
        with pytest.raises(
            UsageError, match=rf"{value.split('=')[0]}, which cannot change.* --init {folder}"
        ):
            resume(folder, value, LR, allow_changes=True, **{"training.kimg": 1})
    assert not (folder / "changes.jsonl").exists()


def test_a_change_that_this_machine_does_not_make_is_not_recorded(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(devices, "_cpu_has_bf16", lambda: False)
    folder = start(tmp_path / "run", "training.kimg=0.008")
    resume(folder, "training.precision=bf16", allow_changes=True, **{"training.kimg": 0.016})
    assert "using fp32" in " ".join(capsys.readouterr().out.split())
    assert not (folder / "changes.jsonl").exists()
    assert presets.load(files=[folder / "config.yaml"]).training.precision == "fp32"


def test_penalties_may_come_and_go(tmp_path):
    folder = start(tmp_path / "run", "training.kimg=0.024")
    resume(folder, "objective.r1=null", allow_changes=True, **{"training.kimg": 0.048})
    resume(folder, "objective.r2={gamma: 1, every: 1}", allow_changes=True, **{"training.kimg": 0.072})
    assert tensors(folder)
    assert [entry["images"] for entry in changes.entries(folder)] == [24, 48]


def test_a_damaged_record_counts_as_absent(tmp_path):
    (tmp_path / changes.FILE).write_text('{"images": 1, "changes": {"a": [1, 2]}}\n{"images":\n[]\n7\n')
    assert changes.recorded(tmp_path) == {"a": 2}
