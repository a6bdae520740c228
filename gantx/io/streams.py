"""Text on stderr that is no reason to stop: what the terminal, pipe or disk does not take is lost."""

from __future__ import annotations

import contextlib
import os
import select
import sys
from typing import IO, Any, cast

PATIENCE = 1.0  # seconds for which a reader may be slow; then text gets lost until it reads again


class Unfailing:
    """A text stream that loses what cannot be written, instead of raising an error or waiting for long.

    Args:
        stream: where the text goes; None for nowhere.
    """

    def __init__(self, stream: IO[str] | None) -> None:
        self._stream = stream
        self._patience = PATIENCE

    def write(self, text: str) -> int:
        """Write a text, or lose it."""
        if self._stream is not None and self._takes_text():
            # RuntimeError: a signal handler writes while the stream is written to.
            with contextlib.suppress(OSError, ValueError, RuntimeError):
                self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush what was written, or lose it."""
        if self._stream is not None:
            with contextlib.suppress(OSError, ValueError, RuntimeError):
                self._stream.flush()

    def isatty(self) -> bool:
        """Whether this is a terminal."""
        try:
            return self._stream is not None and self._stream.isatty()
        except (OSError, ValueError):
            return False

    def _takes_text(self) -> bool:
        """Whether a write will not wait; a full pipe or a stopped terminal would make it wait for ever."""
        assert self._stream is not None
        if os.name != "posix":
            return True
        try:
            _, writable, _ = select.select([], [self._stream.fileno()], [], self._patience)
        except (OSError, ValueError):  # no file of the system
            return True
        self._patience = PATIENCE if writable else 0.0
        return bool(writable)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def unfailing_stderr() -> IO[str]:
    """The present stderr as a stream that never fails."""
    return cast(IO[str], Unfailing(sys.stderr))
