"""Says what a file is that is not what it was taken for, by its first bytes. Runs no code of it."""

from __future__ import annotations

import json
from pathlib import Path

from gantx.io import archives

LFS_POINTER = b"version https://git-lfs"
_WEB_PAGE = (b"<!doctype html", b"<html", b"<head", b"<?xml")
_LARGEST_HEADER = 100_000_000  # bytes; the safetensors library reads no larger one


def recognized(path: Path) -> str | None:
    """What a file is and what to do about it, as the end of a sentence that begins with its name.

    Args:
        path: a file that could not be read as a checkpoint or as an archive of images.

    Returns:
        For example "is empty: copy or download it again"; None for an unknown kind or an unreadable file.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(1024)
    except OSError:
        return None
    if not size:
        return "is empty: copy or download it again"
    if start.startswith(LFS_POINTER):
        return "is a git-lfs pointer, not the file itself: fetch the file with `git lfs pull`"
    if start.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(_WEB_PAGE):
        return "is a web page, not the file itself: download the file that the page links to"
    if start.startswith(b"PK\x03\x04"):
        return _zip_archive(path)
    if start.startswith(_PICTURES):
        return "is a picture, not a checkpoint; `gantx sample --from PICTURE` generates it again"
    if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return f"is a pickle, which gantx does not open: {_IMPORT}"
    return _cut_safetensors(path, size, start)


_PICTURES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8")
_SETS = {
    b"\x89HDF\r\n\x1a\n": "is an HDF5 file, which gantx does not read; save its images with numpy.save",
    b"Rar!\x1a\x07": "is a RAR archive, which gantx does not read; unpack it",
    b"7z\xbc\xaf\x27\x1c": "is a 7z archive, which gantx does not read; unpack it",
    b"\x1f\x8b": "is compressed with gzip, so that single images cannot be read from it; unpack it",
    b"\xfd7zXZ\x00": "is compressed with xz, so that single images cannot be read from it; unpack it",
    b"(\xb5/\xfd": "is compressed with zstd, so that single images cannot be read from it; unpack it",
    b"BZh": "is compressed with bzip2, so that single images cannot be read from it; unpack it",
    b"MATLAB 5.0 MAT-file": "is a MATLAB file, which gantx does not read; save its images with numpy.save",
}


def recognized_set(path: Path) -> str | None:
    """What a file meant as a set of images is instead, as the end of a sentence; None if unknown."""
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError:
        return None
    if path.suffix.lower() in (".tfrecord", ".tfrecords"):
        return "is a TFRecord file, which gantx does not read; write its images as files or a tar"
    return next((what for magic, what in _SETS.items() if start.startswith(magic)), None)


_IMPORT = "official checkpoints are converted with `gantx import`"


def _zip_archive(path: Path) -> str:
    try:
        with archives.open_zip(path) as archive:
            names = archive.namelist()
    except (OSError, ValueError):
        return "is a zip file that is cut off or damaged: copy or download it again"
    if any(name.split("/")[-1] == "data.pkl" for name in names):
        return f"is a PyTorch checkpoint, which gantx does not open: {_IMPORT}"
    return "is a zip archive: unpack it and name the file in it"


def _cut_safetensors(path: Path, size: int, start: bytes) -> str | None:
    """Whether a safetensors file is shorter than its header says; None where it is something else."""
    length = int.from_bytes(start[:8], "little")
    if size < 9 or length > _LARGEST_HEADER or start[8:9] != b"{":
        return None
    if size < 8 + length:
        return f"is cut off in its header: {size:,} bytes of more than {8 + length:,}"
    try:
        with path.open("rb") as file:
            file.seek(8)
            header = json.loads(file.read(length))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        whole = 8 + length + max(ends, default=0)
    except (OSError, ValueError, RecursionError, TypeError, KeyError, IndexError, AttributeError):
        return None
    return f"is cut off: {size:,} of {whole:,} bytes" if size < whole else None
