"""Sources in a file or a few: arrays, tar shards, parquet tables and LMDB databases.

Images are read from where they lie, one at a time; nothing is unpacked, and nothing read here can run code.
A container has no held-out part of its own, except a tar whose names have one, as in a folder.
"""

from __future__ import annotations

import json
import math
import tarfile
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gantx.data.listing import arrange, count_of, digest_of, hidden, safe_name, suffix_of
from gantx.data.shapes import Split
from gantx.errors import DataError, GantxError, MissingError
from gantx.io.archives import open_zip
from gantx.io.arrays import LARGEST_ARRAY, read_npy
from gantx.io.decoding import SUFFIXES, open_image
from gantx.io.lmdb_file import LmdbFile

_MOST_PACKED = 64  # an array of a .npz may unpack to so many times its bytes, and `LARGEST_ARRAY` beside
_LARGEST_ENTRY = 2**30  # bytes of one image file
_CLASSES = 100_000  # class numbers from 0 that a container may hold


def container_of(path: Path) -> str | None:
    """The suffix of the container that a path is: .npy, .npz, .tar, .parquet or .mdb; None for another.

    A folder is one if it holds nothing but shards of tar or parquet files, or an LMDB database.
    """
    if path.is_dir():
        if (path / "data.mdb").is_file():
            return ".mdb"
        suffixes = {entry.suffix.lower() for entry in path.iterdir() if not hidden(entry.name)}
        return suffixes.pop() if suffixes in ({".tar"}, {".parquet"}) else None
    suffix = path.suffix.lower()
    return suffix if suffix in (".npy", ".npz", ".tar", ".parquet", ".mdb") else None


def open_container(path: Path, split: Split) -> ArraySource | TarSource | ParquetSource | LmdbSource:
    """Open a container that `container_of` knows.

    Raises:
        DataError: it is damaged, holds no images, or has no held-out part where `split` is "test".
        MissingError: the library that reads it is not installed.
    """
    kind = container_of(path)
    if kind == ".tar":
        return TarSource(path, split)
    if split == "test":
        raise DataError(
            f"{path} has no test images: name the container of the test images and the split train"
        )
    if kind == ".parquet":
        return ParquetSource(path)
    if kind == ".mdb":
        return LmdbSource(path / "data.mdb" if path.is_dir() else path)
    return ArraySource(path)


def _shards(path: Path) -> list[Path]:
    """The file itself, or the files of a folder in the order of their names."""
    return sorted(entry for entry in path.iterdir() if not hidden(entry.name)) if path.is_dir() else [path]


def _facts(paths: Sequence[Path]) -> Iterator[str]:
    """Lines that change when files change."""
    for path in paths:
        facts = path.stat()
        yield f"{path.name}\0{facts.st_size}\0{facts.st_mtime_ns}"


class _Labelled:
    """What containers that store class numbers share; `labels` has one for each image, or is None."""

    class_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    _labels: NDArray[np.int64] | None = None

    def label(self, index: int) -> int | None:
        """The class of image `index`, or None."""
        return None if self._labels is None else int(self._labels[index])

    def _take_labels(self, labels: Any, count: int, location: str, names: Sequence[str] = ()) -> None:
        """Keep class numbers, and name the classes by their numbers where they have no names."""
        numbers = np.asarray(labels)
        if numbers.shape != (count,) or numbers.dtype.kind not in "iu" or not count:
            raise DataError(
                f"{location} has labels of shape {list(numbers.shape)} and type {numbers.dtype} for "
                f"{count_of(count, 'image')}: store one class number from 0 for each"
            )
        low, high = int(numbers.min()), int(numbers.max())
        if low < 0 or high >= (len(names) or _CLASSES):
            raise DataError(
                f"{location} has class numbers from {low} to {high}: use 0 to "
                f"{(len(names) or _CLASSES) - 1:,}, or leave the labels out"
            )
        self._labels = numbers.astype(np.int64)
        self.class_names = tuple(names) or tuple(str(number) for number in range(high + 1))


# --- arrays -----------------------------------------------------------------------------------------------


class ArraySource(_Labelled):
    """Images of one size in a .npy file, or in a .npz with labels.

    Accepted is uint8 [N, H, W, 3], [N, 3, H, W], [N, H, W] or [N, H, W, 1]; with 4 channels the last is
    alpha. A .npy stays mapped; an array of a .npz is read into memory. In a .npz the images are the only such
    array, or the one called `images`; the labels are the integers [N] called `labels`, `label` or `y`.

    Args:
        path: an existing file.
    """

    def __init__(self, path: Path) -> None:
        self.name = safe_name(path.stem)
        self.location = str(path)
        self._path = path
        images: Any
        try:
            if path.suffix.lower() == ".npy":
                images = read_npy(path)
                labels = None
            else:
                images, labels = _from_npz(path)
        except MemoryError:
            raise MissingError(
                f"there is not enough memory for the array of {path}: store it as .npy, which can be mapped"
            ) from None
        except GantxError:
            raise
        except Exception as problem:  # a damaged header makes numpy and zipfile raise many types
            if isinstance(problem, OSError) and problem.errno:
                raise
            raise DataError(
                f"cannot read {path} as an array ({' '.join(str(problem).split())}): write it with numpy.save"
            ) from problem
        self._images = _channels_last(images, path)
        if labels is not None:
            self._take_labels(labels, len(self._images), str(path))
        self.typical_bytes = math.prod(self._images.shape[1:])

    def __len__(self) -> int:
        return len(self._images)

    def fingerprint(self) -> str:
        """Digest of the file's name, size and time of change."""
        return digest_of(_facts([self._path]))

    def identify(self, index: int) -> str:
        """The file and the row."""
        return f"{self.location}[{index}]"

    def read(self, index: int) -> Image.Image:
        """The image of a row."""
        pixels = np.asarray(self._images[index])
        return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else np.ascontiguousarray(pixels))


def _from_npz(path: Path) -> tuple[NDArray[np.uint8], Any]:
    """Images and labels (or None) of a .npz file."""
    with open_zip(path) as archive:
        for entry in archive.infolist():
            if entry.file_size > _MOST_PACKED * entry.compress_size + LARGEST_ARRAY:
                raise ValueError(f"{entry.compress_size:,} bytes that unpack to {entry.file_size:,}")
    with np.load(path, allow_pickle=False) as arrays:
        if not isinstance(arrays, np.lib.npyio.NpzFile):
            raise ValueError("it is not a .npz file")
        names = arrays.files
        # Every access of `arrays` unpacks one again.
        wanted = ["images"] if "images" in names else names
        found = [array for array in map(arrays.__getitem__, wanted) if len(wanted) == 1 or _is_images(array)]
        if len(found) != 1:
            raise DataError(
                f"{path} has {len(found) or 'no'} arrays of images (uint8 [N, H, W, 3]) among "
                f"{', '.join(names[:8]) or 'none at all'}: call the one to use `images`"
            )
        labels = next((arrays[name] for name in ("labels", "label", "y") if name in names), None)
        return found[0], labels


def _is_images(array: Any) -> bool:
    return array.dtype == np.uint8 and array.ndim in (3, 4)


def _channels_last(images: Any, path: Path) -> NDArray[np.uint8]:
    """Images as [N, H, W, 1, 3 or 4]; DataError for anything else."""
    shape = images.shape
    if _is_images(images) and len(images) and 0 not in shape:
        if images.ndim == 3:
            return np.expand_dims(images, -1)
        if shape[-1] in (1, 3, 4):
            return np.asanyarray(images, np.uint8)
        if shape[1] in (1, 3, 4):
            return np.moveaxis(images, 1, -1)
    raise DataError(
        f"{path} holds {images.dtype} {list(shape)}: images are uint8 [N, H, W, 3] or [N, 3, H, W], values "
        "0 to 255, also with 1 or 4 channels"
    )


# --- tar --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Member:
    """Where a file lies in a tar."""

    shard: int
    offset: int
    size: int


class TarSource(_Labelled):
    """The images of a tar file, or of a folder of tar files (WebDataset shards), in the order of their names.

    A `.cls` file beside an image of the same name holds its class number; without these, class folders count
    as they do in a folder. Compressed tars, of which no single image can be read, are refused.

    Args:
        path: an existing file or folder.
        split: the images to train on, or those held out.
    """

    def __init__(self, path: Path, split: Split = "train") -> None:
        self.name = safe_name(path.stem)
        self.location = str(path)
        self._shards = _shards(path)
        images: dict[str, _Member] = {}
        classes: dict[str, _Member] = {}
        others: Counter[str] = Counter()
        for number, shard in enumerate(self._shards):
            for name, member in _members(shard, number):
                if name.lower().endswith(SUFFIXES):
                    images[name] = member
                elif name.lower().endswith(".cls"):
                    classes[_key(name)] = member
                else:
                    others[suffix_of(name)] += 1
        listing = arrange(images, others, self.location, split)
        self.notes, self._names = listing.notes, listing.names
        self._entries = [images[name] for name in self._names]
        if classes:
            self._take_labels(
                [self._class_of(classes, name) for name in self._names], len(self._names), self.location
            )
        elif listing.labels is not None:
            self._take_labels(listing.labels, len(self._names), self.location, listing.class_names)
        self.typical_bytes = sum(entry.size for entry in self._entries) // len(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def fingerprint(self) -> str:
        """Digest of the shards' names, sizes and times of change."""
        return digest_of(_facts(self._shards))

    def identify(self, index: int) -> str:
        """The shard and the name inside it."""
        return f"{self._shards[self._entries[index].shard]}:{self._names[index]}"

    def read(self, index: int) -> Image.Image:
        """The image, not decoded yet."""
        return open_image(self._content(self._entries[index]))

    def _content(self, entry: _Member) -> bytes:
        if entry.size > _LARGEST_ENTRY:
            raise ValueError(f"it has {entry.size:,} bytes, more than gantx reads")
        with self._shards[entry.shard].open("rb") as file:
            file.seek(entry.offset)
            content = file.read(entry.size)
        if len(content) != entry.size:
            raise ValueError("it is cut off")
        return content

    def _class_of(self, classes: dict[str, _Member], name: str) -> int:
        entry = classes.get(_key(name))
        text = self._content(entry).strip() if entry is not None and entry.size < 32 else b""
        if not text.isdigit():
            raise DataError(
                f"{self.location} has no class number for {name}: store it as digits in {_key(name)}.cls, or "
                "leave out all .cls files"
            )
        return int(text)


def _members(shard: Path, number: int) -> Iterator[tuple[str, _Member]]:
    """Names and places of the plain files in a tar."""
    try:
        with tarfile.open(shard, "r:") as archive:
            for entry in archive:
                name = entry.name.removeprefix("./")
                if entry.isreg() and not entry.issparse() and not hidden(name):
                    yield name, _Member(number, entry.offset_data, entry.size)
    except tarfile.TarError as problem:
        raise DataError(
            f"{shard} is no plain tar file or is damaged ({problem}): copy it again, or unpack it"
        ) from problem


def _key(name: str) -> str:
    """What the files of one WebDataset sample share: the name up to the first dot of its last part."""
    folder, _, file = name.rpartition("/")
    return f"{folder}/{file.split('.')[0]}" if folder else file.split(".")[0]


# --- parquet ----------------------------------------------------------------------------------------------


class ParquetSource(_Labelled):
    """The rows of a parquet file or of a folder of them, as Hugging Face's datasets library writes them.

    The images are the only column of encoded images: bytes, or a structure with a field `bytes`; or the one
    called `image`. A column of integers called `label` or `labels` holds the classes, whose names are taken
    from the description that library leaves in the file.

    Args:
        path: an existing file or folder.

    Raises:
        MissingError: pyarrow is not installed.
        DataError: it cannot be read, or has no such column.
    """

    def __init__(self, path: Path) -> None:
        parquet = _library("pyarrow.parquet", path, "parquet")
        arrow = _library("pyarrow", path, "parquet")
        self.name = safe_name(path.stem)
        self.location = str(path)
        self._shards = _shards(path)
        try:
            self._files = [parquet.ParquetFile(shard) for shard in self._shards]
            schema = self._files[0].schema_arrow
            column = _image_column(schema, path)
            self._column = column
            # (shard, row group, first row, rows) of every row group.
            self._groups: list[tuple[int, int, int, int]] = []
            first = 0
            for shard, file in enumerate(self._files):
                for group in range(file.num_row_groups):
                    rows = file.metadata.row_group(group).num_rows
                    self._groups.append((shard, group, first, rows))
                    first += rows
            self._count = first
            self._require_bounds()
            labels = next((name for name in ("label", "labels") if name in schema.names), None)
            numbers = [file.read([labels])[labels].to_numpy() for file in self._files] if labels else []
        except (arrow.ArrowException, OSError, ValueError, KeyError) as problem:
            raise DataError(
                f"cannot read {path} as parquet ({' '.join(str(problem).split())}): copy it again"
            ) from problem
        if not self._count:
            raise DataError(f"{path} has no rows: name a table of images")
        if labels:
            self._take_labels(
                np.concatenate(numbers), self._count, self.location, _class_names(schema, labels)
            )
        self.typical_bytes = sum(shard.stat().st_size for shard in self._shards) // self._count
        self._starts = [first for _, _, first, _ in self._groups]
        self._lock = threading.Lock()
        self._held: tuple[int, Any] = (-1, None)  # the last row group that was read

    def _require_bounds(self) -> None:
        """ValueError if the files announce more than a table of images of their size has."""
        size = sum(shard.stat().st_size for shard in self._shards)
        # A row that repeats the one before takes no bytes: without a limit, labels could fill the memory.
        if self._count > size or any(rows < 0 for _, _, _, rows in self._groups):
            raise ValueError(f"{self._count:,} rows in {size:,} bytes")
        for shard, group, _, _ in self._groups:
            packed = self._shards[shard].stat().st_size
            # Of a damaged file, the description of a column would end the process by SIGABRT.
            unpacked = self._files[shard].metadata.row_group(group).total_byte_size
            if unpacked > _MOST_PACKED * packed + LARGEST_ARRAY:
                raise ValueError(f"{packed:,} bytes that unpack to {unpacked:,}")

    def __len__(self) -> int:
        return self._count

    def fingerprint(self) -> str:
        """Digest of the shards' names, sizes and times of change."""
        return digest_of(_facts(self._shards))

    def identify(self, index: int) -> str:
        """The file or folder and the row."""
        return f"{self.location}[{index}]"

    def read(self, index: int) -> Image.Image:
        """The image of a row, not decoded yet."""
        which = int(np.searchsorted(self._starts, index, "right")) - 1
        shard, group, first, _ = self._groups[which]
        with self._lock:
            if self._held[0] != which:
                self._held = (which, self._files[shard].read_row_group(group, [self._column])[self._column])
            cell = self._held[1][index - first].as_py()
        content = cell.get("bytes") if isinstance(cell, dict) else cell
        if not isinstance(content, bytes):
            raise ValueError("its row holds no image, only a name: store the images in the table")
        return open_image(content)


def _image_column(schema: Any, path: Path) -> str:
    fields = [
        field.name
        for field in schema
        if str(field.type) in ("binary", "large_binary") or "bytes: binary" in str(field.type)
    ]
    chosen = ["image"] if "image" in fields else fields
    if len(chosen) != 1:
        raise DataError(
            f"{path} has {len(chosen) or 'no'} columns of encoded images among "
            f"{', '.join(schema.names[:8])}: call the one to use `image`"
        )
    return str(chosen[0])


def _class_names(schema: Any, column: str) -> tuple[str, ...]:
    """Names of the classes in the description of Hugging Face's datasets library, or ()."""
    try:
        info = json.loads(schema.metadata[b"huggingface"])["info"]["features"][column]["names"]
        return tuple(str(name) for name in info)
    except (KeyError, TypeError, ValueError, RecursionError):
        return ()


# --- LMDB -------------------------------------------------------------------------------------------------


class LmdbSource(_Labelled):
    """The values of an LMDB database that are encoded images, in the order of their keys, as LSUN has them.

    Args:
        path: the file `data.mdb`, or one of another name.

    Raises:
        DataError: it cannot be read, or is empty.
    """

    def __init__(self, path: Path) -> None:
        folder = path.parent if path.parent.name else path.parent.resolve()  # "." has no name
        place = folder if path.name == "data.mdb" else path
        self.name = safe_name(place.name if place.is_dir() else place.stem)
        self.location = str(place)
        self._path = path
        try:
            self._entries = LmdbFile(path)
        except (ValueError, OSError) as problem:
            raise DataError(
                f"cannot read {place} as an LMDB database ({problem}): copy it again, or export its images "
                "to a folder"
            ) from problem
        if not len(self._entries):
            raise DataError(f"{place} is an empty LMDB database: name one with images")
        self.typical_bytes = path.stat().st_size // len(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def fingerprint(self) -> str:
        """Digest of the database's size and time of change."""
        return digest_of(_facts([self._path]))

    def identify(self, index: int) -> str:
        """The folder and the key."""
        return f"{self.location}:{self._entries.keys[index].decode('utf-8', 'backslashreplace')}"

    def read(self, index: int) -> Image.Image:
        """The image of a key, not decoded yet."""
        return open_image(self._entries.value(index, _LARGEST_ENTRY))


class _Module(Protocol):
    def __getattr__(self, name: str) -> Any: ...


def _library(name: str, path: Path, extra: str) -> _Module:
    """An optional library; MissingError says how to install it."""
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError:
        raise MissingError(
            f"{name.split('.')[0]}, which reads {path}, is not installed: pip install 'gantx[{extra}]'"
        ) from None
