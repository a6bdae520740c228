"""Linear layers with an equalised learning rate and an optional spectral normalisation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gantx.models.layers.linear import linear
from gantx.models.layers.spectral_norm import SpectralNorm, build_spectral_norm


class EqualizedLinear(nn.Module):
    """Linear layer whose stored weights have unit variance: scaled when used, not when initialised.

    Adam then updates all layers at the same relative rate (Karras et al. 2018, section 4.1).

    Args:
        in_dim: channels in.
        out_dim: channels out.
        bias: whether the layer has a bias.
        bias_start: initial effective bias.
        std: initial standard deviation of the effective weights; None for 1/√in_dim.
        lr_multiplier: relative rate at which weights and biases learn.
        gain: factor on the output, biases included.
        spectral: normalisation of the weights: `none`, `plain`, `improved` or `released`.
        widen: return float32, for an output that joins the residual stream or scales float32 features.
    """

    compute_dtype: torch.dtype | None = None

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        bias: bool = True,
        bias_start: float = 0.0,
        std: float | None = None,
        lr_multiplier: float = 1.0,
        gain: float = 1.0,
        spectral: str = "none",
        widen: bool = False,
    ) -> None:
        super().__init__()
        self.widen = widen
        self.scale = (in_dim**-0.5 if std is None else std) * lr_multiplier * gain
        self.bias_scale = lr_multiplier * gain
        self.weight = nn.Parameter(torch.randn(out_dim, in_dim) / lr_multiplier)
        self.bias = nn.Parameter(torch.full((out_dim,), bias_start / lr_multiplier)) if bias else None
        self.spectral = build_spectral_norm(spectral, self.weight, self.scale)

    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs [..., in_dim] to [..., out_dim], in the compute type unless widened."""
        weight, bias = self.effective_weight(), self.effective_bias()
        return linear(inputs, weight, bias, dtype=self.compute_dtype, widen=self.widen)

    def effective_weight(self) -> Tensor:
        """The matrix that multiplies the inputs, [out_dim, in_dim], in float32."""
        scale = self.scale if self.spectral is None else self.scale * self.spectral(self.weight)
        return self.weight * scale

    def effective_bias(self) -> Tensor | None:
        """The effective bias [out_dim]; None without a bias."""
        if self.bias is None or self.bias_scale == 1:
            return self.bias
        return self.bias * self.bias_scale


class LogitHead(EqualizedLinear):
    """The last layer of a discriminator, which multiplies in float32: bf16 would round its logits."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs [..., in_dim] to logits [..., out_dim], both float32."""
        return F.linear(inputs, self.effective_weight(), self.effective_bias())


@torch.no_grad()
def advance_spectral_norms(network: nn.Module) -> None:
    """Update the singular vectors of all normalised layers by one power step.

    Matrices of one shape are updated together, because many small operations would be launched one by one.
    """
    by_shape: dict[torch.Size, list[tuple[Tensor, SpectralNorm]]] = {}
    for layer in network.modules():
        if isinstance(layer, EqualizedLinear) and isinstance(layer.spectral, SpectralNorm):
            by_shape.setdefault(layer.weight.shape, []).append((layer.weight, layer.spectral))
    for layers in by_shape.values():
        weights = torch.stack([weight for weight, _ in layers])  # [G, M, N]
        u = torch.stack([norm.u for _, norm in layers])  # [G, M]
        v = F.normalize((u[:, None] @ weights).squeeze(1), dim=1)  # [G, N]
        u = F.normalize((weights @ v[:, :, None]).squeeze(2), dim=1)
        torch._foreach_copy_([norm.u for _, norm in layers], list(u.unbind()))
        torch._foreach_copy_([norm.v for _, norm in layers], list(v.unbind()))
