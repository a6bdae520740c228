"""Image files are opened by a fixed list of decoders, and text never hides pixels."""

import io
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin, features

from gantx.io.decoding import FORMATS, SUFFIXES, open_image

LARGE = "x" * (3 << 20)


def picture():
    return Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))


@pytest.mark.parametrize(
    ("mode", "format"),
    [
        ("RGB", "JPEG"),
        ("RGB", "PNG"),
        ("RGB", "PPM"),
        ("L", "PPM"),
        ("1", "PPM"),
        ("RGB", "TIFF"),
        ("RGB", "BMP"),
        ("RGB", "GIF"),
        ("RGB", "WEBP"),
        ("RGB", "JPEG2000"),
        ("RGB", "AVIF"),
    ],
)
def test_formats_are_known_by_content(mode, format):
    names = {"JPEG2000": "jpg_2000", "AVIF": "avif", "WEBP": "webp"}
    if format not in FORMATS or (format in names and not features.check(names[format])):
        pytest.skip(f"this Pillow has no {format}")
    buffer = io.BytesIO()
    picture().convert(mode).save(buffer, format)
    image = open_image(buffer.getvalue())
    image.load()
    assert image.size == (4, 4)
    assert image.mode in (mode, "P", "RGB")


def test_formats_that_start_other_programs_are_refused():
    for content in (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"noise", b""):
        with pytest.raises(OSError, match="it is not a JPEG, PNG"):
            open_image(content)
    assert ".pgm" in SUFFIXES
    assert ".eps" not in SUFFIXES


def test_a_git_lfs_pointer_is_named():
    with pytest.raises(ValueError, match="git lfs pull"):
        open_image(b"version https://git-lfs.github.com/spec/v1\n")


def with_chunk(kind, data, at_end=False):
    """A PNG with one chunk more, behind its header or before its end."""
    buffer = io.BytesIO()
    picture().save(buffer, "PNG")
    png = buffer.getvalue()
    position = len(png) - 12 if at_end else 33
    chunk = len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")
    return png[:position] + chunk + png[position:]


@pytest.mark.parametrize("at_end", [False, True])
@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (b"zTXt", b"key\0\0" + zlib.compress(LARGE.encode())),
        (b"iTXt", b"key\0\1\0en\0key\0" + zlib.compress(LARGE.encode())),
        (b"iCCP", b"key\0\0" + zlib.compress(LARGE.encode())),
        (b"tEXt", b"key\0" + LARGE.encode() * 22),
    ],
)
def test_text_of_any_size_leaves_the_pixels(kind, data, at_end):
    image = open_image(with_chunk(kind, data, at_end))
    image.load()
    assert np.array_equal(np.asarray(image), np.asarray(picture()))
    assert "key" not in image.info


def test_text_of_ordinary_size_is_kept():
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("a", "b" * 5000, zip=True)
    chunks.add_itxt("c", "d" * 5000, zip=True)
    chunks.add_text("e", "f" * 5000)
    buffer = io.BytesIO()
    picture().save(buffer, "PNG", pnginfo=chunks)
    content = buffer.getvalue()
    image = open_image(content)
    assert (image.info["a"], image.info["c"], image.info["e"]) == ("b" * 5000, "d" * 5000, "f" * 5000)


def test_a_damaged_chunk_is_left_to_the_decoder():
    for content in (with_chunk(b"zTXt", b"\0" * 2000), with_chunk(b"iTXt", b"a\0\1" + b"b" * 2000)):
        image = open_image(content)
        image.load()
        assert image.size == (4, 4)
    with pytest.raises(OSError, match="Truncated"):
        open_image(with_chunk(b"zTXt", b"a")[:20])
