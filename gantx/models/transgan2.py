"""TransGAN, version 2 (Jiang, Chang and Wang, NeurIPS 2021), whose checkpoints were released.

Notable in it, beside what `gantx.models.transgan` says of version 1:
- a learned bias for the relative position of two tokens is added to the logits of attention
- grid self-attention: on large grids, tokens attend within fixed square windows that do not overlap
- a generator upsamples by pixel shuffle, or bicubically where the channels must not shrink
- modified normalisation: tokens divided by their root mean square, without parameters
- one random number per token and block, times a learned strength, enters some attentions
- the discriminator reads patches of growing size, each from the full image, where the grid has shrunk to them
- its class token appears only before the last block
- the CelebA-HQ generator also attends, in every block, to a small grid of tokens made of the latent alone

Three generators and three discriminators were released; here they are settings of one `Generator` and one
`Discriminator`. Sizes and initialisation follow the released code. Noise is drawn by the caller.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gantx.config.networks.transgan2 import TransGAN2DiscriminatorConfig, TransGAN2GeneratorConfig
from gantx.models import interfaces
from gantx.models.layers.attention import attention
from gantx.models.layers.attention_maps import follow
from gantx.models.layers.checkpointing import run_block
from gantx.models.layers.conditioning import LabelEmbedding, Projection
from gantx.models.layers.convolution import Convolution
from gantx.models.layers.linear import Linear
from gantx.models.layers.normalization import LayerNorm, rms_norm
from gantx.models.layers.token_resampling import build_upsampling, halve
from gantx.models.layers.windows import from_windows, to_windows
from gantx.runtime.precision import to_compute, widened
from gantx.runtime.random import Draw, Draws, Spec


class PixelNorm(nn.Module):
    """Divide each token by its root mean square (the paper's modified normalisation); no parameters.

    Args:
        dim: channels D of the tokens; not used, so that it can stand for `nn.LayerNorm`.
    Shapes: [..., D] -> [..., D].
    """

    def __init__(self, dim: int) -> None:
        super().__init__()

    def forward(self, tokens: Tensor) -> Tensor:
        """Normalise tokens [..., D] in float32."""
        return rms_norm(tokens)


_NORMS: dict[str, type[nn.Module]] = {"layer": LayerNorm, "pixel": PixelNorm}


class RelativePositions(nn.Module):
    """A learned bias for every relative position of two tokens on a grid, one for each head.

    Row (dy + W − 1)·(2W − 1) + dx + W − 1 of the table is for a query dy rows below and dx columns right of
    its key. Products with a matrix of zeros and ones spread the table over all pairs: the gradient of
    indexing would sum colliding entries in an order that changes from run to run on CUDA.

    Args:
        side: side W of the grid.
        heads: attention heads h.
    """

    compute_dtype: torch.dtype | None = None
    spread: Tensor

    def __init__(self, side: int, heads: int) -> None:
        super().__init__()
        self.side = side
        self.table = nn.Parameter(torch.zeros((2 * side - 1) ** 2, heads))
        index = torch.arange(side)
        apart = (index[:, None] - index + side - 1).flatten()  # of all pairs along one axis, [W²]
        self.register_buffer("spread", F.one_hot(apart, 2 * side - 1).float(), persistent=False)

    def forward(self) -> Tensor:
        """The bias [h, W², W²] of all queries (rows) and keys (columns)."""
        table = to_compute(self.table.T, self.compute_dtype)
        table = table.unflatten(1, (2 * self.side - 1, -1))  # [h, dy, dx]
        spread = self.spread.to(table.dtype)
        pairs: Tensor = spread @ table @ spread.T  # [h, y·y', x·x']
        pairs = pairs.view(-1, *4 * (self.side,)).transpose(2, 3)  # [h, y, x, y', x']
        return pairs.flatten(3).flatten(1, 2)


class Attention(nn.Module):
    """Multi-head self-attention with relative positions and noise, within windows or over all tokens.

    Args:
        dim: channels D of the tokens.
        heads: attention heads.
        window: side W of the windows, whose tokens follow each other; None lets all tokens attend to all.
        relative_positions: learn a bias for relative positions; needs `window`.
        noise: learn the strength of one random number per token.
    """

    def __init__(
        self, dim: int, heads: int, window: int | None, relative_positions: bool, noise: bool
    ) -> None:
        super().__init__()
        self.heads = heads
        self.window = window
        self.qkv = Linear(dim, 3 * dim, bias=False)
        self.out = Linear(dim, dim, widen=True)
        self.relative_positions = (
            RelativePositions(window, heads) if window is not None and relative_positions else None
        )
        self.noise_strength = nn.Parameter(torch.zeros(())) if noise else None

    def forward(self, tokens: Tensor, noise: Tensor | None = None, keep: int | None = None) -> Tensor:
        """Self-attention.

        Args:
            tokens: normalised, [B, T, D]; in window order if they attend within windows.
            noise: standard normal [B, T], in the order of the tokens; None for none.
            keep: only the first `keep` tokens of each window attend; None for all.

        Returns:
            [B, T, D]; fewer tokens with `keep`.
        """
        q, k, v = self._project(tokens, noise)
        bias = None if self.relative_positions is None else self.relative_positions()
        attended = attention(q[:, :, :keep], k, v, bias=bias)  # [B·windows, h, keep or N, D/h]
        mixed: Tensor = self.out(attended.transpose(1, 2).reshape(len(tokens), -1, tokens.shape[2]))
        return mixed

    def row(self, position: int, tokens: Tensor, noise: Tensor | None = None) -> Tensor:
        """Attention of one token of a square grid, zero beyond its window.

        Args:
            position: of the token in raster order, whatever the order of `tokens`.
            tokens: as in `forward`.
            noise: as in `forward`.

        Returns:
            [B, h, T] in raster order, summing to one.
        """
        side = math.isqrt(tokens.shape[1])
        window = side if self.window is None else self.window
        (row, y), (column, x) = (divmod(part, window) for part in divmod(position, side))
        number, inside = row * (side // window) + column, y * window + x
        q, k, _ = (each.unflatten(0, (len(tokens), -1))[:, number] for each in self._project(tokens, noise))
        logits = widened(k @ (q[:, :, inside] * q.shape[3] ** -0.5)[..., None]).squeeze(3)  # [B, h, N]
        if self.relative_positions is not None:
            logits = logits + self.relative_positions()[:, inside]
        weights = logits.new_zeros(*logits.shape[:2], side, side)
        in_window = weights[:, :, row * window :, column * window :][:, :, :window, :window]
        in_window.copy_(logits.softmax(2).unflatten(2, (window, window)))
        return weights.flatten(2)

    def _project(self, tokens: Tensor, noise: Tensor | None) -> Tensor:
        """Queries, keys and values [3, B·windows, h, N, D/h] of tokens [B, T, D] with noise [B, T]."""
        if noise is not None and self.noise_strength is not None:
            tokens = tokens + self.noise_strength * noise[:, :, None]
        count = tokens.shape[1] if self.window is None else self.window**2  # N tokens a window
        split: Tensor = self.qkv(tokens).view(-1, count, 3, self.heads, tokens.shape[2] // self.heads)
        return split.permute(2, 0, 3, 1, 4)


class CrossAttention(nn.Module):
    """Multi-head attention of tokens to the latent grid.

    Args:
        dim: channels D of the tokens.
        latent_dim: channels E of the tokens of the latent grid.
        heads: attention heads.
    Shapes: tokens [B, T, D], latents [B, N, E] -> [B, T, D].
    """

    def __init__(self, dim: int, latent_dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = Linear(dim, dim, bias=False)
        self.k = Linear(latent_dim, dim, bias=False)
        self.v = Linear(latent_dim, dim, bias=False)
        self.out = Linear(dim, dim, widen=True)

    def forward(self, tokens: Tensor, latents: Tensor) -> Tensor:
        """Let tokens [B, T, D] attend to latents [B, N, E]."""
        layers = ((self.q, tokens), (self.k, latents), (self.v, latents))
        q, k, v = (layer(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for layer, x in layers)
        mixed: Tensor = self.out(attention(q, k, v).transpose(1, 2).flatten(2))
        return mixed


class Block(nn.Module):
    """Pre-norm transformer block: x + attention(norm(x)), then x + MLP(norm(x)).

    With `latent_dim`, x + cross-attention(x) comes first, without a norm.

    Args:
        dim: channels D of the tokens.
        heads: attention heads.
        mlp_ratio: hidden width of the MLP in units of `dim`.
        norm: `layer` or `pixel`.
        window: side of the windows of attention, None for all tokens; see `Attention`.
        relative_positions: learn a bias for relative positions.
        noise: learn the strength of one random number per token.
        latent_dim: channels of the latent grid to attend to; None for none.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        mlp_ratio: int,
        norm: str,
        window: int | None,
        relative_positions: bool,
        noise: bool,
        latent_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.cross_attention = None if latent_dim is None else CrossAttention(dim, latent_dim, heads)
        self.norm1 = _NORMS[norm](dim)
        self.attention = Attention(dim, heads, window, relative_positions, noise)
        self.norm2 = _NORMS[norm](dim)
        self.mlp = nn.Sequential(
            Linear(dim, mlp_ratio * dim),
            nn.GELU(),
            Linear(mlp_ratio * dim, dim, widen=True),
        )

    def forward(
        self,
        tokens: Tensor,
        noise: Tensor | None = None,
        latents: Tensor | None = None,
        keep: int | None = None,
    ) -> Tensor:
        """Tokens [B, T, D] to as many, or to the first `keep`; arguments as in `Attention`.

        `latents` is the latent grid [B, N, E] of a block built for one.
        """
        if self.cross_attention is not None:
            tokens = tokens + self.cross_attention(tokens, latents)
        tokens = tokens[:, :keep] + self.attention(self.norm1(tokens), noise, keep)
        tokens = tokens + self.mlp(self.norm2(tokens))
        return tokens


class Stage(nn.Module):
    """The part of a network that works on one token grid: positions, blocks in windows, blocks without.

    Args:
        side: side of the grid.
        dim: channels D of its tokens.
        depth: number of blocks.
        window: side of the square windows in which blocks attend; None or `side` for the whole grid.
        global_blocks: how many blocks, the last ones, attend over the whole grid regardless of `window`.
        build_block: makes a block from the channels and the side of the windows.
    """

    def __init__(
        self,
        side: int,
        dim: int,
        depth: int,
        window: int | None,
        global_blocks: int,
        build_block: Callable[[int, int], Block],
    ) -> None:
        super().__init__()
        self.side = side
        self.window = side if window is None else window
        windowed = 0 if self.window == side else depth - global_blocks
        self.positions = nn.Parameter(torch.zeros(1, side**2, dim))
        self.windowed_blocks = nn.ModuleList(build_block(dim, self.window) for _ in range(windowed))
        self.global_blocks = nn.ModuleList(build_block(dim, side) for _ in range(depth - windowed))

    def forward(self, tokens: Tensor, noise: Tensor | None = None, latents: Tensor | None = None) -> Tensor:
        """Apply positions and blocks.

        Args:
            tokens: [B, side², D] in raster order.
            noise: standard normal [B, depth, side²], for each block in its order of tokens; None for none.
            latents: the latent grid [B, N, E], for a stage built for one.

        Returns:
            [B, side², D] in raster order.
        """
        of_block = iter(() if noise is None else noise.unbind(1))
        tokens = tokens + self.positions
        if self.windowed_blocks:
            # Only attention depends on the order of tokens, so one reordering serves all blocks.
            tokens = to_windows(tokens, self.side, self.window)
            for block in self.windowed_blocks:
                tokens = run_block(block, tokens, next(of_block, None), latents)
            tokens = from_windows(tokens, self.side, self.window)
        for block in self.global_blocks:
            tokens = run_block(block, tokens, next(of_block, None), latents)
        return tokens


class Generator(interfaces.Generator):
    """TransGAN v2 generator: transformer stages, each on a token grid twice as fine as the previous one.

    Args:
        config: the section `generator:`; gantx.config.networks.transgan2 documents its fields.
        image_channels: of the images: 1 (grey), 3 or 4 (RGBA).

    Attributes:
        latent_shape: (latent_dim,).
        image_shape: (C, R, R).
    """

    def __init__(self, config: TransGAN2GeneratorConfig, image_channels: int = 3) -> None:
        windows = config.windows
        super().__init__()
        dims = [config.dim]
        for kind in config.upsampling:
            dims.append(dims[-1] if kind == "bicubic" else dims[-1] // 4)
        sides = [config.base_size * 2**stage for stage in range(len(config.depths))]
        self.normalize_latent = config.normalize_latent
        self.base_tokens = config.base_size**2
        self.latent_shape = (config.latent_dim,)
        self.image_shape = (image_channels, sides[-1], sides[-1])

        # Ours: with classes, the embedding of the label is joined to z; the paper has no classes. It is
        # smaller than z because no mapping network follows: at the same size, z is ignored (measured).
        self.classes = config.classes
        self.embedding = LabelEmbedding(config.classes, config.latent_dim, 0.25) if config.classes else None
        inputs = 2 * config.latent_dim if config.classes else config.latent_dim
        self.to_tokens = Linear(inputs, self.base_tokens * config.dim, widen=True)
        self.to_latents = (
            Linear(inputs, self.base_tokens * config.dim, widen=True) if config.latent_grid else None
        )
        self.latent_positions = (
            nn.Parameter(torch.zeros(1, self.base_tokens, config.dim)) if config.latent_grid else None
        )
        self.upsamplings = nn.ModuleList(
            build_upsampling(kind, side) for kind, side in zip(config.upsampling, sides[:-1], strict=True)
        )

        def build_block(width: int, window: int) -> Block:
            latents = config.dim if config.latent_grid else None
            return Block(
                width, config.heads, config.mlp_ratio, config.norm, window, True, config.noise, latents
            )

        windows = windows or (None,) * len(config.depths)
        self.stages = nn.ModuleList(
            Stage(side, width, depth, window, 0, build_block)
            for side, width, depth, window in zip(sides, dims, config.depths, windows, strict=True)
        )
        self.to_rgb = Linear(dims[-1], image_channels, widen=True)
        self._noise_shapes = {
            f"stage{number}": (depth, side**2)
            for number, (depth, side) in enumerate(zip(config.depths, sides, strict=True), 1)
            if config.noise and depth
        }

        nn.init.xavier_uniform_(self.to_rgb.weight)  # other linear layers keep PyTorch's default
        initialize_positions(self)

    def noise_spec(self, batch: int) -> Spec:
        """The noise of each stage that has blocks; {} without noise."""
        return {name: Draw("normal", (batch, *shape)) for name, shape in self._noise_shapes.items()}

    def forward(self, z: Tensor, noise: Draws | None = None, labels: Tensor | None = None) -> Tensor:
        """Generate images.

        Args:
            z: [B, latent_dim].
            noise: drawn from `noise_spec`; None leaves the noise out.
            labels: int64 [B] with classes, otherwise not used.

        Returns:
            Images [B, C, R, R].
        """
        if self.normalize_latent:
            z = F.normalize(z) * z.shape[1] ** 0.5
        if self.embedding is not None:
            z = torch.cat([z, self.embedding(labels)], dim=1)
        tokens = self.to_tokens(z).unflatten(1, (self.base_tokens, -1))  # [B, b², C]
        latents = None
        if self.to_latents is not None:
            latents = self.to_latents(z).unflatten(1, (self.base_tokens, -1)) + self.latent_positions
        for number, stage in enumerate(self.stages, 1):
            if number > 1:
                tokens = self.upsamplings[number - 2](tokens)
            tokens = stage(tokens, noise_of(noise, f"stage{number}"), latents)
        pixels: Tensor = self.to_rgb(tokens)  # [B, R², C]
        return pixels.transpose(1, 2).reshape(-1, *self.image_shape)

    def follow(
        self,
        given: Tensor,
        query: tuple[float, float],
        noise: Draws | None = None,
        layers: str = "last",
        labels: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Generate images and return the attention map of one query position, without cross-attention.

        Args:
            given: latents z [B, latent_dim].
            query: position in the image, (y, x) in [0, 1) from the top left corner.
            noise: as in `forward`.
            layers: `last` for the last block, `all` for every block, from coarse to fine.
            labels: int64 [B] with classes, otherwise not used.

        Returns:
            Images [B, C, R, R]; for every layer, attention [B, h, S, S] on its own grid of S x S tokens,
            under `<S>x<S>.<index among the layers of this resolution>`; zero beyond the window of the query.
        """
        attentions = [module for module in self.modules() if isinstance(module, Attention)]
        return follow(lambda: self(given, noise, labels), attentions, query, layers)


class Discriminator(interfaces.Discriminator):
    """TransGAN v2 discriminator: transformer stages on token grids of decreasing size, and a class token.

    Every stage after the first halves the side of the grid and appends the embedding of patches of twice the
    size to the channels of its tokens. The class token of the last block gives the logit.

    Args:
        config: the section `discriminator:`; gantx.config.networks.transgan2 documents its fields.
        image_channels: of the images: 1 (grey), 3 or 4 (RGBA).

    Attributes:
        sides: side of the token grid of every stage.
    """

    def __init__(self, config: TransGAN2DiscriminatorConfig, image_channels: int = 3) -> None:
        global_blocks = config.global_blocks
        windows = config.windows
        super().__init__()
        added = [config.dim * share // sum(config.shares) for share in config.shares]
        dims = list(accumulate(added))
        strides = [config.patch_size * 2**stage for stage in range(len(config.shares))]
        self.sides = [config.resolution // stride for stride in strides]
        self.from_patches = nn.ModuleList(
            Convolution(image_channels, channels, kernel_size=stride, stride=stride)
            for channels, stride in zip(added, strides, strict=True)
        )
        if config.overlap:
            self.from_patches[0] = Convolution(
                image_channels,
                added[0],
                kernel_size=2 * config.patch_size,
                stride=config.patch_size,
                padding=config.patch_size // 2,
            )

        def build_block(width: int, window: int | None) -> Block:
            relative = config.relative_positions and window is not None
            return Block(width, config.heads, config.mlp_ratio, config.norm, window, relative, config.noise)

        windows = windows or (None,) * len(config.shares)
        global_blocks = global_blocks or (0,) * len(config.shares)
        self.stages = nn.ModuleList(
            Stage(side, width, depth, window, whole, build_block)
            for side, width, depth, window, whole in zip(
                self.sides, dims, config.depths, windows, global_blocks, strict=True
            )
        )
        self.class_token = nn.Parameter(torch.zeros(1, 1, config.dim))
        self.last_block = build_block(config.dim, None)
        self.norm = _NORMS[config.norm](config.dim)
        self.head = nn.Linear(config.dim, 1)  # logits are float32
        self.classes = config.classes
        # Ours: projection (Miyato and Koyama 2018); the paper has no classes.
        self.projection = Projection(config.classes, config.dim) if config.classes else None
        self._noise_shapes: dict[str, tuple[int, ...]] = {}
        if config.noise:
            for number, (depth, side) in enumerate(zip(config.depths, self.sides, strict=True), 1):
                self._noise_shapes[f"stage{number}"] = (depth, side**2)
            self._noise_shapes["last"] = (1 + self.sides[-1] ** 2,)

        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
        nn.init.normal_(self.class_token, std=0.02)
        initialize_positions(self)

    def noise_spec(self, batch: int) -> Spec:
        """The noise of each stage and of the last block; {} without noise."""
        return {name: Draw("normal", (batch, *shape)) for name, shape in self._noise_shapes.items()}

    def forward(self, images: Tensor, noise: Draws | None = None, labels: Tensor | None = None) -> Tensor:
        """Compute logits.

        Args:
            images: [B, C, R, R].
            noise: drawn from `noise_spec`; None leaves the noise out.
            labels: int64 [B] with classes, otherwise not used.

        Returns:
            Logits [B].
        """
        first, *others = (embed(images).flatten(2).transpose(1, 2) for embed in self.from_patches)
        tokens = self.stages[0](first.contiguous(), noise_of(noise, "stage1"))
        for stage, patches in enumerate(others, 1):
            tokens = torch.cat([halve(tokens, self.sides[stage - 1]), patches], dim=2)
            tokens = self.stages[stage](tokens, noise_of(noise, f"stage{stage + 1}"))
        class_token = self.class_token.expand(len(images), -1, -1)
        tokens = torch.cat([class_token, tokens], dim=1)  # [B, 1 + N, D]
        # The head uses only the class token, so the last block computes no other.
        class_token = self.last_block(tokens, noise_of(noise, "last"), keep=1)[:, 0]  # [B, D]
        features = self.norm(class_token)
        logits: Tensor = self.head(features).squeeze(1)
        if self.projection is not None:
            logits = logits + self.projection(features, labels)
        return logits


def noise_of(noise: Draws | None, name: str) -> Tensor | None:
    """The draw called `name`, or None if there is none."""
    found = None if noise is None else noise.get(name)
    assert not isinstance(found, dict)
    return found


def initialize_positions(network: nn.Module) -> None:
    """Draw all positions, absolute and relative, from a normal distribution of deviation 0.02, in place.

    Only those of the latent grid start at zero, as in the released code.
    """
    for module in network.modules():
        if isinstance(module, Stage):
            nn.init.normal_(module.positions, std=0.02)
        elif isinstance(module, RelativePositions):
            nn.init.normal_(module.table, std=0.02)
