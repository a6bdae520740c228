"""TransGAN, version 1 (Jiang, Chang and Wang, arXiv 2102.07074v1): a GAN without a convolution.

Notable in it:
- the generator grows a token grid: every stage doubles its side and quarters its channels by pixel shuffle
- one learned position per token, added on entry to a stage; nothing relative, no noise
- pre-norm blocks with global attention, LayerNorm and exact GELU; no dropout, no norm before the pixels
- pixels come out of a plain linear layer: no tanh, values may leave [-1, 1]
- locality-aware initialisation: early in training the last block attends within a window that the loop widens
- super-resolution co-training: a low-resolution image can enter at the second stage in place of a latent
- the discriminator is a ViT whose class token gives the logit

Layer sizes and initialisation follow the released code where the paper is silent.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gantx.config.networks.transgan import TransGANDiscriminatorConfig, TransGANGeneratorConfig
from gantx.models import interfaces
from gantx.models.layers.attention import attention
from gantx.models.layers.attention_maps import follow
from gantx.models.layers.checkpointing import run_block
from gantx.models.layers.conditioning import LabelEmbedding, Projection
from gantx.models.layers.linear import Linear
from gantx.models.layers.normalization import LayerNorm
from gantx.models.layers.pixel_shuffle import pixel_shuffle
from gantx.runtime.precision import widened
from gantx.runtime.random import Draws, Spec


class Attention(nn.Module):
    """Multi-head self-attention; queries, keys and values come from one projection without bias.

    Args:
        dim: channels D of the tokens.
        heads: attention heads; divides `dim`.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = Linear(dim, 3 * dim, bias=False)
        self.out = Linear(dim, dim, widen=True)

    def forward(self, tokens: Tensor, mask: Tensor | None = None, keep: int | None = None) -> Tensor:
        """Self-attention.

        Args:
            tokens: [B, N, D].
            mask: boolean [N, N], True where a row may attend to a column; None for everywhere.
            keep: only the first `keep` tokens attend; None for all.

        Returns:
            [B, keep or N, D].
        """
        q, k, v = self._project(tokens)
        attended = attention(q[:, :, :keep], k, v, mask=mask)  # [B, h, keep, D/h]
        mixed: Tensor = self.out(attended.transpose(1, 2).flatten(2))
        return mixed

    def row(self, position: int, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attention of the token at `position`, [B, h, N]; other arguments as in `forward`."""
        q, k, _ = self._project(tokens)
        logits = widened(k @ (q[:, :, position] * q.shape[3] ** -0.5)[..., None]).squeeze(3)  # [B, h, N]
        if mask is not None:
            logits = logits.masked_fill(~mask[position], -math.inf)
        return logits.softmax(2)

    def _project(self, tokens: Tensor) -> Tensor:
        """Queries, keys and values of tokens [B, N, D]: [3, B, h, N, D/h]."""
        split: Tensor = self.qkv(tokens).unflatten(-1, (3, self.heads, -1))  # [B, N, 3, h, D/h]
        return split.permute(2, 0, 3, 1, 4)


class Block(nn.Module):
    """Pre-norm transformer block: x + attention(norm(x)), then x + MLP(norm(x)).

    Args:
        dim: channels D of the tokens.
        heads: attention heads.
        mlp_ratio: hidden width of the MLP in units of `dim`.
    """

    def __init__(self, dim: int, heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.norm1 = LayerNorm(dim)
        self.attention = Attention(dim, heads)
        self.norm2 = LayerNorm(dim)
        self.mlp = nn.Sequential(
            Linear(dim, mlp_ratio * dim),
            nn.GELU(),
            Linear(mlp_ratio * dim, dim, widen=True),
        )

    def forward(self, tokens: Tensor, mask: Tensor | None = None, keep: int | None = None) -> Tensor:
        """Tokens [B, N, D] to [B, N, D], or to the first `keep` of them; `mask` as in `Attention`."""
        kept: Tensor = tokens[:, :keep] + self.attention(self.norm1(tokens), mask, keep)
        kept = kept + self.mlp(self.norm2(kept))
        return kept


class Stage(nn.Module):
    """The part of the generator that works on one token grid: learned positions, then blocks.

    Args:
        side: side of the grid.
        dim: channels D of its tokens.
        depth: number of blocks, at least 1.
        heads: attention heads.
        mlp_ratio: hidden width of the MLPs in units of `dim`.
    """

    def __init__(self, side: int, dim: int, depth: int, heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.zeros(1, side**2, dim))
        self.blocks = nn.ModuleList(Block(dim, heads, mlp_ratio) for _ in range(depth))

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Tokens [B, side², D] to [B, side², D]; `mask` limits the attention of the last block alone."""
        tokens = tokens + self.positions
        *blocks, last = self.blocks
        for block in blocks:
            tokens = run_block(block, tokens)
        tokens = run_block(last, tokens, mask)
        return tokens


def band_distance(side: int, device: torch.device) -> Tensor:
    """Distance of all token pairs along the raster scan, [N, N]; what the released code limits.

    A band wraps from the end of one row of the grid to the start of the next.
    """
    index = torch.arange(side * side, dtype=torch.int32, device=device)
    return (index[:, None] - index).abs()


def neighbourhood_distance(side: int, device: torch.device) -> Tensor:
    """Distance of all token pairs on the grid, the larger of rows and columns, [N, N]; the paper's figure."""
    index = torch.arange(side, dtype=torch.int32, device=device)
    apart = (index[:, None] - index).abs()
    rows, columns = apart[:, None, :, None], apart[None, :, None, :]
    return torch.maximum(rows, columns).reshape(side**2, side**2)


_DISTANCES = {"band": band_distance, "neighbourhood": neighbourhood_distance}


class Generator(interfaces.Generator):
    """TransGAN v1 generator: transformer stages, each on a token grid twice as fine as the previous one.

    With `super_resolution`, images can also enter at the second stage; see `upscale`.

    Args:
        config: the section `generator:`; gantx.config.networks.transgan documents its fields.
        image_channels: of the images: 1 (grey), 3 or 4 (RGBA).

    Attributes:
        latent_shape: (latent_dim,).
        image_shape: (C, R, R).
        attention_window: 0-d tensor written by the training loop: how far the last block of the last stage
            may attend, in tokens; None for everywhere.
        low_resolution: resolution of the images `upscale` takes; absent without super_resolution.
    """

    attention_window: Tensor | None
    low_resolution: int

    def __init__(self, config: TransGANGeneratorConfig, image_channels: int = 3) -> None:
        heads = config.heads
        super().__init__()
        if isinstance(heads, int):
            heads = (heads,) * len(config.depths)
        dims = [config.base_dim // 4**stage for stage in range(len(config.depths))]
        self.sides = [config.base_size * 2**stage for stage in range(len(config.depths))]
        self.rgb_patch = config.rgb_patch
        self.locality = config.locality
        resolution = self.sides[-1] * config.rgb_patch
        self.latent_shape = (config.latent_dim,)
        self.image_shape = (image_channels, resolution, resolution)

        # Ours: with classes, the embedding of the label is joined to z; the paper has no classes. It is
        # smaller than z because no mapping network follows: at the same size, z is ignored (measured).
        self.classes = config.classes
        self.embedding = LabelEmbedding(config.classes, config.latent_dim, 0.25) if config.classes else None
        inputs = 2 * config.latent_dim if config.classes else config.latent_dim
        self.to_tokens = Linear(inputs, config.base_size**2 * config.base_dim, widen=True)
        self.stages = nn.ModuleList(
            Stage(side, dim, depth, count, config.mlp_ratio)
            for side, dim, depth, count in zip(self.sides, dims, config.depths, heads, strict=True)
        )
        self.to_rgb = Linear(dims[-1], image_channels * config.rgb_patch**2, widen=True)
        self.from_rgb = Linear(image_channels, dims[1], widen=True) if config.super_resolution else None
        if config.super_resolution:
            self.low_resolution = self.sides[1]
        # The progress of training is no property of the network, so this is no buffer and not saved. A plain
        # attribute is also what `isinstance(network, RelaxesAttention)` checks for.
        self.attention_window = None

        if config.init == "compact":
            initialize_compact(self)
        else:  # other linear layers keep PyTorch's default
            nn.init.xavier_uniform_(self.to_rgb.weight)
            for stage in self.stages:
                nn.init.normal_(stage.get_parameter("positions"), std=0.02)

    def noise_spec(self, batch: int) -> Spec:
        """{}: the generator is deterministic."""
        return {}

    def forward(self, z: Tensor, noise: Draws | None = None, labels: Tensor | None = None) -> Tensor:
        """Latents [B, latent_dim], and labels [B] with classes, to images [B, C, R, R]; without noise."""
        if self.embedding is not None:
            z = torch.cat([z, self.embedding(labels)], dim=1)
        tokens = self.to_tokens(z).unflatten(1, (self.sides[0] ** 2, -1))  # [B, b², C]
        return self._generate(tokens, first=0)

    def upscale(self, low: Tensor, noise: Draws | None = None) -> Tensor:
        """Generate from low-resolution images, for super-resolution co-training (MT-CT).

        The paper describes the task, the released code lacks it; how images enter is our own design: a
        linear map of every low-resolution pixel to the channels of a stage-2 token, then stages 2, 3, ...
        A label has no part in it: it enters before stage 1.

        Args:
            low: images [B, C, r, r], r = `low_resolution`.
            noise: not used.

        Returns:
            Images [B, C, R, R].

        Raises:
            ValueError: the generator was built without super_resolution.
        """
        if self.from_rgb is None:
            raise ValueError("this generator cannot upscale: build it with super_resolution=True")
        return self._generate(self.from_rgb(low.flatten(2).transpose(1, 2)), first=1)

    def follow(
        self,
        given: Tensor,
        query: tuple[float, float],
        noise: Draws | None = None,
        layers: str = "last",
        labels: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Generate images and return the attention map of one query position.

        Args:
            given: latents z [B, latent_dim].
            query: position in the image, (y, x) in [0, 1) from the top left corner.
            noise: not used.
            layers: `last` for the last block, `all` for every block, from coarse to fine.
            labels: int64 [B] with classes, otherwise not used.

        Returns:
            Images [B, C, R, R]; for every layer, attention [B, h, S, S] on its own grid of S x S tokens,
            under `<S>x<S>.<index among the layers of this resolution>`.
        """
        attentions = [module for module in self.modules() if isinstance(module, Attention)]
        return follow(lambda: self(given, noise, labels), attentions, query, layers)

    def _generate(self, tokens: Tensor, first: int) -> Tensor:
        """Generate images from tokens [B, side², C] that enter at stage `first`."""
        last = len(self.stages) - 1
        for stage in range(first, last + 1):
            if stage > first:
                tokens = pixel_shuffle(tokens, self.sides[stage - 1], 2)
            tokens = self.stages[stage](tokens, self._mask(tokens.device) if stage == last else None)
        pixels = pixel_shuffle(self.to_rgb(tokens), self.sides[-1], self.rgb_patch)  # [B, R², C]
        return pixels.transpose(1, 2).reshape(-1, *self.image_shape)

    def _mask(self, device: torch.device) -> Tensor | None:
        """Which tokens of the last stage may attend to which, boolean [N, N]; None for no limit."""
        if self.attention_window is None or self.locality == "none":
            return None
        return _DISTANCES[self.locality](self.sides[-1], device) <= self.attention_window


class Discriminator(interfaces.Discriminator):
    """TransGAN v1 discriminator: a ViT whose class token gives the logit.

    Args:
        config: the section `discriminator:`; gantx.config.networks.transgan documents its fields.
        image_channels: of the images: 1 (grey), 3 or 4 (RGBA).

    Attributes:
        patch_size: height and width of the patches that become tokens.
    """

    def __init__(self, config: TransGANDiscriminatorConfig, image_channels: int = 3) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        side = config.resolution // config.patch_size
        self.from_patches = Linear(image_channels * config.patch_size**2, config.dim, widen=True)
        self.class_token = nn.Parameter(torch.zeros(1, 1, config.dim))
        self.positions = nn.Parameter(torch.zeros(1, 1 + side**2, config.dim))
        self.blocks = nn.ModuleList(
            Block(config.dim, config.heads, config.mlp_ratio) for _ in range(config.depth)
        )
        self.norm = LayerNorm(config.dim)
        self.head = nn.Linear(config.dim, 1)  # logits are float32
        self.classes = config.classes
        # Ours: projection (Miyato and Koyama 2018); the paper has no classes.
        self.projection = Projection(config.classes, config.dim) if config.classes else None

        if config.init == "compact":
            initialize_compact(self)
        else:
            for module in (*self.blocks.modules(), self.head):
                if isinstance(module, nn.Linear):
                    nn.init.normal_(module.weight, std=0.02)
                    if module.bias is not None:
                        nn.init.zeros_(module.bias)
            # The fan-out is that of the equivalent strided convolution: out·k², not out.
            nn.init.xavier_uniform_(
                self.from_patches.weight.detach().view(
                    config.dim, image_channels, config.patch_size, config.patch_size
                )
            )
            nn.init.normal_(self.class_token, std=0.02)
            nn.init.normal_(self.positions, std=0.02)

    def noise_spec(self, batch: int) -> Spec:
        """{}: the discriminator is deterministic."""
        return {}

    def forward(self, images: Tensor, noise: Draws | None = None, labels: Tensor | None = None) -> Tensor:
        """Images [B, C, R, R], and their labels [B] with classes, to logits [B]; `noise` is not used."""
        p = self.patch_size
        cut = images.unflatten(3, (-1, p)).unflatten(2, (-1, p))  # [B, C, y, dy, x, dx]
        patches = cut.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)  # [B, N, C·p²]
        tokens = self.from_patches(patches)
        class_token = self.class_token.expand(len(images), -1, -1)
        tokens = torch.cat([class_token, tokens], dim=1) + self.positions  # [B, 1 + N, D]
        *blocks, last = self.blocks
        for block in blocks:
            tokens = run_block(block, tokens)
        # The head uses only the class token, so the last block computes no other.
        class_token = last(tokens, keep=1)[:, 0]  # [B, D]
        features = self.norm(class_token)
        logits: Tensor = self.head(features).squeeze(1)
        if self.projection is not None:
            logits = logits + self.projection(features, labels)
        return logits


@torch.no_grad()
def initialize_compact(network: nn.Module) -> None:
    """Initialise a small network in place so that it learns shapes within minutes on a CPU; our own recipe.

    All linear weights are Xavier-uniform and their biases zero; the positions of a grid start as sines and
    cosines, that of the class token normal with deviation 0.02, the class token itself zero.
    """
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, Stage):
            module.positions.copy_(sine_positions(*module.positions.shape[1:]))
        elif isinstance(module, Discriminator):
            nn.init.normal_(module.positions[:, :1], std=0.02)
            module.positions[:, 1:] = sine_positions(module.positions.shape[1] - 1, module.positions.shape[2])


def sine_positions(count: int, dim: int) -> Tensor:
    """Sines and cosines of row and column, times one half, for a square grid of tokens.

    The first half of the channels encodes the row, the second the column. D/4 frequencies run evenly from
    half a period across the grid to half a period per token; channels left over by D/4 stay zero.

    Args:
        count: tokens N of the grid, a square number.
        dim: channels D.

    Returns:
        [1, N, D].
    """
    side = math.isqrt(count)
    centres = (2 * torch.arange(side) + 1) / side - 1  # of the rows, in (-1, 1)
    frequencies = math.pi * torch.linspace(0.5, side / 2, dim // 4)
    phases = torch.outer(centres, frequencies)  # [side, D/4]
    waves = 0.5 * torch.cat([phases.sin(), phases.cos()], dim=1)  # [side, D/2]
    rows = waves[:, None].expand(-1, side, -1)  # [y, x, D/2]
    grid = torch.cat([rows, rows.transpose(0, 1)], dim=2)  # [y, x, D]
    return F.pad(grid.flatten(0, 1), (0, dim % 4))[None]
