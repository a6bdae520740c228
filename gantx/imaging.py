"""Pictures out of pixels: grids, PNG files, folders, zips and arrays.

Every file is written beside its name and renamed when it is whole. PNGs carry where they come from in text
chunks, so that an image can be traced to its seed and weights.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, PngImagePlugin
from torch import Tensor

from gantx.atomic import replacing
from gantx.errors import UsageError


def grid_shape(count: int, wanted: str | None = None) -> tuple[int, int]:
    """(columns, rows) of a grid that holds `count` images.

    Args:
        count: number of images.
        wanted: `COLUMNSxROWS`, or None for the squarest grid.

    Raises:
        UsageError: the text is no grid, or the grid is too small.
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


GAP = 2  # white pixels between the images of a grid


def grid_of(sheet: Sequence[int], image: Sequence[int]) -> tuple[int, int]:
    """(columns, rows) of a grid by its size (H, W) and that of its images; (0, 0) when it is none."""
    (rows, row_rest), (columns, column_rest) = (
        divmod(whole + GAP, part + GAP) for whole, part in zip(sheet, image, strict=True)
    )
    return (0, 0) if row_rest or column_rest else (columns, rows)


def grid(images: Tensor, columns: int, rows: int, gap: int = GAP) -> Tensor:
    """Lay images out in a grid on white.

    Args:
        images: uint8 [N, 3, H, W].
        columns: images a row.
        rows: rows; places beyond N stay white.
        gap: pixels between images.

    Returns:
        uint8 [3, rows·(H+gap) − gap, columns·(W+gap) − gap].
    """
    count, channels, height, width = images.shape
    sheet = images.new_full((columns * rows, channels, height + gap, width + gap), 255)
    sheet[:count, :, :height, :width] = images
    sheet = sheet.view(rows, columns, channels, height + gap, width + gap).permute(2, 0, 3, 1, 4)
    whole = sheet.reshape(channels, rows * (height + gap), columns * (width + gap))
    return whole[:, : rows * (height + gap) - gap, : columns * (width + gap) - gap]


def encode_png(image: Tensor, text: Mapping[str, str]) -> bytes:
    """One image uint8 [3, H, W] as PNG bytes with text chunks."""
    chunks = PngImagePlugin.PngInfo()
    for key, value in text.items():
        chunks.add_text(key, value)
    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(buffer, "PNG", pnginfo=chunks)
    return buffer.getvalue()


def write_png(path: Path, image: Tensor, text: Mapping[str, str]) -> None:
    """Write one image uint8 [3, H, W] as a PNG with text chunks; MissingError when it cannot be written."""
    with replacing(path) as beside:
        beside.write_bytes(encode_png(image, text))


def save_images(
    path: Path,
    batches: Iterable[Tensor],
    seeds: Sequence[int],
    text: Mapping[str, str],
    shape: tuple[int, int] | None = None,
    origin: str = "seed",
) -> None:
    """Save sampled images in the form the name asks for.

    `.png` is a grid, `.zip` an archive of PNGs, `.npy` an array [N, H, W, 3] of the type of the batches, and
    a name without a suffix a folder of PNGs. Single images are called `seed-000007.png`. Memory stays
    constant for folders and zips.

    Args:
        path: where to.
        batches: uint8 [n, 3, H, W] in the order of `seeds`; any type for `.npy`.
        seeds: one number per image.
        text: where the images come from; the number is added.
        shape: (columns, rows) of a grid.
        origin: what the numbers count.

    Raises:
        MissingError: the disk is full or the folder cannot be written.
        UsageError: the suffix is none of these.
    """
    match path.suffix.lower():
        case ".png":
            columns, rows = shape or grid_shape(len(seeds))
            sheet = grid(torch.cat(list(batches)), columns, rows)
            write_png(path, sheet, {**text, f"gantx:{origin}s": _compact(seeds)})
        case ".npy":
            arrays = [batch.permute(0, 2, 3, 1).numpy() for batch in batches]
            with replacing(path) as beside, beside.open("wb") as file:
                np.save(file, np.concatenate(arrays))
        case ".zip":
            with replacing(path) as beside, zipfile.ZipFile(beside, "w") as archive:
                for name, data in _named_pngs(batches, seeds, text, origin):
                    # A fixed date: equal images make equal archives.
                    archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), data)
        case "":
            for name, data in _named_pngs(batches, seeds, text, origin):
                with replacing(path / name) as beside:
                    beside.write_bytes(data)
        case _:
            raise UsageError(f"cannot write '{path.suffix}' files: use .png, .zip, .npy, or a folder name")


def _named_pngs(
    batches: Iterable[Tensor], seeds: Sequence[int], text: Mapping[str, str], origin: str
) -> Iterable[tuple[str, bytes]]:
    remaining = iter(seeds)
    for batch in batches:
        for image in batch:
            seed = next(remaining)
            yield f"{origin}-{seed:06d}.png", encode_png(image, {**text, f"gantx:{origin}": str(seed)})


def _compact(seeds: Sequence[int]) -> str:
    """`0-63` for a run of consecutive seeds, else `1,5,9`."""
    if len(seeds) > 1 and list(seeds) == list(range(seeds[0], seeds[0] + len(seeds))):
        return f"{seeds[0]}-{seeds[-1]}"
    return ",".join(str(seed) for seed in seeds)
