"""The interfaces of networks: two base classes, and protocols for optional capabilities.

Images are float tensors [B, C, H, W], nominally in [-1, 1]: grey (C = 1), RGB (3), or RGB and alpha (4). A
forward pass never changes a network; state beside the parameters changes in `update_state`. Code outside of
`gantx.models` checks for capabilities with `isinstance` and never depends on the family.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from torch import Tensor, nn

from gantx.runtime.random import Draws, Spec


class Generator(nn.Module):
    """Generates images from latents.

    Attributes:
        latent_shape: shape of one latent z, standard normal.
        image_shape: (C, H, W) of one image.
        classes: number of labels that it can be given; 0 for an unconditional generator.
    """

    classes: int = 0
    latent_shape: tuple[int, ...]
    image_shape: tuple[int, int, int]

    def noise_spec(self, batch: int) -> Spec:
        """The draws that `noise` must contain for a batch; {} when the generator is deterministic."""
        return {}

    if TYPE_CHECKING:

        def __call__(self, z: Tensor, noise: Draws | None = None, labels: Tensor | None = None) -> Tensor:
            """Latents [B, *latent_shape] to images [B, C, H, W]; without noise, its stored or zero value.

            `labels`, int64 [B], are needed by a conditional generator and ignored by any other.
            """


class Discriminator(nn.Module):
    """Maps images to logits: high for real images, low for generated ones.

    Attributes:
        classes: number of labels that it can be given; 0 for an unconditional discriminator.
    """

    classes: int = 0

    def noise_spec(self, batch: int) -> Spec:
        """The draws that `noise` must contain for a batch; {} when the discriminator is deterministic."""
        return {}

    if TYPE_CHECKING:

        def __call__(
            self, images: Tensor, noise: Draws | None = None, labels: Tensor | None = None, **parts: int
        ) -> Tensor:
            """Images [B, C, H, W] to logits [B]; `parts` is for those that are `MinibatchDependent`.

            `labels`, int64 [B], are needed by a conditional discriminator and ignored by any other.
            """


@runtime_checkable
class KeepsState(Protocol):
    """Has state beside its parameters that is updated once per optimiser step."""

    def update_state(self) -> None:
        """Update the state; called under no_grad."""


@runtime_checkable
class MinibatchDependent(Protocol):
    """A discriminator that compares the images of a batch with each other, in groups.

    It takes `parts=n` beside the images: the batch consists of n equal batches, one after the other, that
    must not be compared with each other.
    """

    group_size: int


@runtime_checkable
class SuperResolves(Protocol):
    """Can also generate from a low-resolution image, for super-resolution co-training."""

    low_resolution: int

    def upscale(self, low: Tensor, noise: Draws | None = None) -> Tensor:
        """Images [B, C, r, r] at `low_resolution` to images [B, C, H, W]."""


@runtime_checkable
class StyleBased(Protocol):
    """Maps latents to styles and generates images from these, one style per use.

    Styles ws are [B, L, D], or [B, K, L, D] with K latents per image; the L uses can be given styles of
    different latents (style mixing). The buffer `w_avg` [D] is their running average, for truncation;
    training updates it.
    """

    def mapping(self, z: Tensor, labels: Tensor | None = None, noise: Draws | None = None) -> Tensor:
        """Latents [B, *latent_shape], and labels [B] of a conditional network, to styles ws."""

    def synthesis(self, ws: Tensor, noise: Draws | None = None) -> Tensor:
        """Styles ws to images [B, C, H, W]."""


@runtime_checkable
class ShowsAttention(Protocol):
    """Positions of the image attend to latents, and the attention maps can be observed.

    Maps are [B, h, m, S, S]: the attention of the position in row y and column x of the layer's S x S
    grid to each of m latents, in each of h heads; without gates, it sums to one over the latents. Layers are
    called `<S>x<S>.<index among the layers of this resolution>`, from coarse to fine.
    """

    def observe(
        self, ws: Tensor, noise: Draws | None = None, layers: str = "last"
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Images of styles ws, and the maps of the same pass: of the `last` layer, or of `all`."""

    def attention(self, z: Tensor, noise: Draws | None = None, layers: str = "last") -> dict[str, Tensor]:
        """The maps of latents z."""


@runtime_checkable
class ShowsSelfAttention(Protocol):
    """Positions of the image attend to each other, and the attention map of a query can be observed.

    Maps are [B, h, S, S]: the attention of the position at the query to each position of the layer's S x S
    grid, in each of h heads; it sums to one over the grid. Layers are called as in `ShowsAttention`. Only
    this one row of the attention is computed.
    """

    def follow(
        self,
        given: Tensor,
        query: tuple[float, float],
        noise: Draws | None = None,
        layers: str = "last",
        labels: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Images, and the maps of the same pass: of the `last` layer, or of `all`.

        Args:
            given: styles ws of a network that is `StyleBased`, latents z of any other.
            query: position in the image, (y, x) in [0, 1) from the top left corner.
            noise: of `noise_spec`, or None.
            layers: `last` or `all`.
            labels: int64 [B], of a conditional network that is given latents.
        """


@runtime_checkable
class RelaxesAttention(Protocol):
    """Has an attention window that the training loop widens.

    `attention_window` is a 0-d tensor written by the training loop, or None for unlimited attention.
    """

    attention_window: Tensor | None
