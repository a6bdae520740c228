"""The position of a non-square image in its square: the largest centred rectangle of a ratio.

Networks take and generate squares only. An image of another shape has the full width of its square and the
rows in the middle; the rows above and below are black. The same rule applies to prepared and to generated
images.
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


def rows_of(resolution: int, ratio: float) -> slice:
    """The round(ratio · resolution) rows of a square that contain an image of `ratio`, which is at most 1."""
    return rectangle(resolution, resolution, ratio)[0]


def height_of(resolution: int, ratio: float) -> int:
    """The number of rows that `rows_of` returns."""
    return len(range(resolution)[rows_of(resolution, ratio)])


def _centred(whole: int, part: float) -> slice:
    """The `part` pixels in the middle of `whole`."""
    kept = max(1, round(part))
    first = (whole - kept) // 2
    return slice(first, first + kept)
