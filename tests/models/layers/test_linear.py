"""The linear layer is that of PyTorch, in the compute type."""

import copy

import pytest
import torch
import torch.nn.functional as F
from helpers.computed_types import ComputedTypes
from torch import nn

from gantx.models.layers.linear import Linear, linear
from gantx.runtime.precision import set_compute_dtype


def operands(*batch, bias=True, dtype=torch.float32):
    torch.manual_seed(0)
    inputs, weight = torch.randn(*batch, 24, dtype=dtype), torch.randn(10, 24, dtype=dtype) / 5
    return inputs, weight, torch.randn(10, dtype=dtype) if bias else None


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch", [(7,), (3, 5), (2, 3, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("widen", [True, False])
def test_without_a_compute_type_nothing_is_cast(batch, bias, dtype, widen):
    inputs, weight, bias = operands(*batch, bias=bias, dtype=dtype)
    with ComputedTypes() as computed:
        made = linear(inputs, weight, bias, dtype=None, widen=widen)
    assert not computed.other_than(dtype)
    assert torch.equal(made, F.linear(inputs, weight, bias))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("widen", [True, False])
def test_every_product_is_of_the_compute_type(bias, widen):
    given = [each.requires_grad_() for each in operands(3, 5, bias=bias) if each is not None]
    with ComputedTypes() as computed:
        made = linear(*given, dtype=torch.bfloat16, widen=widen)
        firsts = torch.autograd.grad(made.float().sin().sum(), given, create_graph=True)
        torch.autograd.grad(firsts[0].square().sum(), given[:2])
    assert computed.products
    assert not computed.other_than(torch.bfloat16)
    assert not computed.mixed
    assert made.dtype == (torch.float32 if widen else torch.bfloat16)
    assert all(gradient.dtype == torch.float32 for gradient in firsts)
    expected = F.linear(*(each.bfloat16() for each in given))
    assert torch.equal(made, expected.float() if widen else expected)


def test_gradients_in_bf16_are_close_to_those_in_fp32():
    def gradients(layer):
        torch.manual_seed(2)
        inputs = torch.randn(64, 24, requires_grad=True)
        return torch.autograd.grad(layer(inputs).sin().sum(), (inputs, *layer.parameters()))

    torch.manual_seed(1)
    layer = Linear(24, 10, widen=True)
    exact = gradients(layer)
    set_compute_dtype(layer, torch.bfloat16)
    for rounded, single in zip(gradients(layer), exact, strict=True):
        assert rounded.dtype == torch.float32
        assert (rounded - single).abs().max() < 0.03 * single.abs().max()


@pytest.mark.parametrize("bias", [True, False])
def test_same_parameters_under_the_same_names(bias):
    layer, usual = Linear(24, 10, bias), nn.Linear(24, 10, bias)
    usual.load_state_dict(layer.state_dict())
    inputs = torch.randn(2, 24)
    assert torch.equal(layer(inputs), usual(inputs))
    assert isinstance(copy.deepcopy(layer), nn.Linear)


def test_the_compute_type_of_a_network_reaches_its_layers_and_no_others():
    network = nn.Sequential(Linear(24, 16), nn.GELU(), Linear(16, 8, widen=True), nn.Linear(8, 1))
    set_compute_dtype(network, torch.bfloat16)
    with ComputedTypes() as computed:
        made = network(torch.randn(3, 24))
    assert [kinds for _, kinds, _ in computed.products] == 2 * [{torch.bfloat16}] + [{torch.float32}]
    assert made.dtype == torch.float32
    set_compute_dtype(network, None)
    with ComputedTypes() as computed:
        network(torch.randn(3, 24))
    assert not computed.other_than(torch.float32)


def test_compilers_and_exporters_see_the_public_operator():
    layer, inputs = Linear(24, 10), torch.randn(7, 24)
    exported = torch.export.export(layer, (inputs,))
    operators = [node.target for node in exported.graph.nodes if node.op == "call_function"]
    assert operators == [torch.ops.aten.linear.default]
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(inputs), F.linear(inputs, layer.weight, layer.bias))
