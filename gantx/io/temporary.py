"""Temporary files and folders: random names, exclusive creation, and removal of what a killed process left.

Whoever makes one keeps it locked; the system releases the lock however the process ends. So a name of this
module's pattern that nobody has locked is a leftover. Process ids play no part: containers share them. Locks
of other machines may be invisible here: names begin with a digest of the running system (which containers on
one machine share, as they do its locks), and what others made has to be unchanged for a while too, by the
clock of the file system.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import os
import re
import secrets
import shutil
import socket
import stat
import sys
import tempfile
from pathlib import Path

if sys.platform != "win32":
    import fcntl

_PATTERN = re.compile(r"\..*\.[0-9a-f]{16}\.part", re.DOTALL)
_LONGEST = 200  # bytes of the name of the target within the temporary name; most file systems allow 255
_ABANDONED = 3600.0  # seconds without a change after which a leftover of another host is removed
_ABANDONED_UNLOCKED = 86_400.0  # the same where there are no locks
# Errors of flock on file systems without locks, or without locks of folders.
_NO_LOCKS = frozenset(
    {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF, errno.EINVAL, errno.EIO}
)

_swept: set[Path] = set()


def create_file(target: Path) -> tuple[Path, int]:
    """Make an empty file beside `target`, with the permissions of any new file.

    Args:
        target: the file that it will replace; its folder exists.

    Returns:
        The file, and a descriptor whose lock marks it as in use; close it in the end.

    Raises:
        OSError: it cannot be made.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    while True:
        path, descriptor = _beside(target), None
        try:  # a stop may come as soon as the file is made, before its descriptor is known
            with contextlib.suppress(FileExistsError):
                descriptor = os.open(path, flags, 0o666)
                if _take(descriptor) and os.fstat(descriptor).st_nlink:
                    return path, descriptor
                os.close(descriptor)  # another process took it for a leftover in between
        except BaseException:
            discard(path, descriptor)
            raise


def create_folder(target: Path) -> tuple[Path, int | None]:
    """Make an empty folder beside `target`; see `create_file`. Without locks the descriptor is None."""
    while True:
        path, descriptor = _beside(target), None
        try:
            try:
                path.mkdir()
            except FileExistsError:
                continue
            if sys.platform == "win32":
                return path, None
            with contextlib.suppress(FileNotFoundError):  # another process took it for a leftover
                descriptor = os.open(path, os.O_RDONLY)
                if _take(descriptor) and path.is_dir():
                    return path, descriptor
                os.close(descriptor)
        except BaseException:
            discard(path, descriptor)
            raise


def discard(path: Path | None, descriptor: int | None) -> None:
    """Remove a temporary file or folder, if there is one, and close its descriptor, also if a stop comes.

    Args:
        path: the file or folder; None if it was renamed.
        descriptor: from `create_file` or `create_folder`; None if there is none.
    """
    try:
        _remove_quietly(path)
    except BaseException:  # a stop; another one would have to come at once to interrupt this too
        _remove_quietly(path)
        raise
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _remove_quietly(path: Path | None) -> None:
    if path is not None:
        with contextlib.suppress(OSError):
            _remove(path)


def sweep_once(folder: Path) -> None:
    """Remove leftovers from a folder, unless this process did so before."""
    with contextlib.suppress(OSError):
        if (key := folder.absolute()) not in _swept:
            _swept.add(key)
            sweep(folder)


def sweep(folder: Path) -> None:
    """Remove temporary files and folders from a folder whose owner has ended; errors are ignored."""
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            if _PATTERN.fullmatch(entry.name):
                with contextlib.suppress(OSError):
                    _remove_leftover(folder / entry.name)


def _remove_leftover(path: Path) -> None:
    kind = path.lstat().st_mode
    if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):  # a link, a pipe: not made here
        return
    if sys.platform == "win32":
        if _is_old(path, _ABANDONED_UNLOCKED):
            _remove(path)
        return
    if path.name[-21:-15] != _host() and not _is_old(path, _ABANDONED):
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    except OSError as problem:
        if problem.errno not in _NO_LOCKS:
            raise
        if _is_old(path, _ABANDONED_UNLOCKED):
            _remove(path)
    else:
        _remove(path)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _is_old(path: Path, seconds: float) -> bool:
    times = [entry.lstat().st_mtime for entry in (path, *(path.rglob("*") if path.is_dir() else ()))]
    with tempfile.TemporaryFile(dir=path.parent) as file:  # the clock of this machine may be wrong
        now = os.fstat(file.fileno()).st_mtime
    return bool(now - max(times) > seconds)


def _take(descriptor: int) -> bool:
    """Lock a file that was just made; False if another process has it already."""
    if sys.platform == "win32":
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as problem:
        if problem.errno not in _NO_LOCKS:
            raise
    return True


def _beside(target: Path) -> Path:
    """A new name, valid UTF-8 also where that of the target is not."""
    name = os.fsencode(target.name)[:_LONGEST].decode("utf-8", "ignore")
    return target.with_name(f".{name}.{_host()}{secrets.token_hex(5)}.part")


@functools.cache
def _host() -> str:
    """A digest of the running system, or of the name of the host where the system has no id."""
    name = socket.gethostname()
    with contextlib.suppress(OSError):
        name = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
    return hashlib.sha256(name.encode()).hexdigest()[:6]
