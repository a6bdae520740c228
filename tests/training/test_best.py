"""The best checkpoint of a run by each score: kept whatever happens, found again, and never two copies."""

import os
import shutil
from pathlib import Path

import pytest
from helpers.started_runs import metrics, names, resume, start

from gantx import checkpoint
from gantx.config.schema import TrainingConfig
from gantx.errors import CheckpointError, MissingError, UsageError
from gantx.training import best, runs
from gantx.training.health import Finding, Unhealthy
from gantx.training.periodic_eval import PeriodicEvaluation
from gantx.training.rollback import go_back
from gantx.training.run_logger import RunLogger

SCORED = (
    "training.evaluate_every=0.03",
    "training.kimg=0.12",
    "training.keep_checkpoints=1",
    "evaluation.features=random",
    "evaluation.metrics=[kid,fid,pr]",
    "evaluation.num_during_training=16",
)
# Of the evaluations by the images they are made at, and which of them is the best.
VALUES = {
    "fd_rand": {32: 9.0, 64: 3.0, 96: 4.0, 120: 5.0, 144: 6.0},
    "kd_rand": {32: 1.0, 64: 3.0, 96: 4.0, 120: 1.0, 144: 6.0},
    "precision_rand": {32: 0.2, 64: 0.1, 96: 0.3, 120: 0.0, 144: 0.0},
    "recall_rand": {32: 0.2, 64: 0.2, 96: 0.3, 120: 0.3, 144: 0.0},
}
BEST = {"fd_rand": 64, "kd_rand": 32, "precision_rand": 96, "recall_rand": 96}


class Killed(BaseException):
    """Nothing of the program handles it, as nothing handles SIGKILL."""


@pytest.fixture(autouse=True)
def scripted(monkeypatch):
    """Evaluations give `VALUES`."""
    evaluate, made_at = RunLogger.evaluate, []

    def noted(self, before, *, finished=False):
        made_at.append(self.state.images)
        evaluate(self, before, finished=finished)

    def score(self, generator, interrupted, show):
        scores = {name: values[made_at[-1]] for name, values in VALUES.items()}
        return {"scores": scores, "protocol_hash": "a"}

    monkeypatch.setattr(RunLogger, "evaluate", noted)
    monkeypatch.setattr(PeriodicEvaluation, "score", score)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run to its end, made by the first test that needs it."""
    return tmp_path_factory.mktemp("best") / "run"


@pytest.fixture
def whole(finished, tmp_path):
    if not finished.exists():
        start(finished, *SCORED)
    return Path(shutil.copytree(finished, tmp_path / "run", copy_function=linked))


def linked(source, target):
    os.link(source, target) if "checkpoints" in source else shutil.copy2(source, target)


def kept(run):
    found = checkpoint.best_in(run / "checkpoints")
    return {name: checkpoint.read_header(path).images for name, path in found.items()}


def test_each_score_keeps_its_best_checkpoint(whole):
    folder = whole / "checkpoints"
    assert kept(whole) == BEST
    assert names(folder) == ["kimg-000000.120"]  # the best ones are not pruned
    assert (folder / "best-precision_rand.safetensors").samefile(folder / "best-recall_rand.safetensors")
    assert best.find(whole, "fd_rand") == folder / "best-fd_rand.safetensors"
    summary = runs.summary(whole)
    assert summary.best["fd_rand"] == runs.Best(0.064, 3.0)
    files = [path.stat() for path in whole.rglob("*") if path.is_file()]
    twice = (folder / "best-recall_rand.safetensors").stat().st_size
    assert summary.bytes == sum(facts.st_size for facts in files) - twice
    assert [file.problem for file in runs.verify(whole) if "best" in file.path.name] == [None] * 4


@pytest.mark.parametrize(
    "moment",
    ["before the best", "between two", pytest.param("before the checkpoint", marks=pytest.mark.slow)],
)
def test_a_kill_loses_no_best_checkpoint(tmp_path, monkeypatch, moment):
    def killed(*arguments):
        raise Killed

    def keep(source, scores, checkpoints):
        if moment == "between two":
            usual(source, scores[:1], checkpoints)
        raise Killed

    usual = best.keep
    with monkeypatch.context() as patch:
        if moment == "before the checkpoint":
            patch.setattr(RunLogger, "save", killed)
        patch.setattr(best, "keep", keep)
        with pytest.raises(Killed):
            start(tmp_path / "run", *SCORED)
    resume(tmp_path / "run")
    assert kept(tmp_path / "run") == BEST
    assert [line["images"] for line in metrics(tmp_path / "run") if "scores" in line] == [32, 64, 96, 120]


def test_going_back_keeps_what_was_best_by_then(whole):
    resume(whole, back_to=best.find(whole, "fd_rand"))
    assert kept(whole) == BEST
    aside = whole / "set-aside" / "0001-after-kimg-0.064" / "checkpoints"
    assert list(checkpoint.best_in(aside)) == ["precision_rand", "recall_rand"]


def test_a_rollback_rejects_the_best_after_it(whole):
    folder = whole / "checkpoints"
    shutil.copy(folder / "best-fd_rand.safetensors", folder / checkpoint.checkpoint_name(64))
    header, _, _ = go_back(whole, TrainingConfig(), Unhealthy(Finding("collapse", "It collapsed"), 96))
    assert header.images == 64
    assert kept(whole) == {"fd_rand": 64, "kd_rand": 32}
    assert len(list((folder / "rejected").rglob("*.safetensors"))) == 3


def test_the_best_checkpoint_of_an_earlier_version_is_taken_over(whole):
    folder = whole / "checkpoints"
    (folder / "best").mkdir()
    old = folder / "best" / checkpoint.checkpoint_name(32)
    (folder / "best-kd_rand.safetensors").rename(old)
    for path in checkpoint.best_in(folder).values():
        path.unlink()
    assert best.find(whole, "kd_rand") == old
    resume(whole, **{"training.kimg": 0.144})
    assert not old.parent.exists()
    # Of the others, the best of those that were still there.
    assert kept(whole) == {"fd_rand": 120, "kd_rand": 32, "precision_rand": 32, "recall_rand": 120}


def test_a_best_checkpoint_that_is_not_there_is_named(whole, tmp_path):
    with pytest.raises(MissingError, match=r"by fid, but by fd_rand, kd_rand"):
        best.find(whole, "fid")
    with pytest.raises(UsageError, match=r"no score 'fd'.*there are fid"):
        best.find(whole, "fd")
    with pytest.raises(MissingError, match="is not a folder"):
        best.find(tmp_path / "a.safetensors", "fid")
    with pytest.raises(MissingError, match=r"has no best checkpoint: runs with training\.evaluate_every"):
        best.find(tmp_path, "fid")
    with pytest.raises(UsageError, match=r"name one of best-fd_rand\.safetensors"):
        checkpoint.find(whole / "checkpoints" / "best")
    damaged = best.find(whole, "fd_rand")
    content = damaged.read_bytes()
    damaged.unlink()  # the file of the run that other tests share has another name as well
    damaged.write_bytes(content[:-9])
    with pytest.raises(CheckpointError, match=r"cut off.*go on from there with: .*kimg-000000\.120"):
        resume(whole, back_to=damaged)
