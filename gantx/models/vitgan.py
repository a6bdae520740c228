"""ViTGAN (Lee et al., arXiv 2107.04589, version 1): vision transformers on both sides, no convolution.

Notable in it:
- the latent enters the generator through its normalisations alone: self-modulated LayerNorm, driven by a
  mapping network; the token grid itself is a sine of the coordinates, the same for all images
- an implicit neural decoder paints the patch of every token: a small network of the pixel's coordinates,
  modulated by the token; input and output channels are scaled, so no token ever has a weight of its own
- the discriminator attends by distance, softmax(−‖q − k‖²/√d) with keys tied to queries, which bounds how
  fast its output can change; an exact identity makes an ordinary inner product of it
- improved spectral normalisation holds every weight matrix of the discriminator at the norm it started with
- patches overlap, so that the discriminator cannot memorise the patch grid
- all weights are equalised: stored with unit variance, scaled when used

Where version 1 of the paper is silent, and for every option named `released`, the authors' released
generator decides. Their discriminator was never released.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gantx.config.networks.vitgan import ViTGANDiscriminatorConfig, ViTGANGeneratorConfig
from gantx.models import interfaces
from gantx.models.layers.attention import attention
from gantx.models.layers.attention_maps import follow
from gantx.models.layers.checkpointing import run_block
from gantx.models.layers.convolution import convolve, convolve_transposed
from gantx.models.layers.linear import linear
from gantx.models.layers.normalization import LayerNorm, layer_norm
from gantx.runtime.precision import to_compute, widened
from gantx.runtime.random import Draw, Draws, Spec

# --- equalised layers and spectral normalisation ----------------------------------------------------------


def top_singular(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The largest singular value σ of a matrix [M, N] and its vectors: u [M], σ (0-d), v [N]."""
    left, values, right = torch.linalg.svd(matrix.detach(), full_matrices=False)
    return left[:, 0].clone(), values[0].clone(), right[0].clone()


class SpectralNorm(nn.Module):
    """The factor that gives a weight matrix W a fixed spectral norm: target / σ(W).

    σ is uᵀWv with the singular vectors kept as buffers. They are exact at the start and follow W by one power
    step in `advance_spectral_norms`. To autograd they are constants, which makes uvᵀ the gradient of σ.

    Args:
        weight: the matrix as it starts, [M, N].
        target: the norm to hold; None for the one `weight` starts with, as in improved spectral normalisation
            (ISN of the paper).
    """

    target: Tensor
    u: Tensor
    v: Tensor

    def __init__(self, weight: Tensor, target: float | None = None) -> None:
        super().__init__()
        u, sigma, v = top_singular(weight)
        self.register_buffer("target", sigma if target is None else torch.full_like(sigma, target))
        self.register_buffer("u", u)
        self.register_buffer("v", v)

    def forward(self, weight: Tensor) -> Tensor:
        """The 0-d factor for `weight` [M, N]."""
        # A dot product of the flattened matrices: one sum over the weight, in float32 like the weight.
        return self.target / torch.dot(weight.flatten(), torch.outer(self.u, self.v).flatten())


class ReleasedSpectralNorm(nn.Module):
    """The same factor as the released code has it: one power step from a vector that never moves.

    At the start it takes σ for about a quarter too small, so effective weights are that much too large. The
    gradient passes through the power step; the released training moves u by it, which ours does not.

    Args:
        weight: the matrix as it starts, [M, N].
    """

    target: Tensor
    u: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("target", top_singular(weight)[1])
        self.register_buffer("u", F.normalize(torch.randn_like(weight[:, 0]), dim=0))

    def forward(self, weight: Tensor) -> Tensor:
        """The 0-d factor for `weight` [M, N]."""
        # In float32 like the weight, whatever its layer multiplies in.
        v = (weight * self.u[:, None]).sum(0)  # [N]
        v = v / (v.norm() + 1e-4)
        mapped = (weight * v).sum(1)  # [M]
        u = mapped / (mapped.norm() + 1e-4)
        factor: Tensor = self.target / (u * mapped).sum()
        return factor


def build_spectral_norm(kind: str, weight: Tensor, scale: float) -> nn.Module | None:
    """The normalisation of a matrix that is multiplied by `scale` afterwards.

    Args:
        kind: `none`, `plain` (spectral norm 1, scale included), `improved` or `released`.
        weight: the matrix as it starts, [M, N].
        scale: the constant of the equalised layer.
    """
    match kind:
        case "none":
            return None
        case "plain":
            return SpectralNorm(weight, target=1 / scale)
        case "improved":
            return SpectralNorm(weight)
        case "released":
            return ReleasedSpectralNorm(weight)
    raise ValueError(f"unknown spectral norm {kind}")


class EqualizedLinear(nn.Module):
    """Linear layer whose stored weights have unit variance: scaled when used, not when initialised.

    Adam then moves all layers at the same relative rate (Karras et al. 2018, section 4.1).

    Args:
        in_dim: channels in.
        out_dim: channels out.
        bias: whether there is one.
        bias_start: what each bias adds at the start.
        std: deviation of the effective weights at the start; None for 1/√in_dim.
        lr: relative rate at which weights and biases learn.
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
        lr: float = 1.0,
        gain: float = 1.0,
        spectral: str = "none",
        widen: bool = False,
    ) -> None:
        super().__init__()
        self.widen = widen
        self.scale = (in_dim**-0.5 if std is None else std) * lr * gain
        self.bias_scale = lr * gain
        self.weight = nn.Parameter(torch.randn(out_dim, in_dim) / lr)
        self.bias = nn.Parameter(torch.full((out_dim,), bias_start / lr)) if bias else None
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
        """What is added to the outputs, [out_dim]; None without a bias."""
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
    """Let the singular vectors of all normalised layers follow their weights by one power step.

    Matrices of one shape move together: tens of small operations would each wait for the one before.
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


class Mapping(nn.Module):
    """Mapping network: latents, normalised to unit mean square, through leaky linear layers (StyleGAN).

    Args:
        dim: channels in and out.
        depth: number of layers.
        lr: relative rate at which they learn.
    """

    def __init__(self, dim: int, depth: int, lr: float = 0.01) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EqualizedLinear(dim, dim, lr=lr, gain=math.sqrt(2)) for _ in range(depth))

    def forward(self, latents: Tensor) -> Tensor:
        """Latents [B, D] to styles [B, D], in the compute type."""
        styles = latents * torch.rsqrt(latents.square().mean(-1, keepdim=True) + 1e-8)
        for layer in self.layers:
            styles = F.leaky_relu(layer(styles), 0.2)
        return styles


# --- attention --------------------------------------------------------------------------------------------


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
        qk_std: deviation of the effective weights of queries and keys at the start; None for 1/√D with `dot`
            and 0.02 with `l2`, where 1/√D would make every token attend to itself alone.
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
        """Let tokens look at each other.

        Args:
            tokens: [B, N, D].
            keep: only the first `keep` tokens look; None for all.

        Returns:
            What they saw, float32 [B, keep or N, D].
        """
        tokens = to_compute(tokens, self.compute_dtype)  # once for all three projections
        q, k = self._queries_and_keys(tokens, keep)
        v = self._split(self.value(tokens))
        attended = attend(_PRODUCTS[self.similarity](q, k), v)  # [B, h, keep, d]
        mixed: Tensor = self.out(attended.transpose(1, 2).flatten(2))
        return mixed

    def weights(self, tokens: Tensor) -> Tensor:
        """Who looks at whom: tokens [B, N, D] to [B, h, N, N], rows summing to one."""
        return attention_logits(self.similarity, *self._queries_and_keys(tokens, None)).softmax(3)

    def row(self, place: int, tokens: Tensor) -> Tensor:
        """Where the token at `place` looks: tokens [B, N, D] to [B, h, N], summing to one."""
        q, k = self._queries_and_keys(tokens, None)
        return attention_logits(self.similarity, q[:, :, place, None], k).softmax(3).squeeze(2)

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
    """The attention of the released generator, which is no distance at all.

    Its logits are τ(mean q_i² + mean q_j² − 2 q_i·k_j)/√d: the second mean is taken of the query at the key's
    place, keys are not tied, and the sign favours what is far. τ is learned and starts at 1. All three
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
        """Tokens [B, N, D] to what they saw of each other, float32 [B, N, D]."""
        seen = attend(*self._project(tokens))  # [B, h, N, d]
        mixed: Tensor = self.out(seen.transpose(1, 2).flatten(2))
        return mixed

    def row(self, place: int, tokens: Tensor) -> Tensor:
        """Where the token at `place` looks: tokens [B, N, D] to [B, h, N], summing to one."""
        given, _ = self._project(tokens)
        attention = products_of(given._replace(q=given.q[:, :, place, None])).softmax(3)  # [B, h, 1, N]
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


# --- blocks -----------------------------------------------------------------------------------------------

_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"gelu": nn.GELU, "silu": nn.SiLU}


def perceptron(dim: int, ratio: int, activation: str, spectral: str) -> nn.Sequential:
    """The MLP of a block: D to ratio·D, `gelu` or `silu`, back to D in float32."""
    return nn.Sequential(
        EqualizedLinear(dim, ratio * dim, spectral=spectral),
        _ACTIVATIONS[activation](),
        EqualizedLinear(ratio * dim, dim, spectral=spectral, widen=True),
    )


class SelfModulatedLayerNorm(nn.Module):
    """LayerNorm whose gain and bias are read off the style vector (SLN of the paper).

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


# --- from coordinates and to pixels -----------------------------------------------------------------------


class SineGrid(nn.Module):
    """Learned sine features of a square grid's coordinates: sin(A(x, y) + a), coordinates from −1 to 1.

    Args:
        side: points along each side.
        dim: number of features D.
    """

    coordinates: Tensor

    def __init__(self, side: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim, 2).uniform_(-1, 1) * math.sqrt(9 / 2))
        self.bias = nn.Parameter(torch.empty(dim).uniform_(-1, 1) * math.sqrt(1 / 2))
        line = torch.linspace(-1, 1, side)
        y, x = torch.meshgrid(line, line, indexing="ij")
        self.register_buffer("coordinates", torch.stack([x, y], dim=2).flatten(0, 1), persistent=False)

    def forward(self) -> Tensor:
        """Features [side², D] in raster order."""
        # No matrix product: phases and their sines are float32, whatever is multiplied in.
        phases = (self.coordinates[:, None] * self.weight).sum(2) + self.bias
        return phases.sin()


class TokenTable(nn.Module):
    """A learned vector for every place of a grid, unrelated at the start.

    Args:
        count: number of places N.
        dim: channels D.
    """

    def __init__(self, count: int, dim: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(count, dim))

    def forward(self) -> Tensor:
        """The table, [N, D]."""
        return self.table


class ModulatedLinear(nn.Module):
    """Linear layer whose input channels are scaled by a style (Karras et al. 2020, section 2.2).

    Scaling the inputs and, to demodulate, the outputs gives what modulated weights would give, without
    weights for every style.

    Args:
        in_dim: channels in.
        out_dim: channels out.
        style_dim: channels S of the style.
        demodulate: scale the outputs back to unit variance; without, `gain` and `noisy` have no effect.
        gain: factor on the output, bias and noise included.
        noisy: add noise of a learned strength, which starts at zero.
    """

    compute_dtype: torch.dtype | None = None

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        style_dim: int,
        *,
        demodulate: bool = True,
        gain: float = 1.0,
        noisy: bool = False,
    ) -> None:
        super().__init__()
        self.demodulate = demodulate
        self.gain = gain
        self.modulation = EqualizedLinear(style_dim, in_dim, bias_start=1.0, gain=in_dim**-0.5, widen=True)
        self.weight = nn.Parameter(torch.randn(out_dim, in_dim))
        self.bias = nn.Parameter(torch.zeros(out_dim))
        self.noise_strength = nn.Parameter(torch.zeros(())) if noisy else None

    def forward(self, features: Tensor, style: Tensor, noise: Tensor | None = None) -> Tensor:
        """Apply the layer, at all points of a style alike.

        Args:
            features: [T or 1, P, in_dim], P points for every style.
            style: [T, S].
            noise: [T, P], or None for none.

        Returns:
            [T, P, out_dim], in the compute type.
        """
        dtype = self.compute_dtype
        scale = self.modulation(style)  # float32 [T, in_dim], the equalising constant of `weight` included
        scaled = to_compute(features, dtype) * to_compute(scale, dtype)[:, None]
        if not self.demodulate:
            return linear(scaled, self.weight, self.bias, dtype=dtype)
        product = linear(scaled, self.weight, dtype=dtype)
        energy = F.linear(scale.square(), self.weight.square())  # float32 [T, out_dim]
        strength = torch.rsqrt(energy + 1e-8) * self.gain
        shift = to_compute(self.bias * self.gain, dtype)  # [out_dim]
        if noise is not None and self.noise_strength is not None:
            added = to_compute(noise * (self.noise_strength * self.gain), dtype)  # [T, P]
            shift = shift + added[:, :, None]  # [T, P, out_dim]
        return torch.addcmul(shift, product, to_compute(strength, dtype)[:, None])


class ModulatedConv(nn.Module):
    """3x3 convolution whose input channels are scaled by a style, demodulated; as `ModulatedLinear`.

    Args:
        in_dim: channels in.
        out_dim: channels out.
        style_dim: channels S of the style.
        upsample: double the side, by a transposed convolution and a blur.
        gain: factor on the output, bias and noise included.
        noisy: add noise of a learned strength, which starts at zero.
    """

    compute_dtype: torch.dtype | None = None

    def __init__(
        self, in_dim: int, out_dim: int, style_dim: int, *, upsample: bool, gain: float, noisy: bool
    ) -> None:
        super().__init__()
        self.upsample = upsample
        self.gain = gain
        self.modulation = EqualizedLinear(
            style_dim, in_dim, bias_start=1.0, gain=(9 * in_dim) ** -0.5, widen=True
        )
        self.weight = nn.Parameter(torch.randn(out_dim, in_dim, 3, 3))
        self.bias = nn.Parameter(torch.zeros(out_dim))
        self.noise_strength = nn.Parameter(torch.zeros(())) if noisy else None

    def forward(self, images: Tensor, style: Tensor, noise: Tensor | None = None) -> Tensor:
        """Apply the layer.

        Args:
            images: [B, in_dim, H, W].
            style: [B, S].
            noise: [B, 1, H', W'], or None for none.

        Returns:
            [B, out_dim, H', W'] in the compute type, twice as large when upsampling.
        """
        dtype = self.compute_dtype
        scale = self.modulation(style)  # float32 [B, in_dim]
        scaled = to_compute(images, dtype) * to_compute(scale, dtype)[:, :, None, None]
        if self.upsample:
            product = blur(convolve_transposed(scaled, self.weight, dtype=dtype, stride=2))
        else:
            product = convolve(scaled, self.weight, dtype=dtype, padding=1)
        energy = F.linear(scale.square(), self.weight.square().sum((2, 3)))  # float32 [B, out_dim]
        strength = torch.rsqrt(energy + 1e-8) * self.gain
        shift = to_compute(self.bias * self.gain, dtype)[:, None, None]
        if noise is not None and self.noise_strength is not None:
            shift = shift + to_compute(noise * (self.noise_strength * self.gain), dtype)
        return torch.addcmul(shift, product, to_compute(strength, dtype)[:, :, None, None])


def blur(images: Tensor) -> Tensor:
    """Filter images [B, C, H + 1, W + 1] by [1, 3, 3, 1]/4 in both directions: [B, C, H, W].

    The last step of doubling the side as StyleGAN2 does it; the factor makes up for the zeros between pixels.
    """
    x = F.pad(images, (1, 1, 1, 1))
    x = torch.add(x[:, :, :-3] + x[:, :, 3:], x[:, :, 1:-2] + x[:, :, 2:-1], alpha=3)
    x = torch.add(x[..., :-3] + x[..., 3:], x[..., 1:-2] + x[..., 2:-1], alpha=3)
    return x / 16


class PatchDecoder(nn.Module):
    """Implicit neural decoder: the patch of each token as a modulated function of the pixel's coordinates.

    Args:
        dim: channels D of the tokens.
        hidden: width of the layers.
        grid: side of the token grid.
        patch: side P of the patches.
        mapping_depth: layers of the mapping network between token and style; 0 for the token as it is.
        layers: hidden layers.
        sine: sines between the layers, in place of leaky ReLUs.
        noisy: add noise to every hidden layer.
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        grid: int,
        patch: int,
        *,
        mapping_depth: int,
        layers: int,
        sine: bool,
        noisy: bool,
    ) -> None:
        super().__init__()
        self.grid = grid
        self.patch = patch
        self.sine = sine
        self.noisy = noisy
        self.mapping = Mapping(dim, mapping_depth) if mapping_depth else nn.Identity()
        self.coordinates = SineGrid(patch, dim)
        gain = 1.0 if sine else math.sqrt(2)
        self.layers = nn.ModuleList(
            ModulatedLinear(dim if layer == 0 else hidden, hidden, dim, gain=gain, noisy=noisy)
            for layer in range(layers)
        )
        self.to_rgb = ModulatedLinear(hidden, 3, dim, demodulate=False)

    def noise_spec(self, batch: int) -> Spec:
        """One number per pixel and hidden layer, by the layer's place; {} without noise."""
        shape = (batch, self.grid**2, self.patch**2)
        return {str(layer): Draw("normal", shape) for layer in range(len(self.layers)) if self.noisy}

    def forward(self, tokens: Tensor, style: Tensor, noise: Any = None) -> Tensor:
        """Tokens [B, N, D] to images [B, 3, R, R]; the style of the whole image is not used."""
        styles = self.mapping(tokens.flatten(0, 1))  # [T, D], T = B·N
        features = self.coordinates()[None]  # [1, P², D]
        for place, layer in enumerate(self.layers):
            added = noise[str(place)].flatten(0, 1) if noise else None  # [T, P²]
            features = layer(features, styles, added)  # [T, P², hidden]
            features = features.sin() if self.sine else F.leaky_relu(features, 0.2)
        pixels = widened(self.to_rgb(features, styles))  # [T, P², 3]
        return fold(pixels.unflatten(0, (len(tokens), -1)), self.patch)


def fold(patches: Tensor, side: int) -> Tensor:
    """Lay patches [B, N, side², C], both axes in raster order, side by side: [B, C, √N·side, √N·side]."""
    grid = math.isqrt(patches.shape[1])
    cells = patches.unflatten(2, (side, side)).unflatten(1, (grid, grid))  # [B, y, x, dy, dx, C]
    images: Tensor = cells.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
    return images


class ConvDecoder(nn.Module):
    """Convolutional decoder of the released code: two modulated 3x3 layers for every doubling of the side.

    Args:
        dim: channels D of tokens and style.
        hidden: width of the layers.
        grid: side of the token grid.
        patch: side of the patches, the factor by which the grid grows; a power of two.
        noisy: add noise to every layer.
    """

    def __init__(self, dim: int, hidden: int, grid: int, patch: int, *, noisy: bool) -> None:
        super().__init__()
        self.grid = grid
        self.noisy = noisy
        gain = math.sqrt(2)
        self.layers = nn.ModuleList()
        for level in range(int(math.log2(patch))):
            first = dim if level == 0 else hidden
            self.layers.append(ModulatedConv(first, hidden, dim, upsample=True, gain=gain, noisy=noisy))
            self.layers.append(ModulatedConv(hidden, hidden, dim, upsample=False, gain=gain, noisy=noisy))
        self.to_rgb = ModulatedLinear(hidden if self.layers else dim, 3, dim, demodulate=False)

    def noise_spec(self, batch: int) -> Spec:
        """One number per pixel and layer, by the layer's place; {} without noise."""
        sides = [self.grid << (layer // 2 + 1) for layer in range(len(self.layers))]
        return {
            str(layer): Draw("normal", (batch, 1, side, side))
            for layer, side in enumerate(sides)
            if self.noisy
        }

    def forward(self, tokens: Tensor, style: Tensor, noise: Any = None) -> Tensor:
        """Tokens [B, N, D] under the styles [B, D] of their images: images [B, 3, R, R]."""
        features = tokens.transpose(1, 2).unflatten(2, (self.grid, self.grid))  # [B, D, y, x]
        for place, layer in enumerate(self.layers):
            features = F.leaky_relu(layer(features, style, noise[str(place)] if noise else None), 0.2)
        pixels = widened(self.to_rgb(features.flatten(2).transpose(1, 2), style))  # [B, R², 3]
        images: Tensor = pixels.transpose(1, 2).unflatten(2, features.shape[2:])
        return images


def build_decoder(
    kind: str, dim: int, hidden: int, grid: int, patch: int, noisy: bool
) -> PatchDecoder | ConvDecoder:
    """`inr`, `inr-sine` or `conv`: a module from tokens, styles and noise to images; see `Generator`."""
    match kind:
        case "inr":
            return PatchDecoder(dim, hidden, grid, patch, mapping_depth=4, layers=3, sine=False, noisy=noisy)
        case "inr-sine":
            return PatchDecoder(dim, hidden, grid, patch, mapping_depth=0, layers=1, sine=True, noisy=noisy)
        case "conv":
            return ConvDecoder(dim, hidden, grid, patch, noisy=noisy)
    raise ValueError(f"unknown decoder {kind}")


def overlapping_patches(images: Tensor, side: int, overlap: int, padding: str = "zeros") -> Tensor:
    """Cut images into the cells of a grid, each extended on all sides into its neighbours.

    Args:
        images: [B, C, H, W].
        side: side P of the cells; divides H and W.
        overlap: pixels o by which a cell is extended on each side.
        padding: what lies outside the image: `zeros` or its mirror image, `reflect`.

    Returns:
        [B, (H/P)(W/P), C·(P + 2o)²], cells in raster order, each as (channel, row, column).
    """
    if padding == "reflect" and overlap:
        images = reflected(reflected(images, overlap).transpose(2, 3), overlap).transpose(2, 3)
        overlap_padding = 0
    else:
        overlap_padding = overlap
    cells = F.unfold(images, side + 2 * overlap, padding=overlap_padding, stride=side)  # [B, C·K², N]
    return cells.transpose(1, 2)


def reflected(images: Tensor, margin: int) -> Tensor:
    """Extend rows [..., W] by `margin` mirrored pixels at both ends; the border itself is not repeated.

    Unlike the library's padding, its backward pass gives the same bits in every run on a GPU.
    """
    left, right = images[..., 1 : margin + 1], images[..., -margin - 1 : -1]
    return torch.cat([left.flip(-1), images, right.flip(-1)], dim=-1)


# --- networks ---------------------------------------------------------------------------------------------


class Generator(interfaces.Generator):
    """Latents to images: a transformer over a fixed token grid, styled by the latent (ViTGAN).

    Built from its section of the configuration, whose fields gantx.config.networks.vitgan documents.

    Attributes:
        latent_shape: (dim,).
        image_shape: (3, R, R).
        w_avg: running average [D] of w, for truncation; moved by training.
    """

    w_avg: Tensor

    def __init__(self, config: ViTGANGeneratorConfig) -> None:
        super().__init__()
        grid = config.resolution // config.patch_size
        self.output = config.output
        self.latent_shape = (config.dim,)
        self.image_shape = (3, config.resolution, config.resolution)
        self.mapping_network = Mapping(config.dim, config.mapping_depth, config.mapping_lr)
        self.positions = (
            SineGrid(grid, config.dim) if config.positions == "sine" else TokenTable(grid**2, config.dim)
        )
        self.blocks = nn.ModuleList(
            StyledBlock(
                config.dim,
                config.heads,
                config.mlp_ratio,
                config.residual,
                config.attention,
                config.activation,
                config.spectral_norm,
                config.norm_eps,
            )
            for _ in range(config.depth)
        )
        self.norm = SelfModulatedLayerNorm(config.dim, config.norm_eps)
        self.decoder = build_decoder(
            config.decoder, config.dim, config.decoder_dim, grid, config.patch_size, config.decoder_noise
        )
        self.register_buffer("w_avg", torch.zeros(config.dim))

    def noise_spec(self, batch: int) -> Spec:
        """The decoder's noise; {} without."""
        return self.decoder.noise_spec(batch)

    def mapping(self, z: Tensor, labels: Tensor | None = None, noise: Draws | None = None) -> Tensor:
        """Latents [B, D] to styles ws [B, depth + 1, D], one per use; `labels` and `noise` are not used."""
        w = widened(self.mapping_network(z))
        return w[:, None].expand(-1, len(self.blocks) + 1, -1)

    def synthesis(self, ws: Tensor, noise: Draws | None = None) -> Tensor:
        """Styles to images; no noise means noise of zero.

        Args:
            ws: [B, depth + 1, D], one for each block and one for what follows them.
            noise: of `noise_spec`, or None.

        Returns:
            [B, 3, R, R].
        """
        *each, last = ws.unbind(1)
        tokens = self.positions()[None]  # [1, N, D]: the same for all images until a style comes in
        for block, style in zip(self.blocks, each, strict=True):
            tokens = run_block(block, tokens, style)  # [B, N, D]
        images: Tensor = self.decoder(self.norm(tokens, last), last, noise)
        return images.tanh() if self.output == "tanh" else images

    def forward(self, z: Tensor, noise: Draws | None = None, labels: Tensor | None = None) -> Tensor:
        """Latents [B, D] to images [B, 3, R, R]; no noise means noise of zero, `labels` are not used."""
        return self.synthesis(self.mapping(z), noise)

    def follow(
        self, given: Tensor, query: tuple[float, float], noise: Draws | None = None, layers: str = "last"
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Paint, and tell where one place of the image looked.

        Args:
            given: styles ws [B, depth + 1, D].
            query: the place, (y, x) in [0, 1) from the top left corner.
            noise: as in `synthesis`.
            layers: `last` for the last block, `all` for every block.

        Returns:
            Images [B, 3, R, R]; for every layer, attention [B, h, S, S] on the grid of S x S tokens, under
            `<S>x<S>.<which block>`.
        """
        attentions = [block.get_submodule("attention") for block in self.blocks]
        return follow(lambda: self.synthesis(given, noise), attentions, query, layers)

    def update_state(self) -> None:
        """Let the vectors of `plain` and `improved` spectral normalisation follow the weights by one step."""
        advance_spectral_norms(self)


class Discriminator(interfaces.Discriminator):
    """Images to logits: a ViT over overlapping patches that judges by its class token (ViTGAN).

    Built from its section of the configuration, whose fields gantx.config.networks.vitgan documents.
    """

    def __init__(self, config: ViTGANDiscriminatorConfig) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        self.overlap = config.overlap
        self.padding = config.padding
        side = config.resolution // config.patch_size
        pixels = 3 * (config.patch_size + 2 * config.overlap) ** 2
        self.from_patches = EqualizedLinear(pixels, config.dim, spectral=config.spectral_norm, widen=True)
        self.class_token = nn.Parameter(0.02 * torch.randn(1, 1, config.dim))
        self.positions = nn.Parameter(0.02 * torch.randn(1, 1 + side**2, config.dim))
        self.blocks = nn.ModuleList(
            Block(
                config.dim,
                config.heads,
                config.mlp_ratio,
                config.attention,
                config.qk_std,
                config.spectral_norm,
            )
            for _ in range(config.depth)
        )
        self.norm = LayerNorm(config.dim, eps=1e-6)
        self.head = LogitHead(config.dim, 1, spectral=config.spectral_norm)

    def noise_spec(self, batch: int) -> Spec:
        """Nothing is random."""
        return {}

    def forward(self, images: Tensor, noise: Draws | None = None, labels: Tensor | None = None) -> Tensor:
        """Images [B, 3, R, R] to logits [B]; `noise` and `labels` are not used."""
        tokens = self.tokens(images)
        *blocks, last = self.blocks
        for block in blocks:
            tokens = run_block(block, tokens)
        # Only the class token is read, so the last block updates no other.
        judged = last(tokens, keep=1)[:, 0]  # [B, D]
        logits: Tensor = self.head(self.norm(judged))  # [B, 1]
        return logits.squeeze(1)

    def tokens(self, images: Tensor) -> Tensor:
        """What the first block reads of images [B, 3, R, R]: [B, 1 + N, D], the class token first."""
        patches = overlapping_patches(images, self.patch_size, self.overlap, self.padding)
        tokens = self.from_patches(patches)
        class_token = self.class_token.expand(len(images), -1, -1)
        return torch.cat([class_token, tokens], dim=1) + self.positions

    def attention(self, images: Tensor) -> dict[str, Tensor]:
        """Who looks at whom in every block, `blocks.<i>` to [B, h, 1 + N, 1 + N]; rows sum to one."""
        maps: dict[str, Tensor] = {}
        tokens = self.tokens(images)
        for place, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            maps[f"blocks.{place}"] = block.attention.weights(block.norm1(tokens))
            tokens = block(tokens)
        return maps

    def update_state(self) -> None:
        """Let the vectors of spectral normalisation follow the weights by one power step."""
        advance_spectral_norms(self)
