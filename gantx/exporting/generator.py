"""The exported networks: everything from a latent, and a label, to finished pixels as one module."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gantx.exporting.classes import mixed_labels, require_known
from gantx.exporting.request import Pixels
from gantx.generation import sampling
from gantx.generation.interpolation import slerp
from gantx.generation.latents import style_shape
from gantx.generation.truncation import Truncation, require_styles, truncate
from gantx.models.interfaces import Generator, StyleBased
from gantx.models.layers.conditioning import one_hot
from gantx.runtime.random import Draw, for_seeds


class ExportedGenerator(nn.Module):
    """Latents to pixels, with truncation and range built in; noise has its stored value.

    A conditional network takes labels as its second input.

    Args:
        generator: a network of `gantx.models`.
        pixels: `float` is the generator's output, `unit` the same mapped to 0..1 and clamped, `uint8` rounded
            grey levels as `gantx sample` writes them.
        truncation: of the styles, or None.
        ratio: height / width to which images are cropped; see `sampling.crop`.
        rounded: whether `uint8` values are rounded; unrounded floats are the reference for a runtime that
            rounds.

    Attributes:
        image_shape: (C, H, W) of the output.

    Shapes: z float32 [B, *latent_shape], label int64 [B] -> [B, C, H, W].

    Raises:
        UsageError: truncation of a network without styles, or of more layers than it has.
    """

    def __init__(
        self,
        generator: Generator,
        pixels: Pixels = "float",
        truncation: Truncation | None = None,
        *,
        ratio: float = 1.0,
        rounded: bool = True,
    ) -> None:
        super().__init__()
        self.generator = generator
        self.pixels: Pixels = pixels
        self.truncation = truncation
        self.ratio = ratio
        self.image_shape = sampling.cropped_shape(generator, ratio)
        self.rounded = rounded
        if truncation is not None:
            styled = require_styles(generator, "truncation")
            truncate(styled, torch.zeros(1, *style_shape(generator)), *truncation)

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        """Latents z, and labels of a conditional network, to images [B, C, H, W] in the range of `pixels`."""
        labels = None if label is None else require_known(label, self.generator.classes)
        return self._finished(sampling.render(self.generator, z, None, self.truncation, labels))

    def inputs(self, batch: int) -> list[Tensor]:
        """Inputs for a comparison: the latents of the seeds 0 to `batch` - 1, and different labels."""
        z = latents_of(self.generator, range(batch))
        return [z, mixed_labels(self.generator.classes, batch)] if self.generator.classes else [z]

    def _finished(self, images: Tensor) -> Tensor:
        return as_pixels(sampling.crop(images, self.ratio), self.pixels, self.rounded)

    def unrounded(self) -> ExportedGenerator:
        """The same network without rounding."""
        return ExportedGenerator(
            self.generator, self.pixels, self.truncation, ratio=self.ratio, rounded=False
        )


class Morph(nn.Module):
    """Images interpolated between two latents, as grey levels: the network behind the sliders of the page.

    A conditional network takes a label for each end. `morph_of` chooses the subclass for a generator.

    Args:
        generator: a network of `gantx.models`.
        ratio: as in `ExportedGenerator`.
        rounded: as in `ExportedGenerator`.

    Attributes:
        image_shape: (C, H, W) of the output.
        has_styles: whether truncation is an input.
    """

    has_styles: bool

    def __init__(self, generator: Generator, *, ratio: float = 1.0, rounded: bool = True) -> None:
        super().__init__()
        self.generator = generator
        self.ratio = ratio
        self.image_shape = sampling.cropped_shape(generator, ratio)
        self.rounded = rounded

    def unrounded(self) -> Morph:
        """The same network without rounding."""
        return type(self)(self.generator, ratio=self.ratio, rounded=False)

    def inputs(self, batch: int) -> list[Tensor]:
        """Inputs for a comparison: different latents, weights, truncations and labels."""
        shares = torch.linspace(0, 1, batch)
        ends = [latents_of(self.generator, range(first, first + batch)) for first in (0, batch)]
        labels = mixed_labels(self.generator.classes, batch) if self.generator.classes else None
        return [
            *ends,
            shares,
            *([shares.flip(0)] if self.has_styles else []),
            *([] if labels is None else [labels, labels.flip(0)]),
        ]

    def _known(self, label: Tensor | None) -> Tensor | None:
        return None if label is None else require_known(label, self.generator.classes)

    def _finished(self, images: Tensor) -> Tensor:
        return as_pixels(sampling.crop(images, self.ratio), "uint8", self.rounded)


class LatentMorph(Morph):
    """A morph of a network without styles: latents are interpolated spherically, labels linearly.

    Shapes: start, end float32 [B, *latent_shape]; along [B] in 0..1; start_label, end_label int64 [B] ->
        uint8 [B, C, H, W].
    """

    has_styles = False

    def forward(
        self,
        start: Tensor,
        end: Tensor,
        along: Tensor,
        start_label: Tensor | None = None,
        end_label: Tensor | None = None,
    ) -> Tensor:
        """Images at the weight `along` of `end`."""
        z = slerp(start, end, along)
        if start_label is None:
            return self._finished(self.generator(z))
        first, last = (
            one_hot(self._known(label), self.generator.classes) for label in (start_label, end_label)
        )
        return self._finished(self.generator(z, None, torch.lerp(first, last, along[:, None])))


class StyleMorph(Morph):
    """A morph of a network with styles, which are interpolated linearly.

    Shapes: start, end float32 [B, *latent_shape]; along [B] in 0..1; truncation [B]; start_label, end_label
        int64 [B] -> uint8 [B, C, H, W].
    """

    has_styles = True

    def forward(
        self,
        start: Tensor,
        end: Tensor,
        along: Tensor,
        truncation: Tensor,
        start_label: Tensor | None = None,
        end_label: Tensor | None = None,
    ) -> Tensor:
        """Images at the weight `along` of `end`; `truncation` is psi per image."""
        assert isinstance(self.generator, StyleBased)
        first = self.generator.mapping(start, self._known(start_label))
        last = self.generator.mapping(end, self._known(end_label))
        ws = torch.lerp(first, last, along.view(-1, *[1] * (first.ndim - 1)))
        return self._finished(self.generator.synthesis(truncate(self.generator, ws, truncation)))


def morph_of(generator: Generator, *, ratio: float = 1.0) -> Morph:
    """The network behind the sliders of the page of a generator."""
    morph = StyleMorph if isinstance(generator, StyleBased) else LatentMorph
    return morph(generator, ratio=ratio)


def as_pixels(images: Tensor, pixels: Pixels, rounded: bool = True) -> Tensor:
    """Convert images [B, C, H, W] in [-1, 1] to the range of `pixels`; see `ExportedGenerator`."""
    if pixels == "float":
        return images
    if pixels == "unit":
        return ((images + 1) / 2).clamp(0, 1)
    return sampling.quantise(images, "round" if rounded else "none")


def latents_of(generator: Generator, seeds: Sequence[int]) -> Tensor:
    """The latents of seeds, as `gantx sample` draws them: float32 [N, *latent_shape]."""
    z = for_seeds({"z": Draw("normal", (1, *generator.latent_shape))}, seeds, torch.device("cpu"))["z"]
    assert isinstance(z, Tensor)
    return z
