"""`import gantx`: what docs/exploring.md promises."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.small_run import SMALL
from helpers.styled_networks import SECTIONS, save_styled
from typer.testing import CliRunner

import gantx
from gantx import checkpoint
from gantx.cli import app
from gantx.config import presets
from gantx.errors import DataError, MissingError, UsageError
from gantx.generation.labels import drawn_labels
from gantx.models import build
from gantx.training.state import TrainingState


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {
        family: gantx.load(save_styled(folder / family, family), device="cpu")
        for family in ("ganformer", "stylegan2")
    }


def test_a_model_knows_its_run_and_generates(models):
    model = models["stylegan2"]
    assert model.config.generator.family == "stylegan2"
    assert model.has_styles
    images = model.sample(5)
    assert images.shape == (5, 3, 16, 16)
    assert images.dtype == torch.uint8
    assert torch.equal(model.sample(seeds=[3, 1], batch=1), images[[3, 1]])
    assert torch.equal(gantx.sample(model.header.path, 2, truncation=0.4), model.sample(2, truncation=0.4))
    assert not torch.equal(model.sample(2, truncation=0.4), images[:2])


def test_a_model_shows_what_it_is(models):
    model = models["stylegan2"]
    count = sum(parameter.numel() for parameter in model.network.parameters())
    assert repr(model) == f"Model(stylegan2, 16×16, {count:,} parameters, 0 images seen, ema, cpu)"


def test_latents_and_styles_are_generated(models):
    model = models["ganformer"]
    z = torch.randn(2, *model.network.latent_shape)
    from_latents = model.sample(latents=z)
    from_styles = model.sample(latents=model.network.mapping(z))
    assert (from_latents.int() - from_styles.int()).abs().max() <= 1


def test_walks(models):
    frames = list(models["stylegan2"].interpolate([1, 5], frames=4, loop=True, truncation="0.5:1"))
    assert [frame.shape for frame in frames] == [(1, 3, 16, 16)] * 4
    again = models["stylegan2"].walk([1, 5], frames=4, loop=True, truncation="0.5:1")
    assert torch.equal(torch.stack(list(models["stylegan2"].interpolate(again))), torch.stack(frames))


def test_attention_comes_with_its_image(models):
    image, maps = models["ganformer"].attention(seed=3)
    assert image.shape == (1, 3, 16, 16)
    (attention,) = maps.values()
    assert attention.shape[2] == 3
    torch.testing.assert_close(attention.sum(2), torch.ones_like(attention.sum(2)))
    with pytest.raises(UsageError, match="no attention"):
        models["stylegan2"].attention()


def test_contradictions_and_absences(models, tmp_path):
    with pytest.raises(UsageError, match="give one of them"):
        models["stylegan2"].sample(3, seeds=[1])
    with pytest.raises(UsageError, match="use ema or raw"):
        gantx.load(tmp_path, weights="best")
    with pytest.raises(MissingError, match="no such checkpoint"):
        gantx.load(tmp_path / "nothing")


def test_the_examples_of_the_documentation_run(models):
    document = Path(__file__).parent.parent / "docs" / "exploring.md"
    if not document.is_file():
        pytest.skip("not a checkout")
    blocks = re.findall(r"```python\n(.*?)```", document.read_text(encoding="utf-8"), re.DOTALL)
    (of_classes,) = [block for block in blocks if "label=" in block]
    blocks.remove(of_classes)
    assert len(blocks) == 2
    model = models["ganformer"]
    known = {"RUN": model.header.path, "z": torch.randn(2, *model.network.latent_shape)}
    for block in blocks:
        exec(block, known)
    assert torch.equal(known["again"], known["images"][[3, 5]])
    assert len(known["sweep"]) == 4
    assert known["edited"].shape == (2, 3, 16, 16)
    torch.manual_seed(0)
    network = build(SECTIONS["stylegan2"].model_copy(update={"classes": 2})).eval()
    classes = {"conditioning": {"classes": 2, "names": ["cat", "dog"], "counts": [1, 1]}}
    header = replace(model.header, config=presets.load("transgan-tiny", settings=classes))
    known["model"] = gantx.Model(network, header, "ema", torch.device("cpu"))
    exec(of_classes, known)
    assert known["cats"].shape[0] == 8
    assert torch.equal(known["morph"][-1], known["model"].sample(seeds=[7], label="dog"))


def test_a_score_is_that_of_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = presets.load(overrides=SMALL, settings={"data.source": "shapes"})
    path = tmp_path / "checkpoints" / checkpoint.checkpoint_name(0)
    TrainingState(settings, torch.device("cpu")).save(path, {"name": "shapes", "digest": "", "images": 37})
    how = {"features": "random", "num": 16, "intervals": False}
    scores = {score.name: score.value for score in gantx.evaluate(path, ["fid"], device="cpu", **how).scores}
    command = ["eval", str(path), "--metric", "fid", "--num", "16", "--features", "random", "--no-intervals"]
    result = CliRunner().invoke(app, [*command, "--device", "cpu", "--threads", "1", "--json"])
    metrics = json.loads(result.stdout)["metrics"]
    assert scores["fd_rand"] == pytest.approx(metrics["fd_rand"]["value"])


def test_sample_takes_seeds_and_refuses_nothing_to_generate(models):
    path, model = models["stylegan2"].header.path, models["stylegan2"]
    assert torch.equal(gantx.sample(path, seeds=[3]), model.sample(seeds=[3]))
    for how, words in (
        ({"seeds": []}, "nothing to generate"),
        ({"n": 0}, "n 0: give a whole number, 1 or more"),
        ({"n": 2.5}, "n 2.5"),
        ({"seeds": [1, -3]}, "seed -3"),
        ({"seeds": [0.5]}, "seed 0.5"),
        ({"n": 2, "batch": -1}, "batch -1"),
        ({"n": 2, "batch": 0}, "batch 0"),
    ):
        with pytest.raises(UsageError, match=words):
            model.sample(**how)
    with pytest.raises(UsageError, match="batch 0"):
        model.interpolate([1, 2], frames=3, batch=0)


def test_seeds_and_latents_of_other_types_mean_the_same(models):
    model = models["stylegan2"]
    expected = model.sample(seeds=[3, 5])
    for seeds in (torch.tensor([3, 5]), np.array([3, 5]), (3, 5)):
        assert torch.equal(model.sample(seeds=seeds), expected)
    z = torch.randn(2, *model.network.latent_shape)
    expected = model.sample(latents=z)
    for latents in (z.double(), z.numpy(), z.clone().requires_grad_()):
        assert torch.equal(model.sample(latents=latents), expected)
    styles = model.network.mapping(z)
    assert torch.equal(model.sample(latents=styles.double()), model.sample(latents=styles))


def test_latents_that_are_none_are_refused_before_anything_is_generated(models):
    model = models["stylegan2"]
    dim = model.network.latent_shape[0]
    for latents, words in (
        (torch.zeros(()), r"has the shape \[\], but this generator takes latents \[N, "),
        (torch.zeros(dim), "takes latents"),
        (torch.zeros(0, dim), "takes latents"),
        (torch.zeros(2, dim, 1), "or styles"),
        (torch.zeros(2, dim, dtype=torch.int64), "floating-point"),
        (torch.full((2, dim), torch.inf), "finite"),
    ):
        with pytest.raises(DataError, match=words):
            model.sample(latents=latents)
        with pytest.raises(DataError, match=words):
            model.generate(latents)


def test_natural_ways_of_asking(models):
    path, model = models["stylegan2"].header.path, models["stylegan2"]
    assert gantx.load(path, device=torch.device("cpu")).device == torch.device("cpu")
    batches = list(model.generate(3, batch=8))
    assert torch.equal(torch.cat(batches), torch.cat(list(model.generate(range(3), batch=8))))
    with pytest.raises(UsageError, match="n 0"):
        model.generate(0)
    how = {"features": "random", "num": 16, "intervals": False, "data": "shapes"}
    found = gantx.evaluate(path, "fid,kid", device=torch.device("cpu"), **how)
    assert [score.name for score in found.scores] == ["fd_rand", "kd_rand"]
    with pytest.raises(MissingError, match="absent"):
        gantx.evaluate(path, "fid", reference="absent.safetensors", **{**how, "data": None})


def test_attention_shows_the_class_of_the_seed_or_the_one_that_is_asked_for(models):
    torch.manual_seed(0)
    network = build(SECTIONS["ganformer"].model_copy(update={"classes": 2})).eval().requires_grad_(False)
    classes = {"conditioning": {"classes": 2, "names": ["cat", "dog"], "counts": [1, 1]}}
    header = replace(models["stylegan2"].header, config=presets.load("transgan-tiny", settings=classes))
    model = gantx.Model(network, header, "ema", torch.device("cpu"))
    cat, dog = (model.attention(seed=7, label=name)[0] for name in ("cat", "dog"))
    assert not torch.equal(cat, dog)
    own = drawn_labels(header.config.conditioning, [7])[0]
    assert torch.equal(model.attention(seed=7)[0], (cat, dog)[own])
    with pytest.raises(ValueError, match=r"needs labels.*of_class"):
        network(torch.zeros(1, *network.latent_shape))
