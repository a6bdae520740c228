"""State of the process that belongs to the caller of `import gantx`: it is as before after every call."""

import pytest
import torch
from helpers.small_run import SMALL
from helpers.styled_networks import save_styled

import gantx
from gantx.config import presets
from gantx.training.state import TrainingState


@pytest.fixture(scope="module", params=["ganformer", "stylegan2"])
def checkpoint(request, tmp_path_factory):
    return save_styled(tmp_path_factory.mktemp("run") / request.param, request.param)


@pytest.fixture
def in_double():
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(default)


def state():
    return (
        torch.get_rng_state().tolist(),
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_grad_enabled(),
        torch.get_float32_matmul_precision(),
    )


def pictures(checkpoint):
    """Images from everything of the API that generates, with the state checked after each step."""
    before = state()
    model = gantx.load(checkpoint, device="cpu")
    assert state() == before
    made = [model.sample(3), model.sample(2, truncation=0.5)]
    assert state() == before
    for frame in model.interpolate([1, 5], frames=3, truncation="0.5:1"):
        assert state() == before
        made.append(frame)
    if model.config.generator.family == "ganformer":
        made.append(model.attention(seed=1)[0])
    assert state() == before
    return made


def test_nothing_of_the_caller_changes(checkpoint):
    pictures(checkpoint)


def test_the_default_type_changes_no_picture(checkpoint, in_double):
    found = pictures(checkpoint)
    torch.set_default_dtype(torch.float32)
    for one, other in zip(found, pictures(checkpoint), strict=True):
        assert torch.equal(one, other)


@pytest.fixture
def trained(tmp_path):
    path = tmp_path / "kimg-000000.037.safetensors"
    settings = presets.load(overrides=SMALL, settings={"data.source": "shapes"})
    TrainingState(settings, torch.device("cpu")).save(path, {"name": "shapes", "digest": "", "images": 37})
    return path


@pytest.mark.parametrize(
    "asked", [{"metrics": ["fid"], "features": "random"}, {"metrics": ["modes"], "data": "shapes"}]
)
def test_a_score_changes_nothing_of_the_caller(trained, asked):
    before = state()
    gantx.evaluate(trained, device="cpu", num=16, intervals=False, **asked)
    assert state() == before
