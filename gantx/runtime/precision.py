"""Explicit compute types: a setting of each layer, not a context such as autocast.

A layer that multiplies (a linear map, a convolution, attention) casts its operands to its `compute_dtype`.
Everything else is float32: parameters, the residual stream, normalisation, softmax, logits, losses,
penalties, statistics, optimisers, averages. So types are the same on every device, inside `torch.func.grad`,
in eager and in compiled code, and a test of them on a CPU is valid for a GPU.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

_DEVICES = ("cpu", "cuda", "mps")


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


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Compute float32 in full within a `with` block, whatever the caller has allowed; restore that after it.

    NVIDIA GPUs since Ampere round the factors of convolutions and matrix products to 10 bits where TF32 is
    allowed, and PyTorch allows it for convolutions by default: images and scores would depend on the GPU. A
    caller's autocast region would lower the types themselves.
    """
    backends: Any = torch.backends
    operations = (
        *(backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn),
        *(backends.mkldnn.matmul, backends.mkldnn.conv),
    )
    autocast = [torch.is_autocast_enabled(device) for device in _DEVICES]
    by_operation = [operation.fp32_precision for operation in operations]
    products, convolutions = _older_settings()
    for device in _DEVICES:
        torch.set_autocast_enabled(device, False)
    _set_older(products and "highest", None if convolutions is None else False)
    for operation in operations:
        operation.fp32_precision = "ieee"
    try:
        yield
    finally:
        for device, enabled in zip(_DEVICES, autocast, strict=True):
            torch.set_autocast_enabled(device, enabled)
        _set_older(products, convolutions)
        for operation, precision in zip(operations, by_operation, strict=True):
            operation.fp32_precision = precision


def _older_settings() -> tuple[str | None, bool | None]:
    """PyTorch's settings for all products and all convolutions; None where newer ones contradict them."""
    products, convolutions = None, None
    with contextlib.suppress(RuntimeError):
        products = torch.get_float32_matmul_precision()
    with contextlib.suppress(RuntimeError):
        convolutions = torch.backends.cudnn.allow_tf32
    return products, convolutions


def _set_older(products: str | None, convolutions: bool | None) -> None:
    if products is not None:
        torch.set_float32_matmul_precision(products)
    if convolutions is not None:
        torch.backends.cudnn.allow_tf32 = convolutions
