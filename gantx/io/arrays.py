"""Arrays of numbers from .npy and .npz files: no pickle, no more memory than the file can fill."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gantx.io import archives

_MAGIC = b"\x93NUMPY"
LARGEST_ARRAY = 2**29  # bytes that an array in an .npz may unpack to: a covariance of 8,191 features


def read_npy(path: Path) -> NDArray[Any]:
    """Map a .npy file into memory, read-only.

    Raises:
        ValueError: it is no .npy array of numbers, is damaged, or shorter than its header says.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise ValueError("its first bytes are those of another kind of file")
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as problem:  # a damaged header makes numpy raise many types
        raise ValueError(" ".join(str(problem).split())[:200] or type(problem).__name__) from problem
    return array


def read_npz(path: Path, *names: str) -> list[NDArray[Any]]:
    """Arrays of an .npz by their names.

    Raises:
        ValueError: it is no .npz with these arrays, is damaged, or an array unpacks to more than
            `LARGEST_ARRAY` bytes.
        OSError: it cannot be read.
    """
    with archives.open_zip(path) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        if missing := [name for name in names if f"{name}.npy" not in entries]:
            raise ValueError(f"it contains no {' and no '.join(missing)}")
        return [
            _parsed(archives.read_entry(archive, entries[f"{name}.npy"], LARGEST_ARRAY)) for name in names
        ]


def _parsed(content: bytes) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    except Exception as problem:  # as above
        raise ValueError(" ".join(str(problem).split())[:200] or type(problem).__name__) from problem
    return array
