"""Finished images as the subject of a score: a folder, a zip or an array of any generator's pictures.

They are looked at before the first one is measured: sizes that differ, transparency and deep pixels would
each change a score without a word.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from gantx.config.schema import DataConfig
from gantx.data.prepare import to_rgb
from gantx.data.sources import Source, open_source
from gantx.errors import DataError

LOSSY = (".jpg", ".jpeg", ".webp")


class ImageSet(Protocol):
    """Images of one size, ready to be measured.

    Attributes:
        location: where they are, for messages.
        height, width: in pixels, of every image.
        warnings: facts that move scores, as sentences.
    """

    location: str
    height: int
    width: int
    warnings: tuple[str, ...]

    def __len__(self) -> int: ...

    def batches(self, rows: Sequence[int], size: int) -> Iterator[Tensor]:
        """The images of these numbers as uint8 [n, 3, H, W], n <= size, on the CPU."""


def open_images(path: Path) -> ImageSet:
    """Open and check a folder or zip of images, or a .npy of uint8 [N, H, W, 3] or [N, 3, H, W].

    Raises:
        MissingError: there is nothing at `path`.
        DataError: no images, images of different sizes, transparency, more than 8 bits, or unreadable ones.
    """
    if path.suffix.lower() == ".npy" and path.is_file():
        return _Array(path)
    return _Files(open_source(DataConfig(source=str(path.absolute()))))


def lossy_images(data: DataConfig) -> int:
    """How many images of a data set are in a lossy format, by their names."""
    source = open_source(data)
    return sum(source.identify(index).lower().endswith(LOSSY) for index in range(len(source)))


class _Array:
    """A .npy file, mapped."""

    def __init__(self, path: Path) -> None:
        self.location = str(path)
        self.warnings: tuple[str, ...] = ()
        try:
            pixels = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as problem:
            raise DataError(f"{path} is not a readable .npy array of numbers") from problem
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or 3 not in (pixels.shape[1], pixels.shape[3]):
            raise DataError(
                f"{path} holds {pixels.dtype} {list(pixels.shape)}, but images are uint8 [N, H, W, 3] or "
                "[N, 3, H, W] with grey levels 0..255: save them so"
            )
        if not len(pixels):
            raise DataError(f"{path} holds no images")
        self._pixels: NDArray[np.uint8] = pixels if pixels.shape[1] == 3 else pixels.transpose(0, 3, 1, 2)
        self.height, self.width = self._pixels.shape[2:]

    def __len__(self) -> int:
        return len(self._pixels)

    def batches(self, rows: Sequence[int], size: int) -> Iterator[Tensor]:
        """Images by their place in the array."""
        for start in range(0, len(rows), size):
            yield torch.from_numpy(np.ascontiguousarray(self._pixels[list(rows[start : start + size])]))


class _Files:
    """Image files, in the order of their names; decoded by threads."""

    def __init__(self, source: Source) -> None:
        self.location = source.location
        self._source = source
        sizes: Counter[tuple[int, int]] = Counter()
        examples: dict[tuple[int, int], str] = {}
        lossy = grey = 0
        for index in range(len(source)):
            name = source.identify(index)
            try:
                image = source.read(index)
            except Exception as problem:  # a broken file makes decoders raise almost anything
                raise _unreadable(name, problem) from problem
            if isinstance(image, Image.Image):
                _refuse_deep_or_transparent(image, name)
                grey += image.mode in ("1", "L")
                size = image.size
            else:
                size = (image.shape[1], image.shape[0])
            sizes[size] += 1
            examples.setdefault(size, name)
            lossy += name.lower().endswith(LOSSY)
        if len(sizes) > 1:
            listed = ", ".join(f"{w}×{h}: {count:,}" for (w, h), count in sizes.most_common(4))
            odd = examples[sizes.most_common()[-1][0]]
            raise DataError(
                f"the images in {self.location} differ in size ({listed}; for example {odd}): a score needs "
                "images of one size, so remove or resize the others"
            )
        ((self.width, self.height),) = sizes
        warnings = list(source.notes)
        if lossy:
            warnings.append(
                f"{lossy:,} of {len(source):,} images in {self.location} are JPEG or WebP: compression moves "
                "scores by whole points, so save PNGs"
            )
        if source.class_names:
            warnings.append(
                f"the images in {self.location} come folder by folder ({len(source.class_names)} of them), "
                "and the Inception Score takes its splits in that order: mix them in one folder for it"
            )
        if grey:
            warnings.append(f"{grey:,} images in {self.location} are grey: the value is repeated in RGB")
        self.warnings = tuple(warnings)

    def __len__(self) -> int:
        return len(self._source)

    def batches(self, rows: Sequence[int], size: int) -> Iterator[Tensor]:
        """Images by their place among the sorted names."""
        with ThreadPoolExecutor(thread_name_prefix="decode") as pool:
            for start in range(0, len(rows), size):
                decoded = list(pool.map(self._decode, rows[start : start + size]))  # each [H, W, 3]
                yield torch.from_numpy(np.stack(decoded).transpose(0, 3, 1, 2).copy())

    def _decode(self, index: int) -> NDArray[np.uint8]:
        try:
            image = self._source.read(index)
            return np.asarray(to_rgb(image)) if isinstance(image, Image.Image) else image
        except Exception as problem:
            raise _unreadable(self._source.identify(index), problem) from problem


def _refuse_deep_or_transparent(image: Image.Image, name: str) -> None:
    if image.has_transparency_data:
        raise DataError(
            f"{name} has transparency, and its score would depend on the ground it is laid on: save the "
            "images as RGB"
        )
    if image.mode.startswith(("I", "F")):
        raise DataError(
            f"{name} has more than 8 bits a channel (mode {image.mode}), which no score is defined for: save "
            "the images with 8 bits"
        )


def _unreadable(name: str, problem: Exception) -> DataError:
    reason = " ".join(str(problem).split()).rstrip(".") or type(problem).__name__
    return DataError(f"cannot read {name} ({reason}): repair or remove it")
