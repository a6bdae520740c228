"""Atomic writes: a file is written under a temporary name, flushed, then renamed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from gantx.errors import MissingError
from gantx.io.byte_names import utf8_name, utf8_path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; on success flush and rename the file, on failure remove it.

    The temporary name is valid UTF-8 where `path` is not, for libraries that accept no other.

    Raises:
        MissingError: the disk is full or the folder cannot be written.
    """
    beside = path.with_name(f".{utf8_name(path.name)}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.touch()
        mode = beside.stat().st_mode
        with utf8_path(path.parent) as folder:
            yield folder / beside.name
        beside.chmod(mode)  # safetensors makes files that only their owner can read
        with beside.open("r+b") as written:  # Windows flushes only files opened for writing
            os.fsync(written.fileno())
        beside.replace(path)
        if os.name == "posix":  # so that the new name survives a power cut too
            descriptor = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
    except OSError as problem:
        raise MissingError(f"cannot write {path}: {problem.strerror or problem}") from problem
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)


def require_folder(path: Path) -> None:
    """Check that the folder exists in which a file or folder is to be made, before the work for it starts.

    Raises:
        MissingError: there is no such folder.
    """
    if not path.parent.is_dir():
        raise MissingError(
            f"cannot write {path}: make the folder {path.parent} first, or name another output"
        )
