"""Files of torch.save, read without running code from them and within what they can hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from gantx.io.pickles import check_torch_file

_SHARED = 4  # tensors may share their numbers with others: all together have this many times the file's bytes


def load(path: Path) -> Any:
    """What torch.save wrote, on the CPU: tensors, plain containers and numbers.

    Raises:
        ValueError: the file is damaged, or announces more than it holds.
        Exception: torch raises almost anything for a file that is damaged or contains other objects.
    """
    with path.open("rb") as file:
        return load_stream(file)


def load_stream(file: BinaryIO) -> Any:
    """`load` from an open file."""
    check_torch_file(file)
    size = file.seek(0, 2)
    file.seek(0)
    if is_zip := file.read(4) == b"PK\x03\x04":
        file.seek(0)
        _require_held(torch.load(file, map_location="meta", weights_only=True), size)  # takes no memory
    file.seek(0)
    stored = torch.load(file, map_location="cpu", weights_only=True)
    if not is_zip:
        _require_held(stored, size)
    return stored


def _require_held(stored: Any, size: int) -> None:
    """ValueError when tensors are larger than a file of `size` bytes can fill."""
    total = 0
    for tensor in _tensors(stored):
        total += tensor.numel() * tensor.element_size()
        if total > _SHARED * size:
            raise ValueError(f"it announces tensors of more than {total:,} bytes in {size:,}")


def _tensors(stored: Any) -> Iterator[Tensor]:
    """All tensors in nested containers."""
    waiting, seen = [stored], set[int]()
    while waiting:
        value = waiting.pop()
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, Mapping | list | tuple | set | frozenset) and id(value) not in seen:
            seen.add(id(value))
            waiting.extend(value.values() if isinstance(value, Mapping) else value)
