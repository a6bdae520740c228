"""Atomic writes: a file is written under a temporary name, flushed, then renamed."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from gantx.errors import MissingError, system_reason
from gantx.io import temporary
from gantx.io.byte_names import utf8_path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary file beside `path`; on success flush and rename it, on failure remove it.

    Its name is random. The first call for a folder removes what killed processes left there.

    The temporary name is valid UTF-8 where `path` is not, for libraries that accept no other.

    Raises:
        MissingError: the disk is full or the folder cannot be written.
    """
    beside, descriptor = None, None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.sweep_once(path.parent)
        beside, descriptor = temporary.create_file(path)
        mode = beside.stat().st_mode
        if os.name != "posix":  # Windows renames no open files
            os.close(descriptor)
            descriptor = None
        with utf8_path(path.parent) as folder:
            yield folder / beside.name
        beside.chmod(mode)  # safetensors makes files that only their owner can read
        with beside.open("r+b") as written:  # Windows flushes only files opened for writing
            os.fsync(written.fileno())
        beside.replace(path)
        beside = None
        if os.name == "posix":  # so that the new name survives a power cut too
            opened = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(opened)
            finally:
                os.close(opened)
    except OSError as problem:
        raise MissingError(f"cannot write {path}: {system_reason(problem)}") from problem
    finally:
        temporary.discard(beside, descriptor)


def link_or_copy(source: Path, path: Path) -> None:
    """Make `path` another name of a file, which takes no space; a copy where the file system has no links.

    Only for files that are replaced and never changed, such as all that `replacing` writes.

    Raises:
        MissingError: the disk is full or the folder cannot be written; what was at `path` is still there.
    """
    if path.exists() and path.samefile(source):  # renaming one name of a file to another does nothing
        return
    with replacing(path) as beside:
        beside.unlink()
        try:
            os.link(source, beside)
        except OSError:
            shutil.copyfile(source, beside)


@contextlib.contextmanager
def scratch_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `target` and remove it in the end, unless it was renamed.

    The first call for a parent folder removes what killed processes left there.

    Raises:
        OSError: it cannot be made.
    """
    temporary.sweep_once(target.parent)
    folder, descriptor = temporary.create_folder(target)
    try:
        yield folder
    finally:
        temporary.discard(folder, descriptor)


def require_folder(path: Path) -> None:
    """Check that the folder exists in which a file or folder is to be made, before the work for it starts.

    Raises:
        MissingError: there is no such folder, or it cannot be written.
    """
    if path.parent.is_file():
        raise MissingError(f"cannot write {path}: {path.parent} is a file, not a folder; name another output")
    if path.parent.is_dir() and not os.access(path.parent, os.W_OK | os.X_OK):
        raise MissingError(f"cannot write {path}: you may not write into {path.parent}; name another output")
    if not path.parent.is_dir():
        raise MissingError(
            f"cannot write {path}: make the folder {path.parent} first, or name another output"
        )
