"""Labels of images: which class each image of a set belongs to.

Class folders are found where the images are listed (gantx.data.sources). Here are the files that give labels,
which win over folders: StyleGAN's `dataset.json`, `{"labels": [["a/1.png", 6], ...]}`, and `labels.csv` with
lines of `file,label`. Names of files are relative to the folder that the label file is in. A label is a whole
number or a name; classes are sorted by number, or else by name, and counted from 0, so that the same images
and classes have the same labels wherever they come from.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gantx.errors import DataError

NAMES = ("dataset.json", "labels.csv")  # the first wins where a folder has both
_LARGEST = 2**28  # bytes of a label file that are read into memory
_COLUMNS = {
    "file": ("file", "filename", "file_name", "path", "image", "name"),
    "label": ("label", "class", "label_name", "class_name"),
}


@dataclass(frozen=True)
class Labels:
    """The classes of a set of images.

    Attributes:
        numbers: class of each image, from 0.
        names: names of the classes.
    """

    numbers: tuple[int, ...]
    names: tuple[str, ...]


@dataclass(frozen=True)
class LabelFiles:
    """The files that give labels to the images of a set.

    Attributes:
        location: of the set, for messages.
        names: names of the files inside the set; they are in different folders.
        read: returns the content of one of them.
    """

    location: str
    names: tuple[str, ...]
    read: Callable[[str], bytes]

    def __str__(self) -> str:
        """The names, for messages."""
        return " and ".join(self.names)

    def mention_labels(self) -> bool:
        """Whether one of them seems to give labels; never an error, because it may not be needed."""
        try:
            return any(
                name.endswith(".csv") or re.search(rb'"labels"\s*:\s*\[', self.read(name))
                for name in self.names
            )
        except (DataError, OSError, ValueError):
            return False

    def labels(self, images: Sequence[str]) -> Labels | None:
        """The labels of images, by their names inside the set.

        Returns:
            None if the files say that there are no labels.

        Raises:
            DataError: a file is damaged, contradicts itself, or has no label for an image.
        """
        given: dict[str, int | str] = {}
        for name in self.names:
            given |= self._given(name)
        if not given:
            return None
        if missing := [image for image in images if image not in given]:
            raise DataError(
                f"{self} in {self.location} gives no label to {len(missing):,} of {len(images):,} images, "
                f"for example {missing[0]}: add them, or remove these images"
            )
        return _numbered([given[image] for image in images])

    def digest(self) -> str:
        """Digest of the names and contents of the files."""
        digest = hashlib.blake2b(digest_size=16)
        for name in self.names:
            content = self.read(name)
            digest.update(f"{name}\0{len(content)}\n".encode("utf-8", "surrogateescape") + content)
        return digest.hexdigest()

    def _given(self, name: str) -> dict[str, int | str]:
        where = f"{self.location}/{name}"
        content = self.read(name)
        if len(content) > _LARGEST:
            raise DataError(f"{where} has {len(content):,} bytes, more than gantx reads of labels")
        try:
            text = content.decode("utf-8-sig")
            pairs = _of_csv(text) if name.endswith(".csv") else _of_json(json.loads(text))
        except (ValueError, csv.Error, RecursionError) as problem:
            raise DataError(f"{where} does not give labels: {_first(problem)}") from problem
        folder = name[: name.rfind("/") + 1]
        given: dict[str, int | str] = {}
        for file, label in pairs:
            inside = folder + file.replace("\\", "/").removeprefix("./")
            if given.setdefault(inside, label) != label:
                raise DataError(f"{where} gives {file!r} two labels, {given[inside]!r} and {label!r}")
        return given


def choose(files: Iterable[str], images: Iterable[str]) -> tuple[str, ...]:
    """Those of the label files that speak of the images: the ones nearest to the top, one in each folder."""
    by_folder: dict[str, str] = {}
    for name in sorted(files, key=lambda name: NAMES.index(name.rsplit("/", 1)[-1])):
        by_folder.setdefault(name[: name.rfind("/") + 1], name)
    folders = {name[: end + 1] for name in images for end in _slashes(name)}
    chosen = sorted(folder for folder in by_folder if folder in folders or not folder)
    least = min((folder.count("/") for folder in chosen), default=0)
    return tuple(by_folder[folder] for folder in chosen if folder.count("/") == least)


def is_label_file(name: str) -> bool:
    """Whether a file of this name gives labels."""
    return name.rsplit("/", 1)[-1] in NAMES


def digest_of(digest: str, labels: NDArray[np.int64]) -> str:
    """Digest of images and their labels: equal for equal ones from any source.

    Args:
        digest: of the pixels.
        labels: int64 [N].
    """
    content = np.ascontiguousarray(labels, "<i8").tobytes()
    return hashlib.blake2b(f"{digest}/labels/".encode() + content, digest_size=16).hexdigest()


def counts(labels: NDArray[np.int64], classes: int) -> tuple[int, ...]:
    """How many images each class has."""
    return tuple(np.bincount(labels, minlength=classes).tolist())


def _slashes(name: str) -> list[int]:
    return [index for index, letter in enumerate(name) if letter == "/"]


def _of_json(tree: Any) -> list[tuple[str, int | str]]:
    """The pairs of a `dataset.json`; none if it says that there are no labels, or is not StyleGAN's."""
    found = tree.get("labels") if isinstance(tree, Mapping) else None
    if found is None:
        return []
    pairs: list[tuple[str, int | str]] = []
    if not isinstance(found, list):
        raise ValueError('"labels" is not a list of [file, label]')
    for entry in found:
        if not (isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str)):
            raise ValueError(f"an entry of labels is {_short(entry)}, not [file, label]")
        file, label = entry
        if isinstance(label, float) and label.is_integer():
            label = int(label)
        if isinstance(label, bool) or not isinstance(label, int | str):
            raise ValueError(f"the label of {file!r} is {_short(label)}, but a class is one number or name")
        pairs.append((file, label))
    return pairs


def _of_csv(text: str) -> list[tuple[str, int | str]]:
    """The pairs of a CSV, with or without a header; further columns are left alone."""
    rows = [row for row in csv.reader(io.StringIO(text)) if any(cell.strip() for cell in row)]
    file, label = 0, 1
    header = [cell.strip().lower() for cell in rows[0]] if rows else []
    named = {
        what: next((header.index(name) for name in names if name in header), None)
        for what, names in _COLUMNS.items()
    }
    if (first := named["file"]) is not None and (second := named["label"]) is not None:
        file, label = first, second
        rows = rows[1:]
    for row in rows:
        if len(row) <= max(file, label) or not row[label].strip():
            raise ValueError(f"the line {_short(','.join(row))} is not file,label")
    return [(row[file].strip(), row[label].strip()) for row in rows]


def _numbered(given: Sequence[int | str]) -> Labels:
    values = sorted(set(given), key=str)
    if all(isinstance(value, int) or re.fullmatch(r"[0-9]{1,18}", value) for value in values):
        numbers = [int(value) for value in given]
        order = sorted(set(numbers))
        if order[0] < 0:
            raise DataError(f"a label is {order[0]}: classes are named, or numbered from 0")
        rank = {value: index for index, value in enumerate(order)}
        return Labels(tuple(rank[value] for value in numbers), tuple(map(str, order)))
    names = sorted({str(value) for value in given})
    position = {name: index for index, name in enumerate(names)}
    return Labels(tuple(position[str(value)] for value in given), tuple(names))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _first(problem: Exception) -> str:
    return " ".join(str(problem).split())[:200] or type(problem).__name__
