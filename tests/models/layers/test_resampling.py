"""Resampling multiplies in the compute type, by constants that are exact in bf16."""

import pytest
import torch
from helpers.computed_types import ComputedTypes

from gantx.models.layers.resampling import SMALL, Resample
from gantx.runtime.precision import set_compute_dtype

CHANGES = [
    {"before": 2, "after": 2},
    {"before": 1, "after": 1, "gain": 4.0},
    {"before": 1, "after": 1, "down": 2},
    {"before": 2, "after": 1, "up": 2},
]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("side", [8, SMALL + 1])
def test_types(change, side):
    layer = Resample(2, side, **change)
    x = torch.randn(2, 2, side, side)
    exact = layer(x)
    assert exact.dtype == torch.float32
    assert layer.double()(x.double()).dtype == torch.float64
    layer = layer.float()
    set_compute_dtype(layer, torch.bfloat16)
    x.requires_grad_()
    with ComputedTypes() as computed:
        rounded = layer(x)
        rounded.sum().backward()
    assert computed.products
    assert not computed.other_than(torch.bfloat16)
    assert not computed.mixed
    assert rounded.dtype == torch.bfloat16
    assert x.grad.dtype == torch.float32
    assert (rounded - exact).abs().max() < 0.02 * exact.abs().max()


@pytest.mark.parametrize("change", CHANGES)
def test_constants_are_exact_in_bf16(change):
    for side in (8, SMALL + 1):
        for constant in Resample(2, side, **change).buffers():
            assert torch.equal(constant.bfloat16().float(), constant)
