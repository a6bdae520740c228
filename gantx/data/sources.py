"""Sources of images: folders and zips here, others in gantx.data.containers, published and shapes.

A source lists its images, names and labels them, and reads them one at a time. It does not resize or cache
(gantx.data.prepare does). Nothing read here can run code: gantx.io.decoding opens the image files.
"""

from __future__ import annotations

import os
import re
import zipfile
from collections import Counter
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gantx.config.schema import DataConfig
from gantx.data import published
from gantx.data.containers import container_of, open_container
from gantx.data.downloads import Progress
from gantx.data.labels import LabelFiles, choose, is_label_file
from gantx.data.listing import arrange, count_of, digest_of, hidden, safe_name, suffix_of
from gantx.data.shapes import ShapesSource, Split
from gantx.errors import DataError, MissingError, UsageError, closest
from gantx.io import archives
from gantx.io.decoding import SUFFIXES, open_image
from gantx.io.file_kinds import recognized, recognized_set
from gantx.io.home import expanded


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
class HasLabelFiles(Protocol):
    """A source beside whose images files may give labels, which win over its own.

    Attributes:
        image_names: names of the images, as the files give them.
        label_files: the files; None without any.
    """

    image_names: tuple[str, ...]
    label_files: LabelFiles | None


@runtime_checkable
class ReadsRanges(Protocol):
    """A source that reads many images of one size in one call."""

    def read_range(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Images start..stop-1 as uint8 [stop - start, H, W, 3]."""


def known_names() -> tuple[str, ...]:
    """The names that `--data` accepts besides paths."""
    return ("shapes", *published.SETS)


def open_source(data: DataConfig, progress: Progress | None = None, *, labelled: bool = False) -> Source:
    """Open the part `data.split` of what `data.source` names.

    A known name (`shapes`, `cifar10`, `cifar100`, `stl10`) wins over a file of the same name; `./shapes`
    means the file. A published set is downloaded and read when its first image is, not here.

    Args:
        data: which images.
        progress: called with (done, total) bytes while a published archive is downloaded.
        labelled: of a published set that has labels for some of its images only, take these.

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
        return published.from_download(wanted, split, progress, labelled)
    path = expanded(wanted)
    require_source(wanted)
    try:
        return _open_folder(path, split, labelled) if path.is_dir() else _open_file(path, split, labelled)
    except OSError as problem:
        raise _unreadable(path, problem) from problem


def require_source(wanted: str) -> None:
    """Check that there is something of this name, without reading it.

    Args:
        wanted: `data.source`: a known name or a path.

    Raises:
        MissingError: it is neither, or cannot be read.
    """
    path = expanded(wanted)
    try:
        if wanted in known_names() or path.is_dir() or path.is_file():
            return
        beside = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    except OSError as problem:
        raise _unreadable(path, problem) from problem
    raise MissingError(
        f"there is no data at {path}{closest(path.name, [*beside, *known_names()])}: "
        f"give a folder of images, a zip, or one of {', '.join(known_names())}"
    )


def _unreadable(path: Path, problem: OSError) -> MissingError:
    return MissingError(
        f"cannot read {problem.filename or path}: {problem.strerror or problem}; check its permissions"
    )


def _open_folder(path: Path, split: Split, labelled: bool) -> Source:
    if container_of(path):
        return open_container(path, split)
    return published.from_folder(path, split, labelled) or FolderSource(path, split)


def _open_file(path: Path, split: Split, labelled: bool) -> Source:
    if path.name.lower().endswith((".tar.gz", ".tgz")):
        return published.from_archive(path, split, labelled)
    if container_of(path):
        return open_container(path, split)
    if zipfile.is_zipfile(path):
        return ZipSource(path, split)
    if path.suffix.lower() == ".zip":
        what = recognized(path) or "is not a zip file or is cut off: copy or download it again"
        raise DataError(f"{path} {what}")
    what = recognized_set(path) or "is a single file and no image set that gantx can read"
    raise DataError(
        f"{path} {what}: give a folder of images, a zip, a tar, an array (.npy, .npz), a parquet table, an "
        "LMDB database, or the published archive of CIFAR-10, CIFAR-100 or STL-10"
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
        self.name = safe_name(path.resolve().name)
        self.location = str(path)
        self._root = path
        found, others, label_files = _walk(path)
        listing = arrange(found, others, self.location, split)
        self.class_names, self.notes = listing.class_names, listing.notes
        self._names, self._labels = listing.names, listing.labels
        self.image_names = listing.names
        chosen = choose(label_files, listing.names)
        self.label_files = LabelFiles(self.location, chosen, self._label_file) if chosen else None
        self._facts = [found[name] for name in self._names]
        self.typical_bytes = sum(size for size, _ in self._facts) // len(self._facts)

    def __len__(self) -> int:
        return len(self._names)

    def fingerprint(self) -> str:
        """Digest of the names, sizes and times of change of the files."""
        return digest_of(
            f"{name}\0{size}\0{changed}"
            for name, (size, changed) in zip(self._names, self._facts, strict=True)
        )

    def label(self, index: int) -> int | None:
        """The index of the image's folder among the sorted class folders, or None."""
        return None if self._labels is None else self._labels[index]

    def _label_file(self, name: str) -> bytes:
        return (self._root / name).read_bytes()

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
        self.name = safe_name(path.stem)
        self.location = str(path)
        try:
            self._zip = archives.open_zip(path)
        except ValueError as problem:
            raise DataError(f"{path} is a damaged zip ({problem}): copy or download it again") from problem
        entries: dict[str, zipfile.ZipInfo] = {}
        label_files: dict[str, zipfile.ZipInfo] = {}
        others: Counter[str] = Counter()
        repeated = 0
        for entry in self._zip.infolist():
            name = entry.filename.replace("\\", "/")
            if name.startswith("/") or re.match("[A-Za-z]:", name) or ".." in name.split("/"):
                raise DataError(
                    f"{path} has an entry '{entry.filename}', which points outside the zip: "
                    "pack the images again with relative names"
                )
            if entry.is_dir() or name.endswith("/") or hidden(name):
                continue
            if is_label_file(name):
                label_files[name] = entry
                continue
            if not name.lower().endswith(SUFFIXES):
                others[suffix_of(name)] += 1
                continue
            if entry.flag_bits & 1:
                raise DataError(f"{path} is protected by a password: unpack it and give the folder")
            repeated += name in entries
            entries[name] = entry
        listing = arrange(entries, others, self.location, split)
        self.class_names, self.notes = listing.class_names, listing.notes
        if repeated:
            self.notes += (
                f"{count_of(repeated, 'image name')} repeated in {path}: the last entry of a name counts",
            )
        self._names, self._labels = listing.names, listing.labels
        self.image_names = listing.names
        chosen = choose(label_files, listing.names)
        self.label_files = LabelFiles(self.location, chosen, self._label_file) if chosen else None
        self._label_entries = label_files
        self._entries = [entries[name] for name in self._names]
        self.typical_bytes = sum(entry.file_size for entry in self._entries) // len(self._entries)

    def __len__(self) -> int:
        return len(self._names)

    def fingerprint(self) -> str:
        """Digest of the names, CRCs and sizes in the zip's directory."""
        return digest_of(
            f"{name}\0{entry.CRC:08x}\0{entry.file_size}"
            for name, entry in zip(self._names, self._entries, strict=True)
        )

    def label(self, index: int) -> int | None:
        """The index of the image's folder among the sorted class folders, or None."""
        return None if self._labels is None else self._labels[index]

    def _label_file(self, name: str) -> bytes:
        try:
            return archives.read_entry(self._zip, self._label_entries[name])
        except ValueError as problem:
            raise DataError(f"cannot read {self.location}:{name}: {problem}") from problem

    def identify(self, index: int) -> str:
        """The zip and the name inside it."""
        return f"{self.location}:{self._names[index]}"

    def read(self, index: int) -> Image.Image:
        """The image, not decoded yet; its CRC is checked."""
        return open_image(archives.read_entry(self._zip, self._entries[index]))


def _walk(root: Path) -> tuple[dict[str, tuple[int, int]], Counter[str], list[str]]:
    """Images below `root`: name to (bytes, time of change in ns); other files by suffix; label files."""

    def refuse(problem: OSError) -> None:
        raise problem

    found: dict[str, tuple[int, int]] = {}
    others: Counter[str] = Counter()
    label_files: list[str] = []
    entered: set[tuple[int, int]] = set()  # a link to a folder above must not loop
    for folder, below, files in os.walk(root, followlinks=True, onerror=refuse):
        facts = Path(folder).stat()
        if (facts.st_dev, facts.st_ino) in entered:
            below.clear()
            continue
        entered.add((facts.st_dev, facts.st_ino))
        below[:] = sorted(name for name in below if not hidden(name))
        inside = Path(folder).relative_to(root).as_posix()
        prefix = "" if inside == "." else f"{inside}/"
        for name in files:
            if hidden(name):
                continue
            if is_label_file(name):
                label_files.append(prefix + name)
                continue
            if not name.lower().endswith(SUFFIXES):
                others[suffix_of(name)] += 1
                continue
            try:
                facts = os.stat(f"{folder}/{name}")  # noqa: PTH116 -- a Path per file triples the time
                found[prefix + name] = (facts.st_size, facts.st_mtime_ns)
            except OSError:  # a dangling link: listed, so that reading it reports a bad image
                found[prefix + name] = (-1, -1)
    return found, others, label_files
