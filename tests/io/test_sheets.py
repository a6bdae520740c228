"""Sheets: where images and texts stand, and that images keep their pixels."""

import torch

from gantx.io import imaging, sheets
from gantx.io.sheets import Box, Cell, ColourBar, Sheet, Swatches

IMAGES = torch.randint(0, 256, (6, 3, 8, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_small_images_are_enlarged_to_128_pixels_unless_the_sheet_becomes_too_large():
    assert sheets.enlargement(32, 32) == 4
    assert sheets.enlargement(100, 150) == 2
    assert sheets.enlargement(128, 500) == 1
    assert sheets.enlargement(32, 32, 16, 16) == 4
    assert sheets.enlargement(32, 32, 30, 2) == 2
    assert sheets.enlargement(32, 32, 1000, 1) == 1


def test_a_sheet_without_texts_is_a_grid():
    for factor in (1, 3):
        drawing = sheets.lay_out(Sheet([Cell(image) for image in IMAGES], 3, factor))
        gap = sheets.gap_for(factor)
        assert torch.equal(drawing.pixels(), imaging.grid(sheets.enlarged(IMAGES, factor), 3, 2, gap))


def whole_sheet(**changed):
    cells = [Cell(image, f"caption {index}") for index, image in enumerate(IMAGES)]
    parts = {"title": "a title", "header": ["one", "two", "three"], "side": ["seed 1", "seed\n2"]}
    return sheets.lay_out(Sheet(cells, **{"columns": 3, "factor": 8, **parts, **changed}))


def test_texts_stand_beside_the_images_and_inside_of_the_sheet():
    drawing = whole_sheet()
    assert [text.text for text in drawing.texts[:4]] == ["a title", "one", "two", "three"]
    assert {text.text for text in drawing.texts} >= {"caption 5", "seed 1", "seed", "2"}
    top = min(image.y for image in drawing.images)
    left = min(image.x for image in drawing.images)
    for text in drawing.texts:
        assert 0 <= text.x < drawing.width
        assert 0 < text.y < drawing.height
        assert text.y < top or text.text.startswith("caption") or text.x < left
    pixels = drawing.pixels()
    assert pixels.shape == (3, drawing.height, drawing.width)
    for placed, image in zip(drawing.images, IMAGES, strict=True):
        found = pixels[:, placed.y : placed.y + 64 : 8, placed.x : placed.x + 128 : 8]
        assert torch.equal(found, image)
    margin = torch.cat([pixels[:, :4].flatten(), pixels[:, -4:].flatten(), pixels[:, :, :4].flatten()])
    assert int(margin.min()) == 255


def test_letters_are_antialiased():
    levels = whole_sheet(header=[], side=[]).pixels()[:, :20].unique()
    assert len(levels) > 10


def test_long_words_get_a_smaller_font_and_long_texts_more_lines():
    words = whole_sheet(header=["several words that need lines", "Donaudampfschifffahrtsgesellschaft", ""])
    assert len([text for text in words.texts if text.text in ("several words that", "need lines")]) == 2
    (long,) = [text for text in words.texts if text.text.startswith("Donau")]
    assert long.size < words.texts[0].size


def test_a_box_is_framed_outside_of_its_pixels():
    pixels = torch.full((3, 30, 40), 100, dtype=torch.uint8)
    bare, framed = (
        sheets.lay_out(Sheet([Cell(pixels, box=box)], 1, 4)).pixels() for box in (None, Box(10, 20, 2, 2))
    )
    changed = (bare != framed).any(0).nonzero()
    assert changed.min(0).values.tolist() == [40 - 3, 80 - 3]
    assert changed.max(0).values.tolist() == [48 + 2, 88 + 2]
    assert torch.equal(framed[:, 40:48, 80:88], bare[:, 40:48, 80:88])
    assert framed[0, 38, 78:90].tolist() == [255] * 12


def test_legends_stand_below_in_as_many_lines_as_they_need():
    colours = torch.arange(256, dtype=torch.uint8).expand(3, 256)
    few = Swatches("latents", [((255, 0, 0), "0"), ((0, 0, 255), "1")])
    many = Swatches("latents", [((9, 9, 9), str(number)) for number in range(40)])
    bar = ColourBar("attention", colours, "0", "max")
    heights = [whole_sheet(legends=legends).height for legends in ([few], [few, bar], [many])]
    assert whole_sheet().height < heights[0] < heights[1] < heights[2]
    drawing = whole_sheet(legends=[few, bar])
    filled = [part for part in drawing.rectangles if part.filled]
    assert [part.colour for part in filled] == [(255, 0, 0), (0, 0, 255)]
    _, height, width = drawing.images[-1].pixels.shape
    assert width > height
    assert drawing.images[-1].pixels[0, 0, 0] == 0
    assert drawing.images[-1].y + height < drawing.height
