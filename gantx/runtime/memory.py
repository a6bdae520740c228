"""What is said when memory runs out, of a GPU or of the host, and how much the host has left.

This module imports no torch, so that the command line can use it.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from gantx.errors import MissingError

# Of PyTorch on a GPU and on the host, of the threads of Python, and of the loader of shared libraries.
_SAID = (
    "out of memory",
    "can't allocate memory",
    "size calculation overflowed",
    "can't start new thread",
    "failed to map segment",
    "STATUS_ALLOC_FAILED",  # cuBLAS, cuDNN and the like
)


def ran_out(problem: BaseException) -> bool:
    """Whether an exception says that there is too little memory."""
    if isinstance(problem, OSError):
        return problem.errno == errno.ENOMEM
    if isinstance(problem, RuntimeError | ImportError):
        return any(text in str(problem) for text in _SAID)
    return isinstance(problem, MemoryError)


@contextlib.contextmanager
def explained(advice: str) -> Iterator[None]:
    """Raise MissingError with `advice`, a whole sentence, when memory runs out inside."""
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as problem:
        if not ran_out(problem):
            raise
        raise MissingError(advice) from problem


def require(size: int, what: str, advice: str) -> None:
    """Check that the host has memory for something, before the work for it starts.

    Args:
        size: in bytes.
        what: "the grid of 64 images", for the message.
        advice: what to do instead, for the message.

    Raises:
        MissingError: it has less.
    """
    free = free_on_host()
    if free is not None and size > free:
        raise MissingError(f"{what} takes {amount(size)} of memory but {amount(free)} are free: {advice}")


def amount(size: int) -> str:
    """A number of bytes in GB, or in MB below a tenth of one."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e8 else f"{size / 1e6:,.1f} MB"


def free_on_host() -> int | None:
    """Bytes that this process can still allocate on the host; None if that is unknown."""
    import psutil  # not needed by `gantx --help`

    found = []
    with contextlib.suppress(OSError):
        found.append(int(psutil.virtual_memory().available))
    with contextlib.suppress(OSError, ValueError):  # a container may have less than its machine
        limit, used = (Path(f"/sys/fs/cgroup/memory.{name}").read_text() for name in ("max", "current"))
        found.append(max(0, int(limit) - int(used)))
    return min(found, default=None)
