"""The linear layer by way of oneDNN computes what PyTorch's own does, in every derivative."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gantx.models.layers import linear as module
from gantx.models.layers.linear import Linear, linear, prefers_onednn


@pytest.fixture
def onednn(monkeypatch):
    """Send every product to oneDNN, whatever its size and the processor; count them."""
    numbers = torch.ones(1, 1)
    try:
        module._multiply(numbers, numbers, None)
    except (AttributeError, RuntimeError):
        pytest.skip("this PyTorch has no oneDNN product")
    monkeypatch.setattr(module, "SMALLEST", 0)
    monkeypatch.setattr(module, "prefers_onednn", lambda: True)
    multiply, calls = module._multiply, []

    def counted(*operands):
        calls.append(1)
        return multiply(*operands)

    monkeypatch.setattr(module, "_multiply", counted)
    return calls


def operands(*batch, bias=True):
    torch.manual_seed(0)
    inputs, weight = torch.randn(*batch, 24), torch.randn(10, 24) / 5
    return inputs, weight, torch.randn(10) if bias else None


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch", [(7,), (3, 5), (2, 3, 4)])
def test_values_and_gradients_are_those_of_pytorch(batch, bias, onednn):
    found = []
    for function in (linear, F.linear):
        given = [each.requires_grad_() for each in operands(*batch, bias=bias) if each is not None]
        outputs = function(*given)
        found.append([outputs, *torch.autograd.grad(outputs.sin().sum(), given)])
    assert len(onednn) == 3
    torch.testing.assert_close(*found)


def test_inputs_need_not_be_contiguous(onednn):
    inputs, weight, bias = operands(3, 5)
    shuffled = inputs.transpose(0, 1).contiguous().transpose(0, 1)
    torch.testing.assert_close(linear(shuffled, weight, bias), F.linear(inputs, weight, bias))
    strided = torch.randn(24, 10).T
    torch.testing.assert_close(linear(inputs, strided), F.linear(inputs, strided))


def test_second_derivatives_are_those_of_pytorch(onednn):
    found = []
    for function in (linear, F.linear):
        given = [each.requires_grad_() for each in operands(7)]
        first = torch.autograd.grad(function(*given).sin().sum(), given, create_graph=True)
        found.append(torch.autograd.grad(sum(each.square().sum() for each in first), given))
    assert len(onednn) > 6
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)  # sums of sums, in another order


def network():
    torch.manual_seed(1)
    return nn.Sequential(Linear(24, 32), nn.GELU(), Linear(32, 32, bias=False), nn.Tanh(), Linear(32, 1))


def penalised_gradients(critic, images):
    """Gradients of a WGAN-GP-like penalty, whose slope torch.func takes."""
    slope = torch.func.grad(lambda x: critic(x).sum())(images)
    penalty = (slope.square().sum(1).sqrt() - 1).square().mean() + critic(images).mean()
    return torch.autograd.grad(penalty, list(critic.parameters()), allow_unused=True)


def test_gradients_of_a_gradient_penalty(onednn, monkeypatch):
    critic, images = network(), torch.randn(6, 24)
    found = penalised_gradients(critic, images)
    assert len(onednn) > 15
    monkeypatch.setattr(module, "prefers_onednn", lambda: False)
    plain = penalised_gradients(critic, images)
    assert all(gradient.abs().max() > 0 for gradient in plain[:-1])
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-6)


def test_gradients_through_a_held_network(onednn):
    """Parameters that stand still cost no product."""
    critic, images = network().requires_grad_(False), torch.randn(6, 24, requires_grad=True)
    critic(images).sum().backward()
    assert len(onednn) == 6
    assert images.grad.abs().max() > 0


def test_runs_repeat_bit_for_bit(onednn):
    critic, images = network(), torch.randn(64, 24)
    first, second = (penalised_gradients(critic, images) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_samples_may_be_mapped(onednn):
    inputs, weight, bias = operands(3, 5)
    mapped = torch.func.vmap(lambda x: linear(x, weight, bias))(inputs)
    torch.testing.assert_close(mapped, F.linear(inputs, weight, bias))


def test_same_parameters_under_the_same_names():
    layer, usual = Linear(24, 10), nn.Linear(24, 10)
    usual.load_state_dict(layer.state_dict())
    inputs = torch.randn(2, 24)
    assert torch.equal(layer(inputs), usual(inputs))  # too small for oneDNN
    assert isinstance(copy.deepcopy(layer), nn.Linear)


# --- where it steps aside -----------------------------------------------------------------------------------


def test_other_precisions_and_autocast_stay_with_pytorch(onednn):
    inputs, weight, bias = operands(7)
    assert linear(inputs.double(), weight.double(), bias.double()).dtype == torch.double
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear(inputs, weight, bias).dtype == torch.bfloat16
    assert not onednn


def test_the_switch_of_pytorch_forbids_it(onednn):
    with torch.backends.mkldnn.flags(enabled=False):
        linear(*operands(7))
    assert not onednn


def test_small_products_stay_with_pytorch(onednn, monkeypatch):
    monkeypatch.setattr(module, "SMALLEST", 7 * 24 * 10 + 1)
    linear(*operands(7))
    assert not onednn
    monkeypatch.setattr(module, "SMALLEST", 7 * 24 * 10)
    linear(*operands(7))
    assert onednn


def test_compilers_and_exporters_see_the_public_operator(onednn):
    layer, inputs = Linear(24, 10), torch.randn(7, 24)
    exported = torch.export.export(layer, (inputs,))
    operators = [node.target for node in exported.graph.nodes if node.op == "call_function"]
    assert operators == [torch.ops.aten.linear.default]
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(inputs), F.linear(inputs, layer.weight, layer.bias))
    assert not onednn


@pytest.mark.parametrize(
    ("processor", "capability", "chosen"),
    [
        ("AMD EPYC 9654 96-Core Processor", "AVX512", True),
        ("AMD EPYC 7763 64-Core Processor", "AVX2", False),
        ("Intel(R) Xeon(R) Platinum 8481C", "AVX512", False),
        ("", "DEFAULT", False),
    ],
)
def test_the_processor_decides(processor, capability, chosen, monkeypatch):
    monkeypatch.setattr(module, "device_name", lambda device: processor)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(module, "_multiply", lambda a, b, bias: a @ b.T)
    assert prefers_onednn.__wrapped__() is chosen


@pytest.mark.parametrize("problem", [AttributeError("gone"), TypeError("other arguments"), None])
def test_an_operator_that_is_gone_or_wrong_is_not_used(problem, monkeypatch):
    def broken(a, b, bias):
        if problem is not None:
            raise problem
        return a @ b.T + 1

    monkeypatch.setattr(module, "device_name", lambda device: "AMD EPYC")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(module, "_multiply", broken)
    assert prefers_onednn.__wrapped__() is False
