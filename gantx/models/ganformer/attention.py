"""Attention between the tokens of an image and its latents, in both directions."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gantx.models.ganformer.positions import GridCode
from gantx.models.ganformer.scores import CentroidScores, SimplexScores, by_head, per_head
from gantx.models.layers.equalized import SLOPE, EqualLinear
from gantx.models.layers.tokens import from_tokens, to_tokens
from gantx.runtime.precision import to_compute, widened
from gantx.runtime.random import Draw, Draws, Spec


def dropped(attention: Tensor, draws: Any, dropout: float) -> Tensor:
    """Dropout of attention: single entries and whole latents are set to zero, the rest is scaled up.

    Args:
        attention: [B, n, h, m].
        draws: of `dropout_spec`, or None for no dropout.
        dropout: dropout probability; single entries and whole latents each have half of it.
    """
    if draws is None:
        return attention
    for uniform in (draws["entries"], draws["latents"]):
        attention = attention * ((uniform >= dropout / 2) / (1 - dropout / 2))
    return attention


def dropout_spec(batch: int, tokens: int, heads: int, latents: int) -> Spec:
    """Draws of `dropped`."""
    return {
        "entries": Draw("uniform", (batch, tokens, heads, latents)),
        "latents": Draw("uniform", (batch, 1, heads, latents)),
    }


class Gate(nn.Module):
    """A gate in (0, 1) for each vector and head, computed from the vector and its position.

    Args:
        dim: channels of the vectors.
        position_dim: size of their position codes, or None when they have none.
        heads: attention heads h.
        bias: added to the logits.
    """

    def __init__(self, dim: int, position_dim: int | None, heads: int, bias: float) -> None:
        super().__init__()
        self.bias = bias
        self.content = EqualLinear(dim, heads, widen=True)
        self.position = None if position_dim is None else EqualLinear(position_dim, heads, widen=True)

    def forward(self, x: Tensor, positions: Tensor | None) -> Tensor:
        """[B, k, dim] with position codes [k, p] to float32 in (0, 1), [B, k, h]."""
        logits: Tensor = self.content(x) + self.bias
        if self.position is not None:
            logits = logits + self.position(positions)
        return logits.sigmoid()


class ImageAttention(nn.Module):
    """Attention of the tokens of an image to its latents (the paper's simplex attention, section 3.1).

    Args:
        channels: channels C of the tokens.
        latent_dim: size d of a latent.
        grid_dim: size p of the tokens' position codes.
        position_dim: size q of the latents' position codes, or None when they have none.
        heads: attention heads h.
        scores: of positions and latents.
        normalization: `layer` (over the channels of a token), `instance` (over the tokens of a channel) or
            `none`.
        integration: the result is a gain (`mul`) of the tokens, a bias (`add`), or `both`. A gain comes with
            division by the root mean square, a bias with subtraction of the mean.
        latent_gate: multiply the attention to each latent by a gate computed from the latent.
        image_gate: multiply the attention of each token by a gate computed from the token.
    """

    def __init__(
        self,
        channels: int,
        latent_dim: int,
        grid_dim: int,
        position_dim: int | None,
        heads: int,
        scores: SimplexScores | CentroidScores,
        *,
        normalization: str,
        integration: str,
        latent_gate: bool,
        image_gate: bool,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.normalization = normalization
        self.integration = integration
        self.scores = scores
        self.to_values = EqualLinear(latent_dim, channels)
        self.modulation = EqualLinear(channels, 2 * channels if integration == "both" else channels)
        self.latent_gate = Gate(latent_dim, position_dim, heads, bias=0.0) if latent_gate else None
        self.image_gate = Gate(channels, grid_dim, heads, bias=1.0) if image_gate else None

    def forward(
        self,
        tokens: Tensor,
        grid: Tensor,
        latents: Tensor,
        positions: Tensor | None,
        mask: Tensor | None = None,
        draws: Draws | None = None,
        dropout: float = 0.0,
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Attend.

        Args:
            tokens: [B, n, C].
            grid: position codes of the tokens, [n, p].
            latents: [B, m, d].
            positions: position codes of the latents, [m, q], or None.
            mask: added to the scores of each latent, [B, m], or None.
            draws: of `dropout_spec`, or None for no dropout.
            dropout: dropout probability of attention.

        Returns:
            Tokens [B, n, C]; a gain [B, n, C] that they still have to be multiplied with, or None; the
            attention [B, n, h, m] before dropout, float32.
        """
        weights = self.scores(tokens, grid, latents, positions, mask)
        if self.latent_gate is not None:
            weights = weights * self.latent_gate(latents, positions).transpose(1, 2)[:, None]
        if self.image_gate is not None:
            weights = weights * self.image_gate(tokens, grid)[..., None]

        # The modulation is linear, so it is applied to the m values instead of the n results of attention.
        values = by_head(self.to_values(latents), self.heads)  # [B, h, m, s]
        matrix = per_head_inputs(self.modulation, self.heads)  # [h, s, C']
        values = (values @ matrix).flatten(1, 2)  # [B, h·m, C']
        shares = dropped(weights, draws, dropout).flatten(2)  # [B, n, h·m]
        bias = self.modulation.offset()

        mean, inverse = self._statistics(tokens)
        if self.integration == "add":
            read = scaled_product(shares, values, bias, None)
            return (tokens if mean is None else tokens - mean) + read, None, weights
        channels = tokens.shape[2]
        gain = scaled_product(shares, values[..., :channels], 1 + bias[:channels], inverse)
        if self.integration == "mul":
            return tokens, gain, weights
        read = scaled_product(shares, values[..., channels:], bias[channels:], None)
        return (tokens if mean is None else tokens - mean) * gain + read, None, weights

    def _statistics(self, tokens: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Of tokens [B, n, C]: the mean, if there is a bias, and float32 1 / root mean square, if a gain."""
        if self.normalization == "none":
            return None, None
        dim = 2 if self.normalization == "layer" else 1
        wide = torch.promote_types(tokens.dtype, torch.float32)
        mean = None
        if self.integration != "mul":
            mean = tokens.mean(dim, keepdim=True, dtype=wide).to(tokens.dtype)
        if self.integration == "add":
            return mean, None
        centred = widened(tokens if mean is None else tokens - mean)
        norm = torch.linalg.vector_norm(centred, dim=dim, keepdim=True)
        return mean, (norm.square() / tokens.shape[dim] + 1e-8).rsqrt()


def per_head_inputs(layer: EqualLinear, heads: int) -> Tensor:
    """The matrix of a layer with h·s inputs as [h, s, out], in the compute type."""
    split: Tensor = layer.matrix().unflatten(1, (heads, -1))
    return split.permute(1, 2, 0)


def scaled_product(shares: Tensor, values: Tensor, bias: Tensor, scale: Tensor | None) -> Tensor:
    """(shares @ values + bias) · scale in one product, of the type of the values.

    Args:
        shares: [B, n, k], float32 as all that follow but the values.
        values: [B, k, C], in the compute type.
        bias: [C].
        scale: per token [B, n, 1] or per channel [B, 1, C], or None.

    Returns:
        [B, n, C], in the compute type.
    """
    kind = values.dtype
    if scale is None:
        return torch.baddbmm(bias.to(kind), shares.to(kind), values)
    shares = torch.cat([shares, torch.ones_like(shares[..., :1])], dim=2)
    values = torch.cat([values, bias.to(kind).expand(len(values), 1, -1)], dim=1)
    if scale.shape[2] == 1:
        return (shares * scale).to(kind) @ values
    return shares.to(kind) @ (values * scale.to(kind))


class LatentAttention(nn.Module):
    """Latents attend to a context, the image or each other, and add the result to themselves.

    Args:
        dim: size d of a latent.
        context_dim: channels c of the context.
        position_dim: size q of the latents' position codes, or None when they have none.
        context_position_dim: size p of the position codes of the context, or None when it has none.
        heads: attention heads h.
    """

    compute_dtype: torch.dtype | None = None

    def __init__(
        self,
        dim: int,
        context_dim: int,
        position_dim: int | None,
        context_position_dim: int | None,
        heads: int,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.to_queries = EqualLinear(dim, dim)
        self.to_keys = EqualLinear(context_dim, dim, bias=None)
        self.to_values = EqualLinear(context_dim, dim)
        self.modulation = EqualLinear(dim, dim, widen=True)
        self.positions_to_queries = None if position_dim is None else EqualLinear(position_dim, dim)
        self.positions_to_keys = None
        if context_position_dim is not None:
            self.positions_to_keys = EqualLinear(context_position_dim, dim, bias=None)

    def forward(
        self,
        latents: Tensor,
        context: Tensor,
        positions: Tensor | None,
        context_positions: Tensor | None,
        mask: Tensor | None = None,
        draws: Draws | None = None,
        dropout: float = 0.0,
    ) -> Tensor:
        """Attend.

        Args:
            latents: [B, m, d].
            context: [B, n, c].
            positions: position codes of the latents, [m, q], or None.
            context_positions: position codes of the context, [n, p], or None.
            mask: added to the scores of the context, [B, n], or None.
            draws: of `dropout_spec`, as for m tokens that attend to n latents, or None for no dropout.
            dropout: dropout probability of attention.

        Returns:
            [B, m, d], float32.
        """
        context = to_compute(context, self.compute_dtype)
        queries = self.to_queries(latents)
        if self.positions_to_queries is not None:
            queries = queries + self.positions_to_queries(positions)
        queries = by_head(queries, self.heads) * (queries.shape[2] // self.heads) ** -0.5  # [B, h, m, s]
        # As in SimplexScores, projections are applied to the m queries, not to the n tokens of the context.
        for_context = (queries @ per_head(self.to_keys, self.heads)).flatten(1, 2)  # [B, h·m, c]
        scores = for_context @ context.transpose(1, 2)  # [B, h·m, n]
        if self.positions_to_keys is not None and context_positions is not None:
            for_positions = queries @ per_head(self.positions_to_keys, self.heads)
            scores = scores + for_positions.flatten(1, 2) @ context_positions.to(context.dtype).t()
        scores = widened(scores).unflatten(1, (self.heads, -1))
        if mask is not None:
            scores = scores + mask[:, None, None]
        weights = dropped(scores.softmax(3).transpose(1, 2), draws, dropout).transpose(1, 2)  # [B, h, m, n]

        read = weights.to(context.dtype).flatten(1, 2) @ context  # [B, h·m, c]
        values = read.unflatten(1, (self.heads, -1)) @ per_head(self.to_values, self.heads).transpose(1, 2)
        bias = self.to_values.offset().unflatten(0, (self.heads, 1, -1))  # [h, 1, s]
        values = widened(values) + weights.sum(3, keepdim=True) * bias  # [B, h, m, s]
        added: Tensor = self.modulation(values.transpose(1, 2).flatten(2))
        return latents + added


class LatentStage(nn.Module):
    """Attention of the latents, then one linear layer, or two with a skip connection around everything.

    Args:
        dim: size d of a latent.
        lr_multiplier: learning rate of the linear layers in units of the optimiser's.
        residual: two layers and a skip connection around them and the attention.
        attention: attention of the latents, or None for linear layers alone.
    """

    def __init__(
        self, dim: int, lr_multiplier: float, residual: bool, attention: LatentAttention | None
    ) -> None:
        super().__init__()
        self.attention = attention
        self.first = EqualLinear(dim, dim, lr_multiplier=lr_multiplier, leaky=True, widen=True)
        self.second = EqualLinear(dim, dim, lr_multiplier=lr_multiplier, widen=True) if residual else None

    def forward(self, latents: Tensor, *inputs: Any) -> Tensor:
        """[..., d] to [..., d]; `inputs` are passed on to the attention."""
        read = latents if self.attention is None else self.attention(latents, *inputs)
        made: Tensor = self.first(read)
        if self.second is None:
            return made
        return F.leaky_relu(self.second(made) + latents, SLOPE)


class AttentionLayer(nn.Module):
    """Bipartite attention between a layer's convolution and its activation.

    Args:
        code: position codes of the tokens.
        look: attention of the tokens to the latents.
        update: attention of the latents to the tokens afterwards, or None to leave the latents unchanged.
    """

    def __init__(self, code: GridCode, look: ImageAttention, update: LatentStage | None) -> None:
        super().__init__()
        self.code = code
        self.look = look
        self.update = update

    def forward(
        self,
        x: Tensor,
        factor: Tensor,
        latents: Tensor,
        positions: Tensor | None,
        mask: Tensor | None,
        draws: Any,
        dropout: float,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Attend from the image to the latents, then, with `update`, from the latents to the image.

        Args:
            x: features [B, C, S, S].
            factor: that the features still have to be multiplied with, [] or [B, C, 1, 1].
            latents: [B, m, d].
            positions: position codes of the latents, [m, d], or None.
            mask: added to the scores of each latent, [B, m], or None.
            draws: of `dropout_spec` for `look` and, if there is one, `update`; None for no dropout.
            dropout: dropout probability of attention.

        Returns:
            Features and their factor again; the latents of the next layer; attention [B, S², h, m].
        """
        height = x.shape[2]
        grid: Tensor = self.code()
        of_look, of_update = (None, None) if draws is None else (draws["look"], draws.get("update"))
        tokens, gain, weights = self.look(
            to_tokens(x * factor.to(x.dtype)), grid, latents, positions, mask, of_look, dropout
        )
        if self.update is not None:
            tokens, gain = tokens if gain is None else tokens * gain, None
            latents = self.update(latents, tokens, positions, grid, None, of_update, dropout)
        x = from_tokens(tokens, height)
        return x, x.new_ones(()) if gain is None else from_tokens(gain, height), latents, weights
