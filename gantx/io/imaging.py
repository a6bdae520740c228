"""Writes sets of images: grids, folders, zips and arrays.

Every file is written under a temporary name and renamed when it is complete. Text chunks of PNGs describe
their origin, so that an image can be traced to its seed and weights. Threads encode images while the next
ones are generated.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import tempfile
import threading
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError

from gantx.errors import MissingError, UsageError, system_reason
from gantx.io import figures, sheets
from gantx.io.atomic import replacing
from gantx.io.decoding import open_image, text_of
from gantx.io.figures import encode_png as encode_png
from gantx.io.figures import write_png as write_png
from gantx.io.prefetch import ahead
from gantx.io.sheets import GAP as GAP
from gantx.runtime import cores, memory
from gantx.runtime.seeds import seeds_of

if TYPE_CHECKING:  # outputs are checked before torch is imported
    from torch import Tensor

Result = TypeVar("Result")

_PNG_END = b"IEND\xaeB`\x82"

_ENCODERS = 8  # threads at most; more would wait for the global interpreter lock
_SMALLEST_PNG = 300  # bytes, text chunks included
_TOGETHER = 1 << 15  # pixels that a thread encodes at a time: small images are grouped


class _Group(NamedTuple):
    """Images that one thread encodes: uint8 [n, C, H, W], and the number of each."""

    images: Tensor
    numbers: Sequence[int]


class _File(NamedTuple):
    """A PNG and its name."""

    name: str
    data: bytes


def grid_shape(count: int, wanted: str | None = None) -> tuple[int, int]:
    """(columns, rows) of a grid for `count` images.

    Args:
        count: number of images.
        wanted: `COLUMNSxROWS`, or None for the squarest grid.

    Raises:
        UsageError: the text is not a grid, or the grid is too small.
    """
    if wanted is None:
        columns = math.ceil(math.sqrt(count))
        return columns, math.ceil(count / columns)
    columns_text, _, rows_text = wanted.lower().partition("x")
    if not (columns_text.isdecimal() and rows_text.isdecimal() and int(columns_text) and int(rows_text)):
        raise UsageError(f"grid '{wanted}': write columns x rows, for example 8x8")
    columns, rows = int(columns_text), int(rows_text)
    if columns * rows < count:
        raise UsageError(f"grid {wanted} has {columns * rows} places for {count} images: make it larger")
    return columns, rows


def grid_of(sheet: Sequence[int], image: Sequence[int], gap: int = GAP) -> tuple[int, int]:
    """(columns, rows) of a grid from its size (H, W) and that of its images; (0, 0) if it is not a grid."""
    (rows, row_rest), (columns, column_rest) = (
        divmod(whole + gap, part + gap) for whole, part in zip(sheet, image, strict=True)
    )
    return (0, 0) if row_rest or column_rest else (columns, rows)


def grid(images: Tensor, columns: int, rows: int, gap: int = GAP) -> Tensor:
    """Arrange images in a grid on white.

    Args:
        images: uint8 [N, C, H, W].
        columns: images per row.
        rows: number of rows; positions beyond N stay white.
        gap: pixels between images.

    Returns:
        uint8 [C, rows·(H+gap) − gap, columns·(W+gap) − gap].
    """
    count, channels, height, width = images.shape
    sheet = images.new_full((columns * rows, channels, height + gap, width + gap), 255)
    sheet[:count, :, :height, :width] = images
    sheet = sheet.view(rows, columns, channels, height + gap, width + gap).permute(2, 0, 3, 1, 4)
    whole = sheet.reshape(channels, rows * (height + gap), columns * (width + gap))
    return whole[:, : rows * (height + gap) - gap, : columns * (width + gap) - gap]


def require_format(path: Path) -> None:
    """UsageError or MissingError if `save_images` cannot write such a file."""
    if path.suffix.lower() not in (".zip", ".npy", ""):
        figures.check(path, ".zip, .npy, or a folder name")


def check_output(path: Path) -> None:
    """Check that a file can be written there, before the work for it starts.

    Raises:
        MissingError: its folder cannot be created or written.
        UsageError: it is a folder.
    """
    if path.is_dir():
        raise UsageError(f"{path} is a folder: name a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as problem:
        raise MissingError(f"cannot write {path}: {system_reason(problem)}") from problem


def require_distinct(path: Path, seeds: Sequence[int]) -> None:
    """Check that no file in a folder or zip would take the name of another: files are named by their seeds.

    Raises:
        UsageError: a seed is named twice; grids and arrays have a place for each.
    """
    if path.suffix.lower() not in ("", ".zip"):
        return
    if (seed := seeds_of(seeds).repeated()) is not None:
        raise UsageError(
            f"seed {seed} is named twice, but the files of {path} are named by their seeds: name it once, or "
            "write a .png, which has a place for each"
        )


def require_room(path: Path, count: int, shape: Sequence[int], itemsize: int = 1, scale: int = 1) -> None:
    """Check that images fit where `save_images` puts them, before the work for it starts.

    Args:
        path: the file or folder to write.
        count: number of images.
        shape: of one image, (C, H, W).
        itemsize: bytes of a value.
        scale: factor by which images are enlarged in a grid.

    Raises:
        MissingError: the memory is too small for a grid, or the disk for an array or for so many PNGs.
    """
    size = count * math.prod(shape) * itemsize
    if figures.is_picture(path):
        # The images, and a copy of them as a sheet.
        advice = "generate fewer images, or write a .zip, .npy or folder, which needs no memory for all"
        memory.require(2 * size * scale**2, f"a grid of {count:,} images", advice)
        return
    least = size if path.suffix.lower() == ".npy" else _SMALLEST_PNG * count
    folder = next(parent for parent in (path, *path.absolute().parents) if parent.is_dir())
    if least > (free := shutil.disk_usage(folder).free):
        raise MissingError(
            f"{count:,} images take {memory.amount(least)} or more but {folder} has {memory.amount(free)} "
            "free: generate fewer images, or write to another disk"
        )


def kept(folder: Path, seeds: Sequence[int], text: Mapping[str, str], scale: int = 1) -> set[int]:
    """Seeds whose images `save_images` has written into a folder already; incomplete files do not count.

    Args:
        folder: as for `save_images`; it need not exist.
        seeds: the wanted ones.
        text: where the images would come from.
        scale: factor by which they would be enlarged.

    Raises:
        UsageError: a file of that name is another picture, or of other weights or settings.
    """
    wanted = {**text, "gantx:scale": str(scale)} if scale > 1 else dict(text)
    found = set()
    for seed in seeds:
        path = folder / f"seed-{seed:06d}.png"
        if not path.is_file():
            continue
        data = path.read_bytes()
        if not data.endswith(_PNG_END):  # a power cut
            continue
        try:
            with open_image(data) as image:
                said = text_of(image)
        except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError):
            continue
        if said != {**wanted, "gantx:seed": str(seed)}:
            raise UsageError(
                f"{path} was not generated by these weights and settings: name another folder, or use "
                "--force instead of --continue"
            )
        found.add(seed)
    return found


def save_images(
    path: Path,
    batches: Iterable[Tensor],
    seeds: Sequence[int],
    text: Mapping[str, str],
    shape: tuple[int, int] | None = None,
    origin: str = "seed",
    scale: int | None = 1,
    labels: bool = False,
) -> None:
    """Save generated images in the format given by the suffix.

    A picture (`figures.SUFFIXES`) is a grid, `.zip` an archive of PNGs (not compressed again), `.npy` an
    array [N, H, W, C] of the type of the batches, and a name without a suffix a folder of PNGs. Single images
    are called `seed-000007.png`. Memory stays constant, except for grids. Images of a folder are not flushed
    to the disk one by one, which would be slow: a power cut may lose some of them.

    Args:
        path: the file or folder to write.
        batches: uint8 [n, C, H, W] in the order of `seeds`; any type for `.npy`.
        seeds: one number per image.
        text: where the images come from; the number is added.
        shape: (columns, rows) of a grid.
        origin: meaning of the numbers, in names of files and text chunks.
        scale: factor by which images are enlarged, except in arrays; None to let grids of small images be
            enlarged, see `sheets.enlargement`.
        labels: whether the number of each image stands above it in a grid.

    Raises:
        MissingError: the disk is full or the folder cannot be written.
        UsageError: the suffix is none of these, or the grid is too large.
    """
    if figures.is_picture(path):
        _save_grid(path, batches, seeds, text, shape or grid_shape(len(seeds)), origin, scale, labels)
        return
    if scale is not None and scale > 1 and path.suffix.lower() != ".npy":
        batches = (sheets.enlarged(batch, scale) for batch in batches)
        text = {**text, "gantx:scale": str(scale)}
    match path.suffix.lower():
        case ".npy":
            with replacing(path) as beside, beside.open("wb") as file:
                _write_array(file, batches, len(seeds))
        case ".zip":
            encode = partial(_encode, text=text, origin=origin)
            with replacing(path) as beside, zipfile.ZipFile(beside, "w") as archive:
                for files in _by_threads(encode, batches, seeds):
                    for name, data in files:
                        # A fixed date: equal images make equal archives.
                        archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), data)
        case "":
            write = partial(_write_pngs, path, text=text, origin=origin)
            for _ in _by_threads(write, batches, seeds):
                pass
        case _:
            require_format(path)


def _save_grid(
    path: Path,
    batches: Iterable[Tensor],
    numbers: Sequence[int],
    text: Mapping[str, str],
    shape: tuple[int, int],
    origin: str,
    scale: int | None,
    labels: bool,
) -> None:
    columns, rows = shape
    images: list[Tensor] = []
    factor = 1
    for batch in batches:
        if not images:
            _, _, height, width = batch.shape
            factor = sheets.enlargement(height, width, columns, rows) if scale is None else scale
            size = columns * width * factor, rows * height * factor
            figures.require_size(path, *size)
            if factor > 1:
                figures.require_readable(*size)
        images += batch
    text = {**text, f"gantx:{origin}s": str(seeds_of(numbers))}
    text |= {"gantx:scale": str(factor)} if factor > 1 else {}
    text |= {"gantx:labels": f"{origin}s"} if labels else {}
    cells = [
        sheets.Cell(image, str(number) if labels else "")
        for image, number in zip(images, numbers, strict=True)
    ]
    blank = sheets.Cell(images[0].new_full(images[0].shape, 255))
    cells += [blank] * (columns * rows - len(cells))
    figures.save(path, sheets.lay_out(sheets.Sheet(cells, columns, factor)), text)


def _write_array(file: BinaryIO, batches: Iterable[Tensor], count: int) -> None:
    """Write images [n, C, H, W] as one array [count, H, W, C] in the format of `np.save`, batch by batch."""
    written = 0
    for batch in batches:
        rows = batch.permute(0, 2, 3, 1).contiguous().numpy()
        if not written:
            header = np.lib.format.header_data_from_array_1_0(rows)
            np.lib.format.write_array_header_1_0(file, {**header, "shape": (count, *rows.shape[1:])})
        file.write(rows.data)
        written += len(rows)
    if written != count:
        raise ValueError(f"{written} images came instead of {count}")


def _by_threads(
    work: Callable[[_Group], Result], batches: Iterable[Tensor], numbers: Sequence[int]
) -> Iterator[Result]:
    """Results of `work` on groups of images, in order, computed in threads while batches are generated."""
    threads = min(_ENCODERS, len(cores.allowed()))
    return ahead(work, _groups(batches, numbers), threads=threads, waiting=4 * threads)


def _groups(batches: Iterable[Tensor], numbers: Sequence[int]) -> Iterator[_Group]:
    done = 0
    for batch in batches:
        _, _, height, width = batch.shape
        for images in batch.split(max(1, _TOGETHER // (height * width))):
            yield _Group(images, numbers[done : done + len(images)])
            done += len(images)


def _encode(group: _Group, text: Mapping[str, str], origin: str) -> list[_File]:
    return [
        _File(f"{origin}-{number:06d}.png", encode_png(image, {**text, f"gantx:{origin}": str(number)}))
        for image, number in zip(group.images, group.numbers, strict=True)
    ]


def _write_pngs(folder: Path, group: _Group, text: Mapping[str, str], origin: str) -> None:
    """Write PNGs under temporary names and rename them; unlike `replacing`, without flushing to the disk."""
    beside = folder / f".{os.getpid()}-{threading.get_ident()}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in _encode(group, text, origin):
            beside.write_bytes(data)
            beside.replace(folder / name)
    except OSError as problem:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        raise MissingError(f"cannot write into {folder}: {system_reason(problem)}") from problem
