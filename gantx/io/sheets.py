"""Sheets: images in rows and columns with captions, headers and a legend.

A `Sheet` says what is shown. `lay_out` gives every part its place, in pixels; the result can be drawn as
pixels (`Drawing.pixels`) or written as a vector graphic (`gantx.io.figures`). Images are enlarged by whole
factors without smoothing, so that their pixels stay visible and exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from gantx.io.channels import extended

if TYPE_CHECKING:  # outputs are checked before torch is imported
    from torch import Tensor

Colour = tuple[int, int, int]
Anchor = Literal["left", "middle", "right"]

GAP = 2  # white pixels between images that are not enlarged
SMALLEST = 128  # shorter side in pixels to which small images are enlarged by default
_LARGEST = 2048  # longer side of a sheet in pixels that the default does not exceed
_FONT_SIZES = (11, 24)  # pixels
_BLACK: Colour = (0, 0, 0)
_WHITE: Colour = (255, 255, 255)
_ANCHORS: dict[Anchor, str] = {"left": "lm", "middle": "mm", "right": "rm"}


# --- what is shown ----------------------------------------------------------------------------------------


class Box(NamedTuple):
    """A rectangle in an image to be framed, in its own pixels."""

    top: int
    left: int
    height: int
    width: int


class Cell(NamedTuple):
    """One place of a sheet.

    Attributes:
        pixels: uint8 [C, H, W], the same size in all cells.
        caption: text above it.
        box: a rectangle to be framed.
    """

    pixels: Tensor
    caption: str = ""
    box: Box | None = None


class Swatches(NamedTuple):
    """A legend of single colours with their names."""

    title: str
    entries: Sequence[tuple[Colour, str]]


class ColourBar(NamedTuple):
    """A legend of a range of colours, uint8 [3, n], from `low` to `high`."""

    title: str
    colours: Tensor
    low: str
    high: str


@dataclass(frozen=True)
class Sheet:
    """Images in rows and columns.

    Attributes:
        cells: in reading order.
        columns: number of cells in a row.
        factor: enlargement of the images.
        title: text above everything.
        header: text above each column, once.
        side: text on the left of each row.
        legends: shown below.
    """

    cells: Sequence[Cell]
    columns: int
    factor: int = 1
    title: str = ""
    header: Sequence[str] = ()
    side: Sequence[str] = ()
    legends: Sequence[Swatches | ColourBar] = ()


def enlargement(height: int, width: int, columns: int = 1, rows: int = 1) -> int:
    """Default factor: images of at least 128 pixels, as long as the sheet has at most 2,048 per side.

    Args:
        height: of an image.
        width: of an image.
        columns: of the sheet.
        rows: of the sheet.
    """
    factor = math.ceil(SMALLEST / min(height, width))
    while factor > 1 and max(columns * width, rows * height) * factor > _LARGEST:
        factor -= 1
    return factor


def enlarged(images: Tensor, factor: int) -> Tensor:
    """Images [..., H, W] with each pixel as a square of `factor` x `factor` pixels."""
    if factor == 1:
        return images
    return images.repeat_interleave(factor, -2).repeat_interleave(factor, -1)


def gap_for(factor: int) -> int:
    """White pixels between images that were enlarged by `factor`."""
    return GAP if factor == 1 else 2 * GAP


def caption_height(width: int) -> int:
    """Height of a line of text above an image of this width; depends on nothing else."""
    return math.ceil(1.4 * _font_size(width))


# --- where it stands --------------------------------------------------------------------------------------


class Placed(NamedTuple):
    """An image and the place of its top left corner."""

    x: int
    y: int
    pixels: Tensor


class Text(NamedTuple):
    """A line of text; `y` is the middle of its height, and `x` the end that `anchor` names."""

    x: int
    y: int
    text: str
    size: int
    anchor: Anchor = "left"


class Rectangle(NamedTuple):
    """A rectangle in one colour, filled or with a border of one pixel inside of it."""

    x: int
    y: int
    width: int
    height: int
    colour: Colour
    filled: bool = False


@dataclass
class Drawing:
    """Everything on a sheet with its place, on white; later parts are drawn over earlier ones.

    Attributes:
        width: in pixels.
        height: in pixels.
        images: drawn first.
        rectangles: drawn over the images.
        texts: drawn last.
    """

    width: int
    height: int
    images: list[Placed] = field(default_factory=list)
    rectangles: list[Rectangle] = field(default_factory=list)
    texts: list[Text] = field(default_factory=list)

    def pixels(self) -> Tensor:
        """The drawing as uint8 [C, height, width], with as many channels as its images and texts need."""
        import torch

        marked = bool(self.rectangles or self.texts)
        channels = max(3 if marked else 1, *(placed.pixels.shape[0] for placed in self.images))
        sheet = torch.full((channels, self.height, self.width), 255, dtype=torch.uint8)
        for x, y, pixels in self.images:
            sheet[:, y : y + pixels.shape[1], x : x + pixels.shape[2]] = extended(pixels, channels)
        if not marked:
            return sheet
        canvas = Image.fromarray(sheet.permute(1, 2, 0).contiguous().numpy())
        pen = ImageDraw.Draw(canvas)
        for part in self.rectangles:
            corners = (part.x, part.y, part.x + part.width - 1, part.y + part.height - 1)
            pen.rectangle(corners, outline=part.colour, fill=part.colour if part.filled else None)
        for text in self.texts:
            where = (text.x, text.y)
            pen.text(where, text.text, fill=_BLACK, font=_font(text.size), anchor=_ANCHORS[text.anchor])
        return torch.from_numpy(np.array(canvas)).permute(2, 0, 1)


def lay_out(sheet: Sheet) -> Drawing:
    """Place all parts of a sheet.

    Without title, headers and legends there is no margin: a sheet is then as large as
    `imaging.grid` makes it, plus a line above each row if there are captions.
    """
    _, height, width = sheet.cells[0].pixels.shape
    height, width, gap = height * sheet.factor, width * sheet.factor, gap_for(sheet.factor)
    rows = -(-len(sheet.cells) // sheet.columns)
    size = _font_size(width)
    line = caption_height(width)
    margin = 2 * gap if sheet.title or any(sheet.header) or any(sheet.side) or sheet.legends else 0
    across = sheet.columns * (width + gap) - gap

    left = margin
    if any(sheet.side):
        left += max(_length(text, size) for part in sheet.side for text in part.split("\n")) + 2 * gap
    drawing = Drawing(left + across + margin, 0)

    y = margin
    for text in _wrapped(sheet.title, size, drawing.width - 2 * margin):
        drawing.texts.append(Text(margin, y + line // 2, text, size))
        y += line
    headers = [_wrapped(text, size, width) for text in sheet.header]
    lines = max(map(len, headers), default=0)
    for column, texts in enumerate(headers):
        x = left + column * (width + gap) + width // 2
        for number, text in enumerate(texts, lines - len(texts)):  # the last line is next to the image
            drawing.texts.append(_fitting(text, x, y + number * line + line // 2, size, width))
    y += lines * line

    captions = [_wrapped(cell.caption, size, width) for cell in sheet.cells]
    above = max(map(len, captions)) * line
    for index, (cell, texts) in enumerate(zip(sheet.cells, captions, strict=True)):
        row, column = divmod(index, sheet.columns)
        x, top = left + column * (width + gap), y + row * (above + height + gap)
        for number, text in enumerate(texts):
            middle = top + above - (len(texts) - number) * line + line // 2
            drawing.texts.append(_fitting(text, x + width // 2, middle, size, width))
        drawing.images.append(Placed(x, top + above, enlarged(cell.pixels, sheet.factor)))
        if cell.box is not None:
            drawing.rectangles += _framed(cell.box, x, top + above, sheet.factor)
    for row, part in enumerate(sheet.side):
        texts = part.split("\n")
        middle = y + row * (above + height + gap) + above + height // 2
        for number, text in enumerate(texts):
            offset = round((number - (len(texts) - 1) / 2) * line)
            drawing.texts.append(Text(left - 2 * gap, middle + offset, text, size, "right"))
    y += rows * (above + height + gap) - gap

    for legend in sheet.legends:
        y = _add_legend(drawing, legend, margin, y + 2 * gap, size, line)
    drawing.height = y + margin
    return drawing


def _framed(box: Box, x: int, y: int, factor: int) -> list[Rectangle]:
    """A white frame between black ones around an enlarged rectangle, visible on every colour."""
    width = max(1, factor // 4)
    frames = []
    for margin in range(width + 2, 0, -1):
        colour = _BLACK if margin in (1, width + 2) else _WHITE
        frames.append(
            Rectangle(
                x + factor * box.left - margin,
                y + factor * box.top - margin,
                factor * box.width + 2 * margin,
                factor * box.height + 2 * margin,
                colour,
            )
        )
    return frames


def _add_legend(
    drawing: Drawing, legend: Swatches | ColourBar, margin: int, y: int, size: int, line: int
) -> int:
    """Place a legend below `y`; returns where it ends."""
    right = drawing.width - margin
    for text in _wrapped(legend.title, size, right - margin):
        drawing.texts.append(Text(margin, y + line // 2, text, size))
        y += line
    x, mark = margin, size
    if isinstance(legend, ColourBar):
        import torch

        low, high = _length(legend.low, size) + mark // 2, _length(legend.high, size) + mark // 2
        room = max(mark, min(right - margin - low - high, 12 * size))
        columns = torch.arange(room) * legend.colours.shape[1] // room
        bar = legend.colours[:, columns][:, None].expand(-1, mark, -1).contiguous()
        drawing.texts.append(Text(x, y + line // 2, legend.low, size))
        drawing.images.append(Placed(x + low, y + (line - mark) // 2, bar))
        drawing.rectangles.append(Rectangle(x + low, y + (line - mark) // 2, room, mark, _BLACK))
        drawing.texts.append(Text(x + low + room + mark // 2, y + line // 2, legend.high, size))
        return y + line
    for colour, name in legend.entries:
        needed = mark + mark // 2 + _length(name, size)
        if x > margin and x + needed > right:
            x, y = margin, y + line
        drawing.rectangles.append(Rectangle(x, y + (line - mark) // 2, mark, mark, colour, filled=True))
        drawing.texts.append(Text(x + mark + mark // 2, y + line // 2, name, size))
        x += needed + mark
    return y + line


# --- text -------------------------------------------------------------------------------------------------


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font, which every system has; it knows Latin letters and few signs."""
    return ImageFont.load_default(size)


def _font_size(width: int) -> int:
    """Font size for images of this width."""
    smallest, largest = _FONT_SIZES
    return min(largest, max(smallest, width // 10))


def _length(text: str, size: int) -> int:
    return math.ceil(_font(size).getlength(text))


def _wrapped(text: str, size: int, width: int) -> list[str]:
    """Lines of at most `width` pixels where the words allow it; a line break in the text is kept."""
    lines: list[str] = []
    for part in text.split("\n") if text else ():
        line = ""
        for word in part.split():
            longer = f"{line} {word}".strip()
            if line and _length(longer, size) > width:
                lines.append(line)
                longer = word
            line = longer
        lines.append(line)
    return lines


def _fitting(text: str, x: int, y: int, size: int, width: int) -> Text:
    """A centred line, in a smaller font if a long word needs it."""
    while size > 6 and _length(text, size) > width:
        size -= 1
    return Text(x, y, text, size, "middle")
