"""Visualization of the attention maps of a generator.

There are two kinds. In GANformer positions attend to latents: every latent has a colour and the map is a
segmentation of the image, as in section 5.2 of its paper and its released code. In TransGAN and ViTGAN
positions attend to each other: a heat map shows the attention of one query position.

Maps come from the forward pass that generates the image, one image at a time. They have the resolution of
their layer and are enlarged to the size of the image when they are drawn.
"""

from __future__ import annotations

import colorsys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gantx.data.crop import rectangle
from gantx.errors import UsageError, closest
from gantx.generation import sampling
from gantx.generation.latents import spec_of_one
from gantx.generation.truncation import Truncation, require_styles, truncate
from gantx.io import figures, sheets
from gantx.io.channels import to_rgb
from gantx.io.sheets import Box, Cell, ColourBar, Sheet, Swatches
from gantx.models import interfaces
from gantx.models.layers.attention_maps import SelfAttention, attention_variances
from gantx.runtime import memory
from gantx.runtime.precision import full_precision
from gantx.runtime.random import for_seeds

# --- colours ----------------------------------------------------------------------------------------------


def palette(count: int) -> Tensor:
    """Colours of one lightness and saturation, evenly around the circle of hues: [count, 3] in [-1, 1].

    Hues start at 0.01, lightness is 0.6 and saturation 0.65, which is seaborn's "hls" palette.
    """
    colours = [colorsys.hls_to_rgb((index / count + 0.01) % 1, 0.6, 0.65) for index in range(count)]
    return 2 * torch.tensor(colours, dtype=torch.float32) - 1


def argmax_map(attention: Tensor) -> Tensor:
    """Each position in the colour of the latent with its largest attention: [B, m, S, S] to [B, 3, S, S].

    Colours of latents with equal maxima are added, as in the released code.
    """
    return soft_map((attention == attention.amax(1, keepdim=True)).float())


def soft_map(attention: Tensor) -> Tensor:
    """Each position in the colours of all latents, weighted by attention: [B, m, S, S] to [B, 3, S, S]."""
    return torch.einsum("bmyx,mc->bcyx", attention, palette(attention.shape[1]).to(attention))


# Black, indigo, crimson, orange, pale yellow: lightness increases, so that grey prints keep the order.
_HEAT = (
    torch.tensor(
        [[0, 0, 0], [70, 20, 120], [190, 50, 85], [250, 145, 20], [255, 255, 180]], dtype=torch.float32
    )
    / 127.5
    - 1
)


def heat_map(attention: Tensor) -> Tensor:
    """Attention [B, S, S] from black at zero to pale yellow at its maximum: [B, 3, S, S] in [-1, 1]."""
    heat = attention / attention.amax((1, 2), keepdim=True)
    scaled = heat.clamp(0, 1) * (len(_HEAT) - 1)
    below = scaled.long().clamp(max=len(_HEAT) - 2)  # [B, S, S]
    anchors = _HEAT.to(attention)
    colours = torch.lerp(anchors[below], anchors[below + 1], (scaled - below)[..., None])
    return colours.permute(0, 3, 1, 2)


# How a map is drawn, by kind; blends are overlaid on the image.
SHARES = {"argmax": argmax_map, "soft": soft_map, "blend": argmax_map, "softblend": soft_map}
HEAT = ("soft", "softblend")
_LUMA = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float32).view(3, 1, 1)


def draw_shares(kind: str, attention: Tensor, images: Tensor, share: float) -> Tensor:
    """Draw the attention of positions to latents, at the size of the images.

    Args:
        kind: a key of `SHARES`; a blend interpolates from the map to the image by `share` and rounds down.
        attention: [B, m, S, S].
        images: uint8 [B, 3, H, W].
        share: weight of the image in a blend, 0 to 1.

    Returns:
        uint8 [B, 3, H, W].
    """
    maps = _enlarged(sampling.quantise(SHARES[kind](attention.float())), images)
    return torch.lerp(maps.float(), images.float(), share).to(torch.uint8) if "blend" in kind else maps


def draw_heat(kind: str, attention: Tensor, images: Tensor, share: float) -> Tensor:
    """Draw the attention of one query position, at the size of the images.

    Args:
        kind: one of `HEAT`; the blend overlays the grey image, more opaque for larger attention.
        attention: [B, S, S].
        images: uint8 [B, 3, H, W].
        share: weight of the image in a blend, 0 to 1, where attention is at its maximum.

    Returns:
        uint8 [B, 3, H, W].
    """
    maps = _enlarged(sampling.quantise(heat_map(attention.float())), images)
    if kind == "soft":
        return maps
    # The image is grey because yellow heat would not be visible on a green image.
    grey = (images * _LUMA).sum(1, keepdim=True)
    # The square root makes small attention visible.
    heat = (attention.float() / attention.amax((1, 2), keepdim=True)).sqrt()[:, None]
    return torch.lerp(grey, maps.float(), (1 - share) * _enlarged(heat, images)).to(torch.uint8)


def _enlarged(maps: Tensor, images: Tensor) -> Tensor:
    """Maps [B, C, S, S] at the size of images [B, 3, H, W], each position a rectangle of one colour."""
    return F.interpolate(maps, images.shape[2:], mode="nearest")


# --- one pass ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class View:
    """What is drawn of the attention in an image.

    Attributes:
        layer: `last`, `all`, or the name of a layer.
        head: the number of a head, `mean`, or `all`. Default for attention to latents: head 0 of one layer,
            or all heads of all layers; for self-attention: `mean`.
        kinds: how each map is drawn, keys of `SHARES` or elements of `HEAT`. Default for attention to
            latents: `argmax`, and for one layer its `blend`; for self-attention: `softblend`.
        query: row and column, in the cropped image, of the pixel at the query position of self-attention;
            None for `salient_pixel`.
        truncation: of the styles; None for ψ = 0.7 with attention to latents, and for none with
            self-attention.
        stored_noise: use the stored noise of the generator, or zero, instead of the noise of the seed.
        ratio: height / width to which everything is cropped.
        share: weight of the image in a blend.
    """

    layer: str = "last"
    head: str = ""
    kinds: tuple[str, ...] = ()
    query: tuple[int, int] | None = None
    truncation: Truncation | None = None
    stored_noise: bool = True
    ratio: float = 1.0
    share: float = 0.3


def completed(generator: interfaces.Generator, view: View) -> View:
    """The view with the defaults of this generator filled in.

    Raises:
        UsageError: the generator has no attention maps, or the view does not fit them or the image.
    """
    if view.head not in ("", "mean", "all") and not view.head.isdecimal():
        raise UsageError(f"no head '{view.head}': give its number, mean or all")
    single = view.layer != "all"
    truncation: Truncation | None
    known: Collection[str]
    if isinstance(generator, interfaces.ShowsAttention):
        if view.query is not None:
            raise UsageError(
                "in this network positions attend to latents, not to each other, and all of them are drawn: "
                "omit --query"
            )
        known = SHARES
        head, kinds = ("0", ("argmax", "blend")) if single else ("all", ("argmax",))
        truncation = view.truncation or Truncation(0.7)
    elif isinstance(generator, interfaces.ShowsSelfAttention):
        known, head, kinds, truncation = HEAT, "mean", ("softblend",), view.truncation
        _, height, width = sampling.cropped_shape(generator, view.ratio)
        if view.query is not None and (view.query[0] >= height or view.query[1] >= width):
            raise UsageError(
                f"no pixel {view.query[0]},{view.query[1]} in an image of {height} rows and {width} columns: "
                "they count from 0"
            )
    else:
        raise UsageError(
            "this network has no attention maps: choose a checkpoint of transgan, vitgan, ganformer or "
            "implicit"
        )
    for kind in view.kinds:
        if kind not in known:
            raise UsageError(
                f"this network's attention cannot be drawn as '{kind}'{closest(kind, known)}: choose from "
                f"{', '.join(known)}"
            )
    return replace(view, head=view.head or head, kinds=view.kinds or kinds, truncation=truncation)


@torch.no_grad()
@full_precision()
def observe(
    generator: interfaces.Generator, seed: int, view: View, device: torch.device
) -> tuple[Tensor, dict[str, Tensor]]:
    """Generate the image of a seed and return the attention maps of the same pass.

    Args:
        generator: a network that is `ShowsAttention` or `ShowsSelfAttention`, on `device`.
        seed: of the image.
        view: returned by `completed`.
        device: where the generator is.

    Returns:
        Image uint8 [1, 3, H, W], in RGB and not cropped; by layer, attention [1, h, m, S, S] to latents or
        [1, h, S, S] of the query position to all positions.

    Raises:
        UsageError: truncation of a network without styles, or an unknown layer.
    """
    given, noise = _inputs(generator, seed, view, device)
    layers = "last" if view.layer == "last" else "all"
    if isinstance(generator, interfaces.ShowsAttention):
        images, maps = generator.observe(given, noise, layers)
    else:
        assert isinstance(generator, interfaces.ShowsSelfAttention)
        query = view.query or salient_pixel(generator, seed, view, device)
        _, height, width = generator.image_shape
        rows, columns = rectangle(height, width, view.ratio)
        y, x = (rows.start + query[0] + 0.5) / height, (columns.start + query[1] + 0.5) / width
        images, maps = generator.follow(given, (y, x), noise, layers)
    if view.layer not in ("last", "all"):
        if view.layer not in maps:
            raise UsageError(
                f"no attention layer '{view.layer}'{closest(view.layer, maps)}: this network has "
                f"{', '.join(maps)}"
            )
        maps = {view.layer: maps[view.layer]}
    shown = to_rgb(sampling.quantise(images)).cpu()
    return shown, {name: attention.cpu() for name, attention in maps.items()}


_QUERIES = 16  # rows and columns of query positions among which the default is chosen


@torch.no_grad()
@full_precision()
def salient_pixel(
    generator: interfaces.Generator, seed: int, view: View, device: torch.device
) -> tuple[int, int]:
    """Row and column of the pixel whose attention in the last layer varies most over the image.

    Attention of the background is spread evenly, so this pixel usually lies on the object. The variance is
    averaged over neighbouring positions.

    Args:
        generator: a network that is `ShowsSelfAttention`, on `device`.
        seed: of the image.
        view: returned by `completed`.
        device: where the generator is.
    """
    given, noise = _inputs(generator, seed, view, device)
    attentions = [module for module in generator.modules() if isinstance(module, SelfAttention)]
    assert isinstance(generator, interfaces.ShowsSelfAttention)
    followed = generator

    def generate() -> object:
        return followed.follow(given, (0.0, 0.0), noise, "last")

    variances = attention_variances(generate, attentions, _QUERIES)  # [1, s, s]
    smooth = F.avg_pool2d(variances, 3, stride=1, padding=1)[0]
    _, height, width = generator.image_shape
    rows, columns = rectangle(height, width, view.ratio)
    count = len(smooth)
    best, chosen = -1.0, (0, 0)
    for y in range(count):
        for x in range(count):
            row = (2 * y + 1) * height // (2 * count) - rows.start
            column = (2 * x + 1) * width // (2 * count) - columns.start
            inside = 0 <= row < rows.stop - rows.start and 0 <= column < columns.stop - columns.start
            if inside and float(smooth[y, x]) > best:
                best, chosen = float(smooth[y, x]), (row, column)
    return chosen


def _inputs(
    generator: interfaces.Generator, seed: int, view: View, device: torch.device
) -> tuple[Tensor, Any]:
    """Latents, or the truncated styles of a network that has styles, and noise."""
    q: Any = for_seeds(spec_of_one(generator), [seed], device)
    noise = None if view.stored_noise else q["noise"]
    given: Tensor = q["z"]
    if view.truncation is not None:
        require_styles(generator, "truncation")
    if isinstance(generator, interfaces.StyleBased):
        given = generator.mapping(given, noise=noise)
        if view.truncation is not None:
            given = truncate(generator, given, *view.truncation)
    return given, noise


# --- pictures ---------------------------------------------------------------------------------------------


class Picture(NamedTuple):
    """An image, or one of its attention maps.

    Attributes:
        name: `image`, or `<layer>.<head>.<kind>`.
        pixels: uint8 [3, H, W].
        caption: its text on a sheet; "" for none.
        box: the rectangle of the query position; None without one.
    """

    name: str
    pixels: Tensor
    caption: str = ""
    box: Box | None = None


class Row(NamedTuple):
    """The image of a seed, and its attention maps.

    Attributes:
        seed: of the image.
        pictures: the image, then its maps, layer by layer from coarse to fine.
        query: row and column of the pixel at the query position; None for attention to latents.
        latents: number of latents that are attended to; 0 for self-attention.
    """

    seed: int
    pictures: list[Picture]
    query: tuple[int, int] | None = None
    latents: int = 0


def pictures(generator: interfaces.Generator, seed: int, view: View, device: torch.device) -> Row:
    """Draw the image of a seed and its attention maps.

    Args:
        generator: as in `observe`.
        seed: of the image.
        view: returned by `completed`.
        device: where the generator is.

    Raises:
        UsageError: as `observe`, or a layer has no such head.
    """
    self_attention = not isinstance(generator, interfaces.ShowsAttention)
    if self_attention and view.query is None:
        view = replace(view, query=salient_pixel(generator, seed, view, device))
    image, maps = observe(generator, seed, view, device)
    draw = draw_heat if self_attention else draw_shares
    found: list[Picture] = []
    latents = 0
    for layer, attention in maps.items():
        latents = 0 if self_attention else attention.shape[2]
        for head, of_head in _heads(layer, attention, view.head):
            box = None
            if view.query is not None:
                box = _query_box(view.query, image.shape[2:], of_head.shape[2], view.ratio)
            for kind in view.kinds:
                # Maps are cropped after they are drawn: the crop can cut through positions.
                drawn = sampling.crop(draw(kind, of_head, image, view.share), view.ratio)
                peak = f"max {100 * float(of_head.amax()):.2g}%" if self_attention else ""
                found.append(Picture(f"{layer}.{head}.{kind}", drawn[0], peak, box))
    whole = Picture("image", sampling.crop(image, view.ratio)[0], box=found[-1].box)
    return Row(seed, [whole, *found], view.query, latents)


def _heads(layer: str, attention: Tensor, head: str) -> Iterator[tuple[str, Tensor]]:
    """Names and attention [1, ...] of the heads asked for, out of [1, h, ...]."""
    if head == "mean":
        yield "mean", attention.mean(1)
        return
    count = attention.shape[1]
    if head != "all" and int(head) >= count:
        raise UsageError(f"layer {layer} has no head {head}: it has {count}, counted from 0")
    for index in range(count) if head == "all" else [int(head)]:
        yield f"head{index}", attention[:, index]


def _query_box(query: tuple[int, int], size: Sequence[int], resolution: int, ratio: float) -> Box:
    """Rectangle, in pixels of the cropped image, of the position of an S x S map that contains a pixel."""
    rows, columns = rectangle(size[0], size[1], ratio)
    height, width = size[0] // resolution, size[1] // resolution
    top, left = (query[0] + rows.start) // height * height, (query[1] + columns.start) // width * width
    return Box(top - rows.start, left - columns.start, height, width)


def sheet(rows: Sequence[Row], scale: int | None = None, note: str = "") -> Sheet:
    """Arrange pictures, one row per image: the names of the maps above, seeds and queries on the left.

    Args:
        rows: of `pictures`, with the same maps each.
        scale: factor by which pictures are enlarged; None for the default of `sheets.enlargement`.
        note: title of the sheet.
    """
    first = rows[0]
    _, height, width = first.pictures[0].pixels.shape
    columns = len(first.pictures)
    return Sheet(
        cells=[Cell(each.pixels, each.caption, each.box) for row in rows for each in row.pictures],
        columns=columns,
        factor=scale or sheets.enlargement(height, width),
        title=note,
        header=[_heading(each.name) for each in first.pictures],
        side=[
            f"seed {row.seed}" + ("" if row.query is None else f"\nquery\n{row.query[0]},{row.query[1]}")
            for row in rows
        ],
        legends=[_legend(first)],
    )


def _heading(name: str) -> str:
    """`16x16.1 head 0 argmax` for `16x16.1.head0.argmax`."""
    if name == "image":
        return name
    layer, head, kind = name.rsplit(".", 2)
    return f"{layer} {head.replace('head', 'head ')} {kind}"


def _legend(row: Row) -> Swatches | ColourBar:
    """What the colours of the maps mean."""
    if not row.latents:
        steps = torch.linspace(0, 1, 256).view(1, 1, 256)
        colours = sampling.quantise(heat_map(steps))[0, :, 0]
        framed = "attention of the framed query position to all positions; max stands above each map"
        return ColourBar(framed, colours, "0", "max")
    levels = sampling.quantise(palette(row.latents).T[None, :, :, None])[0, :, :, 0].T.tolist()
    entries = [((red, green, blue), str(index)) for index, (red, green, blue) in enumerate(levels)]
    return Swatches("latents that the positions attend to", entries)


def save(
    path: Path,
    seeds: Sequence[int],
    rows: Iterable[Row],
    text: Mapping[str, str],
    *,
    scale: int | None = None,
    note: str = "",
) -> list[str]:
    """Save pictures as one sheet or as separate files.

    A picture (`figures.SUFFIXES`) is a sheet, see `sheet`. A name without a suffix is a folder with one file
    per picture: `seed-000007.image.png`, `seed-000007.8x8.1.head0.argmax.png`. For folders memory does not
    depend on the number of seeds.

    Args:
        path: of the file or folder.
        seeds: of the rows.
        rows: of `pictures`.
        text: text chunks that describe the origin; seeds, queries and names are added.
        scale: factor by which pictures are enlarged; None for the default of a sheet, and for 1 in a folder.
        note: title of a sheet.

    Returns:
        The names of the pictures of a row.

    Raises:
        MissingError: the disk is full or the folder cannot be written.
        UsageError: the sheet is too large for the format.
    """
    names: list[str] = []
    if path.suffix:
        all_rows: list[Row] = []
        for row in rows:
            if not all_rows:
                size = len(seeds) * sum(picture.pixels.numel() for picture in row.pictures)
                memory.require(
                    2 * size * sheet([row], scale).factor ** 2,
                    f"a sheet of {len(seeds):,} rows",
                    "name fewer seeds, or a folder",
                )
            all_rows.append(row)
        names = [picture.name for picture in all_rows[0].pictures]
        chunks = {
            "gantx:seeds": ",".join(map(str, seeds)),
            "gantx:columns": ", ".join(names),
            **_query_text(all_rows),
        }
        figures.save(path, sheets.lay_out(sheet(all_rows, scale, note)), {**text, **chunks})
        return names
    for row in rows:
        names = [picture.name for picture in row.pictures]
        for picture in row.pictures:
            chunks = {"gantx:seed": str(row.seed), "gantx:picture": picture.name, **_query_text([row])}
            file = path / f"seed-{row.seed:06d}.{picture.name}.png"
            figures.write_png(file, sheets.enlarged(picture.pixels, scale or 1), {**text, **chunks})
    return names


def _query_text(rows: Sequence[Row]) -> dict[str, str]:
    """The query of each row, once if they are equal."""
    queries = [f"{row.query[0]},{row.query[1]}" for row in rows if row.query is not None]
    together = queries[:1] if len(set(queries)) == 1 else queries
    return {"gantx:query": ";".join(together)} if queries else {}
