"""State of the process that belongs to the caller of `import gantx`: it is as before after every call."""

import contextlib
import random

import numpy as np
import pytest
import torch
from helpers.small_families import GENERATORS, small

import gantx
from gantx import checkpoint
from gantx.exporting import export
from gantx.training.state import TrainingState


def state():
    return (
        torch.get_rng_state().tolist(),
        random.getstate(),
        str(np.random.get_state()),
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_grad_enabled(),
        torch.get_float32_matmul_precision(),
    )


@pytest.fixture(autouse=True)
def _state_kept():
    """What is asked of every test of this file."""
    before = state()
    yield
    assert state() == before


@contextlib.contextmanager
def other_defaults():
    """A caller who works in float64 and on another device, on which the tests can compute nothing."""
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)


@pytest.fixture(scope="module", params=sorted(GENERATORS))
def trained(request, tmp_path_factory):
    """A checkpoint of each family, with a discriminator that is built quickly."""
    path = tmp_path_factory.mktemp(request.param) / checkpoint.checkpoint_name(16)
    state = TrainingState(small(request.param, "transgan"), torch.device("cpu"))
    state.save(path, {"name": "shapes", "digest": "", "images": 16})
    return path


def pictures(path):
    """Images from everything of the API that generates, with the state checked after each step."""
    before = state()
    model = gantx.load(path, device="cpu")
    assert state() == before
    made = [model.sample(3)]
    if model.has_styles:
        made.append(model.sample(2, truncation=0.5))
    assert state() == before
    sweep = {"truncation": "0.5:1"} if model.has_styles else {}
    for frame in model.interpolate([1, 5], frames=3, **sweep):
        assert state() == before
        made.append(frame)
    if model.config.generator.family in ("ganformer", "transgan", "vitgan"):
        image, maps = model.attention(seed=1)
        made += [image, *maps.values()]
    assert state() == before
    return made


def test_generating_changes_nothing_of_the_caller_whose_defaults_change_no_picture(trained):
    with other_defaults():
        found = pictures(trained)
    for one, other in zip(found, pictures(trained), strict=True):
        assert torch.equal(one, other)


@pytest.fixture(scope="module")
def transgan(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / checkpoint.checkpoint_name(16)
    settings = small("transgan", "transgan")
    TrainingState(settings, torch.device("cpu")).save(path, {"name": "shapes", "digest": "", "images": 16})
    return path


@pytest.mark.parametrize(
    "asked", [{"metrics": ["fid", "kid", "pr", "dc"], "features": "random"}, {"metrics": ["modes"]}]
)
def test_scoring_changes_nothing_of_the_caller_whose_defaults_change_no_score(
    transgan, asked, monkeypatch, tmp_path
):
    def scores():
        before = state()
        result = gantx.evaluate(transgan, device="cpu", num=16, data="shapes", **asked)
        assert state() == before
        return result.scores

    with other_defaults():
        found = scores()
    monkeypatch.setenv("GANTX_CACHE", str(tmp_path))
    assert found == scores()


def test_exporting_changes_nothing_of_the_caller(transgan, tmp_path):
    before = state()
    wanted = export.Request(output=tmp_path / "g.safetensors", kind="safetensors")
    export.export(transgan, wanted, lambda line: None)
    assert state() == before
