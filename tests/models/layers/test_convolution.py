"""Convolutions are those of PyTorch, in the compute type."""

import pytest
import torch
import torch.nn.functional as F
from helpers.computed_types import ComputedTypes
from torch import nn

from gantx.models.layers.convolution import (
    Convolution,
    DoublingConvolution,
    HalvingConvolution,
    SameConvolution,
    convolve,
    convolve_transposed,
)
from gantx.models.layers.resampling import low_pass
from gantx.runtime.precision import set_compute_dtype


def filtered(x, before, after, gain=1.0):
    """The low-pass filter along both axes as a depthwise convolution, with zeros outside."""
    row = low_pass().to(x.dtype)
    taps = (gain * row.outer(row)).expand(x.shape[1], 1, 4, 4)
    return F.conv2d(F.pad(x, [before, after, before, after]), taps, groups=x.shape[1])


# What each layer makes of features [B, 6, 8, 8] and a kernel [5, 6, 3, 3], by public functions.
KINDS = {
    "same": (SameConvolution, lambda x, w: F.conv2d(x, w, padding=1)),
    "halving": (lambda: HalvingConvolution(6, 8), lambda x, w: F.conv2d(filtered(x, 2, 2), w, stride=2)),
    "doubling": (
        lambda: DoublingConvolution(5, 8),
        lambda x, w: filtered(F.conv_transpose2d(x, w.transpose(0, 1), stride=2), 1, 1, gain=4.0),
    ),
}


def operands(dtype=torch.float32):
    torch.manual_seed(0)
    x, weight = torch.randn(2, 6, 8, 8, dtype=dtype), torch.randn(5, 6, 3, 3, dtype=dtype) / 7
    return x.requires_grad_(), weight.requires_grad_()


def derivatives(layer, x, weight):
    """The output, its gradients, and those of a penalty on the gradient by the features."""
    made = layer(x, weight)
    firsts = torch.autograd.grad(made.sin().sum(), (x, weight), create_graph=True)
    seconds = torch.autograd.grad(firsts[0].square().sum(), (x, weight))
    return made, *firsts, *seconds


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_and_gradients_of_both_orders(kind, dtype):
    build, direct = KINDS[kind]
    layer = build().to(dtype)
    with ComputedTypes() as computed:
        found = derivatives(layer, *operands(dtype))
    assert computed.products
    assert not computed.other_than(dtype)
    torch.testing.assert_close(found, derivatives(direct, *operands(dtype)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_everything_is_multiplied_in_bf16(kind):
    build, _ = KINDS[kind]
    layer = build()
    exact = derivatives(layer, *operands())
    set_compute_dtype(layer, torch.bfloat16)
    with ComputedTypes() as computed:
        found = derivatives(layer, *operands())
    assert computed.products
    assert not computed.other_than(torch.bfloat16)
    assert not computed.mixed
    assert [each.dtype for each in found] == [torch.bfloat16] + 4 * [torch.float32]
    for rounded, single in zip(found, exact, strict=True):
        assert (rounded - single).abs().max() < 0.03 * single.abs().max()


@pytest.mark.parametrize("kind", KINDS)
def test_constants_are_not_saved(kind):
    assert KINDS[kind][0]().state_dict() == {}


@pytest.mark.parametrize("bias", [True, False])
def test_a_convolution_with_parameters_is_that_of_pytorch_and_widened(bias):
    layer, usual = Convolution(6, 5, 3, stride=2, padding=1, bias=bias), nn.Conv2d(6, 5, 3, 2, 1, bias=bias)
    usual.load_state_dict(layer.state_dict())
    x, _ = operands()
    assert torch.equal(layer(x), usual(x))
    set_compute_dtype(layer, torch.bfloat16)
    with ComputedTypes() as computed:
        rounded = layer(x)
    assert not computed.other_than(torch.bfloat16)
    assert rounded.dtype == torch.float32
    assert torch.equal(rounded, usual.bfloat16()(x.bfloat16()).float())
    layer, usual = layer.double(), usual.double()
    set_compute_dtype(layer, None)
    assert layer(x.double()).dtype == torch.float64


def test_operands_are_cast_and_results_are_not():
    x, weight = operands()
    bias = torch.randn(5)
    made = convolve(x, weight, bias, dtype=torch.bfloat16, padding="same")
    expected = F.conv2d(x.bfloat16(), weight.bfloat16(), bias.bfloat16(), padding="same")
    assert made.dtype == torch.bfloat16
    assert torch.equal(made, expected)
    made = convolve_transposed(x, weight, dtype=torch.bfloat16, stride=2)
    expected = F.conv_transpose2d(x.bfloat16(), weight.bfloat16().transpose(0, 1), stride=2)
    assert made.dtype == torch.bfloat16
    assert torch.equal(made, expected)
