"""A small implicit generator: an image is a function of the coordinates, and pixels attend to components.

Our own combination, for runs of minutes on a CPU. Notable in it:
- a part of the latent is discrete, as in ClusterGAN (Mukherjee et al., arXiv 1809.03627): few distinct
  colours and kinds of objects are learnt sooner, because no continuous function has to jump between them
- a pixel is computed from its coordinates alone, by a small network whose weights depend on the style, as in
  INR-GAN (Skorokhodov et al., arXiv 2011.12026) and CIPS (Anokhin et al., arXiv 2011.13775)
- the style gives all weights of the first layer, so that its units are half-planes placed by the latent; in
  the layers after it, it scales the inputs and adds to the bias
- colours come from bipartite attention (GANformer, arXiv 2103.01209): each pixel attends to a few components
  with one colour each, which makes areas even and edges sharp
- the attention map is the segmentation of the image into its components

There is no grid of features and nothing is upsampled: the resolution is the number of points.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gantx.config.networks.implicit import ImplicitGeneratorConfig
from gantx.models import interfaces
from gantx.models.layers.conditioning import LabelEmbedding
from gantx.models.layers.linear import Linear
from gantx.runtime.precision import to_compute, widened
from gantx.runtime.random import Draws, Spec

SLOPE = 0.2  # of the leaky ReLU for negative input
_STEEPNESS = (2.0, 2.0, 1.0)  # deviation of the first layer's weights for x, y and 1 at the start
_SPREAD = 1.5  # deviation of the embeddings at the start, in units of that of what they are added to
_KEY_SHARE = 0.3  # of the style in the keys, whose other part is the same for all images


class Mapping(nn.Module):
    """Mapping network: linear layers with leaky ReLU; the first adds the embeddings of discrete latents.

    With classes, the label's embedding is joined to z.

    Args:
        latent_dim: size of z.
        style_dim: size of w.
        layers: number of linear layers.
        categories: number of values of each discrete latent. It is the index of the largest of so many
            numbers of z, so that each value is equally likely.
        classes: number of classes, 0 for none.
    """

    def __init__(
        self, latent_dim: int, style_dim: int, layers: int, categories: tuple[int, ...], classes: int = 0
    ) -> None:
        super().__init__()
        inputs = 2 * latent_dim if classes else latent_dim
        self.embeddings = nn.ParameterList(
            _SPREAD / math.sqrt(len(categories)) * torch.randn(values, style_dim) for values in categories
        )
        self.layers = nn.ModuleList(
            Linear(style_dim if layer else inputs, style_dim, widen=True) for layer in range(layers)
        )
        self.label_embedding = LabelEmbedding(classes, latent_dim) if classes else None
        for layer in self.layers:
            nn.init.kaiming_normal_(layer.get_parameter("weight"), SLOPE)
            nn.init.zeros_(layer.get_parameter("bias"))

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Latents [B, latent_dim], and labels [B] with classes, to [B, style_dim]."""
        first, *others = self.layers
        joined = z if self.label_embedding is None else torch.cat([z, self.label_embedding(labels)], dim=1)
        x: Tensor = first(joined)
        start = 0
        for embedding in self.embeddings:
            x = x + embedding[z[:, start : start + len(embedding)].argmax(1)]
            start += len(embedding)
        w = F.leaky_relu(x, SLOPE)
        for layer in others:
            w = F.leaky_relu(layer(w), SLOPE)
        return w


class CoordinateLayer(nn.Module):
    """The first layer: a linear function of the coordinates whose weights are a function of the style.

    Args:
        width: units H.
        style_dim: size of w.
        resolution: height and width R of the image.
    """

    coordinates: Tensor

    def __init__(self, width: int, style_dim: int, resolution: int) -> None:
        super().__init__()
        self.weights = Linear(style_dim, 3 * width, widen=True)
        deviation = torch.tensor(_STEEPNESS)[:, None]
        with torch.no_grad():
            self.weights.bias.copy_((deviation * torch.randn(3, width)).flatten())
        at = (torch.arange(resolution) + 0.5) * (2 / resolution) - 1  # centres of pixels, in [-1, 1]
        y, x = torch.meshgrid(at, at, indexing="ij")
        coordinates = torch.stack([x, y, torch.ones_like(x)], dim=2).flatten(0, 1)
        self.register_buffer("coordinates", coordinates, persistent=False)

    def forward(self, style: Tensor) -> Tensor:
        """Styles [B, style_dim] to features [B, R², H]."""
        weights = self.weights(style).unflatten(1, (3, -1))  # [B, 3, H]
        # In float32: an edge would move by up to a tenth of a pixel in bf16.
        return F.leaky_relu(self.coordinates.to(weights.dtype) @ weights, SLOPE)


class ModulatedLayer(nn.Module):
    """Linear layer whose inputs the style scales and to whose bias it adds, then leaky ReLU.

    Args:
        width: channels H in and out.
        style_dim: size of w.
    """

    compute_dtype: torch.dtype | None = None

    def __init__(self, width: int, style_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, width) * math.sqrt(2 / width))
        self.scale = Linear(style_dim, width, widen=True)
        self.bias = Linear(style_dim, width, widen=True)
        nn.init.ones_(self.scale.bias)

    def forward(self, features: Tensor, style: Tensor) -> Tensor:
        """Features [B, N, H] under styles [B, style_dim]: [B, N, H]."""
        weights = self.weight * self.scale(style)[:, :, None]  # [B, H, H], inputs by outputs
        dtype = self.compute_dtype
        product = widened(to_compute(features, dtype) @ to_compute(weights, dtype))
        return F.leaky_relu(product + self.bias(style)[:, None], SLOPE)


class ComponentAttention(nn.Module):
    """Each pixel attends to the components of its image and takes their colours.

    Args:
        width: channels H of the features, which are the queries.
        style_dim: size of w.
        components: number K of components.
        image_channels: channels C of a pixel.
    """

    def __init__(self, width: int, style_dim: int, components: int, image_channels: int) -> None:
        super().__init__()
        self.width = width
        self.keys = nn.Parameter(torch.randn(components, width) * (1.5 / math.sqrt(width)))
        self.colours = nn.Parameter(0.3 * torch.randn(components, image_channels) - 0.5)
        self.from_style = Linear(style_dim, components * (width + image_channels), widen=True)

    def forward(self, features: Tensor, style: Tensor) -> tuple[Tensor, Tensor]:
        """Features [B, N, H] under styles [B, style_dim]: pixels [B, N, C] and attention [B, N, K]."""
        own = self.from_style(style).unflatten(1, (len(self.keys), -1))  # [B, K, H + C]
        keys = self.keys + _KEY_SHARE * own[:, :, : self.width]
        attention = (features @ keys.transpose(1, 2)).softmax(2)
        return attention @ (self.colours + own[:, :, self.width :]), attention


class Generator(interfaces.Generator):
    """Implicit generator: a mapping network turns latents into styles, which give a function its weights.

    Args:
        config: the section `generator:`; gantx.config.networks.implicit documents its fields.
        image_channels: of the images: 1 (grey), 3 or 4 (RGBA).

    Attributes:
        latent_shape: (latent_dim,).
        image_shape: (C, R, R).
        w_avg: running average [D] of w, for truncation; updated by training.
    """

    w_avg: Tensor

    def __init__(self, config: ImplicitGeneratorConfig, image_channels: int = 3) -> None:
        super().__init__()
        self.latent_shape = (config.latent_dim,)
        self.image_shape = (image_channels, config.resolution, config.resolution)
        self.classes = config.classes
        self.mapping_network = Mapping(
            config.latent_dim, config.style_dim, config.mapping_layers, config.categories, config.classes
        )
        self.from_coordinates = CoordinateLayer(config.width, config.style_dim, config.resolution)
        self.layers = nn.ModuleList(
            ModulatedLayer(config.width, config.style_dim) for _ in range(config.depth)
        )
        self.attend = ComponentAttention(config.width, config.style_dim, config.components, image_channels)
        self.register_buffer("w_avg", torch.zeros(config.style_dim))

    def noise_spec(self, batch: int) -> Spec:
        """{}: the generator is deterministic."""
        return {}

    def mapping(self, z: Tensor, labels: Tensor | None = None, noise: Draws | None = None) -> Tensor:
        """Latents [B, latent_dim] to styles ws [B, depth + 2, D]; `noise` is not used."""
        w: Tensor = self.mapping_network(z, labels)
        return w[:, None].expand(-1, len(self.layers) + 2, -1)

    def synthesis(self, ws: Tensor, noise: Draws | None = None) -> Tensor:
        """Styles ws to images; `noise` is not used.

        Args:
            ws: [B, depth + 2, D]: of the coordinates (places and outlines), of each layer, of the colours.
            noise: not used.

        Returns:
            [B, C, R, R].
        """
        return self._generate(ws)[0]

    def forward(self, z: Tensor, noise: Draws | None = None, labels: Tensor | None = None) -> Tensor:
        """Latents [B, latent_dim], and labels [B] with classes, to images [B, C, R, R]; without noise."""
        return self.synthesis(self.mapping(z, labels))

    def observe(
        self, ws: Tensor, noise: Draws | None = None, layers: str = "last"
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Images of styles ws, and the attention [B, 1, K, R, R] of each pixel to the components."""
        images, attention = self._generate(ws)
        size = images.shape[3]
        maps = attention.transpose(1, 2).unflatten(2, (size, size))[:, None]
        return images, {f"{size}x{size}.0": maps.contiguous()}

    def attention(self, z: Tensor, noise: Draws | None = None, layers: str = "last") -> dict[str, Tensor]:
        """The attention of each pixel to the components, for latents z [B, latent_dim]; see `observe`."""
        return self.observe(self.mapping(z))[1]

    def _generate(self, ws: Tensor) -> tuple[Tensor, Tensor]:
        """Images [B, C, R, R] of styles ws [B, depth + 2, D], and attention [B, R², K]."""
        of_coordinates, *each, of_colours = ws.unbind(1)
        features: Tensor = self.from_coordinates(of_coordinates)
        for layer, style in zip(self.layers, each, strict=True):
            features = layer(features, style)
        pixels, attention = self.attend(features, of_colours)
        return pixels.transpose(1, 2).reshape(-1, *self.image_shape), attention
