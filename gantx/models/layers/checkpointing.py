"""Activation checkpointing: the activations of blocks are recomputed in the backward pass.

This takes less memory and about a third more time. It does not work with the double backward pass of gradient
penalties, so blocks recompute only within `recomputing`, which the training step enters for other passes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

_wanted = False


@contextlib.contextmanager
def recomputing(wanted: bool = True) -> Iterator[None]:
    """Context in which `run_block` recomputes activations, if `wanted`."""
    global _wanted
    before, _wanted = _wanted, wanted
    try:
        yield
    finally:
        _wanted = before


def run_block(block: nn.Module, *inputs: Any) -> Tensor:
    """`block(*inputs)`; within `recomputing`, its activations are recomputed in the backward pass."""
    if _wanted and torch.is_grad_enabled():
        # Forward passes draw no random numbers, so there is no RNG state to restore.
        recomputed: Tensor = checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)
        return recomputed
    output: Tensor = block(*inputs)
    return output
