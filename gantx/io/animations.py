"""Animations: GIF, WebP, APNG and MP4 files, folders of frames, film strips.

Frames are generated and written one at a time, so that memory does not depend on their number; only a film
strip is one image. PyAV, an extra, writes MP4. For GIF, WebP and APNG, Pillow encodes the pixels of each
frame, and the container around them is written here: Pillow's own writers keep all frames until the last,
and those of PyAV (FFmpeg) drop the text that describes the origin of the images.
"""

from __future__ import annotations

import importlib
import io
import itertools
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from PIL import Image

from gantx.errors import MissingError, UsageError
from gantx.io import figures, imaging, sheets
from gantx.io.atomic import replacing
from gantx.io.channels import to_rgb

if TYPE_CHECKING:  # outputs are checked before torch is imported
    from torch import Tensor

STRIPS = tuple(suffix for suffix in figures.SUFFIXES if suffix != ".webp")
SUFFIXES = (".gif", ".webp", ".apng", ".mp4", *STRIPS)
_SIDES = {".gif": 65_535, ".webp": 16_383, ".mp4": 16_384}  # largest side in pixels that the format can store
_WEBP_QUALITY = 90


def check(path: Path, fps: int) -> None:
    """Refuse what cannot be written, before anything is generated.

    Args:
        path: of the animation; without a suffix it is a folder of frames.
        fps: frames per second.

    Raises:
        UsageError: the format is unknown, or cannot show so many frames per second.
        MissingError: the package that codes MP4 is not installed.
    """
    suffix = path.suffix.lower()
    if suffix and suffix not in SUFFIXES:
        raise UsageError(f"cannot write '{suffix}' files: use {', '.join(SUFFIXES)}, or a folder name")
    if suffix == ".gif" and fps > 50:
        raise UsageError(f"a GIF shows at most 50 frames per second, not {fps}: choose fewer, or .webp")
    if suffix == ".mp4":
        _video_package()
    if suffix in STRIPS:
        figures.check(path)


def save(
    path: Path,
    frames: Iterator[Tensor],
    count: int,
    *,
    shape: tuple[int, int],
    fps: int,
    text: Mapping[str, str],
    scale: int | None = 1,
    captions: Sequence[Sequence[str]] = (),
) -> None:
    """Write an animation in the format given by the suffix.

    `.gif` (256 colours per frame), `.webp` (lossy), `.apng` (lossless) and `.mp4` (H.264) are animations; a
    name without a suffix is a folder of PNGs `frame-000000.png`; `STRIPS` are film strips, with a row for
    each image of a frame and a column for each frame. All but MP4 repeat forever.

    Args:
        path: the file or folder to write.
        frames: uint8 [n, C, H, W] each, n images side by side.
        count: number of frames.
        shape: (columns, rows) of the grid of images in a frame.
        fps: frames per second.
        text: where the images come from.
        scale: factor by which images are enlarged; None for the default of small images, see
            `sheets.enlargement`, and for 1 in a folder.
        captions: texts above the images of each frame of a film strip, [frames][n]; empty for none.

    Raises:
        UsageError, MissingError: as `check` does; or the frames are too large for the format, or the disk is
            full.
    """
    check(path, fps)
    suffix = path.suffix.lower()
    first_images = next(frames)
    frames = itertools.chain([first_images], frames)
    paths, _, height, width = first_images.shape
    del first_images
    columns, rows = (count, paths) if suffix in STRIPS else shape
    if scale is None:
        scale = sheets.enlargement(height, width, columns, rows) if suffix else 1
    text = {**text, "gantx:scale": str(scale)} if scale > 1 else text
    if suffix in STRIPS:
        figures.require_size(path, count * width * scale, paths * height * scale)
        figures.save(path, _strip(frames, count, scale, captions), text)
        return
    factor = scale
    pictures: Iterator[Tensor] = (
        imaging.grid(sheets.enlarged(images, factor), *shape, gap=sheets.gap_for(factor)) for images in frames
    )
    if not suffix:
        for index, picture in enumerate(pictures):
            figures.write_png(path / f"frame-{index:06d}.png", picture, {**text, "gantx:frame": str(index)})
        return
    first = next(pictures)
    limit = _SIDES.get(suffix)
    if limit is not None and max(first.shape[1:]) > limit:
        raise UsageError(
            f"frames of {first.shape[2]}x{first.shape[1]} pixels are too large for {suffix}, which allows "
            f"{limit} per side: make the grid or --scale smaller, or write a folder of frames"
        )
    pictures = itertools.chain([first], pictures)
    with replacing(path) as beside:
        if suffix == ".mp4":
            _write_mp4(beside, pictures, fps, text)
            return
        write: Callable[[BinaryIO, Iterator[Tensor], int, int, Mapping[str, str]], None]
        write = {".gif": _write_gif, ".webp": _write_webp, ".apng": _write_apng}[suffix]
        with beside.open("wb") as file:
            write(file, pictures, count, fps, text)


def _strip(
    frames: Iterator[Tensor], count: int, scale: int, captions: Sequence[Sequence[str]]
) -> sheets.Drawing:
    """A film strip: a row for each image of a frame, a column for each frame."""
    columns = list(frames)
    cells = [
        sheets.Cell(images[row], captions[column][row] if captions else "")
        for row in range(len(columns[0]))
        for column, images in enumerate(columns)
    ]
    return sheets.lay_out(sheets.Sheet(cells, count, scale))


def _ticks(fps: int, per_second: int) -> Iterator[int]:
    """Durations of frames in whole ticks; their rounding errors do not add up."""
    ends = (round(frame * per_second / fps) for frame in itertools.count())
    return (end - start for start, end in itertools.pairwise(ends))


# --- GIF (89a): colour table and encoded pixels of each frame come from a separate GIF --------------------


def _write_gif(
    file: BinaryIO, sheets: Iterator[Tensor], count: int, fps: int, text: Mapping[str, str]
) -> None:
    for index, (sheet, delay) in enumerate(zip(sheets, _ticks(fps, 100), strict=False)):
        if index == 0:
            file.write(b"GIF89a" + struct.pack("<HHBBB", sheet.shape[2], sheet.shape[1], 0x70, 0, 0))
            file.write(b"\x21\xff\x0bNETSCAPE2.0\x03\x01\x00\x00\x00")  # repeat forever
            comment = figures.described(text).encode()
            blocks = (comment[start : start + 255] for start in range(0, len(comment), 255))
            file.write(b"\x21\xfe" + b"".join(bytes([len(block)]) + block for block in blocks) + b"\0")
        file.write(b"\x21\xf9\x04" + struct.pack("<BHBB", 0x04, delay, 0, 0))
        file.write(_gif_image(sheet))
    file.write(b"\x3b")


def _gif_image(sheet: Tensor) -> bytes:
    """Image descriptor, local colour table and encoded pixels of a frame."""
    buffer = io.BytesIO()
    figures.to_pillow(figures.opaque(sheet)).quantize(256).save(buffer, "GIF", interlace=False)
    data = buffer.getvalue()
    size = data[10] & 0x07  # 2^(size + 1) colours
    offset = 13 + (6 << size)
    table = data[13:offset]
    while data[offset] == 0x21:  # extensions: two bytes, then blocks that begin with their length, then 0
        offset += 2
        while data[offset]:
            offset += data[offset] + 1
        offset += 1
    return data[offset : offset + 9] + bytes([0x80 | size]) + table + data[offset + 10 : -1]


# --- APNG: the pixels of each frame come from a separate PNG ----------------------------------------------


def _write_apng(
    file: BinaryIO, sheets: Iterator[Tensor], count: int, fps: int, text: Mapping[str, str]
) -> None:
    sequence = itertools.count()
    for index, sheet in enumerate(sheets):
        chunks = list(_png_chunks(figures.encode_png(sheet, text if index == 0 else {})))
        if index == 0:
            file.write(b"\x89PNG\r\n\x1a\n")
            (_, header), *others = chunks
            _chunk(file, b"IHDR", header)
            _chunk(file, b"acTL", struct.pack(">II", count, 0))
            for name, data in others:
                if name not in (b"IDAT", b"IEND"):
                    _chunk(file, name, data)
        height, width = sheet.shape[1:]
        control = struct.pack(">IIIIIHHBB", next(sequence), width, height, 0, 0, 1, fps, 0, 0)
        _chunk(file, b"fcTL", control)
        for name, data in chunks:
            if name == b"IDAT" and index == 0:
                _chunk(file, b"IDAT", data)
            elif name == b"IDAT":
                _chunk(file, b"fdAT", struct.pack(">I", next(sequence)) + data)
    _chunk(file, b"IEND", b"")


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    offset = 8
    while offset < len(data):
        (length,) = struct.unpack_from(">I", data, offset)
        yield data[offset + 4 : offset + 8], data[offset + 8 : offset + 8 + length]
        offset += length + 12


def _chunk(file: BinaryIO, name: bytes, data: bytes) -> None:
    file.write(struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)))


# --- WebP: each frame is the content of a separate WebP ---------------------------------------------------


def _write_webp(
    file: BinaryIO, sheets: Iterator[Tensor], count: int, fps: int, text: Mapping[str, str]
) -> None:
    file.write(b"RIFF\0\0\0\0WEBP")
    for index, (sheet, duration) in enumerate(zip(sheets, _ticks(fps, 1000), strict=False)):
        sides = _three_bytes(sheet.shape[2] - 1) + _three_bytes(sheet.shape[1] - 1)
        if index == 0:
            alpha = 0x10 if sheet.shape[0] == 4 else 0
            _riff_chunk(file, b"VP8X", bytes([0x0A | alpha, 0, 0, 0]) + sides)  # is animated, has EXIF data
            _riff_chunk(file, b"ANIM", b"\xff\xff\xff\xff\0\0")  # on white, repeat forever
        buffer = io.BytesIO()
        figures.to_pillow(sheet).save(buffer, "WEBP", quality=_WEBP_QUALITY)
        frame = bytes(6) + sides + _three_bytes(duration) + b"\x02"  # replaces what was there
        _riff_chunk(file, b"ANMF", frame + _webp_image(buffer.getvalue()))
    exif = Image.Exif()
    exif[0x010E] = figures.described(text)  # ImageDescription
    _riff_chunk(file, b"EXIF", exif.tobytes().removeprefix(b"Exif\0\0"))
    size = file.tell() - 8
    file.seek(4)
    file.write(struct.pack("<I", size))


def _webp_image(data: bytes) -> bytes:
    """The chunks of a WebP that hold the pixels; with alpha, a header comes before them."""
    content = data[12:]
    return content[18:] if content.startswith(b"VP8X") else content


def _riff_chunk(file: BinaryIO, name: bytes, data: bytes) -> None:
    file.write(name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2))


def _three_bytes(number: int) -> bytes:
    return number.to_bytes(3, "little")


# --- MP4 --------------------------------------------------------------------------------------------------


def _video_package() -> Any:
    try:
        package = importlib.import_module("av")
        package.codec.Codec("libx264", "w")
    except (ImportError, ValueError) as problem:
        raise MissingError(
            "writing .mp4 needs PyAV with its H.264 encoder: pip install 'gantx[video]', or write .webp, .gif"
        ) from problem
    return package


def _write_mp4(path: Path, sheets: Iterator[Tensor], fps: int, text: Mapping[str, str]) -> None:
    import torch.nn.functional as F

    av = _video_package()
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as container:
        container.metadata["comment"] = figures.described(text)
        stream = None
        for sheet in sheets:
            _, height, width = sheet.shape
            if stream is None:
                stream = container.add_stream("libx264", rate=fps, options={"crf": "16"})
                stream.width, stream.height = width + width % 2, height + height % 2
                stream.pix_fmt = "yuv420p"  # most widely supported: one colour for 2x2 pixels
            even = F.pad(to_rgb(sheet), (0, width % 2, 0, height % 2), value=255)
            frame = av.VideoFrame.from_ndarray(even.permute(1, 2, 0).contiguous().numpy(), format="rgb24")
            container.mux(stream.encode(frame))
        assert stream is not None
        container.mux(stream.encode())
