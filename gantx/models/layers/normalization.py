"""Layer and root-mean-square normalisation, computed in float32 or better."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from gantx.runtime.precision import widened


class LayerNorm(nn.LayerNorm):
    """`nn.LayerNorm` that always computes in float32, with the same parameters."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise the last axis of [..., D]."""
        return layer_norm(input, self.weight, self.bias, self.eps)


def layer_norm(
    x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """Subtract the mean of the last axis, divide by its standard deviation: [..., D] to float32 [..., D]."""
    return F.layer_norm(widened(x), x.shape[-1:], weight, bias, eps)


def rms_norm(x: Tensor, dim: int | tuple[int, ...] = -1, eps: float = 1e-8) -> Tensor:
    """Divide by the root mean square along `dim`, in float32: x / sqrt(mean(x²) + eps), of the shape of x."""
    x = widened(x)
    return x * (x.square().mean(dim, keepdim=True) + eps).rsqrt()
