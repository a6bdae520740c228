"""Where images that are not square lie in their squares."""

import pytest

from gantx.data.crop import box_of, rectangle, size_of


@pytest.mark.parametrize(
    ("height", "width", "ratio", "rows", "columns"),
    [
        (256, 256, 0.75, (32, 224), (0, 256)),  # CLEVR
        (256, 256, 188 / 256, (34, 222), (0, 256)),  # LSUN bedrooms
        (256, 256, 0.5, (64, 192), (0, 256)),  # Cityscapes
        (256, 256, 1.0, (0, 256), (0, 256)),
        (64, 64, 2.0, (0, 64), (16, 48)),
        (8, 8, 0.625, (1, 6), (0, 8)),  # of three rows left over one is above
        (320, 480, 0.75, (0, 320), (26, 453)),  # 426.67 wide
        (480, 320, 0.75, (120, 360), (0, 320)),
        (7, 10, 0.7, (0, 7), (0, 10)),
        (4, 4, 0.01, (1, 2), (0, 4)),
    ],
)
def test_the_largest_rectangle_in_the_middle(height, width, ratio, rows, columns):
    assert rectangle(height, width, ratio) == (slice(*rows), slice(*columns))


@pytest.mark.parametrize("side", [4, 7, 32, 100])
@pytest.mark.parametrize("ratio", [0.01, 1 / 3, 0.5, 0.75, 0.99, 1.0])
def test_landscape_has_all_columns_and_portrait_all_rows(side, ratio):
    (rows, columns), (width, height) = box_of(side, ratio), size_of(side, ratio)
    assert (width, columns) == (side, slice(0, side))
    assert height == rows.stop - rows.start == max(1, round(ratio * side))
    assert (side - rows.stop) - rows.start in (0, 1)
    # Turned by a quarter.
    assert box_of(side, 1 / ratio) == (columns, rows)
