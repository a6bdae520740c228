"""Arranges the names of images: which of them are used, in which order, and in which class each is.

Shared by folders, zips and the containers whose entries have names.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from gantx.data.shapes import Split
from gantx.errors import DataError
from gantx.io.decoding import SUFFIXES

_HELD_OUT = frozenset({"test", "val", "valid", "validation"})


@dataclass(frozen=True)
class Listing:
    """The images that are used.

    Attributes:
        names: sorted.
        labels: the class of each, or None.
        class_names: names of the classes; empty without labels.
        notes: what the user should know, as sentences for the log.
    """

    names: tuple[str, ...]
    labels: tuple[int, ...] | None
    class_names: tuple[str, ...]
    notes: tuple[str, ...]


def arrange(found: Iterable[str], others: Counter[str], location: str, split: Split) -> Listing:
    """Choose the part `split` of the listed images, sort it, and derive labels from the folders.

    A single folder around everything is ignored. Where `train` is beside held-out folders, it or they are
    taken. Then, if every image is directly in one of several folders, the sorted folders are the classes.
    """
    names = sorted(found)
    if not names:
        raise DataError(
            f"there is no image in {location}: gantx reads files named {', '.join(SUFFIXES)}, at any depth"
            + (f", and left out {listed(others)}" if others else "")
        )
    notes = []
    if others:
        count = count_of(others.total(), "file")
        notes.append(f"{count} in {location} ignored: not an image by suffix ({listed(others)})")
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
        return Listing(tuple(names), None, (), tuple(notes))
    classes = sorted(tops)
    number = {top: index for index, top in enumerate(classes)}
    return Listing(tuple(names), tuple(number[part[0]] for part in parts), tuple(classes), tuple(notes))


def suffix_of(name: str) -> str:
    """The suffix of a file for messages: lower case, printable and short; "" without one."""
    suffix = Path(name).suffix.lower()
    return suffix if suffix.isprintable() and len(suffix) <= 16 else ""


def listed(others: Counter[str]) -> str:
    """The most frequent suffixes with their counts: "12 .heic, 1 without a suffix"."""
    parts = [f"{count:,} {suffix or 'without a suffix'}" for suffix, count in others.most_common(4)]
    return ", ".join(parts) + (", …" if len(others) > 4 else "")


def hidden(name: str) -> bool:
    """Whether a relative name is that of a hidden file, or in a hidden folder."""
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


# --- names and digests ------------------------------------------------------------------------------------


def digest_of(lines: Iterable[str]) -> str:
    """A digest of lines of text."""
    digest = hashlib.blake2b(digest_size=16)
    for line in lines:
        digest.update(line.encode("utf-8", "surrogateescape") + b"\n")
    return digest.hexdigest()


def safe_name(text: str) -> str:
    """The name of a set, as part of the name of a run."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text)[:40].strip("-.") or "data"


def count_of(number: int, noun: str) -> str:
    """A number with its noun: "1 file", "1,200 files"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
