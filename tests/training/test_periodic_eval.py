"""Scores while a run trains: written, made up for after a stop, and the best checkpoint kept."""

import functools
import json
import signal

import pytest
import torch
from helpers.small_run import SMALL
from safetensors.torch import load_file

from gantx import checkpoint
from gantx.config import presets
from gantx.errors import MissingError, Stopped
from gantx.generation import sampling
from gantx.training import periodic_eval, run

CPU = torch.device("cpu")
SCORED = [
    "training.evaluate_every=0.05",
    "evaluation.features=random",
    "evaluation.metrics=[fid]",
    "evaluation.num_during_training=16",
]


def start(folder, *overrides):
    settings = presets.load(overrides=[*SMALL, *overrides], settings={"data.source": "shapes"})
    return run.start(settings, parent=folder, out=folder / "run", device=CPU, command=["gantx"], log=print)


def resume(folder, **changes):
    return run.resume(folder, changes=changes, overrides=[], device=CPU, command=["gantx"], log=print)


def lines(folder, key):
    parsed = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in parsed if key in line]


def test_scores_are_written_and_the_best_checkpoint_kept(tmp_path):
    folder = start(tmp_path, *SCORED)
    scored = lines(folder, "scores")
    assert [line["images"] for line in scored] == [56, 104, 152, 200]
    assert all(set(line["scores"]) == {"fd_rand", "kd_rand"} for line in scored)
    best = min(scored, key=lambda line: line["scores"]["fd_rand"])
    (kept,) = (folder / "checkpoints" / "best").iterdir()
    assert kept.name == checkpoint.checkpoint_name(best["images"])
    _, header = sampling.open_generator(folder / "checkpoints" / "best", CPU)
    assert header.images == best["images"]


def test_scoring_changes_nothing_else(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with_scores, without = start(tmp_path / "a", *SCORED), start(tmp_path / "b")
    one, two = (load_file(checkpoint.latest_in(folder / "checkpoints")) for folder in (with_scores, without))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    losses = [
        [line["generator/loss"] for line in lines(folder, "iteration")] for folder in (with_scores, without)
    ]
    assert losses[0] == losses[1]


def test_every_due_score_is_made_once_however_often_it_is_stopped(tmp_path, monkeypatch):
    """Each number says in which batch of its evaluations a start is stopped: the first makes up for one."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    unbroken, folder = start(tmp_path / "a", *SCORED), tmp_path / "b" / "run"
    report, moments = periodic_eval.PeriodicEvaluation._on_progress, [1, 1, 1, 2, 1]
    batches = []

    def stopped(self, what, done, total):
        if "real" not in what:
            batches.append(done)
        if moments and len(batches) == moments[0]:
            signal.raise_signal(signal.SIGTERM)
        report(self, what, done, total)

    monkeypatch.setattr(periodic_eval.PeriodicEvaluation, "_on_progress", stopped)
    while moments:
        begin = functools.partial(start, tmp_path / "b", *SCORED)
        if folder.exists():
            begin = functools.partial(resume, folder)
        with pytest.raises(Stopped):
            begin()
        moments.pop(0)
        batches.clear()
    resume(folder)
    scored = [
        [(line["images"], line["scores"]) for line in lines(one, "scores")] for one in (folder, unbroken)
    ]
    assert scored[0] == scored[1]
    best = [[path.name for path in (one / "checkpoints" / "best").iterdir()] for one in (folder, unbroken)]
    assert best[0] == best[1]


def test_the_best_checkpoint_is_kept_by_the_next_start_if_a_stop_prevented_it(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(run.RunLogger, "_keep_best", lambda self: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(Stopped):
            start(tmp_path, *SCORED)
    folder = tmp_path / "run"
    assert not (folder / "checkpoints" / "best").exists()
    run.resume(
        folder, changes={"training.kimg": 0.104}, overrides=[], device=CPU, command=["gantx"], log=print
    )
    best = min(lines(folder, "scores"), key=lambda line: line["scores"]["fd_rand"])
    (kept,) = (folder / "checkpoints" / "best").iterdir()
    assert kept.name == checkpoint.checkpoint_name(best["images"])


def test_missing_weights_stop_a_run_before_its_first_step(tmp_path):
    with pytest.raises(MissingError, match="inception"):
        start(tmp_path, "training.evaluate_every=0.05")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("name", "better", "worse"), [("fid", 3.0, 4.0), ("precision", 0.5, 0.4)])
def test_what_is_better_depends_on_the_metric(name, better, worse):
    evaluation = periodic_eval.PeriodicEvaluation.__new__(periodic_eval.PeriodicEvaluation)
    evaluation._best, evaluation._deciding = None, name
    line = {"protocol_hash": "a"}
    assert evaluation.improves({**line, "scores": {name: worse}})
    assert evaluation.improves({**line, "scores": {name: better}})
    assert not evaluation.improves({**line, "scores": {name: worse}})
    assert not evaluation.improves({**line, "scores": {}})
    assert evaluation.improves({"protocol_hash": "b", "scores": {name: worse}})


def test_the_first_metric_decides_which_checkpoint_is_the_best(tmp_path):
    folder = start(tmp_path, *SCORED, "evaluation.metrics=[kid,fid]")
    best = min(lines(folder, "scores"), key=lambda line: line["scores"]["kd_rand"])
    (kept,) = (folder / "checkpoints" / "best").iterdir()
    assert kept.name == checkpoint.checkpoint_name(best["images"])


def test_modes_decide_beside_a_network_too(tmp_path):
    folder = start(tmp_path, *SCORED, "evaluation.metrics=[modes,fid]")
    assert {"modes", "confident", "whole", "fd_rand"} < set(lines(folder, "scores")[0]["scores"])
    assert list((folder / "checkpoints" / "best").iterdir())


def test_a_stop_does_not_lose_the_last_score(tmp_path, monkeypatch):
    measure, calls = periodic_eval.PeriodicEvaluation.score, []

    def stopped(self, generator, interrupted, show):
        calls.append(None)
        if len(calls) == 4:
            signal.raise_signal(signal.SIGTERM)
        return measure(self, generator, interrupted, show)

    monkeypatch.setattr(periodic_eval.PeriodicEvaluation, "score", stopped)
    folder = start(tmp_path, *SCORED)
    assert [line["images"] for line in lines(folder, "scores")] == [56, 104, 152, 200]
