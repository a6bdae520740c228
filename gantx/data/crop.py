"""The position of a non-square image in its square: the largest centred rectangle of a ratio.

Networks take and generate squares only. An image of another shape fills the width of its square, or the
height if it is higher than wide, and lies in the middle; the rest is black. The same rule applies to prepared
and to generated images.
"""

from __future__ import annotations


def rectangle(height: int, width: int, ratio: float) -> tuple[slice, slice]:
    """Rows and columns of the largest centred rectangle that is `ratio` times as high as wide.

    Height and width are rounded to whole pixels, at least one. Of an odd remainder the smaller half is cut
    off at the top and on the left.

    Args:
        height: of the image, in pixels.
        width: of the image, in pixels.
        ratio: height / width of the rectangle, above 0.
    """
    wide = min(float(width), height / ratio)
    return _centred(height, wide * ratio), _centred(width, wide)


def box_of(resolution: int, ratio: float) -> tuple[slice, slice]:
    """Rows and columns of a square that contain an image of `ratio`: all columns below 1, all rows above."""
    return rectangle(resolution, resolution, ratio)


def size_of(resolution: int, ratio: float) -> tuple[int, int]:
    """Width and height of what `box_of` returns."""
    rows, columns = box_of(resolution, ratio)
    return columns.stop - columns.start, rows.stop - rows.start


def _centred(whole: int, part: float) -> slice:
    """The `part` pixels in the middle of `whole`."""
    kept = max(1, round(part))
    first = (whole - kept) // 2
    return slice(first, first + kept)
