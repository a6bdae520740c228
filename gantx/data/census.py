"""Describes a set of images before training: sizes, classes, duplicates, and what cannot be used.

Every image is decoded, as the preparation would decode it (gantx.data.pixels), but nothing is resized or
stored. Near duplicates are found by a difference hash: the signs of the differences between neighbouring
pixels of a small grey version, which stay the same when an image is resized or compressed again.
"""

from __future__ import annotations

import hashlib
import warnings
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gantx.config.schema import DataConfig
from gantx.data.crop import rectangle, size_of
from gantx.data.pixels import converted, reason_unreadable, to_rgb, upright
from gantx.data.prepare import FEW, Progress, labels_of
from gantx.data.sources import Source, open_source
from gantx.errors import DataError
from gantx.io.prefetch import ahead
from gantx.runtime import cores

COMPARED = 20_000  # images at most that are compared for near duplicates: the work grows with the square
_NEAR = 10  # bits of 256 at most in which the hashes of near duplicates differ
_GROUP = 32  # images that a thread reads at a time
_RESOLUTIONS = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)


@dataclass(frozen=True)
class _Facts:
    """What one image is.

    Attributes:
        problem: why it cannot be decoded; the other attributes are then meaningless.
        size: (width, height) in pixels, upright.
        alpha: whether some of it is transparent.
        grey: whether it has no colours.
        rotated: whether its EXIF orientation turns it.
        digest: of its pixels.
        hash: difference hash, uint64 [4].
    """

    problem: str | None
    size: tuple[int, int] = (0, 0)
    alpha: bool = False
    grey: bool = False
    rotated: bool = False
    digest: bytes = b""
    hash: NDArray[np.uint64] | None = None


@dataclass(frozen=True)
class Census:
    """What a set of images contains.

    Attributes:
        location: where the images are.
        resolution: the resolution that the images were compared with, or None.
        images: number of images listed.
        notes: what the user should know about the listing.
        classes: number of images of each class, in the order of the classes; empty without labels.
        sizes: (width, height, number of images), the most frequent first.
        unreadable: (name, reason) of the images that cannot be decoded.
        small: names of images smaller than `resolution`.
        cropped: number of images that are not of the wanted ratio, so that only their centre is used.
        alpha: number of images that are transparent somewhere.
        grey: number of images without colours, whatever their mode.
        rotated: number of images that their EXIF orientation turns.
        duplicates: groups of names whose pixels are equal.
        near: (name, name, number of different bits of 256) of other pairs that look alike.
        compared: number of images that were compared for near duplicates.
        largest: the largest common resolution that 99 % of the images reach, or None.
    """

    location: str
    resolution: int | None
    images: int
    notes: tuple[str, ...]
    classes: dict[str, int]
    sizes: tuple[tuple[int, int, int], ...]
    unreadable: tuple[tuple[str, str], ...]
    small: tuple[str, ...]
    cropped: int
    alpha: int
    grey: int
    rotated: int
    duplicates: tuple[tuple[str, ...], ...]
    near: tuple[tuple[str, str, int], ...]
    compared: int
    largest: int | None

    @property
    def usable(self) -> int:
        """Number of images that can be trained on at `resolution` without enlarging any."""
        return self.images - len(self.unreadable) - len(self.small)


def examine(data: DataConfig, *, resolution: int | None, progress: Progress | None = None) -> Census:
    """Decode every image of a set and describe the set.

    Args:
        data: which images, and their ratio; its resolution matters for the built-in shapes alone.
        resolution: images smaller than this are listed, or None.
        progress: called with (done, total), in bytes while an archive is downloaded, then in images.

    Raises:
        UsageError: no source is set.
        MissingError: the source does not exist or cannot be downloaded.
        DataError: there is no image in it, or the archive is not the published one.
    """
    source = open_source(data, progress)
    total = len(source)
    facts: list[_Facts] = []
    groups = [range(start, min(start + _GROUP, total)) for start in range(0, total, _GROUP)]
    threads = min(8, len(cores.allowed()))
    Image.init()
    with warnings.catch_warnings():  # filters apply to all threads, so they are set once, out here
        warnings.filterwarnings("ignore", module="PIL")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        for group in ahead(partial(_examine, source), groups, threads=threads, waiting=2 * threads):
            facts += group
            if progress is not None:
                progress(len(facts), total)
    return _summary(source, data, resolution, facts)


def _examine(source: Source, indices: Sequence[int]) -> list[_Facts]:
    return [_facts(source, index) for index in indices]


def _facts(source: Source, index: int) -> _Facts:
    try:
        image = source.read(index)
        if isinstance(image, np.ndarray):
            image = Image.fromarray(image)
        image.load()
        turned = upright(image)
        colours = to_rgb(turned)
    except Exception as problem:  # decoders may raise anything for a broken file
        return _Facts(reason_unreadable(problem))
    digest = hashlib.blake2b(f"{colours.size}".encode() + colours.tobytes(), digest_size=16).digest()
    return _Facts(
        problem=None,
        size=turned.size,
        alpha=image.has_transparency_data and _transparent(image),
        grey=image.mode in ("1", "L") or image.mode.startswith("I") or _colourless(colours),
        rotated=image.getexif().get(_ORIENTATION, 1) != 1,
        digest=digest,
        hash=difference_hash(colours),
    )


_ORIENTATION = 0x0112  # the EXIF tag


def _transparent(image: Image.Image) -> bool:
    return bool(np.asarray(converted(image, 4))[..., 3].min() < 255)


def _colourless(image: Image.Image) -> bool:
    """Whether the three channels of an RGB image are equal."""
    pixels = np.asarray(image)
    return np.array_equal(pixels[..., 0], pixels[..., 1]) and np.array_equal(pixels[..., 0], pixels[..., 2])


def difference_hash(image: Image.Image) -> NDArray[np.uint64]:
    """256 bits that stay nearly the same when an image is resized or compressed again, uint64 [4].

    Args:
        image: an RGB image of any size.
    """
    small = np.asarray(image.convert("L").resize((17, 16), Image.Resampling.BOX), np.int16)  # [16, 17]
    bits = np.packbits(small[:, 1:] > small[:, :-1])
    return bits.view(np.uint64)


def _summary(source: Source, data: DataConfig, resolution: int | None, facts: list[_Facts]) -> Census:
    whole = [index for index, fact in enumerate(facts) if fact.problem is None]
    kept = {index: _kept(facts[index].size, data.ratio) for index in whole}
    classes, notes = _classes(source, whole)
    sizes = Counter(facts[index].size for index in whole)
    small: list[str] = []
    if resolution is not None:
        width, height = size_of(resolution, data.ratio)
        small = [
            source.identify(index) for index in whole if kept[index][0] < width or kept[index][1] < height
        ]
    alike: defaultdict[bytes, list[int]] = defaultdict(list)
    for index in whole:
        alike[facts[index].digest].append(index)
    firsts = [group[0] for group in alike.values()][:COMPARED]
    return Census(
        location=source.location,
        resolution=resolution,
        images=len(facts),
        notes=(*source.notes, *notes),
        classes=classes,
        sizes=tuple((width, height, count) for (width, height), count in sizes.most_common()),
        unreadable=tuple(
            (source.identify(index), fact.problem)
            for index, fact in enumerate(facts)
            if fact.problem is not None
        ),
        small=tuple(small),
        cropped=sum(kept[index] != facts[index].size for index in whole),
        alpha=sum(facts[index].alpha for index in whole),
        grey=sum(facts[index].grey for index in whole),
        rotated=sum(facts[index].rotated for index in whole),
        duplicates=tuple(
            tuple(source.identify(index) for index in group) for group in alike.values() if len(group) > 1
        ),
        near=tuple(
            (source.identify(firsts[first]), source.identify(firsts[second]), distance)
            for first, second, distance in _near_pairs([facts[index].hash for index in firsts])
        ),
        compared=len(firsts),
        largest=_largest([min(kept[index]) for index in whole], data.ratio),
    )


def _classes(source: Source, indices: Sequence[int]) -> tuple[dict[str, int], list[str]]:
    """Number of images of each class that a conditional run would see, and what keeps it from seeing any."""
    try:
        labels = labels_of(source)
    except DataError as problem:
        return {}, [f"classes cannot be used: {problem}"]
    names = source.class_names if labels is None else labels.names
    if not names:
        return {}, []
    counts = Counter(source.label(index) if labels is None else labels.numbers[index] for index in indices)
    return {name: counts[number] for number, name in enumerate(names)}, []


def _kept(size: tuple[int, int], ratio: float) -> tuple[int, int]:
    """Width and height of the part of an image that is used."""
    rows, columns = rectangle(size[1], size[0], ratio)
    return columns.stop - columns.start, rows.stop - rows.start


def _largest(shorter: list[int], ratio: float) -> int | None:
    """The largest common resolution whose shorter side 99 % of the images reach."""
    if not shorter:
        return None
    reached = float(np.quantile(shorter, 0.01, method="lower")) if len(shorter) >= FEW else min(shorter)
    fitting = [resolution for resolution in _RESOLUTIONS if min(size_of(resolution, ratio)) <= reached]
    return max(fitting, default=None)


def _near_pairs(hashes: Sequence[Any]) -> list[tuple[int, int, int]]:
    """(first, second, distance) of the pairs whose hashes differ in at most `_NEAR` bits.

    Hashes with few bits of either kind belong to nearly plain images and mean little: they are left out.
    """
    if not hashes:
        return []
    table = np.stack(hashes)  # [N, 4]
    ones = np.bitwise_count(table).sum(1)
    telling = np.flatnonzero((ones > 2 * _NEAR) & (ones < 256 - 2 * _NEAR))
    table = table[telling]
    pairs: list[tuple[int, int, int]] = []
    for row in range(len(table)):
        distances = np.bitwise_count(table[row] ^ table[row + 1 :]).sum(1)
        pairs += [
            (int(telling[row]), int(telling[row + 1 + other]), int(distances[other]))
            for other in np.flatnonzero(distances <= _NEAR)
        ]
    return pairs
