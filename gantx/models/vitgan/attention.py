"""Self-attention by inner product or by distance, and as released."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gantx.models.layers.attention import attention
from gantx.models.vitgan.linear import EqualizedLinear
from gantx.runtime.precision import to_compute, widened


class Products(NamedTuple):
    """A similarity of queries and keys as an inner product: what `layers.attention` takes besides the values.

    Attributes:
        q: queries [B, h, M, d].
        k: keys [B, h, N, d].
        scale: factor on the sum of inner product and biases.
        key_bias: float32 [B, h, N]; None for nothing.
        query_bias: float32 [B, h, M], a term that softmax ignores; None for nothing.
    """

    q: Tensor
    k: Tensor
    scale: float
    key_bias: Tensor | None = None
    query_bias: Tensor | None = None


def half_squares(vectors: Tensor) -> Tensor:
    """‖x‖²/2 of vectors [..., d], in float32 or better: [...]."""
    return widened(vectors).square().sum(-1) / 2


def near_products(q: Tensor, k: Tensor) -> Products:
    """−‖q − k‖²/√d, which is 2(q·k − ‖k‖²/2 − ‖q‖²/2)/√d."""
    key_bias = -half_squares(k)
    return Products(q, k, 2 * q.shape[3] ** -0.5, key_bias, key_bias if q is k else -half_squares(q))


def plain_products(q: Tensor, k: Tensor) -> Products:
    """q·k/√d."""
    return Products(q, k, q.shape[3] ** -0.5)


_PRODUCTS: dict[str, Callable[[Tensor, Tensor], Products]] = {"dot": plain_products, "l2": near_products}


def attention_logits(similarity: str, q: Tensor, k: Tensor) -> Tensor:
    """The logits of attention in float32, [B, h, M, N]; see `Attention`."""
    return products_of(_PRODUCTS[similarity](q, k))


def products_of(given: Products) -> Tensor:
    """The similarities [B, h, M, N] in float32, up to a term that softmax ignores."""
    logits = widened(given.q) @ widened(given.k).transpose(2, 3)
    if given.key_bias is not None:
        logits = logits + given.key_bias[:, :, None]
    return logits * given.scale


def attend(given: Products, v: Tensor) -> Tensor:
    """Values [B, h, N, d] weighted by the softmax of similarities: [B, h, M, d], in the values' type."""
    q, k, scale, key_bias, query_bias = given
    return attention(q, k, v, scale=scale, key_bias=key_bias, query_bias=query_bias)


class Attention(nn.Module):
    """Multi-head self-attention by inner product or by distance.

    The similarity of a query and a key of d channels is q·k/√d for `dot`, and −‖q − k‖²/√d for `l2` (Kim et
    al. 2021, arXiv 2006.04710), which keeps D Lipschitz. Queries and keys of `l2` share one projection. A
    squared distance is an inner product with a bias for each key, so fused attention can compute it.

    Args:
        dim: channels D of the tokens.
        heads: attention heads; divides `dim`.
        similarity: one of the above.
        qk_std: initial standard deviation of the effective weights of queries and keys; None for 1/√D with
            `dot` and 0.02 with `l2`, where 1/√D would make every token attend only to itself.
        spectral: normalisation of all weights, see `EqualizedLinear`.
    """

    compute_dtype: torch.dtype | None = None

    def __init__(
        self, dim: int, heads: int, similarity: str, qk_std: float | None = None, spectral: str = "none"
    ) -> None:
        super().__init__()
        self.heads = heads
        self.similarity = similarity
        tied = similarity != "dot"
        std = 0.02 if qk_std is None and tied else qk_std
        self.query = EqualizedLinear(dim, dim, bias=False, std=std, spectral=spectral)
        self.key = None if tied else EqualizedLinear(dim, dim, bias=False, std=std, spectral=spectral)
        self.value = EqualizedLinear(dim, dim, bias=False, spectral=spectral)
        self.out = EqualizedLinear(dim, dim, spectral=spectral, widen=True)

    def forward(self, tokens: Tensor, keep: int | None = None) -> Tensor:
        """Attend.

        Args:
            tokens: [B, N, D].
            keep: only the first `keep` tokens are queries; None for all.

        Returns:
            Attended values, float32 [B, keep or N, D].
        """
        tokens = to_compute(tokens, self.compute_dtype)  # once for all three projections
        q, k = self._queries_and_keys(tokens, keep)
        v = self._split(self.value(tokens))
        attended = attend(_PRODUCTS[self.similarity](q, k), v)  # [B, h, keep, d]
        mixed: Tensor = self.out(attended.transpose(1, 2).flatten(2))
        return mixed

    def weights(self, tokens: Tensor) -> Tensor:
        """Attention maps: tokens [B, N, D] to [B, h, N, N], rows summing to one."""
        return attention_logits(self.similarity, *self._queries_and_keys(tokens, None)).softmax(3)

    def row(self, position: int, tokens: Tensor) -> Tensor:
        """Attention of the token at `position`: tokens [B, N, D] to [B, h, N], summing to one."""
        q, k = self._queries_and_keys(tokens, None)
        return attention_logits(self.similarity, q[:, :, position, None], k).softmax(3).squeeze(2)

    def _queries_and_keys(self, tokens: Tensor, keep: int | None) -> tuple[Tensor, Tensor]:
        """Queries [B, h, keep or N, d] and keys [B, h, N, d]."""
        if self.key is None:
            projected = self.query(tokens)  # [B, N, D]
            # Subtracting what all tokens share changes no distance, and bf16 rounds the rest less. The mean
            # counts as a constant, because derivatives do not depend on it either.
            k = self._split(projected - projected.mean(1, keepdim=True).detach())
            return (k if keep is None else k[:, :, :keep]), k
        return self._split(self.query(tokens[:, :keep])), self._split(self.key(tokens))

    def _split(self, projected: Tensor) -> Tensor:
        """[B, N, D] to [B, h, N, d]."""
        split: Tensor = projected.unflatten(2, (self.heads, -1)).transpose(1, 2)
        return split


class ReleasedAttention(nn.Module):
    """The attention of the released generator, whose logits are not a distance.

    Its logits are τ(mean q_i² + mean q_j² − 2 q_i·k_j)/√d: the second mean is taken of the query at the key's
    position, keys are not tied, and the sign favours distant tokens. τ is learned and starts at 1. All three
    projections are one layer, normalised as one matrix, with a bias that the released training moves.

    Args:
        dim: channels D of the tokens.
        heads: attention heads; divides `dim`.
        spectral: normalisation of all weights, see `EqualizedLinear`.
        by_distance: False for τ q·k/√d, the mode the released code has but never uses.
    """

    def __init__(self, dim: int, heads: int, spectral: str = "none", by_distance: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.by_distance = by_distance
        self.qkv = EqualizedLinear(dim, 3 * dim, spectral=spectral)
        self.temperature = nn.Parameter(torch.ones(()))
        self.out = EqualizedLinear(dim, dim, spectral=spectral, widen=True)

    def forward(self, tokens: Tensor) -> Tensor:
        """Self-attention of tokens [B, N, D]: float32 [B, N, D]."""
        attended = attend(*self._project(tokens))  # [B, h, N, d]
        mixed: Tensor = self.out(attended.transpose(1, 2).flatten(2))
        return mixed

    def row(self, position: int, tokens: Tensor) -> Tensor:
        """Attention of the token at `position`: tokens [B, N, D] to [B, h, N], summing to one."""
        given, _ = self._project(tokens)
        attention = products_of(given._replace(q=given.q[:, :, position, None])).softmax(3)  # [B, h, 1, N]
        return attention.squeeze(2)

    def _project(self, tokens: Tensor) -> tuple[Products, Tensor]:
        """The similarities of all tokens, and their values [B, h, N, d]."""
        split = self.qkv(tokens).unflatten(2, (3, self.heads, -1))  # [B, N, 3, h, d]
        q, k, v = split.permute(2, 0, 3, 1, 4)  # each [B, h, N, d]
        d = q.shape[3]
        temperature = self.temperature.to(q.dtype)
        if not self.by_distance:
            return Products(q * temperature, k, d**-0.5), v
        key_bias = half_squares(q) * (2 / d) * self.temperature
        return Products(-2 * q * temperature, k, d**-0.5, key_bias), v


def build_attention(kind: str, dim: int, heads: int, spectral: str) -> nn.Module:
    """`released`, `released-dot` or a similarity of `Attention`, as a module from tokens to tokens."""
    if kind == "released":
        return ReleasedAttention(dim, heads, spectral)
    if kind == "released-dot":
        return ReleasedAttention(dim, heads, spectral, by_distance=False)
    return Attention(dim, heads, kind, spectral=spectral)
