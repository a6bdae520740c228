"""Locks between processes, released by the operating system when their owner ends, even if it is killed.

`filelock` takes the locks. Added here: on a file system without locks the work continues unlocked, a
callback runs while waiting for a lock, and the process that has a lock can be named.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

_PATIENCE = 0.3  # seconds until a lock counts as taken
_PAUSE = 0.1  # seconds between two calls of `waiting`
# Errors of flock on a file system without locks. filelock's substitute for it, a file that exists while
# the lock is taken, would survive a process that was killed: it is switched off below.
_NO_LOCKS = frozenset({errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP})


class LockedError(Exception):
    """Another process has the lock.

    Attributes:
        owner: its process id and host, or "?" where they cannot be read.
    """

    def __init__(self, owner: str) -> None:
        super().__init__(f"locked by process {owner}")
        self.owner = owner


@contextlib.contextmanager
def alone(path: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Run the block while no other process or thread runs one with the same `path`; wait for those that do.

    On a file system without locks the block runs at once: it must not rely on the lock for more than saving
    work.

    Args:
        path: the lock file, in a folder that exists; it is removed with the lock.
        waiting: called ten times a second while another process or thread has the lock.

    Raises:
        OSError: the file cannot be created.
    """
    lock = FileLock(path, fallback_to_soft=False)
    with _acquire(lock, waiting):
        try:
            yield
        finally:
            # Other accounts could not open a file that stayed here. Removing it while it is locked is safe:
            # filelock does not count a lock on a file that has lost its name.
            with contextlib.suppress(OSError):  # Windows keeps open files; filelock removes it there
                path.unlink()


class Claim:
    """A lock that names its owner; a context manager that releases it. Made by `claim`.

    Args:
        path: the lock file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._identity: tuple[int, int] | None = None  # of the locked file; None without locks
        # A process that only looks whether the lock is free has it for a moment.
        lock = FileLock(path, timeout=_PATIENCE, fallback_to_soft=False, on_acquired=self._acquired)
        self._lock = _acquire(lock)

    def holds(self) -> bool:
        """Whether the locked file is still where it was; a folder that was renamed takes it along."""
        try:
            if self._identity is None:
                return self._path.parent.is_dir()
            facts = self._path.stat()
        except OSError:
            return False
        return (facts.st_dev, facts.st_ino) == self._identity

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, *error: object) -> None:
        self._lock.__exit__(None, None, None)

    def _acquired(self, descriptor: int) -> None:
        facts = os.fstat(descriptor)
        self._identity = facts.st_dev, facts.st_ino
        _write_owner(descriptor)


def claim(path: Path) -> Claim:
    """Take a lock and write the id and host of this process into its file; wait for a moment at most.

    Args:
        path: the lock file, in a folder that exists.

    Raises:
        LockedError: another process has the lock.
        OSError: the file cannot be written.
    """
    try:
        return Claim(path)
    except Timeout:
        raise LockedError(_read_owner(path)) from None


def _acquire(
    lock: FileLock, waiting: Callable[[], None] | None = None
) -> contextlib.AbstractContextManager[object]:
    """Acquire the lock; without `waiting`, one attempt that may raise Timeout."""
    while True:
        try:
            return lock.acquire(timeout=_PATIENCE if waiting is None else _PAUSE)
        except Timeout:
            if waiting is None:
                raise
            waiting()
        except OSError as problem:
            if problem.errno not in _NO_LOCKS:
                raise
            return contextlib.nullcontext()


# Windows locks the first byte of the file against readers too: the text begins at the second.


def _write_owner(descriptor: int) -> None:
    os.ftruncate(descriptor, 0)
    os.lseek(descriptor, 0, os.SEEK_SET)
    # A process id alone says little: containers have their own.
    os.write(descriptor, f" {os.getpid()} on {socket.gethostname()}".encode())


def _read_owner(path: Path) -> str:
    with contextlib.suppress(OSError, UnicodeDecodeError), path.open("rb", buffering=0) as file:
        file.seek(1)
        return file.read().decode().strip() or "?"
    return "?"
