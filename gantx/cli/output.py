"""The standard streams of a command, also where they are closed, full, or a pipe that nobody reads."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from pathlib import Path

from gantx.io.escaping import printable

_OF_STREAMS = {
    errno.EPIPE,
    errno.ENOSPC,
    errno.EIO,
    errno.EBADF,
    errno.EFBIG,
    errno.ENXIO,
    getattr(errno, "EDQUOT", errno.ENOSPC),
}


def open_closed_streams() -> None:
    """Let a stream that was closed before the start go nowhere; the next file opened would take its place."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDONLY if descriptor == 0 else os.O_WRONLY)  # the lowest free number
    if sys.stdout is None:
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115


def print_names_as_bytes() -> None:
    """Let stdout print a file name that is not UTF-8 as the bytes it has; stderr escapes such bytes."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="surrogateescape")


def silence_broken(failed: OSError | None = None) -> str | None:
    """Let a standard stream that takes no more text go nowhere from now on.

    Args:
        failed: an error that one of them may have caused; they are then tried with an empty line.

    Returns:
        The name of a stream that did not work, or None.
    """
    if failed is not None and (failed.errno not in _OF_STREAMS or failed.filename is not None):
        return None
    broken = None
    for stream, name in ((sys.stdout, "standard output"), (sys.stderr, "standard error")):
        try:
            stream.flush()
            if failed is not None and broken is None:  # what could not be written may be forgotten by now
                os.write(stream.fileno(), b"\n")
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, stream.fileno())
                os.close(nowhere)
                broken = name
    return broken


def log(text: str) -> None:
    """Print a line on stderr; ignored where stderr is closed or full."""
    with contextlib.suppress(OSError, ValueError):
        print(printable(text, lines=True), file=sys.stderr, flush=True)


def print_result(text: str) -> None:
    """Print the result of saved work on stdout; a closed or full stdout is no error."""
    try:
        print(text if not sys.stdout.isatty() else printable(text, lines=True), flush=True)
    except (OSError, ValueError):
        silence_broken()
