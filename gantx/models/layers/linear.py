"""Linear layers that multiply in the network's compute type."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gantx.runtime.precision import to_compute, widened


class Linear(nn.Linear):
    """`nn.Linear` that multiplies in `compute_dtype`, with the same parameters under the same names.

    Args:
        in_features: channels in.
        out_features: channels out.
        bias: whether the layer has a bias.
        widen: return float32, for an output that joins the residual stream.
    """

    compute_dtype: torch.dtype | None = None

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, *, widen: bool = False
    ) -> None:
        super().__init__(in_features, out_features, bias)
        self.widen = widen

    def forward(self, input: Tensor) -> Tensor:
        """Inputs [..., I] to outputs [..., O]."""
        return linear(input, self.weight, self.bias, dtype=self.compute_dtype, widen=self.widen)


def linear(
    inputs: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    dtype: torch.dtype | None,
    widen: bool = False,
) -> Tensor:
    """`F.linear` with its operands cast.

    Args:
        inputs: [..., I].
        weight: [O, I].
        bias: [O]; None for none.
        dtype: the type to multiply in; None for that of the operands, which must be equal.
        widen: return at least float32.

    Returns:
        [..., O], in `dtype` unless it is widened.
    """
    bias = None if bias is None else to_compute(bias, dtype)
    outputs = F.linear(to_compute(inputs, dtype), to_compute(weight, dtype), bias)
    return widened(outputs) if widen else outputs
