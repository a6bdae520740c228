"""Digests of a large array, block by block: each block is verified before its first image is used.

All blocks are verified in the background, in order; an image of a block that has not been reached waits for
that block alone. So even a set of hundreds of gigabytes starts at once, and nothing is read for it that would
not be read anyway.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gantx.runtime import cores

BLOCK = 2**24  # bytes
_LENGTH = 32  # hexadecimal digits of a digest


class BlockDigests:
    """Digests of the blocks of a stream of bytes, while it is written."""

    def __init__(self) -> None:
        self._done: list[str] = []
        self._hash = hashlib.sha256()
        self._room = BLOCK

    def update(self, data: memoryview) -> None:
        """Add the next bytes."""
        data = data.cast("B") if data.nbytes else data[:0]
        while len(data):
            part, data = data[: self._room], data[self._room :]
            self._hash.update(part)
            self._room -= len(part)
            if not self._room:
                self._finish()

    def result(self) -> list[str]:
        """The digests; call once, at the end."""
        if self._room < BLOCK:
            self._finish()
        return self._done

    def _finish(self) -> None:
        self._done.append(self._hash.hexdigest()[:_LENGTH])
        self._hash, self._room = hashlib.sha256(), BLOCK


class VerifiedBlocks:
    """Verifies the blocks of an array of images against their digests.

    Args:
        images: [N, ...] uint8, contiguous.
        digests: of its blocks, by `BlockDigests`.

    Raises:
        ValueError: there are more or fewer digests than blocks.
    """

    def __init__(self, images: NDArray[np.uint8], digests: Sequence[str]) -> None:
        self._bytes: Any = images.reshape(-1)
        if len(digests) != -(-self._bytes.size // BLOCK):
            raise ValueError(f"{len(digests)} digests of {self._bytes.size:,} bytes")
        self._size = self._bytes.size // max(1, len(images))  # bytes of an image
        self._digests = digests
        self._good = np.zeros(len(digests), bool)
        self._all_good = False
        self._sweep: threading.Thread | None = None

    def all(self) -> bool:
        """Whether every block matches; reads the whole array, in threads."""
        if self._all_good:
            return True
        with ThreadPoolExecutor(min(8, len(cores.allowed())), "verify") as pool:
            self._all_good = all(pool.map(self._matches, range(len(self._digests))))
        return self._all_good

    def of(self, rows: NDArray[np.int64]) -> bool:
        """Whether the blocks of some images match; starts to verify the others in the background."""
        if self._all_good:
            return True
        first, last = rows * self._size // BLOCK, ((rows + 1) * self._size - 1) // BLOCK
        needed = np.zeros(len(self._good) + 1, np.int64)
        np.add.at(needed, first, 1)
        np.add.at(needed, last + 1, -1)
        waiting = np.flatnonzero((np.cumsum(needed[:-1]) > 0) & ~self._good)
        good = all(self._matches(int(block)) for block in waiting)
        if self._sweep is None:
            self._sweep = threading.Thread(target=self._verify_rest, name="verify", daemon=True)
            self._sweep.start()
        return good

    def _verify_rest(self) -> None:
        # A block that does not match is left to `of`, which reports it when it is needed.
        matching = [self._matches(block) for block in range(len(self._digests)) if not self._good[block]]
        self._all_good = all(matching)

    def _matches(self, block: int) -> bool:
        data = self._bytes[block * BLOCK : (block + 1) * BLOCK]
        self._good[block] = hashlib.sha256(data).hexdigest()[:_LENGTH] == self._digests[block]
        return bool(self._good[block])
