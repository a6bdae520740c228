"""Explicit compute types: a setting of each layer, not a context such as autocast.

A layer that multiplies (a linear map, a convolution, attention) casts its operands to its `compute_dtype`.
Everything else is float32: parameters, the residual stream, normalisation, softmax, logits, losses,
penalties, statistics, optimisers, averages. So types are the same on every device, inside `torch.func.grad`,
in eager and in compiled code, and a test of them on a CPU is valid for a GPU.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


def set_compute_dtype(network: nn.Module, dtype: torch.dtype | None) -> None:
    """Choose the type in which the layers of a network multiply.

    Args:
        network: every module in it that declares `compute_dtype` is set.
        dtype: such as `torch.bfloat16`; None for the type of the operands themselves, without a cast.
    """
    for module in network.modules():
        if hasattr(module, "compute_dtype"):
            setattr(module, "compute_dtype", dtype)  # noqa: B010 - a type checker knows no such attribute


def to_compute(x: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Cast an operand to the compute type; None leaves it unchanged."""
    return x if dtype is None else x.to(dtype)


def widened(x: Tensor) -> Tensor:
    """Cast half precision to float32; float32 and float64 are unchanged."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


@contextlib.contextmanager
def float32_parameters() -> Iterator[None]:
    """Build networks in float32 whatever torch's default type is, which belongs to the caller."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(default)


@contextlib.contextmanager
def usual_defaults() -> Iterator[None]:
    """Compute with torch's usual defaults, float32 and the CPU, whatever the caller has set."""
    elsewhere = torch.get_default_device().type != "cpu"
    with float32_parameters(), torch.device("cpu") if elsewhere else contextlib.nullcontext():
        yield
