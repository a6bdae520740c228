"""Transformer blocks of the two networks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from gantx.models.layers.normalization import LayerNorm, layer_norm
from gantx.models.vitgan.attention import Attention, build_attention
from gantx.models.vitgan.linear import EqualizedLinear

_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"gelu": nn.GELU, "silu": nn.SiLU}


def perceptron(dim: int, ratio: int, activation: str, spectral: str) -> nn.Sequential:
    """The MLP of a block: D to ratio·D, `gelu` or `silu`, back to D in float32."""
    return nn.Sequential(
        EqualizedLinear(dim, ratio * dim, spectral=spectral),
        _ACTIVATIONS[activation](),
        EqualizedLinear(ratio * dim, dim, spectral=spectral, widen=True),
    )


class SelfModulatedLayerNorm(nn.Module):
    """LayerNorm whose gain and bias are linear functions of the style (SLN of the paper).

    The gain is 1 + γ(w), as in the released code; the 1 is where its layer's bias starts.

    Args:
        dim: channels D of tokens and style.
        eps: added to the variance.
    """

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.gain = EqualizedLinear(dim, dim, bias_start=1.0, widen=True)
        self.bias = EqualizedLinear(dim, dim, widen=True)

    def forward(self, tokens: Tensor, style: Tensor) -> Tensor:
        """Tokens [B or 1, N, D] under styles [B, D]: float32 [B, N, D]."""
        normalized = layer_norm(tokens, eps=self.eps)
        return torch.addcmul(self.bias(style)[:, None], normalized, self.gain(style)[:, None])


class StyledBlock(nn.Module):
    """Transformer block of the generator.

    Args:
        dim: channels D of tokens and style.
        heads: attention heads.
        mlp_ratio: hidden width of the MLP in units of `dim`.
        residual: what attention and MLP are added to: `prenorm` for their unnormalised input, `released` for
            the normalised one.
        attention: a kind of `build_attention`.
        activation: of the MLP, `gelu` or `silu`.
        spectral: normalisation of all weights but those of the norms, see `EqualizedLinear`.
        norm_eps: added to the variance in the norms.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        mlp_ratio: int,
        residual: str,
        attention: str,
        activation: str,
        spectral: str,
        norm_eps: float,
    ) -> None:
        super().__init__()
        self.residual = residual
        self.norm1 = SelfModulatedLayerNorm(dim, norm_eps)
        self.attention = build_attention(attention, dim, heads, spectral)
        self.norm2 = SelfModulatedLayerNorm(dim, norm_eps)
        self.mlp = perceptron(dim, mlp_ratio, activation, spectral)

    def forward(self, tokens: Tensor, style: Tensor) -> Tensor:
        """Tokens [B or 1, N, D] under styles [B, D]: [B, N, D]."""
        for norm, change in ((self.norm1, self.attention), (self.norm2, self.mlp)):
            normalized = norm(tokens, style)
            tokens = (normalized if self.residual == "released" else tokens) + change(normalized)
        return tokens


class Block(nn.Module):
    """Pre-norm transformer block of the discriminator: x + attention(norm(x)), then x + MLP(norm(x)).

    Args:
        dim: channels D of the tokens.
        heads: attention heads.
        mlp_ratio: hidden width of the MLP in units of `dim`.
        attention: similarity, see `Attention`.
        qk_std: see `Attention`.
        spectral: normalisation of all linear weights, see `EqualizedLinear`.
    """

    def __init__(
        self, dim: int, heads: int, mlp_ratio: int, attention: str, qk_std: float | None, spectral: str
    ) -> None:
        super().__init__()
        self.norm1 = LayerNorm(dim, eps=1e-6)
        self.attention = Attention(dim, heads, attention, qk_std, spectral)
        self.norm2 = LayerNorm(dim, eps=1e-6)
        self.mlp = perceptron(dim, mlp_ratio, "gelu", spectral)

    def forward(self, tokens: Tensor, keep: int | None = None) -> Tensor:
        """Tokens [B, N, D] to [B, N, D], or to the first `keep` of them."""
        kept: Tensor = tokens[:, :keep] + self.attention(self.norm1(tokens), keep)
        kept = kept + self.mlp(self.norm2(kept))
        return kept
