"""Zip files, read within limits: what an entry unpacks to is known before it is unpacked."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import BinaryIO

from gantx.errors import first_line

LARGEST_ENTRY = 2**29  # bytes; an entry that unpacks to more is not read into memory
LONGEST_NAME = 1000  # characters of the name of an entry


def open_zip(file: Path | BinaryIO) -> zipfile.ZipFile:
    """Open a zip.

    Raises:
        ValueError: it is damaged; the message says what is wrong, without the name of the file.
        OSError: the file cannot be read.
    """
    try:
        archive = zipfile.ZipFile(file)
    except OSError:
        raise
    except Exception as problem:  # a damaged directory makes zipfile raise many types
        raise ValueError(first_line(problem)) from problem
    lengths = {len(entry.filename) for entry in archive.infolist()}
    if 0 in lengths or max(lengths, default=0) > LONGEST_NAME:
        archive.close()
        raise ValueError(
            "an entry without a name" if 0 in lengths else f"a name of {max(lengths):,} characters"
        )
    return archive


def read_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, limit: int = LARGEST_ENTRY) -> bytes:
    """The content of an entry; its CRC is checked.

    Args:
        archive: from `open_zip`.
        entry: of it.
        limit: bytes that it may unpack to.

    Raises:
        ValueError: it is damaged, too large, protected by a password or packed in an unknown way.
        OSError: the file cannot be read.
    """
    if entry.file_size > limit:
        raise ValueError(f"it unpacks to {entry.file_size:,} bytes, more than the {limit:,} that gantx reads")
    try:
        with archive.open(entry) as file:
            content = file.read(limit + 1)
    except OSError:
        raise
    except Exception as problem:  # the codecs of zipfile raise many kinds for damaged data
        raise ValueError(first_line(problem)) from problem
    if len(content) > limit:
        raise ValueError(f"it unpacks to more than the {limit:,} bytes that gantx reads")
    return content


def unpacked_bytes(archive: zipfile.ZipFile) -> int:
    """Bytes that all entries of a zip unpack to, as its directory says."""
    return sum(entry.file_size for entry in archive.infolist())
