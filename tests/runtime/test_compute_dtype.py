"""The types that compute: chosen for a whole network, cast where it is written."""

import pytest
import torch
from torch import nn

from gantx.models.layers.linear import Linear
from gantx.runtime.precision import set_compute_dtype, to_compute, widened


def network():
    torch.manual_seed(0)
    return nn.Sequential(Linear(6, 8), nn.GELU(), nn.Sequential(Linear(8, 8, widen=True)), nn.LayerNorm(8))


def test_every_layer_that_multiplies_is_set_and_no_other():
    chosen = network()
    set_compute_dtype(chosen, torch.bfloat16)
    assert chosen[0].compute_dtype == chosen[2][0].compute_dtype == torch.bfloat16
    assert not hasattr(chosen[1], "compute_dtype")
    assert not hasattr(chosen[3], "compute_dtype")
    assert Linear.compute_dtype is None  # other networks are left alone
    assert network()[0].compute_dtype is None


def test_parameters_and_saved_names_stay():
    chosen = network()
    before = {name: value.clone() for name, value in chosen.state_dict().items()}
    set_compute_dtype(chosen, torch.bfloat16)
    torch.testing.assert_close(dict(chosen.state_dict()), before, rtol=0, atol=0)  # types included


def test_without_a_type_nothing_is_cast():
    chosen = network()
    inputs = torch.randn(3, 6)
    exact = chosen(inputs)
    set_compute_dtype(chosen, torch.bfloat16)
    rounded = chosen(inputs)
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, exact)
    torch.testing.assert_close(rounded, exact, rtol=0.05, atol=0.05)
    set_compute_dtype(chosen, None)
    assert torch.equal(chosen(inputs), exact)
    assert chosen.double()(inputs.double()).dtype == torch.float64


def test_gradients_are_float32():
    chosen = network()
    set_compute_dtype(chosen, torch.bfloat16)
    inputs = torch.randn(3, 6, requires_grad=True)
    chosen(inputs).square().sum().backward()
    for tensor in (inputs, *chosen.parameters()):
        assert tensor.grad.dtype == torch.float32


def test_operands_are_cast_to_the_type():
    x = torch.randn(3)
    assert to_compute(x, None) is x
    assert to_compute(x, torch.float32) is x
    assert to_compute(x, torch.bfloat16).dtype == torch.bfloat16
    assert to_compute(x.double(), torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("narrow", "wide"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_widened_is_at_least_float32(narrow, wide):
    x = torch.randn(3).to(narrow)
    assert widened(x).dtype == wide
    assert (widened(x) is x) == (narrow == wide)
    assert torch.equal(widened(x).to(narrow), x)
