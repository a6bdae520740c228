"""Tensors as views of one buffer, so that an operation on all of them is a single one."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

ALIGNMENT = 64  # elements: views start at addresses that suit vectorised kernels


def flat_zeros(
    shapes: Sequence[Sequence[int]], device: torch.device, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, list[Tensor]]:
    """One buffer of zeros, and a view of it for every shape.

    Args:
        shapes: of the views, which follow each other with padding in between.
        device: where the buffer is.
        dtype: of the buffer.

    Returns:
        The buffer [n], and its views.
    """
    sizes = [math.prod(shape) for shape in shapes]
    padded = [-(-size // ALIGNMENT) * ALIGNMENT for size in sizes]
    flat = torch.zeros(sum(padded), device=device, dtype=dtype)
    views, start = [], 0
    for shape, size, length in zip(shapes, sizes, padded, strict=True):
        views.append(flat[start : start + size].view(tuple(shape)))
        start += length
    return flat, views


def views_of(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Views of a buffer laid out by `flat_zeros` for the shapes of `like`."""
    views, start = [], 0
    for tensor in like:
        views.append(flat[start : start + tensor.numel()].view(tensor.shape))
        start += -(-tensor.numel() // ALIGNMENT) * ALIGNMENT
    return views


@torch.no_grad()
def flatten_parameters(network: nn.Module) -> Tensor:
    """Move all parameters of a network, which are float32, into one buffer, and return it.

    The parameters stay the same objects with the same values.
    """
    parameters = list(network.parameters())
    flat, views = flat_zeros([p.shape for p in parameters], parameters[0].device)
    for parameter, view in zip(parameters, views, strict=True):
        view.copy_(parameter)
        parameter.data = view
    return flat


@torch.no_grad()
def flatten_buffers(network: nn.Module) -> Tensor:
    """Move all buffers that a network saves, if float32, into one buffer, and return it.

    Constants that follow from the configuration, which are not saved, stay where they are.
    """
    saved = network.state_dict(keep_vars=True)
    buffers = {
        name: buffer
        for name, buffer in network.named_buffers()
        if name in saved and buffer.dtype == torch.float32
    }
    device = next(network.parameters()).device
    flat, views = flat_zeros([buffer.shape for buffer in buffers.values()], device)
    for (name, buffer), view in zip(buffers.items(), views, strict=True):
        view.copy_(buffer)
        owner, _, attribute = name.rpartition(".")
        setattr(network.get_submodule(owner), attribute, view)
    return flat
