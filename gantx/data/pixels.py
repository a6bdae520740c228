"""Reads images of a source as the pixels that networks see, in order and ahead of their use.

Each image goes through these steps, in this order; docs/data.md describes them to users:

1. It is rotated according to its EXIF orientation. Of an animation the first frame is used.
2. The largest centred rectangle of `data.ratio` is cropped: a square if the ratio is 1.
3. It is converted to `data.channels`: 8-bit RGB, grey, or RGBA (`converted`). Colour profiles are ignored.
4. It is resized with Lanczos, which is antialiased in Pillow and keeps the most detail of its filters.
   An image smaller than the resolution is unusable unless `data.allow_upscale` is set.
5. If the ratio is not 1, it is centred in a black square, transparent with alpha (gantx.data.crop).
"""

from __future__ import annotations

import math
import warnings
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from gantx.config.schema import DataConfig
from gantx.data.crop import box_of, rectangle, size_of
from gantx.data.sources import ReadsRanges, Source
from gantx.errors import GantxError
from gantx.runtime import cores

_WORTH_A_THREAD = 4096  # bytes; smaller images spend their time in Python, under the global interpreter lock


def at_ratio(data: DataConfig) -> str:
    """The ratio of the images for messages, if it is not 1."""
    return "" if data.ratio == 1 else f" at the ratio {data.ratio:g}"


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert a decoded image of any mode to 8-bit RGB by fixed rules.

    - Greyscale and black-and-white: the value is repeated in three channels.
    - 16-bit greyscale: divided by 257 and rounded. Mode I counts as 16-bit once a value exceeds 255.
    - Palette: its colours are looked up.
    - Any transparency (alpha, or a transparent colour): composited over white, the usual background of such
      images; the colours stored under transparent pixels are arbitrary.
    - CMYK, YCbCr and HSV: converted by Pillow's formulas, colour profiles ignored.

    Raises:
        ValueError: mode F, values outside 16 bits, and modes Pillow cannot convert: their range is unknown.
    """
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range")
    if image.mode.startswith("I"):
        return _from_integers(np.asarray(image)).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        white.alpha_composite(layer)
        return white.convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def converted(image: Image.Image, channels: int) -> Image.Image:
    """Convert a decoded image of any mode to grey, RGB, or RGB and straight alpha.

    Grey is the luminance (ITU-R 601-2) of what `to_rgb` makes. With alpha, images without transparency are
    opaque; pixels that are fully transparent are black, so that nobody learns the colours stored under them.

    Args:
        image: the image.
        channels: 1, 3 or 4.

    Raises:
        ValueError: as `to_rgb`.
    """
    if channels == 4:
        numbers = image.mode[0] in "IF"  # of which Pillow cannot make RGBA
        layer = image if image.has_transparency_data and not numbers else to_rgb(image)
        return _canonical(layer.convert("RGBA"))
    colours = to_rgb(image)
    return colours.convert("L") if channels == 1 else colours


def _canonical(image: Image.Image) -> Image.Image:
    """An RGBA image whose fully transparent pixels are black."""
    pixels = np.asarray(image)
    visible = pixels[..., 3:] > 0
    return image if visible.all() else Image.fromarray(pixels * visible)


def _array_converted(images: NDArray[np.uint8], channels: int) -> NDArray[np.uint8]:
    """As `converted`, for RGB images [..., H, W, 3]: [..., H, W, channels]."""
    if channels == 3:
        return images
    if channels == 4:
        return np.concatenate([images, np.full_like(images[..., :1], 255)], -1)
    luminance = images @ _LUMINANCE + 0x8000  # the fixed-point weights of Pillow, so that both agree
    return (luminance >> 16).astype(np.uint8)[..., None]


_LUMINANCE = np.array([19595, 38470, 7471], np.uint32)


def _from_integers(values: NDArray[np.integer]) -> Image.Image:
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise ValueError(f"integer pixels from {low} to {high} do not fit 16 bits")
    if values.dtype.itemsize == 2 or high > 255:
        values = (values.astype(np.int32) + 128) // 257  # v / 257 rounded; 257 is odd, so there are no ties
    return Image.fromarray(values.astype(np.uint8))


# --- one image --------------------------------------------------------------------------------------------


@dataclass
class Tally:
    """Numbers of images for the log: those that were changed, and what they had before.

    Attributes:
        cropped: to the ratio.
        enlarged: to the resolution.
        grey: stored as grey.
        alpha: with a channel or a colour that is transparent.
    """

    cropped: int = 0
    enlarged: int = 0
    grey: int = 0
    alpha: int = 0

    def add(self, other: Tally) -> None:
        """Count the images of another range too."""
        self.cropped += other.cropped
        self.enlarged += other.enlarged
        self.grey += other.grey
        self.alpha += other.alpha


def fit(image: Image.Image | NDArray[np.uint8], data: DataConfig, tally: Tally) -> NDArray[np.uint8]:
    """Crop, convert and resize one image to uint8 [H, R, C]; TooSmall if it must not be enlarged to that."""
    wanted = size_of(data.resolution, data.ratio)
    if isinstance(image, np.ndarray):
        if image.shape[1::-1] == wanted:
            return _array_converted(image, data.channels)
        image = Image.fromarray(image)
    image.load()
    if not image.info.keys().isdisjoint(_ORIENTED) or hasattr(image, "tag_v2"):
        image = upright(image)
    width, height = image.size
    rows, columns = rectangle(height, width, data.ratio)
    kept = columns.stop - columns.start, rows.stop - rows.start
    if kept[0] < wanted[0] or kept[1] < wanted[1]:
        if not data.allow_upscale:
            raise TooSmall(width, height)
        tally.enlarged += 1
    if kept != (width, height):
        tally.cropped += 1
        image = image.crop((columns.start, rows.start, columns.stop, rows.stop))
    tally.grey += image.mode in ("1", "L") or image.mode.startswith("I")
    tally.alpha += image.has_transparency_data
    image = converted(image, data.channels)
    if kept != wanted:  # Pillow weights colours by their alpha
        image = image.resize(wanted, Image.Resampling.LANCZOS)
        image = _canonical(image) if data.channels == 4 else image
    return np.asarray(image).reshape(wanted[1], wanted[0], data.channels)


_ORIENTED = frozenset({"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"})


def upright(image: Image.Image) -> Image.Image:
    """The image turned according to its EXIF orientation."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # unreadable EXIF may raise anything; the pixels may still be valid
        return image


class TooSmall(Exception):
    """An image is smaller than the resolution and must not be enlarged."""


@dataclass(frozen=True)
class Unusable:
    """An image of the source that is left out: its index and why; `small` if it lacks pixels, not content."""

    index: int
    reason: str
    small: bool


def reason_unreadable(problem: Exception) -> str:
    """The reason why an image could not be read, as part of a sentence."""
    if isinstance(problem, Image.DecompressionBombWarning | Image.DecompressionBombError):
        return f"it has more than the {Image.MAX_IMAGE_PIXELS:,} pixels that gantx decodes"
    if isinstance(problem, OSError) and problem.strerror:
        return problem.strerror
    return " ".join(str(problem).split()).rstrip(".") or type(problem).__name__


# --- many images ------------------------------------------------------------------------------------------


@dataclass
class Chunk:
    """The usable images of a range of the source.

    Attributes:
        pixels: uint8 [n, C, R, R].
        kept: their indices in the source.
        unusable: the others.
        tally: how many were changed.
    """

    pixels: NDArray[np.uint8]
    kept: list[int]
    unusable: list[Unusable]
    tally: Tally


def read_chunk(source: Source, data: DataConfig, start: int, stop: int) -> Chunk:
    """Read images start..stop-1 of a source."""
    resolution, (rows, columns) = data.resolution, box_of(data.resolution, data.ratio)
    tally = Tally()
    images = source.read_range(start, stop) if isinstance(source, ReadsRanges) else None
    if images is not None and data.ratio == 1 and images.shape[1:3] == (resolution, resolution):
        images = _array_converted(images, data.channels)
        return Chunk(np.ascontiguousarray(images.transpose(0, 3, 1, 2)), list(range(start, stop)), [], tally)
    # What is outside the image stays black, and transparent.
    pixels = np.zeros((stop - start, resolution, resolution, data.channels), np.uint8)
    kept: list[int] = []
    unusable: list[Unusable] = []
    for index in range(start, stop):
        try:
            image = source.read(index) if images is None else images[index - start]
            pixels[len(kept), rows, columns] = fit(image, data, tally)
        except TooSmall as size:
            width, height = size.args
            reason = f"{width}×{height} pixels, smaller than the resolution {resolution}{at_ratio(data)}"
            unusable.append(Unusable(index, reason, small=True))
            continue
        except GantxError:
            raise
        except Exception as problem:  # decoders may raise anything for a broken file
            unusable.append(Unusable(index, reason_unreadable(problem), small=False))
            continue
        kept.append(index)
    return Chunk(np.ascontiguousarray(pixels[: len(kept)].transpose(0, 3, 1, 2)), kept, unusable, tally)


def read_all(source: Source, data: DataConfig, total: int) -> Generator[Chunk, None, None]:
    """Chunks of the source in order, decoded ahead in threads if images are large, up to a bound."""
    length = max(1, min(256, 2**22 // math.prod(data.image_shape)))
    workers = min(32, len(cores.allowed())) if source.typical_bytes >= _WORTH_A_THREAD else 1
    ahead: deque[Future[Chunk]] = deque()
    Image.init()
    # Filters of warnings apply to all threads: they are set once, around everything that decodes.
    with warnings.catch_warnings(), ThreadPoolExecutor(workers, "decode") as pool:
        warnings.filterwarnings("ignore", module="PIL")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            for start in range(0, total, length):
                ahead.append(pool.submit(read_chunk, source, data, start, min(start + length, total)))
                if len(ahead) > 2 * workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
