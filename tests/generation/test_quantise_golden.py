"""From [-1, 1] to grey levels exactly as StyleGAN, StudioGAN and TransGAN round."""

import json

import pytest
import torch
from helpers.golden_file import find_golden
from safetensors.torch import load_file

from gantx.generation.sampling import quantise


@pytest.fixture(scope="module")
def golden():
    """(the values of the case, its tensors)"""
    case = json.loads(find_golden("metrics/golden.json").read_text())["cases"]["quantise"]
    (name,) = case["files"]
    return case["values"], load_file(find_golden(f"metrics/{name}"))


def quantised(values, rule):
    return quantise(values.view(1, 1, 1, -1), rule).flatten()


@pytest.mark.parametrize(
    ("rule", "key"),
    [
        ("round", "stylegan_x127.5+128_trunc"),
        ("round", "studiogan_(x+1)/2*255+0.5_trunc"),
        ("truncate", "transgan_x127.5+127.5_trunc"),
    ],
)
def test_levels_are_those_of_the_tool(golden, rule, key):
    _, tensors = golden
    found = quantised(tensors["x"], rule)
    assert found.dtype == torch.uint8
    assert torch.equal(found, tensors[key])


def test_truncating_darkens_by_as_much_as_recorded(golden):
    values, tensors = golden
    rounded, truncated = (quantised(tensors["x"], rule).double() for rule in ("round", "truncate"))
    darker = (truncated - rounded).mean()
    assert float(darker) == pytest.approx(values["mean_transgan_minus_stylegan"], abs=1e-12)


def test_unrounded_levels_stay_between_the_neighbours(golden):
    _, tensors = golden
    levels = quantised(tensors["x"], "none")
    assert levels.dtype == torch.float32
    torch.testing.assert_close(levels, ((tensors["x"] + 1) / 2 * 255).clamp(0, 255))
    assert float((levels - quantised(tensors["x"], "round").float()).abs().max()) <= 0.5001
