"""Single flipped bits in a file: what every reader must notice."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

COUNTS = [60, pytest.param(1000, marks=pytest.mark.slow)]


def flips(path: Path, count: int, beginning: int = 0, seed: int = 0) -> Iterator[str]:
    """Flip one bit of a file at a time, at `count` places drawn from `seed`; then restore the file.

    Args:
        path: the file.
        count: how many places.
        beginning: half of the places are among so many of the first bytes, such as the header.
        seed: of the places.

    Yields:
        The place, for messages, while the bit is flipped.
    """
    whole = path.read_bytes()
    rng = random.Random(seed)
    for number in range(count):
        byte = rng.randrange(beginning if beginning and number % 2 else len(whole))
        bit = rng.randrange(8)
        flipped = bytearray(whole)
        flipped[byte] ^= 1 << bit
        path.write_bytes(flipped)
        try:
            yield f"byte {byte}, bit {bit}"
        finally:
            path.write_bytes(whole)


def header_size(path: Path) -> int:
    """Bytes of the header of a safetensors file, its length included."""
    with path.open("rb") as file:
        return 8 + int.from_bytes(file.read(8), "little")
