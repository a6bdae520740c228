"""Scores between image positions and latents: by keys (simplex), or by centroids (k-means, duplex)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gantx.models.layers.equalized import EqualLinear
from gantx.runtime.precision import to_compute, widened

MASKED = -10_000.0  # added to the scores of a latent that is left out


def by_head(x: Tensor, heads: int) -> Tensor:
    """[..., m, h·s] as [..., h, m, s]: heads own contiguous channels."""
    split: Tensor = x.unflatten(-1, (heads, -1))
    return split.transpose(-3, -2)


def per_head(layer: EqualLinear, heads: int) -> Tensor:
    """The matrix of a layer with h·s outputs as [h, s, in], in the compute type."""
    split: Tensor = layer.matrix().unflatten(0, (heads, -1))
    return split


class SimplexScores(nn.Module):
    """Scores of latents for tokens: queries of the tokens times keys of the latents.

    Args:
        channels: channels C of the tokens and of queries and keys.
        latent_dim: size d of a latent.
        grid_dim: size p of the tokens' position codes.
        position_dim: size q of the latents' position codes, or None when they have none.
        heads: attention heads h.
    """

    compute_dtype: torch.dtype | None = None

    def __init__(
        self, channels: int, latent_dim: int, grid_dim: int, position_dim: int | None, heads: int
    ) -> None:
        super().__init__()
        self.heads = heads
        self.to_queries = EqualLinear(channels, channels)
        self.grid_to_queries = EqualLinear(grid_dim, channels)
        self.to_keys = EqualLinear(latent_dim, channels, bias=None)
        self.positions_to_keys = None
        if position_dim is not None:
            self.positions_to_keys = EqualLinear(position_dim, channels, bias=None)

    def forward(
        self, tokens: Tensor, grid: Tensor, latents: Tensor, positions: Tensor | None, mask: Tensor | None
    ) -> Tensor:
        """Attention of tokens to latents.

        Args:
            tokens: [B, n, C].
            grid: position codes of the tokens, [n, p].
            latents: [B, m, d].
            positions: position codes of the latents, [m, q], or None.
            mask: added to the scores of each latent, [B, m], or None.

        Returns:
            Attention that each token pays to each latent, float32 [B, n, h, m]; sums to 1 over m.
        """
        tokens, grid = to_compute(tokens, self.compute_dtype), to_compute(grid, self.compute_dtype)
        keys = self.to_keys(latents)  # [B, m, C]
        if self.positions_to_keys is not None:
            keys = keys + self.positions_to_keys(positions)
        keys = by_head(keys, self.heads) * (keys.shape[2] // self.heads) ** -0.5  # [B, h, m, s]
        # Queries are linear in tokens and codes, so projections are applied to the m keys, not to n tokens.
        for_positions = (keys @ per_head(self.to_queries, self.heads)).flatten(1, 2)  # [B, h·m, C]
        for_grid = (keys @ per_head(self.grid_to_queries, self.heads)).flatten(1, 2)  # [B, h·m, p]
        bias = (self.to_queries.offset() + self.grid_to_queries.offset()).to(keys.dtype)
        bias = bias.unflatten(0, (self.heads, -1, 1))
        fixed = grid @ for_grid.transpose(1, 2) + (keys @ bias).flatten(1)[:, None]  # [B, n, h·m]
        scores = torch.baddbmm(fixed, tokens, for_positions.transpose(1, 2))
        return attention_of(scores, self.heads, mask)


class CentroidScores(nn.Module):
    """Scores of centroids for tokens, one centroid per latent and head: k-means by attention.

    A token is the query of its features next to the query of its position, 2C numbers that the heads share in
    contiguous pieces of 2s, as in the released code: with two heads, one is given features and one positions.

    Args:
        channels: channels C of the tokens.
        latents: number m of latents.
        grid_dim: size p of the tokens' position codes.
        heads: attention heads h.
        iterations: of k-means: tokens choose centroids, which then move to the tokens that chose them.
    """

    compute_dtype: torch.dtype | None = None

    def __init__(self, channels: int, latents: int, grid_dim: int, heads: int, iterations: int) -> None:
        super().__init__()
        self.heads = heads
        self.iterations = iterations
        self.to_queries = EqualLinear(channels, channels, widen=True)
        self.grid_to_queries = EqualLinear(grid_dim, channels, widen=True)
        self.centroids = nn.Parameter(torch.randn(heads, latents, 2 * channels // heads))
        self.weights = nn.Parameter(torch.ones(heads, 1, 2 * channels // heads))

    def forward(
        self, tokens: Tensor, grid: Tensor, latents: Tensor, positions: Tensor | None, mask: Tensor | None
    ) -> Tensor:
        """As in `SimplexScores`; `latents` and `positions` are not used."""
        tokens, grid = to_compute(tokens, self.compute_dtype), to_compute(grid, self.compute_dtype)
        scale = (tokens.shape[2] // self.heads) ** -0.5
        # Piece h of the 2C numbers belongs to head h; zeros elsewhere keep heads apart in one product.
        rows = torch.block_diag(*(self.centroids * self.weights * scale))  # [h·m, 2C]
        chosen = self._choose(tokens, grid, rows, mask)
        own = torch.block_diag(*(self.weights * scale))[:, None]  # [h, 1, 2C]
        for _ in range(self.iterations - 1):
            centres = self._centres(tokens, grid, chosen)  # [B, h, m, 2C]
            chosen = self._choose(tokens, grid, (centres * own).flatten(1, 2), mask)
        return chosen

    def _choose(self, tokens: Tensor, grid: Tensor, rows: Tensor, mask: Tensor | None) -> Tensor:
        """Attention [B, n, h, m] by scores with `rows` [h·m, 2C] or [B, h·m, 2C]."""
        content, spatial = rows.to(tokens.dtype).chunk(2, dim=-1)
        for_positions = content @ self.to_queries.matrix()  # [..., h·m, C]
        for_grid = spatial @ self.grid_to_queries.matrix()  # [..., h·m, p]
        of_content = content @ self.to_queries.offset().to(tokens.dtype)
        of_spatial = spatial @ self.grid_to_queries.offset().to(tokens.dtype)
        bias = of_content + of_spatial  # [..., h·m]
        fixed = grid @ for_grid.transpose(-2, -1) + bias[..., None, :]  # [..., n, h·m]
        return attention_of(tokens @ for_positions.transpose(-2, -1) + fixed, self.heads, mask)

    def _centres(self, tokens: Tensor, grid: Tensor, chosen: Tensor) -> Tensor:
        """Mean of the 2C numbers of the tokens that chose each latent, [B, h, m, 2C]."""
        shares = chosen / (chosen.sum(1, keepdim=True) + 1e-8)  # [B, n, h, m]
        shares = shares.to(tokens.dtype).flatten(2).transpose(1, 2)  # [B, h·m, n]
        content: Tensor = self.to_queries(shares @ tokens)
        spatial: Tensor = self.grid_to_queries(shares @ grid)
        centres: Tensor = torch.cat([content, spatial], dim=2).unflatten(1, (self.heads, -1))
        return centres


def attention_of(scores: Tensor, heads: int, mask: Tensor | None) -> Tensor:
    """Scores [B, n, h·m], `mask` [B, m] added, to float32 attention [B, n, h, m] that sums to 1 over m."""
    split: Tensor = widened(scores).unflatten(2, (heads, -1))
    if mask is not None:
        split = split + mask[:, None, None]
    return split.softmax(3)
