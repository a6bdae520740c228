"""Conditional runs: every family learns with labels, and a run that is resumed ends with the same bits."""

import json
import math

import pytest
import torch
from helpers.small_families import DISCRIMINATORS, GENERATORS, small
from safetensors.torch import load_file

from gantx import checkpoint
from gantx.config import presets
from gantx.config.schema import ConditioningConfig
from gantx.errors import DataError, UsageError
from gantx.runtime.random import draw
from gantx.training import run
from gantx.training.conditioning import label_draws
from gantx.training.phase import labels_of
from gantx.training.phases import phases
from gantx.training.state import TrainingState

CPU = torch.device("cpu")
CONDITIONAL = "conditioning.classes=auto"


def start(folder, generator, discriminator, *overrides, log=print):
    settings = small(generator, discriminator, *overrides)
    return run.start(settings, parent=folder, out=folder / "run", device=CPU, command=["gantx"], log=log)


@pytest.mark.parametrize("discriminator", DISCRIMINATORS)
@pytest.mark.parametrize("generator", GENERATORS)
def test_two_steps_of_every_pair(generator, discriminator, tmp_path):
    folder = start(tmp_path, generator, discriminator, CONDITIONAL)
    line = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert line["iteration"] == 2
    for phase in ("discriminator", "generator"):
        assert math.isfinite(line[f"{phase}/loss"])
        assert line[f"{phase}/gradient_norm"] > 0
    header = checkpoint.read_header(checkpoint.latest_in(folder / "checkpoints"))
    assert header.config.conditioning.names[0] == "red circle"
    assert sum(header.config.conditioning.counts) == 16
    assert header.config.generator.classes == header.config.discriminator.classes == 18


@pytest.mark.parametrize("family", ["transgan", "ganformer"])
def test_a_resumed_run_ends_with_the_same_bits(family, tmp_path):
    more = (CONDITIONAL, "conditioning.dropout=0.3", "training.micro_batch=2")
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    straight = start(tmp_path / "a", family, family, "training.kimg=0.016", *more)
    broken = start(tmp_path / "b", family, family, *more)
    run.resume(
        broken, changes={"training.kimg": 0.016}, overrides=[], device=CPU, command=["gantx"], log=print
    )
    one, two = (load_file(checkpoint.latest_in(folder / "checkpoints")) for folder in (straight, broken))
    assert one.keys() == two.keys()
    assert not [name for name in one if not torch.equal(one[name], two[name])]
    assert one["generator.embedding.weight" if family == "transgan" else "discriminator.out.weight"].any()


def prepared_for(settings):
    """The configuration with 3 classes of unequal size."""
    classes = {"classes": 3, "names": ["a", "b", "c"], "counts": [1, 0, 3]}
    return presets.load(base=settings, settings={"conditioning": classes})


def test_labels_are_drawn_in_the_proportions_of_the_data():
    conditioning = ConditioningConfig(classes=3, names=("a", "b", "c"), counts=(1, 0, 3), dropout=0.25)
    draws = label_draws(conditioning, CPU)
    q = draw(draws.spec(20_000), seed=0, stream="x", step=0, device=CPU)
    shares = torch.bincount(draws.draw(q), minlength=4) / 20_000
    assert shares.tolist() == pytest.approx([0.25 * 0.75, 0, 0.75 * 0.75, 0.25], abs=0.01)
    real = draws.withhold(torch.ones(20_000, dtype=torch.int64), q)
    assert set(real.tolist()) == {1, 3}
    assert label_draws(ConditioningConfig(), CPU) is None
    plain = label_draws(ConditioningConfig(classes=2), CPU)
    assert plain.bounds.tolist() == [0.5]
    assert plain.withheld_spec(4) == {}


EVERYTHING = (
    *("objective.gradient_penalty={}", "objective.r1={gamma: 1, every: 1}"),
    *("objective.r2={gamma: 1, every: 2}", "objective.consistency={}", "augment.policy=[color,translation]"),
    *("objective.loss=relativistic", "objective.path_length={every: 1}", "objective.style_mixing=0.9"),
    "conditioning.dropout=0.2",
)


@pytest.mark.parametrize("discriminator", ["transgan", "vitgan", "ganformer"])
def test_all_losses_read_the_labels(discriminator):
    """Real and generated images keep their labels through every loss: other labels, another loss.

    The relativistic loss gives each generated image the label of its real image.
    """
    settings = prepared_for(small("ganformer", discriminator, *EVERYTHING))
    state = TrainingState(settings, CPU)
    random = torch.Generator().manual_seed(0)
    for optimized in (state.generator, state.discriminator):
        optimized.weights += 0.1 * torch.randn(optimized.weights.shape, generator=random)
    for phase in phases(settings, state.generator, state.discriminator, state.path_length):
        draws = draw(phase.spec, seed=0, stream=phase.name, step=0, device=CPU)
        reals = phase.empty_reals(phase.batch, (3, 16, 16), CPU)
        (loss, *_), *_ = phase.passes
        whole = loss(reals, draws).loss
        assert whole.isfinite()
        assert phase.labelled == phase.reals
        if phase.reals and not phase.name.startswith("r2"):  # which reads generated images alone
            other = {**reals, labels_of("real"): torch.full((4,), 2)}
            assert not torch.equal(loss(other, draws).loss, whole), phase.name
        if "latent" in draws:
            of_labels = {**draws["latent"]["label"], "class": torch.full((phase.batch,), 0.1)}
            changed = {**draws["latent"], "label": of_labels}
            same = torch.equal(loss(reals, {**draws, "latent": changed}).loss, whole)
            in_pairs = phase.name in ("discriminator", "generator")
            assert same == in_pairs, phase.name


@pytest.mark.slow
def test_a_compiled_run_has_the_same_losses(tmp_path, quick_backend):
    lines = []
    for compile in ("on", "off"):
        (tmp_path / compile).mkdir()
        settings = (CONDITIONAL, "objective.r1={gamma: 1, every: 1}", f"training.compile={compile}")
        folder = start(tmp_path / compile, "vitgan", "stylegan2", *settings, "objective.loss=hinge")
        lines.append(json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1]))
    assert quick_backend() > 0
    compiled, plain = lines
    for name in ("discriminator/loss", "discriminator/r1", "generator/gradient_norm"):
        assert compiled[name] == pytest.approx(plain[name], rel=1e-4)


def test_unconditional_runs_declare_no_labels():
    settings = small("stylegan2", "stylegan2", "objective.path_length={}")
    state = TrainingState(settings, CPU)
    for phase in phases(settings, state.generator, state.discriminator, state.path_length):
        assert phase.labelled == ()
        assert "real_label" not in phase.spec
        assert "label" not in phase.spec.get("latent", {})
        assert not any("labels" in name for name in phase.empty_reals(2, (3, 16, 16), CPU))


def test_labels_that_are_not_used_are_mentioned_once(tmp_path):
    said = []
    start(tmp_path, "transgan", "transgan", log=said.append)
    assert len([line for line in said if "labels (18 classes) are not used" in line]) == 1


@pytest.mark.parametrize(
    ("overrides", "error", "words"),
    [
        (["data.shapes.objects=2", CONDITIONAL], DataError, "shapes has no labels"),
        (["conditioning.classes=4"], UsageError, "conditioning.classes: 4, but shapes has 18 classes"),
    ],
)
def test_data_that_do_not_fit(tmp_path, overrides, error, words):
    with pytest.raises(error, match=words):
        start(tmp_path, "transgan", "transgan", *overrides)
    assert not (tmp_path / "run").exists()


def test_other_labels_are_other_data(tmp_path):
    folder = start(tmp_path, "transgan", "transgan", CONDITIONAL)
    path = checkpoint.latest_in(folder / "checkpoints")
    header = checkpoint.read_header(path)
    assert header.data["digest"] != run.prepare(header.config.data, log=print).digest
    with pytest.raises(UsageError, match=r"other values of conditioning\.classes"):
        run.resume(
            folder,
            changes={"training.kimg": 0.016},
            overrides=["conditioning.classes=null"],
            device=CPU,
            command=["gantx"],
            log=print,
        )


def test_a_conditional_run_that_is_started_again_goes_on(tmp_path):
    settings = small("transgan", "transgan", CONDITIONAL)
    how = {"changes": {}, "overrides": [], "device": CPU, "command": ["gantx"]}
    said = []
    for _ in range(2):
        run.start_or_resume(settings, tmp_path / "run", **how, log=said.append)
    assert said[-1].endswith("is complete at 0.008 kimg: nothing to do")
