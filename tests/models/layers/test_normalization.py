"""Normalisation in float32 or better, whatever comes in."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gantx.models.layers.normalization import LayerNorm, layer_norm, rms_norm
from gantx.runtime.precision import set_compute_dtype

TYPES = [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)]


def given(dtype):
    torch.manual_seed(0)
    return (30 + torch.randn(2, 5, 16)).to(dtype)  # in bf16, a variance of this is mostly rounding


def test_layer_norm_has_the_parameters_of_the_library():
    ours, theirs = LayerNorm(16, eps=1e-6), nn.LayerNorm(16, eps=1e-6)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    torch.nn.init.normal_(theirs.weight)
    torch.nn.init.normal_(theirs.bias)
    ours.load_state_dict(theirs.state_dict())
    x = given(torch.float32)
    assert torch.equal(ours(x), theirs(x))


@pytest.mark.parametrize(("dtype", "wide"), TYPES)
def test_layer_norm_computes_in_float32(dtype, wide):
    x = given(dtype)
    weight, bias = torch.randn(16, dtype=wide), torch.randn(16, dtype=wide)
    found = layer_norm(x, weight, bias, 1e-6)
    assert found.dtype == wide
    exact = F.layer_norm(x.double(), (16,), weight.double(), bias.double(), 1e-6)
    torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-4)
    plain = layer_norm(x)
    assert plain.dtype == wide
    torch.testing.assert_close(plain, F.layer_norm(x.to(wide), (16,)))


def test_a_network_in_bf16_leaves_normalisation_in_float32():
    norm = LayerNorm(16)
    set_compute_dtype(norm, torch.bfloat16)
    x = given(torch.float32).requires_grad_()
    found = norm(x)
    assert torch.equal(found, F.layer_norm(x, (16,)))
    found.square().sum().backward()
    assert x.grad.dtype == norm.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("dim", [-1, 1, (1, 2)])
@pytest.mark.parametrize(("dtype", "wide"), TYPES)
def test_rms_norm_divides_by_the_root_mean_square(dtype, wide, dim):
    x = given(dtype)
    found = rms_norm(x, dim)
    assert found.dtype == wide
    exact = x.double() / (x.double().square().mean(dim, keepdim=True) + 1e-8).sqrt()
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5)
    mean_squares = found.square().mean(dim)
    torch.testing.assert_close(mean_squares, torch.ones_like(mean_squares), rtol=1e-4, atol=1e-4)


def test_rms_norm_of_zeros_is_zero():
    x = torch.zeros(2, 4, requires_grad=True)
    rms_norm(x).sum().backward()
    assert torch.equal(rms_norm(x), torch.zeros(2, 4))
    assert x.grad.isfinite().all()
