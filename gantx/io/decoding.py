"""Opens image files with a fixed list of Pillow's decoders, whatever their suffix.

Some other formats of Pillow start programs (EPS starts Ghostscript) or identify no file for sure, so that
noise would become an image.
"""

from __future__ import annotations

import importlib.util
import io
import zlib
from collections.abc import Callable

from PIL import Image, ImageOps, UnidentifiedImageError

from gantx.errors import DataError
from gantx.io.file_kinds import LFS_POINTER

_SUFFIXES_OF = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "BMP": (".bmp", ".dib"),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "JPEG2000": (".jp2", ".j2k", ".jpx"),
    "QOI": (".qoi",),
    "AVIF": (".avif",),
}
_PLUGINS = {"AVIF": "PIL.AvifImagePlugin", "QOI": "PIL.QoiImagePlugin"}  # not in every version of Pillow
FORMATS = tuple(
    name for name in _SUFFIXES_OF if name not in _PLUGINS or importlib.util.find_spec(_PLUGINS[name])
)
SUFFIXES = tuple(suffix for name in FORMATS for suffix in _SUFFIXES_OF[name])

JPEG = b"\xff\xd8\xff"  # how such a file begins
DESCRIPTION = 0x010E  # EXIF ImageDescription
_PNG = b"\x89PNG\r\n\x1a\n"
_LARGEST_TEXT = 2**20  # bytes of a text chunk; Pillow refuses an image with a larger compressed one
_MOST_TEXT = 2**24  # bytes of all text chunks; Pillow refuses an image with more than four times as many
_DEFLATE = 1032  # bytes at most that deflate makes of one
MOST_PIXELS = 89_478_485  # of an image: a quarter of a GiB in RGB, where Pillow begins to warn


def open_image(content: bytes) -> Image.Image:
    """An image, not decoded yet. Text chunks of a PNG that are too large for Pillow are left out.

    Args:
        content: the content of the file.

    Raises:
        Exception: the content is not an image of one of `FORMATS`; Pillow may raise any kind.
    """
    if content.startswith(LFS_POINTER):
        raise ValueError("it is a git-lfs pointer, to be fetched with `git lfs pull`")
    if content.startswith(_PNG):
        content = _without_large_text(content)
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError:
        known = f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
        raise UnidentifiedImageError(f"it is not a {known} image") from None
    if (pixels := image.width * image.height) > MOST_PIXELS:
        raise Image.DecompressionBombError(f"it has {pixels:,} pixels, more than the {MOST_PIXELS:,} allowed")
    return image


def decoded(
    content: bytes, name: str, convert: Callable[[Image.Image], Image.Image]
) -> tuple[Image.Image, dict[str, str]]:
    """An image, turned upright as its EXIF data say and converted, and its texts by keyword.

    Args:
        content: the content of the file.
        name: of the file, for the message.
        convert: to the mode that is wanted.

    Raises:
        DataError: the content is not an image of one of `FORMATS`, is damaged, or has too many pixels.
    """
    try:
        image = open_image(content)
        image.load()
        text = text_of(image)
        return convert(ImageOps.exif_transpose(image)), text
    except Exception as problem:  # a broken file makes decoders raise almost anything
        reason = " ".join(str(problem).split()) or type(problem).__name__
        raise DataError(f"cannot read the image {name}: {reason}") from problem


def text_of(image: Image.Image) -> dict[str, str]:
    """What an opened picture says about its origin; empty if it is not a picture of gantx."""
    if image.format == "PNG":
        return {str(key): value for key, value in image.info.items() if isinstance(value, str)}
    said = image.getexif().get(DESCRIPTION, "")
    lines = said.split("\n") if isinstance(said, str) else []
    return {key: value for key, equals, value in (line.partition("=") for line in lines) if equals}


def _without_large_text(png: bytes) -> bytes:
    """A PNG without the text chunks and colour profiles that Pillow refuses; unchanged without any."""
    kept: list[bytes] = []
    total, start, position = 0, 0, len(_PNG)
    while position + 12 <= len(png):
        length = int.from_bytes(png[position : position + 4], "big")
        end = position + 12 + length
        if end > len(png):
            break
        kind = png[position + 4 : position + 8]
        if kind in (b"tEXt", b"zTXt", b"iTXt", b"iCCP"):
            size = _text_size(kind, png[position + 8 : end - 4])
            if size > _LARGEST_TEXT or total + size > _MOST_TEXT:
                kept.append(png[start:position])
                start = end
            else:
                total += size
        position = end
    return b"".join([*kept, png[start:]]) if kept else png


def _text_size(kind: bytes, data: bytes) -> int:
    """Bytes of a text chunk after decompression, counted up to just above `_LARGEST_TEXT`."""
    if len(data) * _DEFLATE <= _LARGEST_TEXT or len(data) > _LARGEST_TEXT:
        return len(data)
    _, _, rest = data.partition(b"\0")  # after the keyword
    if kind == b"tEXt" or (kind == b"iTXt" and rest[:1] != b"\1"):
        return len(data)
    # In iTXt flag, method, language and translated keyword come first, in the others the method alone.
    text = b"".join(rest[2:].split(b"\0", 2)[2:]) if kind == b"iTXt" else rest[1:]
    try:
        return len(zlib.decompressobj().decompress(text, _LARGEST_TEXT + 1))
    except zlib.error:  # Pillow ignores such a chunk
        return len(data)
