"""Where an image that is not square lies in its square: the largest centred rectangle of a ratio.

Networks see squares alone. An image of another shape takes the full width of its square and the rows in the
middle; above and below it is black. One rule says which rows: for what is prepared, and for what leaves.
"""

from __future__ import annotations


def rectangle(height: int, width: int, ratio: float) -> tuple[slice, slice]:
    """Rows and columns of the largest centred rectangle that is `ratio` times as high as wide.

    Sides are rounded to whole pixels, to one at least. Of an odd remainder the smaller half is cut off above
    and on the left.

    Args:
        height: of the image, in pixels.
        width: of the image, in pixels.
        ratio: height / width of the rectangle, above 0.
    """
    wide = min(float(width), height / ratio)
    return _centred(height, wide * ratio), _centred(width, wide)


def rows_of(side: int, ratio: float) -> slice:
    """The round(ratio · side) rows of a square that an image of `ratio`, at most 1, takes at full width."""
    return rectangle(side, side, ratio)[0]


def height_of(side: int, ratio: float) -> int:
    """How many rows `rows_of` tells."""
    return len(range(side)[rows_of(side, ratio)])


def _centred(whole: int, part: float) -> slice:
    """The middle of `whole` pixels, `part` of them."""
    kept = max(1, round(part))
    first = (whole - kept) // 2
    return slice(first, first + kept)
