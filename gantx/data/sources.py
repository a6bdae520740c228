"""Sources of images: folders and zips here, others in gantx.data.published and gantx.data.shapes.

A source lists its images, names and labels them, and reads them one at a time. It does not resize or cache
(gantx.data.prepare does). Nothing read here can run code: gantx.io.decoding opens the image files.
"""

from __future__ import annotations

import hashlib
import os
import re
import zipfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gantx.config.schema import DataConfig
from gantx.data import published
from gantx.data.downloads import Progress
from gantx.data.shapes import ShapesSource, Split
from gantx.errors import DataError, MissingError, UsageError, closest
from gantx.io import archives
from gantx.io.decoding import SUFFIXES, open_image
from gantx.io.file_kinds import recognized

_HELD_OUT = frozenset({"test", "val", "valid", "validation"})


class Source(Protocol):
    """A listed set of images.

    Attributes:
        name: short and safe in file names; part of the names of runs.
        location: where the images are, for messages.
        notes: what the user should know about the listing, as sentences for the log.
    """

    name: str
    location: str
    notes: tuple[str, ...]

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the labels; empty when the set has no labels."""

    @property
    def typical_bytes(self) -> int:
        """Mean size of one stored image in bytes; decides whether decoding in threads pays."""

    def __len__(self) -> int: ...

    def fingerprint(self) -> str:
        """A digest that changes when the images change; cheap, because it is computed at every start."""

    def label(self, index: int) -> int | None:
        """The class of image `index`, or None when the set has no labels."""

    def identify(self, index: int) -> str:
        """The name of image `index` for messages."""

    def read(self, index: int) -> Image.Image | NDArray[np.uint8]:
        """Image `index`: a Pillow image, which need not be decoded yet, or uint8 [H, W, 3].

        Any exception means that this image cannot be read.
        """


@runtime_checkable
class ReadsRanges(Protocol):
    """A source that reads many images of one size in one call."""

    def read_range(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Images start..stop-1 as uint8 [stop - start, H, W, 3]."""


def known_names() -> tuple[str, ...]:
    """The names that `--data` accepts besides paths."""
    return ("shapes", *published.SETS)


def open_source(data: DataConfig, progress: Progress | None = None) -> Source:
    """Open the part `data.split` of what `data.source` names.

    A known name (`shapes`, `cifar10`, `cifar100`, `stl10`) wins over a file of the same name; `./shapes`
    means the file. A published set is downloaded and read when its first image is, not here.

    Args:
        data: which images.
        progress: called with (done, total) bytes while a published archive is downloaded.

    Raises:
        UsageError: no source is set.
        MissingError: the path does not exist or cannot be read.
        DataError: there is no image in it, no held-out folder for `data.split` "test", or the archive is not
            the published one.
    """
    wanted, split = data.source, data.split
    if not wanted:
        raise UsageError(
            "no data is named: give --data a folder of images, a zip, or one of " + ", ".join(known_names())
        )
    if wanted == "shapes":
        return ShapesSource(data.shapes, data.resolution, split)
    if wanted in published.SETS:
        return published.from_download(wanted, split, progress)
    path = Path(wanted).expanduser()
    try:
        if path.is_dir():
            return _open_folder(path, split)
        if path.is_file():
            return _open_file(path, split)
        beside = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    except OSError as problem:
        raise MissingError(
            f"cannot read {problem.filename or path}: {problem.strerror or problem}; check its permissions"
        ) from problem
    raise MissingError(
        f"there is no data at {path}{closest(path.name, [*beside, *known_names()])}: "
        f"give a folder of images, a zip, or one of {', '.join(known_names())}"
    )


def _open_folder(path: Path, split: Split) -> Source:
    return published.from_folder(path, split) or FolderSource(path, split)


def _open_file(path: Path, split: Split) -> Source:
    if path.name.lower().endswith((".tar.gz", ".tgz")):
        return published.from_archive(path, split)
    if zipfile.is_zipfile(path):
        return ZipSource(path, split)
    if path.suffix.lower() == ".zip":
        what = recognized(path) or "is not a zip file or is cut off: copy or download it again"
        raise DataError(f"{path} {what}")
    raise DataError(
        f"{path} is a single file and no image set that gantx can read: give a folder of images, a zip, "
        "or the published archive of CIFAR-10, CIFAR-100 or STL-10"
    )


# --- folders and zips -------------------------------------------------------------------------------------


class FolderSource:
    """The images of a folder and all folders below it, in the order of their names.

    Symbolic links are followed. Raises DataError when there is no image of the split.

    Args:
        path: an existing folder.
        split: the images to train on, or those held out.
    """

    def __init__(self, path: Path, split: Split = "train") -> None:
        self.name = _safe_name(path.resolve().name)
        self.location = str(path)
        self._root = path
        found, others = _walk(path)
        listing = _arrange(found, others, self.location, split)
        self.class_names, self.notes = listing.class_names, listing.notes
        self._names, self._labels = listing.names, listing.labels
        self._facts = [found[name] for name in self._names]
        self.typical_bytes = sum(size for size, _ in self._facts) // len(self._facts)

    def __len__(self) -> int:
        return len(self._names)

    def fingerprint(self) -> str:
        """Digest of the names, sizes and times of change of the files."""
        return _digest(
            f"{name}\0{size}\0{changed}"
            for name, (size, changed) in zip(self._names, self._facts, strict=True)
        )

    def label(self, index: int) -> int | None:
        """The index of the image's folder among the sorted class folders, or None."""
        return None if self._labels is None else self._labels[index]

    def identify(self, index: int) -> str:
        """The path of the image."""
        return str(self._root / self._names[index])

    def read(self, index: int) -> Image.Image:
        """The image, not decoded yet."""
        return open_image((self._root / self._names[index]).read_bytes())


class ZipSource:
    """The images of a zip file, in the order of their names.

    Of entries that share a name, the last one counts, as it does when the zip is unpacked. Raises DataError
    for a zip that is damaged, protected by a password, has unsafe names, or has no image of the split.

    Args:
        path: an existing zip file.
        split: the images to train on, or those held out.
    """

    def __init__(self, path: Path, split: Split = "train") -> None:
        self.name = _safe_name(path.stem)
        self.location = str(path)
        try:
            self._zip = archives.open_zip(path)
        except ValueError as problem:
            raise DataError(f"{path} is a damaged zip ({problem}): copy or download it again") from problem
        entries: dict[str, zipfile.ZipInfo] = {}
        others: Counter[str] = Counter()
        repeated = 0
        for entry in self._zip.infolist():
            name = entry.filename.replace("\\", "/")
            if name.startswith("/") or re.match("[A-Za-z]:", name) or ".." in name.split("/"):
                raise DataError(
                    f"{path} has an entry '{entry.filename}', which points outside the zip: "
                    "pack the images again with relative names"
                )
            if entry.is_dir() or name.endswith("/") or _hidden(name):
                continue
            if not name.lower().endswith(SUFFIXES):
                others[_suffix(name)] += 1
                continue
            if entry.flag_bits & 1:
                raise DataError(f"{path} is protected by a password: unpack it and give the folder")
            repeated += name in entries
            entries[name] = entry
        listing = _arrange(entries, others, self.location, split)
        self.class_names, self.notes = listing.class_names, listing.notes
        if repeated:
            self.notes += (
                f"{_count(repeated, 'image name')} repeated in {path}: the last entry of a name counts",
            )
        self._names, self._labels = listing.names, listing.labels
        self._entries = [entries[name] for name in self._names]
        self.typical_bytes = sum(entry.file_size for entry in self._entries) // len(self._entries)

    def __len__(self) -> int:
        return len(self._names)

    def fingerprint(self) -> str:
        """Digest of the names, CRCs and sizes in the zip's directory."""
        return _digest(
            f"{name}\0{entry.CRC:08x}\0{entry.file_size}"
            for name, entry in zip(self._names, self._entries, strict=True)
        )

    def label(self, index: int) -> int | None:
        """The index of the image's folder among the sorted class folders, or None."""
        return None if self._labels is None else self._labels[index]

    def identify(self, index: int) -> str:
        """The zip and the name inside it."""
        return f"{self.location}:{self._names[index]}"

    def read(self, index: int) -> Image.Image:
        """The image, not decoded yet; its CRC is checked."""
        return open_image(archives.read_entry(self._zip, self._entries[index]))


@dataclass(frozen=True)
class _Listing:
    names: tuple[str, ...]
    labels: tuple[int, ...] | None
    class_names: tuple[str, ...]
    notes: tuple[str, ...]


def _arrange(found: Iterable[str], others: Counter[str], location: str, split: Split) -> _Listing:
    """Choose the part `split` of the listed images, sort it, and derive labels from the folders.

    A single folder around everything is ignored. Where `train` is beside held-out folders, it or they are
    taken. Then, if every image is directly in one of several folders, the sorted folders are the classes.
    """
    names = sorted(found)
    if not names:
        raise DataError(
            f"there is no image in {location}: gantx reads files named {', '.join(SUFFIXES)}, at any depth"
            + (f", and left out {_listed(others)}" if others else "")
        )
    notes = []
    if others:
        count = _count(others.total(), "file")
        notes.append(f"{count} in {location} ignored: not an image by suffix ({_listed(others)})")
    is_divided = False
    skip = 0  # leading folders that all names share
    while True:
        parts = [name.split("/")[skip:] for name in names]
        tops = {part[0] for part in parts if len(part) > 1}
        if "train" in tops and (held_out := tops & _HELD_OUT):
            used = {"train"} if split == "train" else held_out
            what = "only train/ is used" if split == "train" else "train/ is left out"
            also = " and ".join(sorted(f"{top}/" for top in held_out))
            notes.append(f"{location} has train/ and {also}: {what}")
            names = [
                name for name, part in zip(names, parts, strict=True) if len(part) > 1 and part[0] in used
            ]
            is_divided = True
        elif len(tops) != 1 or any(len(part) == 1 for part in parts):
            break
        skip += 1
    if split == "test" and not is_divided:
        raise DataError(
            f"{location} has no test images: data.split=test takes test/, val/, valid/ and validation/ "
            "beside train/, so arrange it like that, or name the folder of test images and the split train"
        )
    if any(len(part) != 2 for part in parts):
        return _Listing(tuple(names), None, (), tuple(notes))
    classes = sorted(tops)
    number = {top: index for index, top in enumerate(classes)}
    return _Listing(tuple(names), tuple(number[part[0]] for part in parts), tuple(classes), tuple(notes))


def _walk(root: Path) -> tuple[dict[str, tuple[int, int]], Counter[str]]:
    """Images below `root`: relative name to (bytes, time of change in ns); other files by suffix."""

    def refuse(problem: OSError) -> None:
        raise problem

    found: dict[str, tuple[int, int]] = {}
    others: Counter[str] = Counter()
    entered: set[tuple[int, int]] = set()  # a link to a folder above must not loop
    for folder, below, files in os.walk(root, followlinks=True, onerror=refuse):
        facts = Path(folder).stat()
        if (facts.st_dev, facts.st_ino) in entered:
            below.clear()
            continue
        entered.add((facts.st_dev, facts.st_ino))
        below[:] = sorted(name for name in below if not _hidden(name))
        inside = Path(folder).relative_to(root).as_posix()
        prefix = "" if inside == "." else f"{inside}/"
        for name in files:
            if _hidden(name):
                continue
            if not name.lower().endswith(SUFFIXES):
                others[_suffix(name)] += 1
                continue
            try:
                facts = os.stat(f"{folder}/{name}")  # noqa: PTH116 -- a Path per file triples the time
                found[prefix + name] = (facts.st_size, facts.st_mtime_ns)
            except OSError:  # a dangling link: listed, so that reading it reports a bad image
                found[prefix + name] = (-1, -1)
    return found, others


def _suffix(name: str) -> str:
    """The suffix of a file for messages: lower case, printable and short; "" without one."""
    suffix = Path(name).suffix.lower()
    return suffix if suffix.isprintable() and len(suffix) <= 16 else ""


def _listed(others: Counter[str]) -> str:
    """The most frequent suffixes with their counts: "12 .heic, 1 without a suffix"."""
    parts = [f"{count:,} {suffix or 'without a suffix'}" for suffix, count in others.most_common(4)]
    return ", ".join(parts) + (", …" if len(others) > 4 else "")


def _hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


# --- names and digests ------------------------------------------------------------------------------------


def _digest(lines: Iterable[str]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for line in lines:
        digest.update(line.encode("utf-8", "surrogateescape") + b"\n")
    return digest.hexdigest()


def _safe_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text)[:40].strip("-.") or "data"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
