"""Where images that are not square lie in their squares."""

import pytest

from gantx.data.crop import height_of, rectangle, rows_of


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
def test_rows_of_a_square_at_full_width(side, ratio):
    rows = rows_of(side, ratio)
    assert height_of(side, ratio) == rows.stop - rows.start == max(1, round(ratio * side))
    above, below = rows.start, side - rows.stop
    assert below - above in (0, 1)
