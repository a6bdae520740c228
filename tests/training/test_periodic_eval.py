"""Scores while a run trains: written, made up for after a stop, and the best checkpoint kept."""

import functools
import json
import signal
from types import SimpleNamespace

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


def kept(folder):
    """Images of the best checkpoints by the names of their scores."""
    found = checkpoint.best_in(folder / "checkpoints")
    return {name: checkpoint.read_header(path).images for name, path in found.items()}


def best_of(scored, *names):
    """The same by the lines of scores."""
    found = {}
    for name in names:
        choose = min if name.startswith(("fd", "kd")) else max
        found[name] = choose(scored, key=lambda line: line["scores"][name])["images"]
    return found


def test_scores_are_written_and_the_best_checkpoint_kept(tmp_path):
    folder = start(tmp_path, *SCORED)
    scored = lines(folder, "scores")
    assert [line["images"] for line in scored] == [56, 104, 152, 200]
    assert all(set(line["scores"]) == {"fd_rand", "kd_rand"} for line in scored)
    assert kept(folder) == best_of(scored, "fd_rand")
    _, header = sampling.open_generator(folder / "checkpoints" / "best", CPU)  # its name in earlier versions
    assert header.path == folder / "checkpoints" / "best-fd_rand.safetensors"


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
    assert kept(folder) == kept(unbroken)


def test_missing_weights_stop_a_run_before_its_first_step(tmp_path):
    with pytest.raises(MissingError, match="inception"):
        start(tmp_path, "training.evaluate_every=0.05")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("name", "better", "worse"), [("fid", 3.0, 4.0), ("precision", 0.5, 0.4)])
def test_what_is_better_depends_on_the_metric(name, better, worse):
    evaluation = periodic_eval.PeriodicEvaluation.__new__(periodic_eval.PeriodicEvaluation)
    evaluation._best, evaluation._evaluator = {}, SimpleNamespace(names=(name, "other"))
    line = {"protocol_hash": "a"}
    assert evaluation.improved({**line, "scores": {name: worse}}) == [name]
    assert evaluation.improved({**line, "scores": {name: better, "other": 1.0}}) == [name, "other"]
    assert evaluation.improved({**line, "scores": {name: worse, "third": 1.0}}) == []
    assert evaluation.improved({**line, "scores": {}}) == []
    assert evaluation.improved({"protocol_hash": "b", "scores": {name: worse}}) == [name]


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
