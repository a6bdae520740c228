"""What is exported: everything between a latent and finished pixels, as one network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gantx.errors import UsageError
from gantx.generation import sampling
from gantx.generation.interpolation import slerp
from gantx.generation.latents import style_shape
from gantx.generation.truncation import Truncation, require_styles, truncate
from gantx.models import interfaces
from gantx.runtime.random import Draw, for_seeds

Pixels = Literal["float", "unit", "uint8"]
RANGES: dict[Pixels, str] = {
    "float": "nominally -1..1, not clamped",
    "unit": "0..1",
    "uint8": "0..255",
}


class ExportedGenerator(nn.Module):
    """Latents to pixels, with truncation and range built in; noise stands at its stored value.

    Args:
        generator: a network of `gantx.models`.
        pixels: `float` is what the generator gives, `unit` the same in 0..1 and clamped, `uint8` rounded grey
            levels as `gantx sample` writes them.
        truncation: draw styles towards their average.
        ratio: height / width to which images are cropped; see `sampling.crop`.
        rounded: whether `uint8` are rounded; without it they are floats between the levels, the values that
            a rounding runtime is held against.

    Attributes:
        image_shape: (3, H, W) of what comes out.

    Shapes: z float32 [B, *latent_shape] -> [B, 3, H, W].

    Raises:
        UsageError: truncation of a network without styles, or of layers that it has not.
    """

    def __init__(
        self,
        generator: nn.Module,
        pixels: Pixels = "float",
        truncation: Truncation | None = None,
        *,
        ratio: float = 1.0,
        rounded: bool = True,
    ) -> None:
        super().__init__()
        self.generator: Any = generator
        self.pixels: Pixels = pixels
        self.truncation = truncation
        self.ratio = ratio
        self.image_shape = sampling.cropped_shape(generator, ratio)
        self.rounded = rounded
        if truncation is not None:
            require_styles(generator, "truncation")
            truncate(generator, torch.zeros(1, *style_shape(generator)), *truncation)

    def forward(self, z: Tensor) -> Tensor:
        """Paint."""
        if self.truncation is None:
            return self._finished(self.generator(z))
        ws = truncate(self.generator, self.generator.mapping(z), *self.truncation)
        return self._finished(self.generator.synthesis(ws))

    def _finished(self, images: Tensor) -> Tensor:
        return as_pixels(sampling.crop(images, self.ratio), self.pixels, self.rounded)

    def unrounded(self) -> ExportedGenerator:
        """The same exported with floats between the levels."""
        return ExportedGenerator(
            self.generator, self.pixels, self.truncation, ratio=self.ratio, rounded=False
        )


class Morph(nn.Module):
    """Images on the way from one latent to another, as grey levels: all that the sliders of the page do.

    The way is straight between the styles where the network has them, else along the arc between the
    latents.

    Args:
        generator: a network of `gantx.models`.
        ratio: as of `ExportedGenerator`.
        rounded: as of `ExportedGenerator`.

    Attributes:
        image_shape: (3, H, W) of what comes out.

    Shapes: start, end float32 [B, *latent_shape]; along [B] in 0..1; truncation [B], only for networks with
        styles -> uint8 [B, 3, H, W].
    """

    def __init__(self, generator: nn.Module, *, ratio: float = 1.0, rounded: bool = True) -> None:
        super().__init__()
        self.generator: Any = generator
        self.ratio = ratio
        self.image_shape = sampling.cropped_shape(generator, ratio)
        self.rounded = rounded
        self.has_styles = isinstance(generator, interfaces.StyleBased)

    def forward(self, start: Tensor, end: Tensor, along: Tensor, truncation: Tensor | None = None) -> Tensor:
        """Paint."""
        if truncation is None:
            images = self.generator(slerp(start, end, along))
        else:
            first, last = self.generator.mapping(start), self.generator.mapping(end)
            ws = torch.lerp(first, last, along.view(-1, *[1] * (first.ndim - 1)))
            images = self.generator.synthesis(truncate(self.generator, ws, truncation))
        return as_pixels(sampling.crop(images, self.ratio), "uint8", self.rounded)

    def unrounded(self) -> Morph:
        """The same network with floats between the levels."""
        return Morph(self.generator, ratio=self.ratio, rounded=False)


def pixels_named(name: str) -> Pixels:
    """The values called so; UsageError with those that there are."""
    found = next((pixels for pixels in RANGES if pixels == name), None)
    if found is None:
        raise UsageError(f"no pixels '{name}': use {', '.join(RANGES)}")
    return found


def as_pixels(images: Tensor, pixels: Pixels, rounded: bool = True) -> Tensor:
    """Images [B, 3, H, W] in [-1, 1] as the values of `pixels`; see `ExportedGenerator`."""
    if pixels == "float":
        return images
    if pixels == "unit":
        return ((images + 1) / 2).clamp(0, 1)
    return sampling.quantise(images, "round" if rounded else "none")


def latents_of(generator: Any, seeds: Sequence[int]) -> Tensor:
    """The latents of seeds, as `gantx sample` draws them: float32 [N, *latent_shape]."""
    z = for_seeds({"z": Draw("normal", (1, *generator.latent_shape))}, seeds, torch.device("cpu"))["z"]
    assert isinstance(z, Tensor)
    return z
