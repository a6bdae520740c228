"""Runs that explode, collapse or diverge: what is said, and how they go back to a healthy checkpoint."""

import json
import weakref

import pytest
import torch
from helpers.small_run import SMALL

from gantx import checkpoint
from gantx.config import presets
from gantx.errors import DivergedError
from gantx.training import health, run
from gantx.training.state import TrainingState

CPU = torch.device("cpu")
BACK = "training.on_divergence=rollback"


def train(folder, *overrides):
    settings = presets.load(overrides=[*SMALL, *overrides], settings={"data.source": "shapes"})
    return run.start(
        settings, parent=folder, out=folder / "run", device=CPU, command=["gantx", "train"], log=print
    )


@pytest.fixture
def before_steps(monkeypatch):
    """Lets a function of the state act before every iteration."""

    def act(function):
        usual = TrainingState.set_learning_rates

        def changed(state, factor):
            with torch.no_grad():
                factor = function(state, factor) or factor
            usual(state, factor)

        monkeypatch.setattr(TrainingState, "set_learning_rates", changed)

    return act


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def last(folder):
    return checkpoint.read_header(checkpoint.latest_in(folder / "checkpoints"))


def test_a_run_goes_back_and_ends_well(tmp_path, before_steps):
    rates = []

    def ruin(state, factor):
        rates.append((state.images, state.rollbacks))
        return 1e18 if state.rollbacks == 0 and state.images >= 104 else None

    before_steps(ruin)
    folder = train(tmp_path, BACK, "training.checkpoint_kimg=0.04")
    log = (folder / "train.log").read_text()
    assert "going back to kimg-000000.080.safetensors with 0.5 times the learning rate" in log
    assert "(rollback 1 of at most 3)" in log
    assert rates.count((80, 0)) == rates.count((80, 1)) == 1  # trained again from there
    assert last(folder).images == 200
    assert last(folder).progress["rollbacks"] == 1
    images = [line["images"] for line in lines(folder)]
    assert images == sorted(set(images))


def test_going_back_frees_the_networks_first_and_does_not_seek_the_micro_batch_again(
    tmp_path, before_steps, monkeypatch
):
    states, wanted, resolve_micro_batch = [], [], run.resolve_micro_batch

    def ruin(state, factor):
        return 1e18 if state.rollbacks == 0 and state.images >= 104 else None

    def counted(settings, state, log):
        assert not [earlier for earlier in states if earlier() is not None]
        states.append(weakref.ref(state))
        wanted.append(settings.training.micro_batch)
        return resolve_micro_batch(settings, state, log)

    before_steps(ruin)
    monkeypatch.setattr(run, "resolve_micro_batch", counted)
    scored = ("training.evaluate_every=0.04", "evaluation.features=random", "evaluation.metrics=[fid]")
    scored += ("evaluation.num_during_training=16",)
    train(tmp_path, BACK, "training.checkpoint_kimg=0.04", "training.micro_batch=auto", *scored)
    assert wanted == ["auto", None]


def test_rollbacks_are_bounded(tmp_path, before_steps):
    before_steps(lambda state, factor: 1e18 if state.images >= 56 else None)
    with pytest.raises(DivergedError, match=r"went back 2 times \(training.max_rollbacks\)") as diverged:
        train(tmp_path, BACK, "training.max_rollbacks=2")
    assert diverged.value.exit_code == 5
    assert last(tmp_path / "run").progress["rollbacks"] == 2


def test_there_is_nothing_to_go_back_to(tmp_path, before_steps):
    before_steps(lambda state, factor: 1e18)
    with pytest.raises(DivergedError, match="no healthy checkpoint was written before"):
        train(tmp_path, BACK)


@pytest.mark.parametrize("mode", ["stop", "rollback"])
def test_a_collapse_is_said_within_three_reports(tmp_path, monkeypatch, before_steps, mode):
    monkeypatch.setattr(health, "RISEN", 0.0)  # an untrained generator is no better

    def collapse(state, factor):
        if state.images >= 64 and not state.rollbacks:
            state.generator.weights.zero_()

    before_steps(collapse)
    folder = train(tmp_path, f"training.on_divergence={mode}", "training.report_kimg=0.016")
    log = (folder / "train.log").read_text()
    assert log.count("the generator has collapsed: its images differ by 0 %") == 1 + (mode == "rollback")
    if mode == "stop":
        assert [line["images"] for line in lines(folder) if "health" in line] == [112]
        assert last(folder).images == 200
        return
    assert "going back to kimg-000000.040" in log
    rejected = folder / "checkpoints" / "rejected"
    (found,) = rejected.rglob("*.safetensors")
    assert found == rejected / "0001-after-kimg-000000.040" / "kimg-000000.080.safetensors"
    assert not any("health" in line for line in lines(folder))


def test_an_explosion_is_said_in_its_first_report(tmp_path, before_steps):
    def explode(state, factor):
        if state.images == 152:
            state.discriminator.weights.mul_(1000)

    before_steps(explode)
    folder = train(tmp_path, "training.report_kimg=0.016")
    found = [(line["images"], line["health"]) for line in lines(folder) if "health" in line]
    assert found[0] == (160, ["explosion"])
    assert "times its usual size: lower optimizer." in (folder / "train.log").read_text()
