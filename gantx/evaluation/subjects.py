"""What is scored: a generator's images, painted as they are measured, or images that are already there."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from gantx.checkpoint import Header
from gantx.errors import DataError
from gantx.evaluation.images import ImageSet
from gantx.evaluation.precision import full_precision
from gantx.evaluation.protocols import ratio_stamp
from gantx.generation import sampling
from gantx.generation.sampling import Rounding


class Subject(Protocol):
    """Images in a fixed order, and where they come from.

    Attributes:
        stamp: what of the record of a score depends on the subject.
        warnings: facts that move scores, as sentences.
    """

    stamp: dict[str, Any]
    warnings: tuple[str, ...]

    def __len__(self) -> int: ...

    def batches(self, device: torch.device) -> Iterator[Tensor]:
        """All images once: uint8, or float 0..255, [n, 3, H, W] on `device`."""

    def origin(self) -> dict[str, Any]:
        """Where the images come from; asked for after the last batch."""


class GeneratedImages:
    """The images of consecutive seeds from a generator.

    Args:
        generator: a network of `gantx.models`.
        origin: where its weights come from; see `origin_of`.
        num: number of images.
        seed: of the first image.
        quantise: how floats become grey levels.
        ratio: height / width to which images are cropped; see `sampling.crop`.
        batch: images painted at once.
    """

    def __init__(
        self,
        generator: torch.nn.Module,
        origin: dict[str, Any],
        *,
        num: int,
        seed: int,
        quantise: Rounding,
        ratio: float = 1.0,
        batch: int = sampling.BATCH,
    ) -> None:
        self.warnings: tuple[str, ...] = ()
        self.stamp = {
            "images": "generated",
            "n_gen": num,
            "seed": seed,
            "quantise": quantise,
            "ema": True,
            "truncation": 1.0,
            "precision": "fp32",
            **ratio_stamp(ratio),
        }
        self._generator = generator
        self._origin = origin
        self._seeds = range(seed, seed + num)
        self._quantise = quantise
        self._ratio = ratio
        self._batch = batch

    def __len__(self) -> int:
        return len(self._seeds)

    def batches(self, device: torch.device) -> Iterator[Tensor]:
        """Paint; DataError when the generator gives values that are not finite."""
        finite = torch.ones((), dtype=torch.bool, device=device)
        painted = sampling.generate(
            self._generator, self._seeds, batch=self._batch, device=device, ratio=self._ratio
        )
        while True:
            with full_precision(device):  # around each batch: between them others compute as they like
                images = next(painted, None)
            if images is None:
                break
            finite &= images.isfinite().all()
            yield sampling.quantise(images, self._quantise)
        if not bool(finite):  # read once: a question to the device for every batch would hold it up
            raise DataError("the generator paints values that are not finite: score an earlier checkpoint")

    def origin(self) -> dict[str, Any]:
        """The checkpoint, as the caller described it."""
        return self._origin


class Found:
    """Images that are already there.

    Args:
        images: opened and checked.
        num: how many of them, chosen at random where not all; None for all.
        seed: of the choice.
        batch: images read at once.

    Raises:
        DataError: there are fewer than `num`.
    """

    def __init__(self, images: ImageSet, *, num: int | None, seed: int, batch: int = sampling.BATCH) -> None:
        count = len(images) if num is None else num
        if count < 2:
            raise DataError(f"{images.location} holds {len(images):,} image, and a score needs two at least")
        if count > len(images):
            raise DataError(
                f"{images.location} holds {len(images):,} images, fewer than the {count:,} asked for"
            )
        self.warnings = images.warnings
        self.stamp = {
            "images": "found",
            "n_gen": count,
            "seed": seed if count < len(images) else None,
            "quantise": "as found",
            "ema": None,
            "truncation": None,
            "precision": None,
            **ratio_stamp(images.height / images.width),
        }
        dice = np.random.default_rng(seed)
        chosen = np.sort(dice.permutation(len(images))[:count]) if count < len(images) else np.arange(count)
        self._rows: list[int] = chosen.tolist()
        self._images = images
        self._batch = batch
        self._digest = hashlib.sha256()

    def __len__(self) -> int:
        return len(self._rows)

    def batches(self, device: torch.device) -> Iterator[Tensor]:
        """Read and decode, in the order of the set."""
        self._digest = hashlib.sha256()
        for images in self._images.batches(self._rows, self._batch):
            self._digest.update(images.contiguous().numpy().data)
            yield images.to(device)

    def origin(self) -> dict[str, Any]:
        """The place, and the SHA-256 of the pixels that were scored."""
        return {"path": self._images.location, "sha256": self._digest.hexdigest()}


def origin_of(header: Header) -> dict[str, Any]:
    """What a score says about the checkpoint it belongs to."""
    return {
        "path": str(Path(header.path)),
        "sha256": header.digest,
        "kimg": header.images / 1000,
        "preset": header.config.name,
    }
