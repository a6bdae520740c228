"""Files of single pictures: PNG, JPEG, WebP, and PDF and SVG through matplotlib, an extra.

Each file describes the origin of its picture: PNG in text chunks, JPEG and WebP in the EXIF description, PDF
in its keywords, SVG in its description. PNG and WebP store the exact pixels and alpha; elsewhere transparent
images are composited over white.
"""

from __future__ import annotations

import importlib
import io
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, PngImagePlugin

from gantx.errors import MissingError, UsageError
from gantx.io.atomic import replacing
from gantx.io.channels import to_rgb
from gantx.io.decoding import DESCRIPTION, MOST_PIXELS
from gantx.io.sheets import Drawing

if TYPE_CHECKING:  # outputs are checked before torch is imported
    from torch import Tensor

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".pdf", ".svg")
EXACT = (".png", ".webp")  # formats that keep every pixel
_VECTOR = (".pdf", ".svg")
_SIDES = {
    ".jpg": 65_500,
    ".jpeg": 65_500,
    ".webp": 16_383,
}  # most pixels per side that the format stores
_JPEG_QUALITY = 95
_POINTS = 72  # per inch: one pixel of a drawing is one point of a vector graphic
# Letters of matplotlib's font are wider than those of Pillow's, for which texts are laid out.
_NARROWER = 0.85


def is_picture(path: Path) -> bool:
    """Whether the suffix is that of a single picture."""
    return path.suffix.lower() in SUFFIXES


def check(path: Path, others: str = "") -> None:
    """Refuse what cannot be written, before the work for it starts.

    Args:
        path: of the picture.
        others: what else the command writes, for the error.

    Raises:
        UsageError: the suffix is not that of a picture.
        MissingError: the package that writes PDF and SVG is not installed.
    """
    if not is_picture(path):
        known = ", ".join(SUFFIXES) + (f", {others}" if others else "")
        name = f"'{path.suffix}' files" if path.suffix else f"a picture called {path}, without a suffix"
        raise UsageError(f"cannot write {name}: use {known}")
    if path.suffix.lower() in _VECTOR:
        _matplotlib("figure")


def require_size(path: Path, width: int, height: int) -> None:
    """UsageError if the format cannot store a picture of this size, in pixels."""
    limit = _SIDES.get(path.suffix.lower())
    if limit is not None and max(width, height) > limit:
        raise UsageError(
            f"a picture of {width}x{height} pixels is too large for {path.suffix}, which allows {limit} per "
            "side: use .png, a smaller --scale, or fewer images"
        )


def require_readable(width: int, height: int) -> None:
    """UsageError if an enlarged picture would be too large to be opened again."""
    if width * height > MOST_PIXELS:
        raise UsageError(
            f"a picture of {width}x{height} pixels is too large to be opened: choose a smaller --scale"
        )


def save(path: Path, drawing: Drawing, text: Mapping[str, str]) -> None:
    """Write a drawing in the format given by the suffix.

    Args:
        path: of the picture.
        drawing: what it shows.
        text: where it comes from.

    Raises:
        UsageError, MissingError: as `check`; the picture is too large for the format, or the disk is full.
    """
    check(path)
    if path.suffix.lower() in _VECTOR:
        data = _vector(drawing, path.suffix.lower(), text)
    else:
        require_size(path, drawing.width, drawing.height)
        data = encode(drawing.pixels(), path.suffix.lower(), text)
    with replacing(path) as beside:
        beside.write_bytes(data)


def encode(image: Tensor, suffix: str, text: Mapping[str, str]) -> bytes:
    """One image uint8 [C, H, W] as the bytes of a .png, .jpg, .jpeg or .webp file."""
    if suffix == ".png":
        return encode_png(image, text)
    exif = Image.Exif()
    exif[DESCRIPTION] = described(text)
    buffer = io.BytesIO()
    if suffix == ".webp":
        to_pillow(image).save(buffer, "WEBP", lossless=True, exact=True, exif=exif)
    else:  # colours at full resolution: small pictures are enlarged to squares of one colour
        to_pillow(opaque(image)).save(buffer, "JPEG", quality=_JPEG_QUALITY, subsampling=0, exif=exif)
    return buffer.getvalue()


def encode_png(image: Tensor, text: Mapping[str, str]) -> bytes:
    """One image uint8 [C, H, W] as PNG bytes with text chunks."""
    chunks = PngImagePlugin.PngInfo()
    for key, value in text.items():
        chunks.add_text(key, value)
    buffer = io.BytesIO()
    # Z_RLE, which zlib has for PNGs: as small as the default on photographs, in a third of the time.
    to_pillow(image).save(buffer, "PNG", pnginfo=chunks, compress_type=zlib.Z_RLE)
    return buffer.getvalue()


def write_png(path: Path, image: Tensor, text: Mapping[str, str]) -> None:
    """Write one image uint8 [C, H, W] as a PNG with text chunks; MissingError when it cannot be written."""
    with replacing(path) as beside:
        beside.write_bytes(encode_png(image, text))


def to_pillow(image: Tensor) -> Image.Image:
    """One image uint8 [C, H, W] in Pillow's mode L, RGB or RGBA."""
    pixels = image.permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def opaque(image: Tensor) -> Tensor:
    """An image uint8 [C, H, W] for a format without alpha: what is transparent is composited over white."""
    return to_rgb(image) if image.shape[0] == 4 else image


def described(text: Mapping[str, str]) -> str:
    """Where a picture comes from as one text, for formats without text chunks."""
    return "\n".join(f"{key}={value}" for key, value in text.items())


def _matplotlib(module: str) -> Any:
    try:
        return importlib.import_module(f"matplotlib.{module}")
    except ImportError as problem:
        raise MissingError(
            'writing .pdf and .svg needs matplotlib: pip install "gantx[figures]", or write .png'
        ) from problem


def _vector(drawing: Drawing, suffix: str, text: Mapping[str, str]) -> bytes:
    """A drawing as PDF or SVG: text stays text, images keep their pixels."""
    figure = _matplotlib("figure").Figure(
        figsize=(drawing.width / _POINTS, drawing.height / _POINTS), dpi=_POINTS
    )
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    patches = _matplotlib("patches")
    for order, (x, y, pixels) in enumerate(drawing.images):
        _, height, width = pixels.shape
        axes.imshow(
            to_rgb(pixels).permute(1, 2, 0).numpy(),
            extent=(x, x + width, y + height, y),
            interpolation="none",
            zorder=1 + order / (1 + len(drawing.images)),
        )
    for part in drawing.rectangles:
        inner = 0 if part.filled else 0.5  # a border of one point lies inside of the rectangle
        axes.add_patch(
            patches.Rectangle(
                (part.x + inner, part.y + inner),
                part.width - 2 * inner,
                part.height - 2 * inner,
                color=[level / 255 for level in part.colour],
                fill=part.filled,
                linewidth=0 if part.filled else 1,
                zorder=3,
            )
        )
    alignments = {"left": "left", "middle": "center", "right": "right"}
    for label in drawing.texts:
        axes.text(
            label.x,
            label.y,
            label.text,
            fontsize=_NARROWER * label.size,
            ha=alignments[label.anchor],
            va="center",
            parse_math=False,
            zorder=4,
        )
    axes.set_xlim(0, drawing.width)
    axes.set_ylim(drawing.height, 0)
    # Without dates and random names, equal pictures make equal files.
    about: dict[str, Any] = {"Creator": "gantx", "CreationDate": None, "Keywords": described(text)}
    if suffix == ".svg":
        about = {"Creator": "gantx", "Date": None, "Description": described(text)}
    buffer = io.BytesIO()
    settings = {"svg.hashsalt": "gantx", "pdf.fonttype": 42}
    with importlib.import_module("matplotlib").rc_context(settings):
        figure.savefig(buffer, format=suffix[1:], dpi=_POINTS, metadata=about)
    return buffer.getvalue()
