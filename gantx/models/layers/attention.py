"""Scaled dot-product attention of all families: fused, or written out where no fused kernel serves."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from gantx.runtime.precision import widened

_differentiated_twice = False

SHORT = 256  # number of keys up to which written-out attention is faster than fused on a CPU in bf16


@contextlib.contextmanager
def twice_differentiable() -> Iterator[None]:
    """Context without fused kernels, which lack the second derivative that gradient penalties need."""
    global _differentiated_twice
    before, _differentiated_twice = _differentiated_twice, True
    try:
        yield
    finally:
        _differentiated_twice = before


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None = None,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    key_bias: Tensor | None = None,
    query_bias: Tensor | None = None,
) -> Tensor:
    """softmax(scale·(q·k + key_bias) + bias) v, with the softmax in float32.

    Args:
        q: queries [B, h, M, d]; q, k and v are of one type, the one that is multiplied in.
        k: keys [B, h, N, d].
        v: values [B, h, N, e].
        scale: factor on the inner products; None for 1/√d.
        mask: boolean [M, N], True where a row may attend to a column; None for everywhere.
        bias: added to the scaled logits, [h, M, N]; None for nothing. Not together with `mask`.
        key_bias: added to the products of each key before they are scaled, float32 [B, h, N]; None for
            nothing.
        query_bias: added to the products of each query, float32 [B, h, M]; None for nothing. Softmax ignores
            it, but logits near zero are rounded less. Only together with `key_bias`.

    Returns:
        [B, h, M, e], in the type of the values.
    """
    scale = q.shape[3] ** -0.5 if scale is None else scale
    written_out = is_written_out(q, k, bias, key_bias)
    if key_bias is not None:
        # Fused kernels do not round logits: there, what softmax ignores would change nothing.
        q, k = with_biases(q, k, key_bias, query_bias if written_out else None)
    if written_out:
        if key_bias is None:
            logits = widened(q * scale @ k.transpose(2, 3))  # [B, h, M, N]
        else:  # scaled queries would be rounded once more, and sums of squares no longer cancel
            logits = widened(q @ k.transpose(2, 3)) * scale
        if bias is not None:
            logits = logits + bias.to(logits.dtype)
        if mask is not None:
            logits = logits.masked_fill(~mask, -math.inf)
        attended: Tensor = logits.softmax(3).to(v.dtype) @ v
        return attended
    if bias is not None:
        mask = bias[None].to(q.dtype)  # only four axes reach the fused kernels
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)


def is_written_out(q: Tensor, k: Tensor, bias: Tensor | None = None, key_bias: Tensor | None = None) -> bool:
    """Whether attention is computed as matrix product, softmax and matrix product instead of a fused kernel.

    Always where it is differentiated twice. On a CPU also in bf16 with few keys, where the backward pass of
    the fused kernel takes several times as long; in bf16 with a bias of the keys, since it has no kernel for
    queries that are longer than values, and the library would multiply in float32; and with a bias that is
    learned, for which the fused kernel has no backward pass.
    """
    if _differentiated_twice:
        return True
    if q.device.type != "cpu":
        return False
    if q.dtype == torch.bfloat16 and (k.shape[2] <= SHORT or key_bias is not None):
        return True
    return bias is not None and bias.requires_grad


def with_biases(q: Tensor, k: Tensor, key_bias: Tensor, query_bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Append columns to queries and keys that add a bias per key, and per query, to their inner product.

    A product accumulates in float32 and is rounded once: in half precision, what is added to it afterwards
    cannot undo the rounding of a large number. So sums of squares, which are larger than the products beside
    them, are added within. There a bias takes two columns, its rounded value and what rounding lost. Eight
    columns are added in all, the others without effect, because fused kernels want head dimensions divisible
    by 8.

    Args:
        q: queries [B, h, M, d].
        k: keys [B, h, N, d].
        key_bias: float32 or better [B, h, N].
        query_bias: the same [B, h, M]; None for nothing.

    Returns:
        Queries [B, h, M, d + 8] and keys [B, h, N, d + 8].
    """
    of_keys = in_two(key_bias, k.dtype)  # [B, h, N, 2]
    if query_bias is None:
        return F.pad(q, (0, 8), value=1.0), torch.cat([k, F.pad(of_keys, (0, 6))], dim=3)
    of_queries = F.pad(in_two(query_bias.detach(), q.dtype), (2, 4), value=1.0)
    of_keys = F.pad(F.pad(of_keys, (0, 2), value=1.0), (0, 4))
    return torch.cat([q, of_queries], dim=3), torch.cat([k, of_keys], dim=3)


def in_two(numbers: Tensor, dtype: torch.dtype) -> Tensor:
    """Split numbers [...] into two of another type, [..., 2]: the rounded value and the rounding error."""
    if numbers.dtype == dtype:
        return F.pad(numbers[..., None], (0, 1))
    high = numbers.to(dtype)
    lost = numbers.detach() - high.detach().to(numbers.dtype)
    return torch.stack([high, lost.to(dtype)], dim=-1)
