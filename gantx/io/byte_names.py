"""File names that are not UTF-8, for libraries that accept no others: on Linux, names are bytes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


def utf8_name(name: str) -> str:
    """`name`, with `?` for each byte that is not UTF-8."""
    return name.encode(errors="replace").decode()


@contextlib.contextmanager
def utf8_path(path: Path) -> Iterator[Path]:
    """Yield a path of a file or folder that is valid UTF-8: `path` itself, or else one through a descriptor.

    Raises:
        OSError: there is no such file, or it cannot be read.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            yield Path(
                f"/proc/{os.getpid()}/fd/{descriptor}"
            )  # with the number, for programs started here too
        finally:
            os.close(descriptor)
    else:
        yield path
