"""Checks that a network is not larger than the file that describes it, before it is built.

A configuration in a file can ask for any depth. The network is therefore built on the meta device first,
which takes no memory for weights, and this stops as soon as it has more weights than the file.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gantx import models
from gantx.config.section import Section

MOST_COMPUTED = 2**28  # numbers in buffers, of which a network may compute some, such as tables of positions
_SPARE = 2  # a network may make a weight twice, when it replaces one by another


class TooLargeError(ValueError):
    """A network has more weights than its file."""


class _ShapesOnly(TorchDispatchMode):
    """Gives results their shapes, for operations that initialise networks; their values do not exist.

    On the meta device most operations make PyTorch import its compiler, which takes more than a second of
    every command that loads a checkpoint. Operations that are not listed here are left to it.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """PyTorch imports its compiler for a mode that says yes."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation."""
        kwargs = kwargs or {}
        tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        if func._schema.is_mutable:
            return tensors[0]
        if torch.Tag.pointwise in func.tags:
            shape: tuple[int, ...] = np.broadcast_shapes(*(tensor.shape for tensor in tensors))
        elif func.overloadpacket in _SHAPES:
            shape = _SHAPES[func.overloadpacket](*args)
        else:
            return func(*args, **kwargs)
        whole = func.overloadpacket is _aten.arange and all(isinstance(number, int) for number in args)
        usual = tensors[0].dtype if tensors else torch.int64 if whole else torch.float32
        return torch.empty(shape, dtype=kwargs.get("dtype") or usual, device="meta")


def _arange(first: float, end: float | None = None, step: float = 1) -> tuple[int]:
    start, stop = (0, first) if end is None else (first, end)
    return (max(0, math.ceil((stop - start) / step)),)


def _stack(tensors: list[Tensor], dim: int = 0) -> tuple[int, ...]:
    shape = list(tensors[0].shape)
    shape.insert(dim % (len(shape) + 1), len(tensors))
    return tuple(shape)


def _cat(tensors: list[Tensor], dim: int = 0) -> tuple[int, ...]:
    shape = list(tensors[0].shape)
    shape[dim] = sum(tensor.shape[dim] for tensor in tensors)
    return tuple(shape)


def _repeat(tensor: Tensor, repeats: list[int]) -> tuple[int, ...]:
    shape = [1] * (len(repeats) - tensor.ndim) + list(tensor.shape)
    return tuple(size * times for size, times in zip(shape, repeats, strict=True))


def _sum(tensor: Tensor, dims: list[int] | None = None, keepdim: bool = False) -> tuple[int, ...]:
    summed = {dim % tensor.ndim for dim in dims or range(tensor.ndim)}
    sizes = ((1 if dim in summed else size) for dim, size in enumerate(tensor.shape))
    return tuple(size for dim, size in enumerate(sizes) if keepdim or dim not in summed)


def _same(tensor: Tensor, *_: Any) -> tuple[int, ...]:
    return tuple(tensor.shape)


_aten = torch.ops.aten
_SHAPES: dict[Any, Callable[..., tuple[int, ...]]] = {
    _aten.randn: lambda size: size,
    _aten.rand: lambda size: size,
    _aten.arange: _arange,
    _aten.linspace: lambda start, end, steps: (steps,),
    _aten.eye: lambda rows, columns=None: (rows, columns or rows),
    _aten.stack: _stack,
    _aten.cat: _cat,
    _aten.repeat: _repeat,
    _aten.sum: _sum,
    _aten.clone: _same,
    _aten._to_copy: _same,
    _aten.ones_like: _same,
    _aten.zeros_like: _same,
}


def check_within(section: Section, numbers: int, channels: int = 3) -> None:
    """Check the size of the network that a section from a file describes.

    Args:
        section: the section.
        numbers: weights and saved buffers that the file contains.
        channels: of the images, `data.channels`.

    Raises:
        TooLargeError: the network has more weights, or buffers of more than `MOST_COMPUTED` numbers beside.
    """
    here = threading.get_ident()
    weights = computed = 0

    def count_weight(module: nn.Module, name: str, weight: Any) -> None:
        nonlocal weights
        if weight is not None and threading.get_ident() == here:
            weights += weight.numel()
            require(weights, _SPARE * numbers)

    def count_buffer(module: nn.Module, name: str, buffer: Any) -> None:
        nonlocal computed
        if buffer is not None and threading.get_ident() == here:
            computed += buffer.numel()
            require(computed, _SPARE * numbers + MOST_COMPUTED)

    def require(count: int, allowed: int) -> None:
        if count > allowed:
            raise TooLargeError(f"it describes a network of more than the {numbers:,} weights that it has")

    hooks = [
        nn.modules.module.register_module_parameter_registration_hook(count_weight),
        nn.modules.module.register_module_buffer_registration_hook(count_buffer),
    ]
    try:
        with torch.device("meta"), _ShapesOnly():
            models.build(section, channels)
    finally:
        for hook in hooks:
            hook.remove()
