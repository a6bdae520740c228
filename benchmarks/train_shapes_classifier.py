"""Train the classifier of shapes behind the metric `modes`, and report how well it classifies and rejects.

    python benchmarks/train_shapes_classifier.py

About ten minutes on one core; the same versions on the same machine give the same file. It writes
gantx/evaluation/shapes_classifier.safetensors (--output elsewhere), with the figures in its header, and
prints them as the tables of benchmarks/results/. `--measure` only measures the file that is there.

Half of every batch are shapes as in the set, or as a good small GAN would generate them: slightly blunt,
bent, frayed, soft, noisy, off in colour. The other half are images that must be rejected, made by the
functions in WRONG. Cases in between, on which people would disagree, are not trained on.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from datetime import date
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from gantx.config.schema import ShapesConfig
from gantx.data.shapes import COLOURS, KINDS, Factors, factors, render
from gantx.evaluation.shapes_classifier import (
    MODES,
    RESOLUTION,
    THRESHOLD,
    WEIGHTS,
    ShapesClassifier,
    ShapesClassifierNetwork,
)
from gantx.io.atomic import replacing

TRAINED_ON, HELD_OUT = 1001, 2002  # seeds of the shapes; presets train on seed 0
STEPS, BATCH, RATE = 2400, 256, 4e-3
NO_SHAPE = MODES  # class of everything else
REAL_IMAGES, WRONG_IMAGES = 20_000, 4_000  # measured on, the latter of each sort
SIZES = (16, 24, 48, 64, 128, 256)
COMMAND = "python benchmarks/train_shapes_classifier.py"


class Scene(NamedTuple):
    """Shapes before they are composed into images.

    Attributes:
        mask: how much of a pixel the shape covers, [n, 1, R, R] in [0, 1].
        colour: of the shape, [n, 3, 1 or R, 1 or R], 0..255.
        ground: [n, 3, 1, 1], 0..255.
    """

    mask: torch.Tensor
    colour: torch.Tensor
    ground: torch.Tensor

    def image(self):
        """[n, 3, R, R]."""
        return self.ground + self.mask * (self.colour - self.ground)


class Maker:
    """A stream of shapes and random numbers determined by its seed."""

    def __init__(self, seed):
        self.seed = seed
        self.drawn = 0
        self.generator = torch.Generator().manual_seed(seed)

    def factors(self, count, objects=1):
        drawn = factors(ShapesConfig(seed=self.seed, objects=objects), self.drawn, self.drawn + count)
        self.drawn += count
        return drawn

    def uniform(self, low, high, *shape):
        return low + (high - low) * torch.rand(shape, generator=self.generator)

    def normal(self, *shape):
        return torch.randn(shape, generator=self.generator)

    def integers(self, low, high, *shape):
        """In [low, high)."""
        return torch.randint(low, high, shape, generator=self.generator)

    def bernoulli(self, probability, *shape):
        return torch.rand(shape, generator=self.generator) < probability


# --- from factors to images ---------------------------------------------------------------------------------


def mask_of(drawn):
    """Coverage [n, 1, R, R] of all shapes of each image together."""
    red_on_black = drawn._replace(colour=np.zeros_like(drawn.colour), ground=np.zeros_like(drawn.ground))
    red = render(red_on_black, RESOLUTION)[..., 0]
    return torch.from_numpy(red).float()[:, None] / PALETTE[0, 0]


def scene_of(drawn):
    """The scene of single shapes."""
    ground = torch.from_numpy(drawn.ground * 255)[..., None, None]
    return Scene(mask_of(drawn), PALETTE[torch.from_numpy(drawn.colour[:, 0])], ground)


def _palette():
    """The six colours as rendered, [6, 3, 1, 1]."""
    n = len(COLOURS)
    squares = Factors(
        kind=np.full((n, 1), KINDS.index("square")),
        colour=np.arange(n)[:, None],
        centre=np.full((n, 1, 2), 0.5, np.float32),
        size=np.full((n, 1), 0.2, np.float32),
        ground=np.zeros((n, 3), np.float32),
    )
    middle = RESOLUTION // 2
    return torch.from_numpy(render(squares, RESOLUTION)[:, middle, middle]).float()[..., None, None]


PALETTE = _palette()


def positions():
    """(x, y) of the pixels in units of the side, [R, R, 2]."""
    at = (torch.arange(RESOLUTION) + 0.5) / RESOLUTION
    y, x = torch.meshgrid(at, at, indexing="ij")
    return torch.stack([x, y], dim=-1)


def centres(drawn):
    return torch.from_numpy(drawn.centre[:, 0])[:, None, None]  # [n, 1, 1, 2]


def warp(mask, about, *, stretch=1.0, angle=0.0, bend=0.0):
    """Bend, turn and stretch a mask around a point.

    Args:
        mask: [n, 1, R, R].
        about: [n, 1, 1, 2], in units of the side.
        stretch: factors in x and y, [n, 1, 1, 2].
        angle: radians, [n, 1, 1].
        bend: displacement of every pixel in pixels, [n, R, R, 2].
    """
    angle = torch.as_tensor(angle)
    offset = positions() - about
    x, y = offset.unbind(-1)
    turned = torch.stack([x * angle.cos() + y * angle.sin(), y * angle.cos() - x * angle.sin()], dim=-1)
    source = about + turned / stretch + bend / RESOLUTION
    return F.grid_sample(mask, source * 2 - 1, align_corners=False)


def bends(maker, count, deviation, cells=8):
    """Smooth random displacements [count, R, R, 2] of standard deviations [count] in pixels."""
    coarse = maker.normal(count, 2, cells, cells)
    smooth = F.interpolate(coarse, (RESOLUTION, RESOLUTION), mode="bicubic")
    smooth /= smooth.std((1, 2, 3), keepdim=True)
    return smooth.permute(0, 2, 3, 1) * deviation[:, None, None, None]


def rounded(mask, sigma):
    """A mask with corners rounded as by a blur of sigma pixels [n], its edges one pixel wide as before."""
    gain = 2.5 * sigma.clamp(min=0.4)[:, None, None, None]  # a blurred edge rises by 0.4 / sigma a pixel
    return (0.5 + gain * (blur(mask, sigma) - 0.5)).clamp(0, 1)


def blur(images, sigma):
    """Gaussian blur, one sigma in pixels per image [n]; sides repeat."""
    n, channels, side, _ = images.shape
    reach = max(1, math.ceil(3 * float(sigma.max())))
    at = torch.arange(-reach, reach + 1)
    kernel = torch.exp(-0.5 * (at / sigma.clamp(min=1e-3)[:, None]) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels, dim=0)[:, None, None]
    flat = images.reshape(1, n * channels, side, side)
    flat = F.conv2d(F.pad(flat, (reach, reach, 0, 0), "replicate"), kernel, groups=n * channels)
    flat = F.conv2d(F.pad(flat, (0, 0, reach, reach), "replicate"), kernel.mT, groups=n * channels)
    return flat.reshape(images.shape)


def finish(maker, images):
    """Add the flaws of small GANs: some softness, haloes, noise, stripes, unevenness, wrong levels."""
    n = len(images)
    much = maker.uniform(0, 1, n, 1, 1, 1) * maker.bernoulli(0.75, n, 1, 1, 1)  # a quarter stays as it is
    uneven = F.interpolate(maker.normal(n, 3, 4, 4), (RESOLUTION, RESOLUTION), mode="bicubic")
    stripes = maker.normal(n, 3, 4, 4).repeat(1, 1, RESOLUTION // 4, RESOLUTION // 4)
    noise = maker.normal(*images.shape) * maker.uniform(0, 18, n, 1, 1, 1)
    gain = 1 + 0.08 * much * maker.uniform(-1, 1, n, 3, 1, 1)
    images = blur(images, 0.8 * much.flatten())
    images = images + 0.8 * maker.uniform(0, 1, n, 1, 1, 1) * much * (images - blur(images, torch.ones(n)))
    return (images * gain + much * (8 * uneven + 5 * stripes + noise)).clamp(0, 255)


# --- shapes -------------------------------------------------------------------------------------------------


def right(maker, count):
    """Correct shapes: images and classes.

    A quarter is untouched, the others are slightly blunted, bent, frayed and off in colour.
    """
    drawn = maker.factors(count)
    classes = torch.from_numpy(drawn.kind[:, 0] * len(COLOURS) + drawn.colour[:, 0])
    scene = scene_of(drawn)
    much = maker.uniform(0, 1, count) * maker.bernoulli(0.75, count)
    size = torch.from_numpy(drawn.size[:, 0])
    frayed = maker.uniform(0, 1, count) * maker.bernoulli(0.5, count) * (much > 0)
    wide = much[:, None, None]
    blunt = 0.25 * RESOLUTION * size * maker.uniform(0, 1, count) * maker.bernoulli(0.5, count) * (much > 0)
    mask = warp(
        rounded(scene.mask, blunt),
        centres(drawn),
        stretch=1 + 0.12 * wide[..., None] * maker.uniform(-1, 1, count, 1, 1, 2),
        angle=math.radians(7) * wide * maker.uniform(-1, 1, count, 1, 1),
        bend=bends(maker, count, 3 * size * much) + bends(maker, count, 4 * size * frayed, cells=16),
    )
    tint = 25 * wide[..., None] * maker.uniform(-1, 1, count, 3, 1, 1)
    return scene._replace(mask=mask, colour=scene.colour + tint).image(), classes


# --- other images -------------------------------------------------------------------------------------------


def noise(maker, count):
    """Noise of any grain around any colour."""
    images = torch.empty(count, 3, RESOLUTION, RESOLUTION)
    for part, cells in zip(images.tensor_split(4), (32, 16, 8, 4), strict=True):
        n = len(part)
        around, deviation = maker.uniform(0, 255, n, 3, 1, 1), maker.uniform(10, 120, n, 1, 1, 1)
        part[:] = F.interpolate(around + deviation * maker.normal(n, 3, cells, cells), part.shape[2:])
    return images


def empty(maker, count):
    """A background without a shape, dim or bright."""
    brightest = torch.where(maker.bernoulli(0.7, count, 1, 1, 1), 0.3 * 255, 255.0)
    return (brightest * maker.uniform(0, 1, count, 3, 1, 1)).expand(-1, -1, RESOLUTION, RESOLUTION)


def smooth(maker, count):
    """Clouds of colour without an edge."""
    coarse = maker.uniform(-50, 305, count, 3, 4, 4)
    return F.interpolate(coarse, (RESOLUTION, RESOLUTION), mode="bicubic")


def blurred(maker, count):
    """A shape so soft that it is a blob."""
    return blur(scene_of(maker.factors(count)).image(), maker.uniform(2.2, 5, count))


def blended(maker, count):
    """Two images blended."""
    share = maker.uniform(0.35, 0.65, count, 1, 1, 1)
    first, second = (scene_of(maker.factors(count)).image() for _ in range(2))
    return share * first + (1 - share) * second


def between_kinds(maker, count):
    """Two kinds of shape at one place in one colour."""
    drawn = maker.factors(count)
    share = maker.uniform(0.35, 0.65, count, 1, 1, 1)
    other = drawn._replace(kind=(drawn.kind + maker.integers(1, 3, count, 1).numpy()) % 3)
    scene = scene_of(drawn)
    return scene._replace(mask=share * scene.mask + (1 - share) * mask_of(other)).image()


def side_of_line(maker, drawn, scene, low, high):
    """The side of a random line that contains a share in [low, high] of the shape, [n, 1, R, R] of 0 and 1.

    No line leaves a triangle with a smaller triangle of the same kind: they cut off corners, not edges.
    """
    count = len(scene.mask)
    angle = maker.uniform(-math.pi, math.pi, count)
    corner = torch.deg2rad(270.0 + 120 * maker.integers(0, 3, count)) + maker.uniform(-0.6, 0.6, count)
    is_triangle = torch.from_numpy(drawn.kind[:, 0] == KINDS.index("triangle"))
    angle = torch.where(is_triangle, corner, angle)
    towards = torch.stack([angle.cos(), angle.sin()], dim=-1)[:, None, None]  # points at what goes
    height = ((positions() - centres(drawn)) * towards).sum(-1)  # [n, R, R]
    kept = maker.uniform(low, high, count)
    # The height below which the wanted share of the shape lies.
    order = height.flatten(1).argsort(dim=1)
    covered = scene.mask.flatten(1).gather(1, order).cumsum(1)
    place = (covered < kept[:, None] * covered[:, -1:]).sum(1, keepdim=True)
    limit = height.flatten(1).gather(1, order).gather(1, place)
    return (height <= limit[..., None]).float()[:, None]


def half(maker, count):
    """A shape cut by a line, about half of it visible."""
    drawn = maker.factors(count)
    scene = scene_of(drawn)
    return scene._replace(mask=scene.mask * side_of_line(maker, drawn, scene, 0.35, 0.65)).image()


def slipped(maker, count):
    """A shape whose one half has slid away from the other, by more than a quarter of its width."""
    drawn = maker.factors(count)
    scene = scene_of(drawn)
    kept = side_of_line(maker, drawn, scene, 0.4, 0.6)
    far = torch.from_numpy(drawn.size[:, 0]).reshape(-1, 1, 1, 1) * maker.uniform(0.6, 1.2, count, 1, 1, 1)
    angle = maker.uniform(-math.pi, math.pi, count, 1, 1)
    shift = far * torch.stack([angle.cos(), angle.sin()], dim=-1)
    rest = warp(scene.mask * (1 - kept), centres(drawn), bend=shift * RESOLUTION)
    return scene._replace(mask=torch.maximum(scene.mask * kept, rest)).image()


def shuffled(maker, count):
    """Tiles of 4 or 8 pixels, smaller than any shape, in random order."""
    images = scene_of(maker.factors(count)).image()
    return torch.cat(
        [_shuffle(maker, part, tile) for part, tile in zip(images.tensor_split(2), (4, 8), strict=True)]
    )


def _shuffle(maker, images, tile):
    tiles = F.unfold(images, tile, stride=tile)  # [n, 3 * tile * tile, tiles]
    order = maker.uniform(0, 1, len(images), 1, tiles.shape[2]).argsort(dim=2)
    return F.fold(tiles.gather(2, order.expand_as(tiles)), (RESOLUTION, RESOLUTION), tile, stride=tile)


def rectangles(maker, drawn, number, reach, low, high):
    """Rectangles around the shape's middle, all together as a mask [n, 1, R, R] of 0 and 1.

    reach, low and high (how far their middles lie, half their sides) are in units of the shape's size.
    """
    count = len(drawn.size)
    size = torch.from_numpy(drawn.size[:, 0]).reshape(-1, 1, 1, 1)
    offset = (positions() - centres(drawn)) / size
    inside = torch.zeros(count, RESOLUTION, RESOLUTION, dtype=torch.bool)
    for _ in range(number):
        angle, far = maker.uniform(-math.pi, math.pi, count, 1, 1), maker.uniform(*reach, count, 1, 1, 1)
        middle = far * torch.stack([angle.cos(), angle.sin()], dim=-1)
        inside |= ((offset - middle).abs() < maker.uniform(low, high, count, 1, 1, 2)).all(-1)
    return inside.float()[:, None]


def with_pieces(maker, count):
    """A whole shape and fragments of its colour beside it."""

    def made(count):
        drawn = maker.factors(count)
        scene = scene_of(drawn)
        scraps = rectangles(maker, drawn, 2, (1.2, 2.2), 0.2, 0.5)
        more = ((1 - scene.mask) * scraps).sum((1, 2, 3)) / scene.mask.sum((1, 2, 3))
        return scene._replace(mask=torch.maximum(scene.mask, scraps)).image(), more > 0.2

    return chosen(made, count)


def eaten(maker, count):
    """A shape with a good part missing from within."""

    def made(count):
        drawn = maker.factors(count)
        scene = scene_of(drawn)
        bites = rectangles(maker, drawn, 2, (0.0, 0.7), 0.2, 0.6)
        gone = (scene.mask * bites).sum((1, 2, 3)) / scene.mask.sum((1, 2, 3))
        return scene._replace(mask=scene.mask * (1 - bites)).image(), (gone > 0.2) & (gone < 0.85)

    return chosen(made, count)


def chosen(make, count):
    """The first `count` images that `make` marks as good."""
    found = []
    while sum(map(len, found)) < count:
        images, good = make(count)
        found.append(images[good])
    return torch.cat(found)[:count]


def ragged(maker, count):
    """A blob whose outline was a shape's."""
    drawn = maker.factors(count)
    scene = scene_of(drawn)
    bend = bends(maker, count, maker.uniform(2.2, 3.5, count))
    return scene._replace(mask=warp(scene.mask, centres(drawn), bend=bend)).image()


def stretched(maker, count):
    """Ellipses, oblongs and steep or flat triangles."""
    drawn = maker.factors(count)
    scene = scene_of(drawn)
    ratio = maker.uniform(1.25, 1.6, count, 1, 1, 1)
    ratio = torch.where(maker.bernoulli(0.5, count, 1, 1, 1), ratio, 1 / ratio)
    mask = warp(scene.mask, centres(drawn), stretch=torch.cat([ratio, 1 / ratio], dim=-1))
    return scene._replace(mask=mask).image()


def stars(maker, count):
    """Stars of two to six rays, three aside, and flowers."""
    drawn = maker.factors(count)
    x, y = (positions() - centres(drawn)).unbind(-1)
    rays = torch.tensor([2, 4, 5, 6])[maker.integers(0, 4, count, 1, 1)]
    angle = torch.atan2(y, x) * rays + maker.uniform(-math.pi, math.pi, count, 1, 1)
    size = torch.from_numpy(drawn.size[:, 0])[:, None, None]
    edge = size * (1 + maker.uniform(0.35, 0.6, count, 1, 1) * angle.cos())
    mask = (0.5 + (edge - torch.hypot(x, y)) * RESOLUTION).clamp(0, 1)
    return scene_of(drawn)._replace(mask=mask[:, None]).image()


def crosses(maker, count):
    """Upright crosses and slanting ones, of the size and the colours of shapes."""
    drawn = maker.factors(count)
    scene = scene_of(drawn)
    across = ((positions() - centres(drawn)) / torch.from_numpy(drawn.size[:, 0]).reshape(-1, 1, 1, 1)).abs()
    wide, narrow = across.amax(-1), across.amin(-1)
    mask = ((wide < 1.2) & (narrow < 0.35)).float()[:, None]
    angle = torch.where(maker.bernoulli(0.5, count, 1, 1), math.pi / 4, 0.0)
    return scene._replace(mask=warp(mask, centres(drawn), angle=angle)).image()


def turned(maker, count):
    """Squares rotated by about 45°, triangles by about 60°."""
    drawn = maker.factors(count)
    drawn = drawn._replace(kind=maker.integers(1, 3, count, 1).numpy())
    scene = scene_of(drawn)
    is_square = torch.from_numpy(drawn.kind == KINDS.index("square"))[..., None]
    degrees = torch.where(is_square, 45.0, 60.0) + maker.uniform(-15, 15, count, 1, 1)
    mask = warp(scene.mask, centres(drawn), angle=torch.deg2rad(degrees))
    return scene._replace(mask=mask).image()


def odd_size(maker, count):
    """Tiny shapes, and shapes that nearly fill the image."""
    drawn = maker.factors(count)
    is_small = maker.bernoulli(0.5, count, 1)
    size = torch.where(is_small, maker.uniform(0.03, 0.085, count, 1), maker.uniform(0.36, 0.5, count, 1))
    centre = np.where(is_small[..., None].numpy(), drawn.centre, 0.5 + 0.2 * (drawn.centre - 0.5))
    return scene_of(drawn._replace(size=size.numpy(), centre=centre.astype(np.float32))).image()


def wrong_colour(maker, count):
    """One shape in a colour between those of the set, too dark, or too pale."""
    scene = scene_of(maker.factors(count))
    share = maker.uniform(0.35, 0.65, count, 1, 1, 1)
    steps = maker.integers(1, len(COLOURS), count)
    first = maker.integers(0, len(COLOURS), count)
    others = torch.stack([PALETTE[(first + steps) % len(COLOURS)], torch.zeros(count, 3, 1, 1)])
    others = torch.cat([others, torch.full((1, count, 3, 1, 1), 255.0)])
    other = others[torch.tensor([0, 0, 1, 2])[maker.integers(0, 4, count)], torch.arange(count)]
    return scene._replace(colour=share * PALETTE[first] + (1 - share) * other).image()


def two_colours(maker, count):
    """One shape in two colours: halves, grains, or one running into the other."""
    drawn = maker.factors(count)
    scene = scene_of(drawn)
    first = maker.integers(0, len(COLOURS), count)
    second = (first + maker.integers(1, len(COLOURS), count)) % len(COLOURS)
    halves = side_of_line(maker, drawn, scene, 0.3, 0.7)
    grains = F.interpolate(maker.bernoulli(0.5, count, 1, 16, 16).float(), (RESOLUTION, RESOLUTION))
    share = torch.where(maker.bernoulli(0.3, count, 1, 1, 1), grains, halves)
    running = maker.bernoulli(0.3, count) * maker.uniform(0.5, 3, count)
    share = blur(share, running)
    return scene._replace(colour=share * PALETTE[first] + (1 - share) * PALETTE[second]).image()


def bright_ground(maker, count):
    """A shape on a bright background of any hue."""
    scene = scene_of(maker.factors(count))
    ground = maker.uniform(0, 255, count, 3, 1, 1)
    strongest = ground.amax(1, keepdim=True).clamp(min=1)
    ground = ground / strongest * maker.uniform(140, 255, count, 1, 1, 1)
    return scene._replace(ground=ground).image()


def several(maker, count):
    """Two, three or six shapes, the first two apart."""

    def made(count, objects):
        drawn = maker.factors(count, objects)
        apart = np.linalg.norm(drawn.centre[:, 0] - drawn.centre[:, 1], axis=-1)
        good = apart > 0.8 * drawn.size[:, :2].sum(1)
        return torch.from_numpy(render(drawn, RESOLUTION)).permute(0, 3, 1, 2).float(), torch.from_numpy(good)

    parts = zip(torch.empty(count).tensor_split(4), (2, 2, 3, 6), strict=True)
    return torch.cat([chosen(lambda n, o=objects: made(n, o), len(part)) for part, objects in parts])


WRONG = (
    noise, empty, smooth, blurred, blended, between_kinds, half, slipped, shuffled, with_pieces, eaten,
    ragged, stretched, stars, crosses, turned, odd_size, wrong_colour, two_colours, bright_ground, several,
)  # fmt: skip


# --- never trained on ---------------------------------------------------------------------------------------


def crescents(maker, count):
    """Circles without the circle that lies a little beside them."""
    drawn = maker.factors(count)
    drawn = drawn._replace(kind=np.full_like(drawn.kind, KINDS.index("circle")))
    angle = maker.uniform(-math.pi, math.pi, count, 1)
    aside = drawn.size[..., None] * 0.7 * torch.stack([angle.cos(), angle.sin()], dim=-1).numpy()
    hidden = mask_of(drawn._replace(centre=drawn.centre + aside))
    scene = scene_of(drawn)
    return scene._replace(mask=scene.mask * (1 - hidden)).image()


def hourglasses(maker, count):
    """Two triangles tip to tip, upright or lying."""
    drawn = maker.factors(count)
    offset = (positions() - centres(drawn)) / torch.from_numpy(drawn.size[:, 0]).reshape(-1, 1, 1, 1)
    offset = torch.where(maker.bernoulli(0.5, count, 1, 1, 1), offset, offset.flip(-1))
    across, along = offset.abs().unbind(-1)
    mask = ((across < along) & (along < 1.2)).float()[:, None]
    return scene_of(drawn)._replace(mask=mask).image()


def outlines(maker, count):
    """Outlines of shapes."""
    drawn = maker.factors(count)
    inner = mask_of(drawn._replace(size=drawn.size * np.float32(0.6)))
    scene = scene_of(drawn)
    return scene._replace(mask=scene.mask - inner).image()


NEVER_TRAINED_ON = (crescents, hourglasses, outlines)


# --- training and measuring ---------------------------------------------------------------------------------


class Normalised(nn.Module):
    """The classifier with batch normalisation, which training needs and `folded` removes."""

    def __init__(self):
        super().__init__()
        self.plain = ShapesClassifierNetwork()
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in ShapesClassifierNetwork.WIDTHS)
        for convolution, norm in zip(self.plain.convolutions, self.norms, strict=True):
            convolution.register_forward_hook(lambda _, inputs, output, norm=norm: norm(output))

    def forward(self, images):
        return self.plain(images)

    def folded(self):
        """A network without normalisation that gives the same, in half precision."""
        self.eval()
        made = ShapesClassifierNetwork()
        made.classify.load_state_dict(self.plain.classify.state_dict())
        for index, norm in enumerate(self.norms):
            fused = fuse_conv_bn_eval(self.plain.convolutions[index], norm)
            made.convolutions[index].load_state_dict(fused.state_dict())
        return made.half()


def batch_of(maker):
    """Images [BATCH, 3, R, R] and classes, half of them shapes."""
    shapes, classes = right(maker, BATCH // 2)
    each = -(-(BATCH // 2) // len(WRONG))
    others = torch.cat([make(maker, each) for make in WRONG])
    others = others[maker.uniform(0, 1, len(others)).argsort()[: BATCH // 2]]
    labels = torch.cat([classes, torch.full((len(others),), NO_SHAPE)])
    return finish(maker, torch.cat([shapes, others])), labels


def train():
    """The trained network, normalisation folded in, in half precision."""
    torch.manual_seed(TRAINED_ON)
    network, maker = Normalised(), Maker(TRAINED_ON)
    network = network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), RATE, weight_decay=1e-3, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, STEPS, pct_start=0.1)
    started = time.process_time()
    for step in range(1, STEPS + 1):
        images, labels = batch_of(maker)
        loss = F.cross_entropy(network(images.contiguous(memory_format=torch.channels_last)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(
                f"step {step:5d}  loss {loss.item():.4f}  {time.process_time() - started:.0f} s of CPU",
                flush=True,
            )
    return network.folded()


def confident(classifier, images):
    """Which images are confidently a mode [N], and which mode [N]."""
    found = torch.cat([classifier(part) for part in images.split(500)])
    highest, mode = found.max(1)
    return highest > THRESHOLD, mode


def measure(classifier):
    """Figures for the header of the file."""
    drawn = factors(ShapesConfig(seed=HELD_OUT), 0, REAL_IMAGES)
    classes = torch.from_numpy(drawn.kind[:, 0] * len(COLOURS) + drawn.colour[:, 0])

    def accuracy(count, side):
        reals = [
            torch.from_numpy(render(Factors(*(part[i : i + 500] for part in drawn)), side)).permute(
                0, 3, 1, 2
            )
            for i in range(0, count, 500)
        ]
        found = [confident(classifier, part) for part in reals]
        sure, mode = (torch.cat(part) for part in zip(*found, strict=True))
        return _share(sure & (mode == classes[:count]))

    maker = Maker(HELD_OUT)
    distorted, expected = right(maker, WRONG_IMAGES)
    sure, mode = confident(classifier, finish(maker, distorted))
    return {
        "accuracy_on_real": accuracy(REAL_IMAGES, RESOLUTION),
        "accuracy_on_distorted": _share(sure & (mode == expected)),
        "accuracy_at_size": {str(side): accuracy(2000, side) for side in SIZES},
        "mistaken_for_shapes": _mistaken(classifier, maker, WRONG),
        "mistaken_for_shapes_never_trained_on": _mistaken(classifier, maker, NEVER_TRAINED_ON),
    }


def _mistaken(classifier, maker, sorts):
    """Share of each sort of wrong image that is confidently a shape: unchanged, and with flaws of GANs."""
    shares = {}
    for make in sorts:
        images = make(maker, WRONG_IMAGES)
        shares[make.__name__.replace("_", " ")] = [
            _share(confident(classifier, version)[0])
            for version in (images.clamp(0, 255), finish(maker, images))
        ]
    return shares


def _share(which):
    return round(which.double().mean().item(), 5)


def tables(figures):
    """The figures as Markdown."""
    lines = ["| real shapes | confidently classified correctly |", "|---|---|"]
    lines += [f"| {REAL_IMAGES:,} at 32 × 32 | {figures['accuracy_on_real']:.3%} |"]
    lines += [f"| {WRONG_IMAGES:,} at 32 × 32, distorted | {figures['accuracy_on_distorted']:.2%} |"]
    lines += [f"| 2,000 at {s} × {s} | {share:.2%} |" for s, share in figures["accuracy_at_size"].items()]
    for title, key in (
        ("must be rejected", "mistaken_for_shapes"),
        ("must be rejected, never trained on", "mistaken_for_shapes_never_trained_on"),
    ):
        lines += ["", f"| {title} | taken for a shape | with the distortions of a GAN |", "|---|---|---|"]
        lines += [f"| {name} | {a:.2%} | {b:.2%} |" for name, (a, b) in figures[key].items()]
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=WEIGHTS, help="the file to write, or to measure")
    parser.add_argument("--measure", action="store_true", help="train nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)  # the sums of several threads may differ
    if not options.measure:
        network = train()
        write(network, options.output, {"accuracy_on_real": 0})
        figures = measure(ShapesClassifier(torch.device("cpu"), options.output))
        made = {"command": COMMAND, "date": date.today().isoformat(), "torch": torch.__version__}
        write(network, options.output, {**figures, **made})
    classifier = ShapesClassifier(torch.device("cpu"), options.output)
    print(tables(measure(classifier) if options.measure else classifier.about))


def write(network, path, about):
    """Write weights and figures; under one key, because safetensors writes several in no fixed order."""
    with replacing(path) as beside:
        save_file(network.state_dict(), beside, {"recogniser": json.dumps(about)})


if __name__ == "__main__":
    main()
