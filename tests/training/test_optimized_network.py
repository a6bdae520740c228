"""A network in flat storage: gradients, clipping, the optimiser, what a checkpoint keeps of it."""

import pytest
import torch
from torch import nn

from gantx.config.schema import AdamConfig
from gantx.training.optimized_network import OptimizedNetwork


def storage(tensor):
    return tensor.untyped_storage().data_ptr()


def gradients_of(optimized, images):
    loss = optimized.network(images).square().sum()
    return torch.autograd.grad(loss, optimized.parameters)


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_steps_and_clipping_equal_torchs_on_separate_tensors(name):
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    twin = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    twin.load_state_dict(network.state_dict())
    optimized = OptimizedNetwork(network, AdamConfig(name=name, lr=0.1, clip_norm=0.5, weight_decay=0.01))
    kind = torch.optim.Adam if name == "adam" else torch.optim.AdamW
    plain = kind(twin.parameters(), lr=0.1, betas=(0.0, 0.99), weight_decay=0.01)
    images = torch.randn(5, 3)
    for factor in (1.0, 0.5, 0.25):
        optimized.set_learning_rate(factor)
        plain.param_groups[0]["lr"] = 0.1 * factor
        optimized.collect(gradients_of(optimized, images), add=False)
        norm = optimized.step()
        plain.zero_grad()
        (twin(images).square().sum()).backward()
        expected = nn.utils.clip_grad_norm_(twin.parameters(), 0.5)
        plain.step()
        torch.testing.assert_close(norm, expected)
    for mine, theirs in zip(network.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_everything_lies_in_one_buffer_each():
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    values = {name: value.clone() for name, value in network.state_dict().items()}
    optimized = OptimizedNetwork(network, AdamConfig(lr=0.1))
    assert all(torch.equal(value, values[name]) for name, value in network.state_dict().items())
    for parameter in network.parameters():
        assert storage(parameter) == storage(optimized.weights)
        assert storage(parameter.grad) == storage(optimized.gradient)
        assert parameter.data_ptr() % 64 == optimized.weights.data_ptr() % 64  # aligned as the buffer is
    assert storage(network[1].running_mean) == storage(network[1].running_var) == storage(optimized.buffers)


def test_gradients_add_up_and_missing_ones_are_zero():
    optimized = OptimizedNetwork(nn.Linear(2, 1), AdamConfig(lr=0.1))
    weight, bias = optimized.parameters
    optimized.gradient.fill_(7.0)
    optimized.collect([torch.ones(1, 2), None], add=False)
    assert torch.equal(weight.grad, torch.ones(1, 2))
    assert torch.equal(bias.grad, torch.zeros(1))
    optimized.collect([torch.ones(1, 2), torch.ones(1)], add=True)
    assert torch.equal(weight.grad, torch.full((1, 2), 2.0))
    assert torch.equal(bias.grad, torch.ones(1))


def test_weights_decay_with_adamw():
    network = nn.Linear(2, 1, bias=False)
    nn.init.ones_(network.weight)
    optimized = OptimizedNetwork(network, AdamConfig(name="adamw", lr=0.1, weight_decay=0.5))
    optimized.step()
    torch.testing.assert_close(network.weight.detach(), torch.full((1, 2), 0.95))


def test_its_state_is_stored_by_parameter_and_taken_over():
    networks = [nn.Linear(2, 3), nn.Linear(2, 3)]
    one, other = (OptimizedNetwork(network, AdamConfig(lr=0.1, betas=(0.5, 0.9))) for network in networks)
    other.network.load_state_dict(one.network.state_dict())
    images = torch.randn(4, 2)
    one.collect(gradients_of(one, images), add=False)
    one.step()
    stored = {name: value.clone() for name, value in one.optimizer_state().items()}
    assert set(stored) == {
        f"{name}.{kept}" for name in ("weight", "bias") for kept in ("step", "exp_avg", "exp_avg_sq")
    }
    assert stored["weight.exp_avg"].shape == (3, 2)
    assert stored["bias.step"] == 1
    other.network.load_state_dict(one.network.state_dict())
    other.load_optimizer_state(stored)
    for optimized in (one, other):
        optimized.collect(gradients_of(optimized, images), add=False)
        optimized.step()
    assert torch.equal(one.weights, other.weights)


def test_frozen_parameters_need_no_gradient():
    optimized = OptimizedNetwork(nn.Linear(2, 1), AdamConfig(lr=0.1))
    optimized.train_parameters(False)
    assert not any(parameter.requires_grad for parameter in optimized.parameters)
    optimized.train_parameters(True)
    assert all(parameter.requires_grad for parameter in optimized.parameters)
