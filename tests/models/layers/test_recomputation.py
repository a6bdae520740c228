"""Activation checkpointing."""

import pytest
import torch
from torch import nn

from gantx.models.layers.checkpointing import recomputing, run_block


class Counting(nn.Module):
    """A layer that counts its forward passes."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.passes = 0

    def forward(self, x, shift):
        self.passes += 1
        return self.linear(x).sin() + shift


@pytest.mark.parametrize("wanted", [True, False])
def test_a_block_runs_again_on_the_way_back_and_gives_the_same_gradients(wanted):
    block, x = Counting(), torch.randn(3, 4)
    expected = torch.autograd.grad(block(x, 1.0).square().sum(), block.linear.weight)[0]
    block.passes = 0
    with recomputing(wanted):
        loss = run_block(block, x, 1.0).square().sum()
    assert block.passes == 1
    loss.backward()
    assert block.passes == (2 if wanted else 1)
    assert torch.equal(block.linear.weight.grad, expected)


def test_nothing_is_recomputed_outside_or_without_gradients():
    block, x = Counting(), torch.randn(3, 4)
    with recomputing():
        pass
    run_block(block, x, 1.0).sum().backward()
    with torch.no_grad(), recomputing():
        run_block(block, x, 1.0)
    assert block.passes == 2
