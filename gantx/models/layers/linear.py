"""Linear layers whose large float32 products oneDNN computes, on processors where it beats PyTorch's choice.

PyTorch gives float32 matrix products on a CPU to MKL, which is tuned for Intel's processors. oneDNN, which
PyTorch also brings along, is quicker on AMD's if they have AVX-512. `linear` is `F.linear` through oneDNN,
differentiable backwards as often as one likes. It is `F.linear` itself on other processors and devices, in
other precisions, for small products, and whenever a compiler or exporter reads along.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gantx.devices import device_name

SMALLEST = 1 << 24  # multiplications of a product; below, the detour through Python costs more than it saves


class Linear(nn.Linear):
    """`nn.Linear` by way of `linear`, with the same parameters under the same names."""

    def forward(self, input: Tensor) -> Tensor:
        """Inputs [..., I] to outputs [..., O]."""
        return linear(input, self.weight, self.bias)


def linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`, through oneDNN where that is quicker; equal up to the rounding of sums.

    Args:
        inputs: [..., I].
        weight: [O, I].
        bias: [O]; None for none.

    Returns:
        [..., O].
    """
    if not _goes_to_onednn(inputs, weight):
        return F.linear(inputs, weight, bias)
    rows = inputs.reshape(-1, inputs.shape[-1])
    outputs: Tensor = _Product.apply(rows, weight, bias)
    return outputs.view(*inputs.shape[:-1], -1)


@cache
def prefers_onednn() -> bool:
    """Whether large float32 products of this CPU belong to oneDNN: on AMD processors with AVX-512.

    Decided by what the processor is, not by a stopwatch: a run that is resumed has to compute what it would
    have computed, and two of a kind may not race alike. PyTorch does not promise the operator behind it,
    hence one product is checked.
    """
    if "AMD" not in device_name(torch.device("cpu")):
        return False
    if "AVX512" not in torch.backends.cpu.get_cpu_capability():
        return False
    numbers = torch.arange(6.0, device="cpu").view(2, 3)
    try:
        return torch.equal(_multiply(numbers, numbers, None), numbers @ numbers.T)
    except (AttributeError, RuntimeError, TypeError):
        return False


def _goes_to_onednn(inputs: Tensor, weight: Tensor) -> bool:
    """Whether this product does; `torch.backends.mkldnn.enabled` is the switch to forbid it."""
    if torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return False
    if inputs.device.type != "cpu" or not inputs.dtype == weight.dtype == torch.float32:
        return False
    large = inputs.numel() * weight.shape[0] >= SMALLEST
    return large and bool(torch.backends.mkldnn.enabled) and prefers_onednn()


def _multiply(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    """The rows of a [M, K] times the rows of b [N, K], plus bias [N]: [M, N]. Without derivatives."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")
    return product


class _Product(torch.autograd.Function):
    """`_multiply` with derivatives, which are such products again; for autograd, torch.func.grad and vmap."""

    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
        return _multiply(a, b, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        a, b = ctx.saved_tensors
        for_a, for_b, for_bias = ctx.needs_input_grad
        return (
            _Product.apply(gradient, b.T, None) if for_a else None,
            _Product.apply(gradient.T, a.T, None) if for_b else None,
            gradient.sum(0) if for_bias else None,
        )
