"""One process at a time: a lock that the system lets go of however its holder ends."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

_PAUSE = 0.1  # seconds between two tries
_BEHIND = 1 << 20  # Windows locks bytes: this one lies behind any text, which stays readable

if sys.platform == "win32":
    import msvcrt

    def _take(file: IO[Any]) -> None:
        file.seek(_BEHIND)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        file.seek(0)

else:
    import fcntl

    def _take(file: IO[Any]) -> None:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextlib.contextmanager
def alone(path: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Run the block while no other process or thread holds `path`, after waiting for those that do.

    On a file system that knows no locks the block runs all the same: it must not rely on the lock for more
    than saving work.

    Args:
        path: the lock file, in a folder that exists; it is there only while it is held.
        waiting: called ten times a second while somebody else holds it.

    Raises:
        OSError: the file cannot be made.
    """
    while True:
        with path.open("ab") as file:
            while not take(file):
                waiting()
                time.sleep(_PAUSE)
            if not _is_at(path, file):  # the holder before has removed it; others already lock a new one
                continue
            try:
                yield
            finally:
                with contextlib.suppress(OSError):  # Windows keeps open files
                    path.unlink()
            return


def take(file: IO[Any]) -> bool:
    """Lock an open file until it is closed, unless another holds it; False when so.

    A file system that knows no locks grants every one.
    """
    try:
        _take(file)
    except (BlockingIOError, PermissionError):  # what POSIX and Windows say of a lock that is held
        return False
    except OSError:  # a file system without locks
        return True
    return True


def _is_at(path: Path, file: IO[bytes]) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
