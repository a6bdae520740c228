"""Where images come from: folders, zips, published archives, downloads, and the built-in shapes.

A source lists its images, names and labels them, and reads them one at a time. It knows nothing about
resizing or caching (gantx.data.prepare does). Nothing read here can run code: image files are opened only
by the decoders of `FORMATS`, and the pickles of CIFAR only after their MD5 matches the published one.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import io
import os
import re
import shutil
import tarfile
import uuid
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gantx.config.schema import DataConfig
from gantx.data.downloads import Progress, Remote, digest_of, download
from gantx.data.shapes import ShapesSource, Split
from gantx.errors import DataError, MissingError, UsageError, closest
from gantx.io.cache import cache_folder

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm")
# Only these decoders are tried, whatever a file calls itself: Pillow also knows formats that start programs.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
_HELD_OUT = frozenset({"test", "val", "valid", "validation"})
_LARGEST_ENTRY = 2**30  # bytes; an entry of a zip that unpacks to more is not read into memory


class Source(Protocol):
    """A listed set of images.

    Attributes:
        name: short and safe in file names; part of the names of runs.
        location: where the images are, for messages.
        notes: facts about the listing that the user should read once, as plain sentences.
    """

    name: str
    location: str
    notes: tuple[str, ...]

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the labels; empty when the set has no labels."""

    @property
    def typical_bytes(self) -> int:
        """Mean size of one stored image in bytes; tells whether decoding in threads pays."""

    def __len__(self) -> int: ...

    def fingerprint(self) -> str:
        """A digest that changes when the images change; cheap, because it is made at every start."""

    def label(self, index: int) -> int | None:
        """The class of image `index`, or None when the set has no labels."""

    def identify(self, index: int) -> str:
        """The name of image `index` for messages."""

    def read(self, index: int) -> Image.Image | NDArray[np.uint8]:
        """Image `index`: a Pillow image, perhaps not decoded yet, or uint8 [H, W, 3].

        Any exception means that this image cannot be read.
        """


@runtime_checkable
class ReadsRuns(Protocol):
    """A source that yields many images of one size at once, without a call for each."""

    def read_run(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Images start..stop-1 as uint8 [stop - start, H, W, 3]."""


def known_names() -> tuple[str, ...]:
    """The names that `--data` accepts besides paths."""
    return ("shapes", *_PUBLISHED)


def open_source(data: DataConfig, progress: Progress | None = None) -> Source:
    """Open the part `data.split` of what `data.source` names.

    A known name (`shapes`, `cifar10`, `cifar100`, `stl10`) wins over a file of the same name; `./shapes`
    means the file. Published sets are read when their first image is, not here.

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
    if wanted in _PUBLISHED:
        published = _PUBLISHED[wanted]
        return PublishedSource(
            published, wanted, functools.partial(_unpacked_download, published, progress), split
        )
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
    for published in _PUBLISHED.values():
        if path.name == published.folder:
            return PublishedSource(published, str(path), lambda: path, split)
        if (inside := path / published.folder).is_dir():
            return PublishedSource(published, str(inside), lambda: inside, split)
    return FolderSource(path, split)


def _open_file(path: Path, split: Split) -> Source:
    if path.name.lower().endswith((".tar.gz", ".tgz")):
        return _open_archive(path, split)
    if zipfile.is_zipfile(path):
        return ZipSource(path, split)
    if path.suffix.lower() == ".zip":
        raise DataError(f"{path} is not a zip file or is cut off: copy or download it again")
    raise DataError(
        f"{path} is a single file that holds no image set gantx can read: give a folder of images, a zip, "
        "or the published archive of CIFAR-10, CIFAR-100 or STL-10"
    )


# --- folders and zips -------------------------------------------------------------------------------------


class FolderSource:
    """The images of a folder and all folders below it, in the order of their names.

    Symbolic links are followed. Raises DataError when there is no image, or none held out for "test".

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
        return _open_image((self._root / self._names[index]).read_bytes())


class ZipSource:
    """The images of a zip file, in the order of their names.

    Of entries that share a name, the last one counts, as it does when the zip is unpacked. Raises DataError
    for a zip that is damaged, protected by a password, holds unsafe names, holds no image, or none held out
    for "test".

    Args:
        path: an existing zip file.
        split: the images to train on, or those held out.
    """

    def __init__(self, path: Path, split: Split = "train") -> None:
        self.name = _safe_name(path.stem)
        self.location = str(path)
        try:
            self._zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, NotImplementedError, ValueError) as problem:
            raise DataError(f"{path} is a damaged zip ({problem}): copy or download it again") from problem
        entries: dict[str, zipfile.ZipInfo] = {}
        others = repeated = 0
        for entry in self._zip.infolist():
            name = entry.filename.replace("\\", "/")
            if name.startswith("/") or re.match("[A-Za-z]:", name) or ".." in name.split("/"):
                raise DataError(
                    f"{path} holds the entry '{entry.filename}', which points outside the zip: "
                    "pack the images again with relative names"
                )
            if entry.is_dir() or name.endswith("/") or _hidden(name):
                continue
            if not name.lower().endswith(SUFFIXES):
                others += 1
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
        entry = self._entries[index]
        if entry.file_size > _LARGEST_ENTRY:
            raise ValueError(f"it unpacks to {entry.file_size:,} bytes, more than gantx reads")
        return _open_image(self._zip.read(entry))


@dataclass(frozen=True)
class _Listing:
    names: tuple[str, ...]
    labels: tuple[int, ...] | None
    class_names: tuple[str, ...]
    notes: tuple[str, ...]


def _arrange(found: Iterable[str], others: int, location: str, split: Split) -> _Listing:
    """Choose the part `split` of the listed images, order it, and read labels off the folders.

    A folder that alone wraps everything is looked through. Where `train` lies beside held-out folders, one
    or the others are taken. Then, when every image lies directly in one of several folders, the sorted
    folders are the classes.
    """
    names = sorted(found)
    if not names:
        raise DataError(
            f"there is no image in {location}: gantx reads files named {', '.join(SUFFIXES)}, at any depth"
        )
    notes = []
    if others:
        notes.append(f"{_count(others, 'file')} in {location} ignored: not an image by suffix")
    is_divided = False
    skip = 0  # parts of every name that only lead to the images
    while True:
        parts = [name.split("/")[skip:] for name in names]
        tops = {part[0] for part in parts if len(part) > 1}
        if "train" in tops and (held_out := tops & _HELD_OUT):
            used = {"train"} if split == "train" else held_out
            what = "only train/ is used" if split == "train" else "train/ is left out"
            also = " and ".join(sorted(f"{top}/" for top in held_out))
            notes.append(f"{location} holds train/ and {also}: {what}")
            names = [
                name for name, part in zip(names, parts, strict=True) if len(part) > 1 and part[0] in used
            ]
            is_divided = True
        elif len(tops) != 1 or any(len(part) == 1 for part in parts):
            break
        skip += 1
    if split == "test" and not is_divided:
        raise DataError(
            f"{location} holds no test images: data.split=test takes test/, val/, valid/ and validation/ "
            "beside train/, so arrange it like that, or name the folder of test images and the split train"
        )
    if any(len(part) != 2 for part in parts):
        return _Listing(tuple(names), None, (), tuple(notes))
    classes = sorted(tops)
    number = {top: index for index, top in enumerate(classes)}
    return _Listing(tuple(names), tuple(number[part[0]] for part in parts), tuple(classes), tuple(notes))


def _walk(root: Path) -> tuple[dict[str, tuple[int, int]], int]:
    """Images below `root`: relative name to (bytes, time of change in ns); and the count of other files."""

    def refuse(problem: OSError) -> None:
        raise problem

    found: dict[str, tuple[int, int]] = {}
    others = 0
    entered: set[tuple[int, int]] = set()  # a link to a folder above must not lead round for ever
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
                others += 1
                continue
            try:
                facts = os.stat(f"{folder}/{name}")  # noqa: PTH116 -- a Path per file triples the time
                found[prefix + name] = (facts.st_size, facts.st_mtime_ns)
            except OSError:  # a dangling link: listed, so that reading it reports a bad image
                found[prefix + name] = (-1, -1)
    return found, others


def _hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def _open_image(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content), formats=FORMATS)


# --- published sets ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Published:
    """A set whose archive and files have digests that torchvision knows.

    Attributes:
        name: what `--data` calls it.
        title: what people call it.
        kind: name of the class in torchvision.datasets that holds address and digests.
        folder: the folder its archive unpacks to.
    """

    name: str
    title: str
    kind: str
    folder: str


_PUBLISHED = {
    published.name: published
    for published in (
        _Published("cifar10", "CIFAR-10", "CIFAR10", "cifar-10-batches-py"),
        _Published("cifar100", "CIFAR-100", "CIFAR100", "cifar-100-python"),
        _Published("stl10", "STL-10", "STL10", "stl10_binary"),
    )
}


class PublishedSource:
    """The images of CIFAR-10, CIFAR-100 (fine labels) or STL-10 (no labels; unlabeled counts as training).

    Args:
        published: which set.
        location: where it comes from, for messages.
        unpacked: returns its unpacked folder; may download and unpack. Called when the first image, the
            number of images or a class name is needed, so that a cached set needs neither.
        split: the published training or test images.
    """

    notes: tuple[str, ...] = ()

    def __init__(
        self, published: _Published, location: str, unpacked: Callable[[], Path], split: Split
    ) -> None:
        self.name = published.name
        self.location = location
        self._published = published
        self._unpacked = unpacked
        self._split = split

    @functools.cached_property
    def _content(self) -> _Content:
        folder = self._unpacked()
        try:
            load = _load_stl if self._published.name == "stl10" else _load_cifar
            return load(self._published, folder, self._split)
        except OSError as problem:
            raise MissingError(f"cannot read {folder}: {problem.strerror or problem}") from problem

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes; empty for STL-10, most of which has no label."""
        return self._content.class_names

    @property
    def typical_bytes(self) -> int:
        """Bytes of one image."""
        return int(self._content.parts[0][0].size)

    def __len__(self) -> int:
        return sum(len(part) for part in self._content.parts)

    def fingerprint(self) -> str:
        """Fixed for each split: the images are verified against published digests before they are used."""
        return _digest([f"published/{self._published.name}/{self._split}"])

    def label(self, index: int) -> int | None:
        """The class as published, from 0; None for STL-10."""
        labels = self._content.labels
        return None if labels is None else labels[index]

    def identify(self, index: int) -> str:
        """The set, the split and the number of the image in it."""
        return f"{self._published.title} {self._split} image {index}"

    def read(self, index: int) -> NDArray[np.uint8]:
        """Image `index`, uint8 [H, W, 3]."""
        image: NDArray[np.uint8] = self.read_run(index, index + 1)[0]
        return image

    def read_run(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Images start..stop-1, uint8 [stop - start, H, W, 3]."""
        pieces, offset = [], 0
        for part in self._content.parts:
            pieces.append(part[max(0, start - offset) : max(0, stop - offset)])
            offset += len(part)
        return np.concatenate(pieces)


@dataclass(frozen=True)
class _Content:
    parts: tuple[NDArray[np.uint8], ...]  # each [n, H, W, 3], perhaps a view of a mapped file
    labels: Sequence[int] | None
    class_names: tuple[str, ...]


def _load_cifar(published: _Published, folder: Path, split: Split) -> _Content:
    kind = _torchvision(published)
    meta = (kind.meta["filename"], kind.meta["md5"])
    _verify(published, folder, [*map(tuple, kind.train_list), *map(tuple, kind.test_list), meta])
    # Before it unpickles, torchvision checks every digest again.
    images = kind(root=str(folder.parent), train=split == "train")
    return _Content((images.data,), [int(label) for label in images.targets], tuple(images.classes))


def _load_stl(published: _Published, folder: Path, split: Split) -> _Content:
    kind = _torchvision(published)
    digests = dict([*kind.train_list, *kind.test_list])
    files = ("train_X.bin", "unlabeled_X.bin") if split == "train" else ("test_X.bin",)
    _verify(published, folder, [(name, digests[name]) for name in files])
    # The files hold images of 96 x 96 as [N, 3, W, H]; mapped, because they take 2.9 GB.
    maps = [np.memmap(folder / name, np.uint8, mode="r").reshape(-1, 3, 96, 96) for name in files]
    return _Content(tuple(pixels.transpose(0, 3, 2, 1) for pixels in maps), None, ())


def _verify(published: _Published, folder: Path, digests: Iterable[tuple[str, str]]) -> None:
    from torchvision.datasets.utils import check_integrity

    for name, digest in digests:
        if not check_integrity(str(folder / name), digest):
            state = "does not have the published MD5" if (folder / name).is_file() else "is missing"
            raise DataError(
                f"{folder / name} {state}: delete {folder} and unpack the published archive of "
                f"{published.title} again"
            )


def _open_archive(path: Path, split: Split) -> PublishedSource:
    """A .tar.gz is accepted only when its MD5 says that it is one of the published sets."""
    digest = digest_of(path, "md5")
    for published in _PUBLISHED.values():
        if digest == _torchvision(published).tgz_md5:
            unpacked = functools.partial(_unpack, published, path, digest)
            return PublishedSource(published, str(path), unpacked, split)
    raise DataError(
        f"{path} is not the published archive of CIFAR-10 (Python version), CIFAR-100 (Python version) or "
        f"STL-10 (its MD5 is {digest}): download it again, or unpack your own images and give the folder"
    )


def _unpacked_download(published: _Published, progress: Progress | None) -> Path:
    """Download the archive unless it is there, and unpack it unless that was done before."""
    kind = _torchvision(published)
    archive = cache_folder() / "downloads" / str(kind.filename)
    unpacked = _unpacked_folder(published, kind.tgz_md5)
    if unpacked.is_dir():
        return unpacked
    remote = Remote(
        url=kind.url,
        algorithm="md5",
        digest=kind.tgz_md5,
        title=published.title,
        instead="fetch that file in another way and give its path to --data",
    )
    download(remote, archive, progress)
    return _unpack(published, archive, kind.tgz_md5)


def _unpack(published: _Published, archive: Path, digest: str) -> Path:
    """Unpack a verified archive into the cache once; returns the folder of its files."""
    unpacked = _unpacked_folder(published, digest)
    if unpacked.is_dir():
        return unpacked
    beside = unpacked.parent.with_name(f".{unpacked.parent.name}.{uuid.uuid4().hex}")
    try:
        beside.mkdir(parents=True)
        with tarfile.open(archive, "r:gz") as tar:
            tar.extractall(beside, filter="data")
        os.rename(beside, unpacked.parent)  # noqa: PTH104 -- must fail when another process was first
    except OSError as problem:
        if problem.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise MissingError(
                f"cannot unpack {archive} into {unpacked.parent.parent} ({problem.strerror or problem}): "
                "free space there or set GANTX_CACHE to another folder"
            ) from problem
    except tarfile.TarError as problem:
        raise DataError(f"{archive} cannot be unpacked ({problem}): download it again") from problem
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return unpacked


def _unpacked_folder(published: _Published, digest: str) -> Path:
    return cache_folder() / "unpacked" / f"{published.name}-{digest[:8]}" / published.folder


def _torchvision(published: _Published) -> Any:
    try:
        from torchvision import datasets
    except (ImportError, RuntimeError) as problem:  # RuntimeError: built for another torch
        raise MissingError(
            f"reading {published.title} needs a torchvision that fits the installed torch ({problem}): "
            "reinstall both, or unpack the images into a folder"
        ) from problem
    return getattr(datasets, published.kind)


# --- small things -----------------------------------------------------------------------------------------


def _digest(lines: Iterable[str]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for line in lines:
        digest.update(line.encode("utf-8", "surrogateescape") + b"\n")
    return digest.hexdigest()


def _safe_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text)[:40].strip("-.") or "data"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
