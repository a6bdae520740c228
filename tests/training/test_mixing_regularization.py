"""Mixing regularisation."""

import pytest
import torch

from gantx.training.mixing_regularization import mix


@pytest.mark.parametrize("axis", [-2, 1])
def test_styles_of_other_latents_begin_at_every_index_but_the_first(axis):
    ws, other = torch.zeros(2, 4, 5, 3), torch.ones(2, 4, 5, 3)
    count = ws.shape[axis]
    firsts = set()
    for u in torch.linspace(0, 0.8999, 200):
        mixed = mix(ws, other, u, 0.9, axis).movedim(axis, 0).flatten(1)  # [count, ...]
        assert (mixed == mixed[:, :1]).all(), "the whole batch is mixed alike"
        first = int((mixed[:, 0] == 0).sum())
        assert (mixed[first:] == 1).all()
        firsts.add(first)
    assert firsts == set(range(1, count))


def test_styles_are_mixed_with_the_given_probability():
    ws, other = torch.zeros(2, 5, 3), torch.ones(2, 5, 3)
    assert not mix(ws, other, torch.tensor(0.9), 0.9, -2).any()
    assert mix(ws, other, torch.tensor(0.8999), 0.9, -2).any()


def test_gradients_reach_the_styles_that_were_used():
    ws, other = (torch.zeros(1, 4, 2, requires_grad=True) for _ in range(2))
    mix(ws, other, torch.tensor(0.5), 1.0, -2).sum().backward()
    assert (ws.grad + other.grad == 1).all()
    assert (ws.grad[:, :2] == 1).all()
    assert (other.grad[:, 2:] == 1).all()
