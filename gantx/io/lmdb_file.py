"""Reads LMDB databases (`data.mdb`) without their library, which trusts what it maps.

The C library follows page numbers and offsets of a file unchecked, so that a damaged or cut file ends the
process by SIGSEGV or SIGBUS. Here every number is checked before it is used, and nothing is mapped.

The format (version 1, of LMDB 0.9) on 64-bit little-endian machines: pages of one size, of which the first
two are copies of the description, the one with the higher transaction number valid; a B+ tree of branch and
leaf pages; values too large for a leaf in runs of overflow pages. A page begins with its number (8 bytes),
2 unused bytes, its kind (2), and where its offsets end and its nodes begin (2 each), or the length of its
run (4).
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

_MAGIC, _VERSION = 0xBEEFC0DE, 1
_HEADER = struct.Struct("<QHHHH")  # page number, unused, kind, end of the offsets, begin of the nodes
_META = struct.Struct("<IIQQ 48x IHHQQQQQ QQ")  # 48 bytes describe the free pages, then follows the tree
_PAGE_SIZE = struct.Struct("<I")  # in the description of the free pages
_PAGE_SIZE_AT = _HEADER.size + 24
# Size of the value in two parts, flags, size of the key; in a branch the first three are a page's number.
_NODE = struct.Struct("<HHHH")
_BRANCH, _LEAF, _OVERFLOW = 1, 2, 4
_KIND = 0x6F  # these, the descriptions, and pages of several values for a key
_BIG, _DATABASE, _SEVERAL = 1, 2, 4  # flags of a node
_NONE = 2**64 - 1  # the root of an empty tree
_DEPTH = 32  # as in the library
_PAGE_SIZES = [2**power for power in range(9, 17)]


class _Tree(NamedTuple):
    page_size: int
    pages: int
    root: int
    entries: int


class LmdbFile:
    """The entries of the unnamed database in a file, in the order of its tree.

    Args:
        path: of `data.mdb`.

    Attributes:
        keys: the key of each entry.

    Raises:
        ValueError: it is no such file, is damaged, or has named databases or several values for a key.
        OSError: it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.keys: list[bytes] = []
        self._path = path
        self._offsets, self._sizes = array("Q"), array("Q")
        with path.open("rb") as file:
            self._tree = _described(file, path.stat().st_size)
            for page in self._leaves(file):
                self._take(page)
        if len(self.keys) != self._tree.entries:
            raise ValueError(f"{len(self.keys):,} of its {self._tree.entries:,} entries are found")

    def __len__(self) -> int:
        return len(self.keys)

    def value(self, index: int, most: int) -> bytes:
        """The value of an entry; ValueError if it is damaged or has more than `most` bytes."""
        offset, size = self._offsets[index], self._sizes[index]
        if size > most:
            raise ValueError(f"it has {size:,} bytes, more than gantx reads")
        with self._path.open("rb") as file:
            if offset % self._tree.page_size == _HEADER.size:  # never so in a leaf: its offsets come first
                _require_run(file, self._tree, offset // self._tree.page_size, size)
            file.seek(offset)
            content = file.read(size)
        if len(content) != size:
            raise ValueError("a value is cut off")
        return content

    def _leaves(self, file: BinaryIO) -> Iterator[bytes]:
        """The leaf pages from left to right."""
        root = self._tree.root
        below = [] if root == _NONE else [(root, 1)]
        left = self._tree.pages  # a page has one place in the tree
        while below:
            number, depth = below.pop()
            left -= 1
            if left < 0 or depth > _DEPTH:
                raise ValueError("its pages refer to each other in a circle")
            page, kind = _read_page(file, self._tree, number)
            if kind == _LEAF:
                yield page
            elif kind == _BRANCH:
                children = [low | middle << 16 | high << 32 for _, low, middle, high, _ in _nodes(page)]
                below.extend((child, depth + 1) for child in reversed(children))
            else:
                raise ValueError(f"page {number} is of the unknown kind {kind}")

    def _take(self, page: bytes) -> None:
        """Keep the keys of a leaf and the places of its values."""
        number, size = _HEADER.unpack_from(page)[0], self._tree.page_size
        room = size - _HEADER.size
        for at, low, high, flags, length in _nodes(page):
            if flags & (_DATABASE | _SEVERAL):
                raise ValueError("it has named databases or several values for a key: gantx reads neither")
            value, bytes_ = at + _NODE.size + length, low | high << 16
            stored = 8 if flags & _BIG else bytes_
            room -= _NODE.size + length + stored
            if value + stored > size or room < 0:
                raise ValueError(f"the entries of page {number} do not fit into it")
            self.keys.append(page[at + _NODE.size : value])
            self._sizes.append(bytes_)
            if flags & _BIG:
                run = int.from_bytes(page[value : value + 8], "little")
                if not 2 <= run < self._tree.pages:
                    raise ValueError(f"a value of page {number} is in page {run}, which does not exist")
                self._offsets.append(run * size + _HEADER.size)
            else:
                self._offsets.append(number * size + value)


def _described(file: BinaryIO, size: int) -> _Tree:
    """The tree that the newer of the two descriptions has."""
    found = []
    page_size = 0
    for number in range(2):
        file.seek(number * page_size)
        page = file.read(_HEADER.size + _META.size)
        if len(page) < _HEADER.size + _META.size:
            raise ValueError("it is cut off")
        magic, version, _, _, _, _, _, _, _, _, entries, root, _, transaction = _META.unpack_from(
            page, _HEADER.size
        )
        if magic != _MAGIC:
            raise ValueError("it does not begin as the databases of 64-bit little-endian machines do")
        if version != _VERSION:
            raise ValueError(f"it has version {version} of the format, and gantx reads {_VERSION}")
        (page_size,) = _PAGE_SIZE.unpack_from(page, _PAGE_SIZE_AT)
        if page_size not in _PAGE_SIZES:
            raise ValueError(f"it has pages of {page_size} bytes")
        found.append((transaction, _Tree(page_size, size // page_size, root, entries)))
    return max(found, key=lambda each: each[0])[1]


def _read_page(file: BinaryIO, tree: _Tree, number: int) -> tuple[bytes, int]:
    """A page of the tree, and its kind."""
    if not 2 <= number < tree.pages:
        raise ValueError(f"it refers to page {number} of {tree.pages}")
    file.seek(number * tree.page_size)
    page = file.read(tree.page_size)
    if len(page) != tree.page_size:
        raise ValueError("it is cut off")
    own, _, kind, _, _ = _HEADER.unpack_from(page)
    if own != number:
        raise ValueError(f"page {number} says that it is page {own}")
    return page, kind & _KIND


def _nodes(page: bytes) -> Iterator[tuple[int, int, int, int, int]]:
    """Of each node of a page: its offset, the three fields of its `_NODE`, and the size of its key."""
    number, _, _, end, begin = _HEADER.unpack_from(page)
    if not _HEADER.size <= end <= begin <= len(page) or end % 2:
        raise ValueError(f"page {number} has no valid header")
    for (at,) in struct.iter_unpack("<H", page[_HEADER.size : end]):
        if not begin <= at <= len(page) - _NODE.size:
            raise ValueError(f"an entry of page {number} is outside of it")
        yield at, *_NODE.unpack_from(page, at)


def _require_run(file: BinaryIO, tree: _Tree, number: int, size: int) -> None:
    """ValueError unless the overflow pages that begin at `number` hold a value of `size` bytes."""
    file.seek(number * tree.page_size)
    header = file.read(_HEADER.size)
    if len(header) == _HEADER.size:
        own, _, kind, low, high = _HEADER.unpack(header)
        pages = low | high << 16
        fits = _HEADER.size + size <= pages * tree.page_size and number + pages <= tree.pages
        if own == number and kind & _KIND == _OVERFLOW and fits:
            return
    raise ValueError(f"page {number} does not hold the value that it should")
