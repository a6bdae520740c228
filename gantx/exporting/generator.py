"""The exported networks: everything from a latent to finished pixels as one module."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gantx.exporting.request import Pixels
from gantx.generation import sampling
from gantx.generation.interpolation import slerp
from gantx.generation.latents import style_shape
from gantx.generation.truncation import Truncation, require_styles, truncate
from gantx.models.interfaces import Generator, StyleBased
from gantx.runtime.random import Draw, for_seeds


class ExportedGenerator(nn.Module):
    """Latents to pixels, with truncation and range built in; noise has its stored value.

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

    Shapes: z float32 [B, *latent_shape] -> [B, C, H, W].

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

    def forward(self, z: Tensor) -> Tensor:
        """Latents z to images [B, C, H, W] in the range of `pixels`."""
        if self.truncation is None:
            return self._finished(self.generator(z))
        assert isinstance(self.generator, StyleBased)
        ws = truncate(self.generator, self.generator.mapping(z), *self.truncation)
        return self._finished(self.generator.synthesis(ws))

    def _finished(self, images: Tensor) -> Tensor:
        return as_pixels(sampling.crop(images, self.ratio), self.pixels, self.rounded)

    def unrounded(self) -> ExportedGenerator:
        """The same network without rounding."""
        return ExportedGenerator(
            self.generator, self.pixels, self.truncation, ratio=self.ratio, rounded=False
        )


class Morph(nn.Module):
    """Images interpolated between two latents, as grey levels: the network behind the sliders of the page.

    Styles are interpolated linearly if the network has them, else latents spherically.

    Args:
        generator: a network of `gantx.models`.
        ratio: as in `ExportedGenerator`.
        rounded: as in `ExportedGenerator`.

    Attributes:
        image_shape: (C, H, W) of the output.

    Shapes: start, end float32 [B, *latent_shape]; along [B] in 0..1; truncation [B], only for networks with
        styles -> uint8 [B, C, H, W].
    """

    def __init__(self, generator: Generator, *, ratio: float = 1.0, rounded: bool = True) -> None:
        super().__init__()
        self.generator = generator
        self.ratio = ratio
        self.image_shape = sampling.cropped_shape(generator, ratio)
        self.rounded = rounded
        self.has_styles = isinstance(generator, StyleBased)

    def forward(self, start: Tensor, end: Tensor, along: Tensor, truncation: Tensor | None = None) -> Tensor:
        """Images at the weight `along` of `end`; `truncation` is psi per image."""
        if truncation is None:
            images = self.generator(slerp(start, end, along))
        else:
            assert isinstance(self.generator, StyleBased)
            first, last = self.generator.mapping(start), self.generator.mapping(end)
            ws = torch.lerp(first, last, along.view(-1, *[1] * (first.ndim - 1)))
            images = self.generator.synthesis(truncate(self.generator, ws, truncation))
        return as_pixels(sampling.crop(images, self.ratio), "uint8", self.rounded)

    def unrounded(self) -> Morph:
        """The same network without rounding."""
        return Morph(self.generator, ratio=self.ratio, rounded=False)


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
