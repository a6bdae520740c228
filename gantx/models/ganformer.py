"""GANformer (Hudson and Zitnick, arXiv 2103.01209): bipartite attention between an image and its latents.

Notable in it:
- z is m local latents and a global one; the global w modulates the convolutions of a StyleGAN2, the local
  ones meet the image in attention, between convolution and activation of most layers
- every cell of the image divides its attention among the m latents: cost is linear in the number of cells
- simplex: a cell compares itself with keys of the latents. k-means: with centroids, which are learned, and
  may be refined by the cells that chose them. duplex, our reading of the paper: refined centroids, and
  latents that look back at the image after every layer. Released checkpoints are k-means without refinement
- what is read from the latents normally scales the normalised features and adds nothing
- queries, keys, values and modulation are linear, so their products are formed on the side of the m latents
  and the n cells meet one narrow matrix; position codes never carry the batch
- attention maps are by-products, returned only on request
- features and products are of the compute type; latents, scores, attention, gates and statistics are float32
- a discriminator with latents of its own, `aggregators`, that read the image at every resolution

Sizes, order of operations and initialisation follow the released code. Biases of keys are left out: they
raise all scores of a cell alike, which the softmax takes back.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gantx.config.networks.ganformer import GANformerDiscriminatorConfig, GANformerGeneratorConfig
from gantx.models import interfaces
from gantx.models.layers.checkpointing import run_block
from gantx.models.layers.normalization import rms_norm
from gantx.models.stylegan2 import (
    SLOPE,
    DownBlock,
    Epilogue,
    EqualLinear,
    Synthesis,
    channels_at,
    for_labels,
    from_cells,
    group_deviation,
    pointwise,
    to_cells,
)
from gantx.runtime.precision import to_compute, widened
from gantx.runtime.random import Draw, Draws, Spec

MASKED = -10_000.0  # added to the scores of a latent that is left out

# --- positions ----------------------------------------------------------------------------------------------


def directions_of(side: int, count: int) -> Tensor:
    """Coordinate of every cell along `count` directions between 0 and 180 degrees, [count, side²].

    Columns and rows run from -1 to 1; direction 0 is that of the columns.
    """
    line = torch.linspace(-1, 1, side)
    columns, rows = line.repeat(side), line.repeat_interleave(side)
    angles = torch.arange(count)[:, None] * (math.pi / count)
    return columns * angles.cos() + rows * angles.sin()


def sine_grid(side: int, dim: int, directions: int) -> Tensor:
    """Sines and cosines of every cell's coordinates, [side², dim], direction by direction.

    Args:
        side: side of the grid of cells.
        dim: size of the code; 2·directions divides it.
        directions: how many directions share it.
    """
    count = dim // (2 * directions)
    frequencies = 10_000.0 ** (-torch.arange(count) / count)
    phases = directions_of(side, directions)[:, :, None] * frequencies  # [directions, side², count]
    return torch.cat([phases.sin(), phases.cos()], dim=2).transpose(0, 1).flatten(1)


class GridCode(nn.Module):
    """A code for the place of every cell.

    Args:
        side: side of the grid of cells.
        dim: size p of the code.
        kind: `sine`, fixed; `linear`, coordinates times a learned vector per direction; `trainable`, a
            learned half for each column and one for each row; `trainable2d`, learned for each cell.
        directions: directions of `sine` and `linear`.
    """

    def __init__(self, side: int, dim: int, kind: str, directions: int) -> None:
        super().__init__()
        self.kind = kind
        self.table: Tensor
        self.along: Tensor
        if kind == "sine":
            self.register_buffer("table", sine_grid(side, dim, directions), persistent=False)
        elif kind == "linear":
            self.register_buffer("along", directions_of(side, directions), persistent=False)
            self.vectors = nn.Parameter(torch.rand(directions, dim // directions))
        elif kind == "trainable":
            self.columns = nn.Parameter(torch.rand(side, dim // 2))
            self.rows = nn.Parameter(torch.rand(side, dim // 2))
        else:
            self.table = nn.Parameter(torch.rand(side**2, dim))

    def forward(self) -> Tensor:
        """The codes of all cells in raster order, [side², p]."""
        if self.kind == "linear":
            return (self.along.t()[:, :, None] * self.vectors).flatten(1)
        if self.kind == "trainable":
            side = len(self.rows)
            columns, rows = self.columns.repeat(side, 1), self.rows.repeat_interleave(side, dim=0)
            return torch.cat([columns, rows], dim=1)
        return self.table


# --- who looks at whom --------------------------------------------------------------------------------------


def by_head(x: Tensor, heads: int) -> Tensor:
    """[..., m, h·s] as [..., h, m, s]: heads own contiguous channels."""
    split: Tensor = x.unflatten(-1, (heads, -1))
    return split.transpose(-3, -2)


def per_head(layer: EqualLinear, heads: int) -> Tensor:
    """The matrix of a layer with h·s outputs as [h, s, in], in the compute type."""
    split: Tensor = layer.matrix().unflatten(0, (heads, -1))
    return split


class SimplexScores(nn.Module):
    """Scores of latents for cells: queries of the cells times keys of the latents.

    Args:
        channels: channels C of the cells and of queries and keys.
        latent_dim: size d of a latent.
        grid_dim: size p of the cells' position codes.
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
        self, cells: Tensor, grid: Tensor, latents: Tensor, positions: Tensor | None, mask: Tensor | None
    ) -> Tensor:
        """Compare.

        Args:
            cells: [B, n, C].
            grid: position codes of the cells, [n, p].
            latents: [B, m, d].
            positions: position codes of the latents, [m, q], or None.
            mask: added to the scores of each latent, [B, m], or None.

        Returns:
            Attention that each cell pays to each latent, float32 [B, n, h, m]; sums to 1 over m.
        """
        cells, grid = to_compute(cells, self.compute_dtype), to_compute(grid, self.compute_dtype)
        keys = self.to_keys(latents)  # [B, m, C]
        if self.positions_to_keys is not None:
            keys = keys + self.positions_to_keys(positions)
        keys = by_head(keys, self.heads) * (keys.shape[2] // self.heads) ** -0.5  # [B, h, m, s]
        # Queries are linear in cells and codes: what they would be multiplied with is multiplied instead.
        for_cells = (keys @ per_head(self.to_queries, self.heads)).flatten(1, 2)  # [B, h·m, C]
        for_grid = (keys @ per_head(self.grid_to_queries, self.heads)).flatten(1, 2)  # [B, h·m, p]
        bias = (self.to_queries.offset() + self.grid_to_queries.offset()).to(keys.dtype)
        bias = bias.unflatten(0, (self.heads, -1, 1))
        fixed = grid @ for_grid.transpose(1, 2) + (keys @ bias).flatten(1)[:, None]  # [B, n, h·m]
        scores = torch.baddbmm(fixed, cells, for_cells.transpose(1, 2))
        return attention_of(scores, self.heads, mask)


class CentroidScores(nn.Module):
    """Scores of centroids for cells, one centroid per latent and head: k-means by attention.

    A cell is the query of its features next to the query of its position, 2C numbers that the heads share in
    contiguous pieces of 2s, as in the released code: with two heads, one sees features and one positions.

    Args:
        channels: channels C of the cells.
        latents: number m of latents.
        grid_dim: size p of the cells' position codes.
        heads: attention heads h.
        iterations: how often cells choose; between two choices, centroids move to the cells that chose them.
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
        self, cells: Tensor, grid: Tensor, latents: Tensor, positions: Tensor | None, mask: Tensor | None
    ) -> Tensor:
        """As in `SimplexScores`; what the latents and their positions are plays no part."""
        cells, grid = to_compute(cells, self.compute_dtype), to_compute(grid, self.compute_dtype)
        scale = (cells.shape[2] // self.heads) ** -0.5
        # Piece h of the 2C numbers belongs to head h; zeros elsewhere keep heads apart in one product.
        rows = torch.block_diag(*(self.centroids * self.weights * scale))  # [h·m, 2C]
        chosen = self._choose(cells, grid, rows, mask)
        own = torch.block_diag(*(self.weights * scale))[:, None]  # [h, 1, 2C]
        for _ in range(self.iterations - 1):
            centres = self._centres(cells, grid, chosen)  # [B, h, m, 2C]
            chosen = self._choose(cells, grid, (centres * own).flatten(1, 2), mask)
        return chosen

    def _choose(self, cells: Tensor, grid: Tensor, rows: Tensor, mask: Tensor | None) -> Tensor:
        """Attention [B, n, h, m] by scores with `rows` [h·m, 2C] or [B, h·m, 2C]."""
        content, place = rows.to(cells.dtype).chunk(2, dim=-1)
        for_cells = content @ self.to_queries.matrix()  # [..., h·m, C]
        for_grid = place @ self.grid_to_queries.matrix()  # [..., h·m, p]
        of_content = content @ self.to_queries.offset().to(cells.dtype)
        of_place = place @ self.grid_to_queries.offset().to(cells.dtype)
        bias = of_content + of_place  # [..., h·m]
        fixed = grid @ for_grid.transpose(-2, -1) + bias[..., None, :]  # [..., n, h·m]
        return attention_of(cells @ for_cells.transpose(-2, -1) + fixed, self.heads, mask)

    def _centres(self, cells: Tensor, grid: Tensor, chosen: Tensor) -> Tensor:
        """Mean of the 2C numbers of the cells that chose each latent, [B, h, m, 2C]."""
        shares = chosen / (chosen.sum(1, keepdim=True) + 1e-8)  # [B, n, h, m]
        shares = shares.to(cells.dtype).flatten(2).transpose(1, 2)  # [B, h·m, n]
        content: Tensor = self.to_queries(shares @ cells)
        place: Tensor = self.grid_to_queries(shares @ grid)
        centres: Tensor = torch.cat([content, place], dim=2).unflatten(1, (self.heads, -1))
        return centres


def attention_of(scores: Tensor, heads: int, mask: Tensor | None) -> Tensor:
    """Scores [B, n, h·m], `mask` [B, m] added, to float32 attention [B, n, h, m] that sums to 1 over m."""
    split: Tensor = widened(scores).unflatten(2, (heads, -1))
    if mask is not None:
        split = split + mask[:, None, None]
    return split.softmax(3)


def dropped(attention: Tensor, draws: Any, rate: float) -> Tensor:
    """Attention [B, n, h, m] with single entries and whole latents left out, the rest enlarged.

    Args:
        attention: what is thinned out.
        draws: what `dropout_spec` asks for, or None to leave attention alone.
        rate: chance of an entry to be lost; each of the two ways has half of it.
    """
    if draws is None:
        return attention
    for uniform in (draws["entries"], draws["latents"]):
        attention = attention * ((uniform >= rate / 2) / (1 - rate / 2))
    return attention


def dropout_spec(batch: int, cells: int, heads: int, latents: int) -> Spec:
    """Draws of `dropped`."""
    return {
        "entries": Draw("uniform", (batch, cells, heads, latents)),
        "latents": Draw("uniform", (batch, 1, heads, latents)),
    }


class Gate(nn.Module):
    """How open something is for each head, from what it is and where.

    Args:
        dim: channels of what it is.
        position_dim: size of its position code, or None when it has none.
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
    """The cells of an image read from its latents (the paper's simplex attention, section 3.1).

    Args:
        channels: channels C of the cells.
        latent_dim: size d of a latent.
        grid_dim: size p of the cells' position codes.
        position_dim: size q of the latents' position codes, or None when they have none.
        heads: attention heads h.
        scores: who looks at whom.
        normalization: `layer` over the channels of a cell, `instance` over the cells of a channel, or `none`.
        integration: what is read is a gain (`mul`), a bias (`add`), or `both`. A gain comes with division by
            the root mean square, a bias with subtraction of the mean.
        latent_gate: each latent decides how much of it can be read.
        image_gate: each cell decides how much it reads.
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
        cells: Tensor,
        grid: Tensor,
        latents: Tensor,
        positions: Tensor | None,
        mask: Tensor | None = None,
        draws: Draws | None = None,
        rate: float = 0.0,
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Read.

        Args:
            cells: [B, n, C].
            grid: position codes of the cells, [n, p].
            latents: [B, m, d].
            positions: position codes of the latents, [m, q], or None.
            mask: added to the scores of each latent, [B, m], or None.
            draws: of `dropout_spec`, or None for no dropout.
            rate: of the dropout.

        Returns:
            Cells [B, n, C]; a gain [B, n, C] that they still have to be multiplied with, or None; the
            attention [B, n, h, m] before dropout, float32.
        """
        looks = self.scores(cells, grid, latents, positions, mask)
        if self.latent_gate is not None:
            looks = looks * self.latent_gate(latents, positions).transpose(1, 2)[:, None]
        if self.image_gate is not None:
            looks = looks * self.image_gate(cells, grid)[..., None]

        # The modulation is linear in what is read, so it is applied to the m values instead of n mixtures.
        values = by_head(self.to_values(latents), self.heads)  # [B, h, m, s]
        matrix = per_head_inputs(self.modulation, self.heads)  # [h, s, C']
        values = (values @ matrix).flatten(1, 2)  # [B, h·m, C']
        shares = dropped(looks, draws, rate).flatten(2)  # [B, n, h·m]
        bias = self.modulation.offset()

        mean, inverse = self._statistics(cells)
        if self.integration == "add":
            read = scaled_product(shares, values, bias, None)
            return (cells if mean is None else cells - mean) + read, None, looks
        channels = cells.shape[2]
        gain = scaled_product(shares, values[..., :channels], 1 + bias[:channels], inverse)
        if self.integration == "mul":
            return cells, gain, looks
        read = scaled_product(shares, values[..., channels:], bias[channels:], None)
        return (cells if mean is None else cells - mean) * gain + read, None, looks

    def _statistics(self, cells: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Of cells [B, n, C]: the mean, if a bias is read; float32 1 / root mean square, if a gain is."""
        if self.normalization == "none":
            return None, None
        dim = 2 if self.normalization == "layer" else 1
        wide = torch.promote_types(cells.dtype, torch.float32)
        mean = None
        if self.integration != "mul":
            mean = cells.mean(dim, keepdim=True, dtype=wide).to(cells.dtype)
        if self.integration == "add":
            return mean, None
        centred = widened(cells if mean is None else cells - mean)
        norm = torch.linalg.vector_norm(centred, dim=dim, keepdim=True)
        return mean, (norm.square() / cells.shape[dim] + 1e-8).rsqrt()


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
        scale: per cell [B, n, 1] or per channel [B, 1, C], or None.

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
    """Latents read from an image, or from each other, and add what they read.

    Args:
        dim: size d of a latent.
        seen_dim: channels c of what they look at.
        position_dim: size q of the latents' position codes, or None when they have none.
        seen_position_dim: size p of the position codes of what they look at, or None when it has none.
        heads: attention heads h.
    """

    compute_dtype: torch.dtype | None = None

    def __init__(
        self, dim: int, seen_dim: int, position_dim: int | None, seen_position_dim: int | None, heads: int
    ) -> None:
        super().__init__()
        self.heads = heads
        self.to_queries = EqualLinear(dim, dim)
        self.to_keys = EqualLinear(seen_dim, dim, bias=None)
        self.to_values = EqualLinear(seen_dim, dim)
        self.modulation = EqualLinear(dim, dim, widen=True)
        self.positions_to_queries = None if position_dim is None else EqualLinear(position_dim, dim)
        self.positions_to_keys = None
        if seen_position_dim is not None:
            self.positions_to_keys = EqualLinear(seen_position_dim, dim, bias=None)

    def forward(
        self,
        latents: Tensor,
        seen: Tensor,
        positions: Tensor | None,
        seen_positions: Tensor | None,
        mask: Tensor | None = None,
        draws: Draws | None = None,
        rate: float = 0.0,
    ) -> Tensor:
        """Read.

        Args:
            latents: [B, m, d].
            seen: [B, n, c].
            positions: position codes of the latents, [m, q], or None.
            seen_positions: position codes of what they look at, [n, p], or None.
            mask: added to the scores of what they look at, [B, n], or None.
            draws: of `dropout_spec`, as for m cells that look at n latents, or None for no dropout.
            rate: of the dropout.

        Returns:
            [B, m, d], float32.
        """
        seen = to_compute(seen, self.compute_dtype)
        queries = self.to_queries(latents)
        if self.positions_to_queries is not None:
            queries = queries + self.positions_to_queries(positions)
        queries = by_head(queries, self.heads) * (queries.shape[2] // self.heads) ** -0.5  # [B, h, m, s]
        # As in SimplexScores, nothing is projected on the side of the n.
        for_seen = (queries @ per_head(self.to_keys, self.heads)).flatten(1, 2)  # [B, h·m, c]
        scores = for_seen @ seen.transpose(1, 2)  # [B, h·m, n]
        if self.positions_to_keys is not None and seen_positions is not None:
            for_positions = queries @ per_head(self.positions_to_keys, self.heads)
            scores = scores + for_positions.flatten(1, 2) @ seen_positions.to(seen.dtype).t()
        scores = widened(scores).unflatten(1, (self.heads, -1))
        if mask is not None:
            scores = scores + mask[:, None, None]
        looks = dropped(scores.softmax(3).transpose(1, 2), draws, rate).transpose(1, 2)  # [B, h, m, n]

        read = looks.to(seen.dtype).flatten(1, 2) @ seen  # [B, h·m, c]
        values = read.unflatten(1, (self.heads, -1)) @ per_head(self.to_values, self.heads).transpose(1, 2)
        bias = self.to_values.offset().unflatten(0, (self.heads, 1, -1))  # [h, 1, s]
        values = widened(values) + looks.sum(3, keepdim=True) * bias  # [B, h, m, s]
        added: Tensor = self.modulation(values.transpose(1, 2).flatten(2))
        return latents + added


# --- latents ------------------------------------------------------------------------------------------------


class LatentStage(nn.Module):
    """Latents read, then go through one linear layer, or two with a connection past everything.

    Args:
        dim: size d of a latent.
        rate: learning rate of the linear layers in units of the optimiser's.
        residual: two layers and a connection around them and the attention.
        attention: how the latents read, or None.
    """

    def __init__(self, dim: int, rate: float, residual: bool, attention: LatentAttention | None) -> None:
        super().__init__()
        self.attention = attention
        self.first = EqualLinear(dim, dim, rate=rate, leaky=True, widen=True)
        self.second = EqualLinear(dim, dim, rate=rate, widen=True) if residual else None

    def forward(self, latents: Tensor, *reading: Any) -> Tensor:
        """[..., d] to [..., d]; `reading` is passed on to the attention."""
        read = latents if self.attention is None else self.attention(latents, *reading)
        made: Tensor = self.first(read)
        if self.second is None:
            return made
        return F.leaky_relu(self.second(made) + latents, SLOPE)


class Mapping(nn.Module):
    """Latents z to latents w of the same size; local ones share their layers and may read each other.

    Args:
        dim: size d of a latent.
        layers: linear layers that each latent passes, with `residual` an odd number.
        residual: connections around every two layers; the last layer has none.
        heads: attention heads with which the local latents read each other before each stage, 0 for none.
        position_dim: size of the local latents' position codes, or None when they have none.
        latent_norm: `joint` divides the local z by the root mean square of all of them, `component` each by
            its own.
        normalize_global: divide the global z as well.
    """

    def __init__(
        self,
        dim: int,
        layers: int,
        *,
        residual: bool,
        heads: int,
        position_dim: int | None,
        latent_norm: str,
        normalize_global: bool,
    ) -> None:
        super().__init__()
        self.latent_norm = latent_norm
        self.normalize_global = normalize_global
        stages = (layers - 1) // 2 if residual else layers - 1

        def local_stage() -> LatentStage:
            reading = LatentAttention(dim, dim, position_dim, position_dim, heads) if heads else None
            return LatentStage(dim, 0.01, residual, reading)

        self.local = nn.ModuleList(local_stage() for _ in range(stages))
        self.local_out = EqualLinear(dim, dim, rate=0.01, leaky=True, widen=True)
        self.overall = nn.ModuleList(LatentStage(dim, 0.01, residual, attention=None) for _ in range(stages))
        self.overall_out = EqualLinear(dim, dim, rate=0.01, leaky=True, widen=True)

    def forward(
        self, z: Tensor, positions: Tensor | None, mask: Tensor | None, noise: Draws | None, rate: float
    ) -> Tensor:
        """Map.

        Args:
            z: local latents, then the global one, [B, m + 1, d].
            positions: position codes of the local latents, [m, d], or None.
            mask: added to the scores of local latents, [B, m], or None.
            noise: draws of the dropout by `mapping<stage>`, or None.
            rate: of the dropout.

        Returns:
            w, [B, m + 1, d].
        """
        local = rms_norm(z[:, :-1], (1, 2) if self.latent_norm == "joint" else 2)
        for index, stage in enumerate(self.local):
            draws = None if noise is None else noise.get(f"mapping{index}")
            local = stage(local, local, positions, positions, mask, draws, rate)
        overall = rms_norm(z[:, -1:]) if self.normalize_global else z[:, -1:]
        for stage in self.overall:
            overall = stage(overall)
        return torch.cat([self.local_out(local), self.overall_out(overall)], dim=1)


# --- generator ----------------------------------------------------------------------------------------------


class AttentionLayer(nn.Module):
    """What happens between a layer's convolution and its activation.

    Args:
        code: position codes of the cells.
        look: how the cells read from the latents.
        update: how the latents read from the cells afterwards, or None when they stay.
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
        rate: float,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Let image and latents meet.

        Args:
            x: features [B, C, S, S].
            factor: what they still have to be multiplied with.
            latents: [B, m, d].
            positions: position codes of the latents, [m, d], or None.
            mask: added to the scores of each latent, [B, m], or None.
            draws: of `dropout_spec` for `look` and, if there is one, `update`; None for no dropout.
            rate: of the dropout.

        Returns:
            Features and their factor again; the latents of the next layer; attention [B, S², h, m].
        """
        height = x.shape[2]
        grid: Tensor = self.code()
        for_look, for_update = (None, None) if draws is None else (draws["look"], draws.get("update"))
        cells, gain, looks = self.look(
            to_cells(x * factor.to(x.dtype)), grid, latents, positions, mask, for_look, rate
        )
        if self.update is not None:
            cells, gain = cells if gain is None else cells * gain, None
            latents = self.update(latents, cells, positions, grid, None, for_update, rate)
        x = from_cells(cells, height)
        return x, x.new_ones(()) if gain is None else from_cells(gain, height), latents, looks


class Generator(interfaces.Generator):
    """Latents to images: a StyleGAN2 whose features read from local latents (GANformer).

    Built from its section of the configuration, whose fields gantx.config.networks.ganformer documents.

    Attributes:
        latent_shape: (m + 1, d): the local latents, then the global one.
        image_shape: (3, R, R).
        w_avg: running average [d] of all w, local and global, for truncation.
    """

    w_avg: Tensor

    def __init__(self, config: GANformerGeneratorConfig) -> None:
        kmeans_iterations = config.kmeans_iterations
        update_latents = config.update_latents
        super().__init__()
        self.latent_shape = (config.components + 1, config.latent_dim)
        self.image_shape = (3, config.resolution, config.resolution)
        self.heads = config.heads
        self.attention_dropout = config.attention_dropout
        self.component_dropout = config.component_dropout
        if kmeans_iterations is None:
            kmeans_iterations = 2 if config.attention == "duplex" else 1
        if update_latents is None:
            update_latents = config.attention == "duplex"
        code_dim = config.latent_dim if config.grid_dim is None else config.grid_dim
        position_dim = config.latent_dim if config.positions else None
        read = (
            config.mapping_attention or config.attention == "simplex" or update_latents or config.latent_gate
        )

        self.positions = (
            nn.Parameter(torch.rand(config.components, config.latent_dim))
            if config.positions and read
            else None
        )
        self.mapping_network = Mapping(
            config.latent_dim,
            config.mapping_layers,
            residual=config.mapping_residual,
            heads=config.heads if config.mapping_attention else 0,
            position_dim=position_dim,
            latent_norm=config.latent_norm,
            normalize_global=config.normalize_global,
        )
        self.synthesis_network = Synthesis(
            config.resolution,
            config.latent_dim,
            config.channel_base,
            config.channel_max,
            config.architecture,
            config.style,
            config.noise,
            config.final_convolution,
        )

        def attention_layer(side: int, followed: bool) -> AttentionLayer:
            channels = channels_at(side, config.channel_base, config.channel_max)
            scores: SimplexScores | CentroidScores
            if config.attention == "simplex":
                scores = SimplexScores(channels, config.latent_dim, code_dim, position_dim, config.heads)
            else:
                scores = CentroidScores(
                    channels, config.components, code_dim, config.heads, kmeans_iterations
                )
            look = ImageAttention(
                channels,
                config.latent_dim,
                code_dim,
                position_dim,
                config.heads,
                scores,
                normalization=config.normalization,
                integration=config.integration,
                latent_gate=config.latent_gate,
                image_gate=config.image_gate,
            )
            update = None
            if update_latents and followed:
                reading = LatentAttention(config.latent_dim, channels, position_dim, code_dim, config.heads)
                update = LatentStage(config.latent_dim, 1.0, residual=True, attention=reading)
            return AttentionLayer(GridCode(side, code_dim, config.grid, config.grid_directions), look, update)

        sides = self.synthesis_network.sides
        self.attention_layers = nn.ModuleDict()
        for index, side in enumerate(sides):
            if config.attention_from <= side <= config.attention_to:
                # Updated latents are read by the next layer alone, and only if it has attention.
                followed = any(after <= config.attention_to for after in sides[index + 1 : index + 2])
                self.attention_layers[f"layer{index}"] = attention_layer(side, followed)
        self.register_buffer("w_avg", torch.zeros(config.latent_dim))

    def noise_spec(self, batch: int) -> Spec:
        """One map of noise per layer; while training, draws of what is left out as well."""
        spec = self.synthesis_network.noise_spec(batch)
        components = self.latent_shape[0] - 1
        if self.training and self.component_dropout:
            spec["components"] = Draw("uniform", (batch, components))
        if self.training and self.attention_dropout:
            for index, stage in enumerate(self.mapping_network.local):
                if stage.attention is not None:
                    spec[f"mapping{index}"] = dropout_spec(batch, components, self.heads, components)
            for index, side in enumerate(self.synthesis_network.sides):
                if (name := f"layer{index}") in self.attention_layers:
                    of_layer: Spec = {"look": dropout_spec(batch, side**2, self.heads, components)}
                    if self.attention_layers[name].update is not None:
                        of_layer["update"] = dropout_spec(batch, components, self.heads, side**2)
                    spec[f"attention{index}"] = of_layer
        return spec

    def mapping(self, z: Tensor, labels: Tensor | None = None, noise: Draws | None = None) -> Tensor:
        """Latents to styles.

        Args:
            z: [B, m + 1, d], standard normal.
            labels: not used.
            noise: of `noise_spec`, or None to leave nothing out.

        Returns:
            ws, [B, m + 1, L, d]: a copy of every w for each of L uses.
        """
        w: Tensor = self.mapping_network(z, self.positions, self._mask(noise), noise, self.attention_dropout)
        return w[:, :, None].expand(-1, -1, self.synthesis_network.styles, -1)

    def synthesis(self, ws: Tensor, noise: Draws | None = None) -> Tensor:
        """Styles ws [B, m + 1, L, d] to images [B, 3, R, R]; without noise, with the stored constants."""
        return self._paint(ws, noise)[0]

    def forward(self, z: Tensor, noise: Draws | None = None, labels: Tensor | None = None) -> Tensor:
        """Latents [B, m + 1, d] to images [B, 3, R, R]; `labels` are not used."""
        return self.synthesis(self.mapping(z, noise=noise), noise)

    def observe(
        self, ws: Tensor, noise: Draws | None = None, layers: str = "last"
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Paint, and tell which cell looked at which latent.

        Args:
            ws: styles [B, m + 1, L, d].
            noise: as in `synthesis`.
            layers: `last` for the last layer with attention, `all` for all of them, from coarse to fine.

        Returns:
            Images [B, 3, R, R]; for every layer, attention [B, h, m, S, S] at its own side S, under
            `<S>x<S>.<which layer of that side>`.
        """
        painted, looks = self._paint(ws, noise)
        sides = self.synthesis_network.sides
        maps = {}
        for index, attention in looks.items() if layers == "all" else list(looks.items())[-1:]:
            side = sides[index]
            of_latents = attention.permute(0, 2, 3, 1).unflatten(3, (side, side))
            maps[f"{side}x{side}.{sides[:index].count(side)}"] = of_latents.contiguous()
        return painted, maps

    def attention(self, z: Tensor, noise: Draws | None = None, layers: str = "last") -> dict[str, Tensor]:
        """Which cell looks at which latent, for latents z [B, m + 1, d]; see `observe`."""
        return self.observe(self.mapping(z, noise=noise), noise, layers)[1]

    def _mask(self, noise: Draws | None) -> Tensor | None:
        """What keeps dropped components from being looked at, [B, m]; None when all are there."""
        uniform: Any = None if noise is None else noise.get("components")
        return None if uniform is None else MASKED * (uniform < self.component_dropout)

    def _paint(self, ws: Tensor, noise: Draws | None) -> tuple[Tensor, dict[int, Tensor]]:
        """Images [B, 3, R, R] from ws [B, m + 1, L, d], and by layer the attention [B, n, h, m]."""
        mask = self._mask(noise)
        looks: dict[int, Tensor] = {}
        updated: Tensor | None = None

        def between(index: int, x: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
            nonlocal updated
            if f"layer{index}" not in self.attention_layers:
                updated = None
                return x, factor
            layer: Any = self.attention_layers[f"layer{index}"]
            latents = ws[:, :-1, index] if updated is None else updated
            draws = None if noise is None else noise.get(f"attention{index}")
            x, factor, latents, looks[index] = layer(
                x, factor, latents, self.positions, mask, draws, self.attention_dropout
            )
            updated = None if layer.update is None else latents
            return x, factor

        painted: Tensor = self.synthesis_network(ws[:, -1], noise, between)
        return painted, looks


# --- discriminator ------------------------------------------------------------------------------------------


class Discriminator(interfaces.Discriminator):
    """Images to logits: a StyleGAN2 discriminator with latents that read its features (GANformer).

    Before every block, m aggregators read the features by attention, without changing them. At the end each
    gives a number, and the numbers join the vector that the convolutions make.

    Built from its section of the configuration, whose fields gantx.config.networks.ganformer documents.

    Attributes:
        group_size: as above; a network that has it takes `parts`.
    """

    def __init__(self, config: GANformerDiscriminatorConfig) -> None:
        super().__init__()
        self.group_size = config.group_size
        self.classes = config.classes
        self.heads = config.heads
        self.attention_dropout = config.attention_dropout
        code_dim = config.latent_dim if config.grid_dim is None else config.grid_dim
        sides = [2**power for power in range(config.resolution.bit_length() - 1, 1, -1)]  # R, ..., 8, 4
        channels = [channels_at(side, config.channel_base, config.channel_max) for side in sides]

        self.from_rgb = EqualLinear(3, channels[0], leaky=True)
        self.blocks = nn.ModuleList(map(DownBlock, channels[:-1], channels[1:], sides))
        self.epilogue = Epilogue(channels[-1], config.group_size, config.group_channels)
        self.out = EqualLinear(channels[-1] + config.components, max(config.classes, 1), exact=True)

        self.aggregators = nn.Parameter(torch.rand(config.components, config.latent_dim))
        self.positions = (
            nn.Parameter(torch.rand(config.components, config.latent_dim)) if config.positions else None
        )
        read = [side for side in sides[:-1] if config.attention_from <= side <= config.attention_to]
        self.codes = nn.ModuleDict(
            {str(side): GridCode(side, code_dim, config.grid, config.grid_directions) for side in read}
        )
        position_dim = config.latent_dim if config.positions else None
        self.reading = nn.ModuleDict(
            {
                str(side): LatentAttention(
                    config.latent_dim,
                    channels_at(side, config.channel_base, config.channel_max),
                    position_dim,
                    code_dim,
                    config.heads,
                )
                for side in read
            }
        )
        self.component_linear = EqualLinear(config.latent_dim + 1, config.latent_dim, leaky=True)
        self.component_out = EqualLinear(config.latent_dim, 1, widen=True)

    def noise_spec(self, batch: int) -> Spec:
        """Draws of what is left out while training; {} otherwise."""
        if not (self.training and self.attention_dropout):
            return {}
        return {
            f"reading{side}": dropout_spec(batch, len(self.aggregators), self.heads, int(side) ** 2)
            for side in self.reading
        }

    def forward(
        self, images: Tensor, noise: Draws | None = None, labels: Tensor | None = None, parts: int = 1
    ) -> Tensor:
        """Images [B, 3, R, R] to logits [B]; arguments as in `stylegan2.Discriminator`."""
        x = pointwise(self.from_rgb, images.contiguous(memory_format=torch.channels_last))
        latents = self.aggregators.expand(len(images), -1, -1)
        for block in self.blocks:
            side = str(x.shape[2])
            if side in self.reading:
                draws = None if noise is None else noise.get(f"reading{side}")
                latents = self.reading[side](
                    latents,
                    to_cells(x),
                    self.positions,
                    self.codes[side](),
                    None,
                    draws,
                    self.attention_dropout,
                )
            x = run_block(block, x)
        differing = group_deviation(latents, self.group_size, 1, parts)  # [B, 1]
        differing = differing[:, None].expand(-1, latents.shape[1], -1)  # [B, m, 1]
        each = self.component_linear(torch.cat([latents, differing], dim=2))
        vector = torch.cat([self.epilogue(x, parts), self.component_out(each).flatten(1)], dim=1)
        return for_labels(self.out(vector), self.classes, labels)
