"""The images that are scored: those of a generator, or those of a folder, a zip or an array.

Stored images are checked before the first one is measured: different sizes, transparency and more than 8 bits
would each change a score unnoticed.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from gantx.checkpoint import Header
from gantx.config.schema import DataConfig
from gantx.data import pixels as data_pixels
from gantx.data.sources import Source, open_source
from gantx.errors import DataError
from gantx.evaluation.protocols import channels_stamp, ratio_stamp
from gantx.generation import sampling
from gantx.generation.sampling import Rounding
from gantx.io.arrays import read_npy
from gantx.io.channels import to_rgb
from gantx.models.interfaces import Generator
from gantx.runtime.precision import full_precision
from gantx.runtime.seeds import Seeds

LOSSY = (".jpg", ".jpeg", ".webp")
AS_TRAINED = "as in the training data"  # part of the protocol: labels in the proportions of the data


# What is done with the images of generators that are not RGB, by their channels.
AS_RGB: dict[int, tuple[str, ...]] = {
    1: ("the images are grey: scores are those of the value repeated in RGB",),
    4: ("the images have transparency: scores are those of the images composited over white",),
}


class ImageSet(Protocol):
    """Images to score, in a fixed order.

    Attributes:
        stamp: what of the protocol of a score depends on these images.
        warnings: facts that move scores, as sentences.
        labels: of the images in their order; None where they have no classes.
    """

    stamp: dict[str, Any]
    warnings: tuple[str, ...]
    labels: Sequence[int] | None

    def __len__(self) -> int: ...

    def batches(self, device: torch.device) -> Iterator[Tensor]:
        """All images once: uint8, or float 0..255, [n, 3, H, W] on `device`."""

    def origin(self) -> dict[str, Any]:
        """Where the images come from; called after the last batch."""


class GeneratedImages:
    """The images of consecutive seeds from a generator.

    Args:
        generator: the network, on the device of `batches`.
        origin: where its weights come from; see `origin_of`.
        num: number of images.
        seed: of the first image.
        quantise: how floats become grey levels.
        ratio: height / width to which images are cropped; see `sampling.crop`.
        batch: images generated at once.
        labels: one per image; None for an unconditional generator.
        labelling: how the labels are chosen, for the stamp.
    """

    def __init__(
        self,
        generator: Generator,
        origin: dict[str, Any],
        *,
        num: int,
        seed: int,
        quantise: Rounding,
        ratio: float = 1.0,
        batch: int = sampling.BATCH,
        labels: Sequence[int] | None = None,
        labelling: str = AS_TRAINED,
    ) -> None:
        channels = generator.image_shape[0]
        self.warnings = AS_RGB.get(channels, ())
        self.stamp = {
            "images": "generated",
            "n_gen": num,
            "seed": seed,
            "quantise": quantise,
            "ema": True,
            "truncation": 1.0,
            "precision": "fp32",
            **ratio_stamp(ratio),
            **channels_stamp(channels),
            **({} if labels is None else {"labels": labelling}),
        }
        self.labels = labels
        self._generator = generator
        self._origin = origin
        self._seeds = Seeds([range(seed, seed + num)])
        self._quantise = quantise
        self._ratio = ratio
        self._batch = batch

    def __len__(self) -> int:
        return len(self._seeds)

    def batches(self, device: torch.device) -> Iterator[Tensor]:
        """Generate; DataError when the generator gives values that are not finite."""
        finite = torch.ones((), dtype=torch.bool, device=device)
        generated = sampling.generate(
            self._generator,
            self._seeds,
            batch=self._batch,
            device=device,
            ratio=self._ratio,
            labels=self.labels,
        )
        while True:
            with full_precision():  # around each batch: the consumer keeps its own settings
                images = next(generated, None)
            if images is None:
                break
            finite &= images.isfinite().all()
            yield to_rgb(sampling.quantise(images, self._quantise))
        if not bool(finite):  # read once, because reading synchronises with the device
            raise DataError("the generator gives values that are not finite: score an earlier checkpoint")

    def origin(self) -> dict[str, Any]:
        """The checkpoint, as the caller described it."""
        return self._origin


class StoredImages:
    """Images that exist already, or a random choice of them.

    Args:
        images: opened and checked.
        num: how many of them, chosen at random where not all; None for all.
        seed: of the choice.
        batch: images read at once.

    Raises:
        DataError: there are fewer than `num`.
    """

    def __init__(
        self, images: ImageFiles, *, num: int | None, seed: int, batch: int = sampling.BATCH
    ) -> None:
        count = len(images) if num is None else num
        if count < 2:
            raise DataError(
                f"{images.location} contains {len(images):,} image, and a score needs at least two"
            )
        if count > len(images):
            raise DataError(
                f"{images.location} contains {len(images):,} images, fewer than the {count:,} asked for"
            )
        self.warnings = images.warnings
        self.labels: Sequence[int] | None = None
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
        rng = np.random.default_rng(seed)
        chosen = np.sort(rng.permutation(len(images))[:count]) if count < len(images) else np.arange(count)
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
    """The record of a checkpoint in its scores."""
    return {
        "path": str(Path(header.path)),
        "sha256": header.digest,
        "kimg": header.images / 1000,
        "preset": header.config.name,
    }


# --- images in files --------------------------------------------------------------------------------------


class ImageFiles(Protocol):
    """Images of one size in files, opened and checked.

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


def open_images(path: Path) -> ImageFiles:
    """Open and check a folder or zip of images, or a .npy of uint8 [N, H, W, 3] or [N, 3, H, W].

    Raises:
        MissingError: there is nothing at `path`.
        DataError: no images, images of different sizes, transparency, more than 8 bits, or unreadable ones.
    """
    if path.suffix.lower() == ".npy" and path.is_file():
        return _NpyArray(path)
    return _ImageFolder(open_source(DataConfig(source=str(path.absolute()))))


def lossy_images(data: DataConfig) -> int:
    """How many images of a data set are in a lossy format, by their names."""
    source = open_source(data)
    return sum(source.identify(index).lower().endswith(LOSSY) for index in range(len(source)))


class _NpyArray:
    """Images of a memory-mapped .npy file."""

    def __init__(self, path: Path) -> None:
        self.location = str(path)
        self.warnings: tuple[str, ...] = ()
        try:
            pixels = read_npy(path)
        except (OSError, ValueError) as problem:
            raise DataError(f"{path} is not a readable .npy array of numbers ({problem})") from problem
        places = (pixels.shape[1], pixels.shape[3]) if pixels.ndim == 4 else ()
        if pixels.dtype != np.uint8 or not {1, 3} & set(places):
            raise DataError(
                f"{path} contains {pixels.dtype} {list(pixels.shape)}, but images are uint8 [N, H, W, 3] or "
                "[N, 3, H, W] with grey levels 0..255: save them as such"
            )
        if not len(pixels):
            raise DataError(f"{path} contains no images")
        first = pixels.shape[1] == 3 or (pixels.shape[1] == 1 and pixels.shape[3] != 3)
        self._pixels: NDArray[np.uint8] = pixels if first else pixels.transpose(0, 3, 1, 2)
        if self._pixels.shape[1] == 1:
            self.warnings = (f"the images in {path} are grey: the value is repeated in RGB",)
        self.height, self.width = self._pixels.shape[2:]

    def __len__(self) -> int:
        return len(self._pixels)

    def batches(self, rows: Sequence[int], size: int) -> Iterator[Tensor]:
        """Images by their index in the array."""
        for start in range(0, len(rows), size):
            chosen = np.ascontiguousarray(self._pixels[list(rows[start : start + size])])
            yield to_rgb(torch.from_numpy(chosen))


class _ImageFolder:
    """Image files of a folder or zip, in the order of their names; decoded by threads."""

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
        """Images by the index of their name among the sorted names."""
        with ThreadPoolExecutor(thread_name_prefix="decode") as pool:
            for start in range(0, len(rows), size):
                decoded = list(pool.map(self._decode, rows[start : start + size]))  # each [H, W, 3]
                yield torch.from_numpy(np.stack(decoded).transpose(0, 3, 1, 2).copy())

    def _decode(self, index: int) -> NDArray[np.uint8]:
        try:
            image = self._source.read(index)
            return np.asarray(data_pixels.to_rgb(image)) if isinstance(image, Image.Image) else image
        except Exception as problem:
            raise _unreadable(self._source.identify(index), problem) from problem


def _refuse_deep_or_transparent(image: Image.Image, name: str) -> None:
    if image.has_transparency_data:
        raise DataError(
            f"{name} has transparency, and its score would depend on the background: save the images as RGB"
        )
    if image.mode.startswith(("I", "F")):
        raise DataError(
            f"{name} has more than 8 bits a channel (mode {image.mode}), which no score is defined for: save "
            "the images with 8 bits"
        )


def _unreadable(name: str, problem: Exception) -> DataError:
    reason = " ".join(str(problem).split()).rstrip(".") or type(problem).__name__
    return DataError(f"cannot read {name} ({reason}): repair or remove it")
