"""Safetensors files with digests over all of their bytes.

Two entries of the metadata are added: `tensor_sha256`, a digest of the content of each tensor, and
`header_sha256`, the digest of the header, which contains the former. So the header can be verified without
reading the tensors, and each tensor on its own. Files without these entries were written before there were
any. torch is imported by the functions that need tensors.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

if TYPE_CHECKING:
    from torch import Tensor

LARGEST_HEADER = 100_000_000  # bytes; the safetensors library reads no larger one

_TENSORS = "tensor_sha256"
_HEADER = "header_sha256"
_UNSET = "0" * 64  # stands for the digest of the header while that is computed
# Quotes inside of strings are escaped, so that these match keys only.
_SEAL = re.compile(rb'"header_sha256"\s*:\s*"([^"]{64})"')
_SYSTEM_ERROR = re.compile(r"\(os error (\d+)\)")
_KEYS = (b'"header_sha256"', b'"tensor_sha256"')


class Damaged(Exception):
    """The header of a file does not match its digest."""


def save(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors, metadata and the digests of both.

    Args:
        path: the file to write, as given by `atomic.replacing`.
        tensors: contiguous, on the CPU.
        metadata: other entries of the header.

    Raises:
        OSError: the file cannot be written.
    """
    from safetensors.torch import save_file

    digests = {name: _digest(tensor) for name, tensor in tensors.items()}
    entries = {**metadata, _TENSORS: json.dumps(digests), _HEADER: _UNSET}
    try:
        save_file(dict(tensors), path, entries)
    except SafetensorError as problem:  # how safetensors reports a full disk
        number = _SYSTEM_ERROR.search(str(problem))
        told = (int(number[1]), os.strerror(int(number[1]))) if number else (str(problem),)
        raise OSError(*told) from problem
    with path.open("r+b") as file:
        length = file.read(8)
        text = file.read(int.from_bytes(length, "little"))
        match = _SEAL.search(text)
        assert match is not None
        file.seek(8 + match.start(1))
        file.write(hashlib.sha256(length + text).hexdigest().encode())


def check_header(path: Path) -> bool:
    """Verify the header of a safetensors file; its tensors are not read.

    Returns:
        Whether it has a digest. False for a file written before there were digests, or by another program,
        and for one that is no safetensors file.

    Raises:
        Damaged: the digest does not match.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        length = file.read(8)
        size = int.from_bytes(length, "little")
        text = file.read(size) if size <= LARGEST_HEADER else b""
    if not any(key in text for key in _KEYS):
        return False
    match = _SEAL.search(text)
    if match is None or not all(key in text for key in _KEYS):
        raise Damaged
    unset = text[: match.start(1)] + _UNSET.encode() + text[match.end(1) :]
    if hashlib.sha256(length + unset).hexdigest().encode() != match[1]:
        raise Damaged
    return True


def damaged_tensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> list[str]:
    """Names of the tensors that do not match their digest.

    Args:
        tensors: some or all tensors of a file, on the CPU.
        metadata: of the same file, verified; without digests, no tensor counts as damaged.
    """
    try:
        digests = json.loads(metadata.get(_TENSORS, "{}"))
    except (ValueError, RecursionError):
        return [*tensors]
    if not isinstance(digests, dict):
        return [*tensors]
    return [name for name, tensor in tensors.items() if digests and digests.get(name) != _digest(tensor)]


def _digest(tensor: Tensor) -> str:
    """Digest of the bytes of a tensor; its name, type and shape are in the header."""
    import torch

    content: Any = tensor.reshape(-1).view(torch.uint8).numpy()
    return hashlib.sha256(content).hexdigest()[:32]
