"""The built-in set: coloured shapes on dark backgrounds, rendered from known factors.

- One to eight shapes per image: circle, square or triangle, of equal area at equal size, in one of six
  saturated colours, at a random position, on a background of a random dark colour, with antialiased edges.
- With one shape, the 18 pairs of kind and colour are the classes (kind * 6 + colour): modes that can be
  counted, so that missing modes are detected.
- Image i depends on (seed, number of shapes, split, i, resolution) only, and its factors do not depend on
  the resolution: a counter-based generator (Philox, Salmon et al. 2011) gives the random numbers of image i.
- Each split has its own stream of random numbers, so that no test image is a training image.
"""

from __future__ import annotations

import hashlib
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gantx.config.schema import ShapesConfig

Split: TypeAlias = Literal["train", "test"]

KINDS = ("circle", "square", "triangle")
COLOURS = ("red", "green", "blue", "yellow", "magenta", "cyan")
CLASS_NAMES = tuple(f"{colour} {kind}" for kind in KINDS for colour in COLOURS)

_RGB = np.array(
    [(230, 26, 26), (26, 230, 26), (26, 26, 230), (230, 230, 26), (230, 26, 230), (26, 230, 230)], np.float32
)
_BRIGHTEST_GROUND = 0.3
_SIZES = (0.14, 0.26)  # range of the size of a single shape, as a fraction of the image's side
# In units of the size (the radius of the circle): half the side of the square and the circumradius of the
# equilateral triangle that have the circle's area, so that the area is independent of the kind.
_HALF_SIDE = float(np.sqrt(np.pi) / 2)
_CIRCUMRADIUS = float(np.sqrt(4 * np.pi / (3 * np.sqrt(3))))
# Extent of each kind from its centre, in units of the size: sideways, up, down.
_REACH = np.array(
    [
        (1.0, 1.0, 1.0),
        (_HALF_SIDE, _HALF_SIDE, _HALF_SIDE),
        (_CIRCUMRADIUS * np.sqrt(3) / 2, _CIRCUMRADIUS, _CIRCUMRADIUS / 2),
    ]
)
_PER_GROUND, _PER_SHAPE = 4, 8  # random numbers used; multiples of the four that Philox generates at a time
# Part of the names of streams and fingerprints; empty for training, because prepared sets have such names.
_SUFFIX: dict[Split, str] = {"train": "", "test": "/test"}


class Factors(NamedTuple):
    """The factors of N images of S shapes, in the order of rendering: later shapes cover earlier ones.

    Attributes:
        kind: int64 [N, S], index into KINDS.
        colour: int64 [N, S], index into COLOURS.
        centre: float32 [N, S, 2], (x, y) in units of the image's side, y downwards.
        size: float32 [N, S], radius of the circle of the shape's area, in units of the side.
        ground: float32 [N, 3], background colour in [0, 0.3].
    """

    kind: NDArray[np.int64]
    colour: NDArray[np.int64]
    centre: NDArray[np.float32]
    size: NDArray[np.float32]
    ground: NDArray[np.float32]


def factors(shapes: ShapesConfig, start: int, stop: int, split: Split = "train") -> Factors:
    """The factors of images start..stop-1 of a split; `shapes.count` has no effect on them."""
    wanted = _PER_GROUND + _PER_SHAPE * shapes.objects
    stream = f"shapes{_SUFFIX[split]}/{shapes.seed}/{shapes.objects}"
    key = hashlib.blake2b(stream.encode(), digest_size=16).digest()
    generator = np.random.Philox(key=np.frombuffer(key, "<u8"), counter=start * wanted // 4)
    bits = generator.random_raw((stop - start) * wanted).reshape(stop - start, wanted)
    uniform = (bits >> np.uint64(11)) * 2.0**-53  # [N, wanted] in [0, 1)
    ground = _BRIGHTEST_GROUND * uniform[:, :3]
    drawn = uniform[:, _PER_GROUND:].reshape(stop - start, shapes.objects, _PER_SHAPE)
    kind = (drawn[..., 0] * len(KINDS)).astype(np.int64)
    colour = (drawn[..., 1] * len(COLOURS)).astype(np.int64)
    low, high = _SIZES
    size = (low + (high - low) * drawn[..., 2]) / np.sqrt(shapes.objects)  # keeps the total area constant
    sideways, up, down = (_REACH[kind] * size[..., None]).transpose(2, 0, 1)
    x = sideways + (1 - 2 * sideways) * drawn[..., 3]
    y = up + (1 - up - down) * drawn[..., 4]
    centre = np.stack([x, y], axis=-1)
    return Factors(
        kind, colour, centre.astype(np.float32), size.astype(np.float32), ground.astype(np.float32)
    )


def render(drawn: Factors, resolution: int) -> NDArray[np.uint8]:
    """Render factors as images, uint8 [N, resolution, resolution, 3]."""
    count, objects = drawn.kind.shape
    at = (np.arange(resolution, dtype=np.float32) + np.float32(0.5)) / np.float32(resolution)
    picture = np.empty((count, 3, resolution, resolution), np.float32)
    picture[:] = drawn.ground[:, :, None, None] * np.float32(255)
    for shape in range(objects):
        covered = np.empty((count, resolution, resolution), np.float32)
        for kind, distance in enumerate((_from_circle, _from_square, _from_triangle)):
            these = np.flatnonzero(drawn.kind[:, shape] == kind)
            dx = at[None, None, :] - drawn.centre[these, shape, 0][:, None, None]  # [n, 1, R]
            dy = at[None, :, None] - drawn.centre[these, shape, 1][:, None, None]  # [n, R, 1]
            outside = distance(dx, dy, drawn.size[these, shape][:, None, None])  # [n, R, R]
            # A pixel whose centre is on the edge is half covered.
            covered[these] = np.clip(np.float32(0.5) - outside * np.float32(resolution), 0, 1)
        colours = _RGB[drawn.colour[:, shape]]  # [N, 3]
        for channel in range(3):
            plane = picture[:, channel]
            plane += covered * (colours[:, channel, None, None] - plane)
    return np.rint(picture, out=picture).astype(np.uint8).transpose(0, 2, 3, 1)


class ShapesSource:
    """The shapes as a source of images (gantx.data.sources.Source), rendered at any resolution.

    Labels are kind * 6 + colour for one shape per image; with more there are none (see `factors`).

    Args:
        shapes: how many images, of how many shapes, from which seed.
        resolution: side of the images in pixels.
        split: which of the two streams of images.
    """

    name = "shapes"
    location = "shapes"
    notes: tuple[str, ...] = ()

    def __init__(self, shapes: ShapesConfig, resolution: int, split: Split = "train") -> None:
        self._shapes = shapes
        self._split = split
        self._resolution = resolution
        self.class_names = CLASS_NAMES if shapes.objects == 1 else ()
        self.typical_bytes = 3 * resolution * resolution
        self._labels: NDArray[np.int64] | None = None
        if shapes.objects == 1:
            drawn = factors(shapes, 0, shapes.count, split)
            self._labels = (drawn.kind * len(COLOURS) + drawn.colour)[:, 0]

    def __len__(self) -> int:
        return self._shapes.count

    def fingerprint(self) -> str:
        """Digest of the settings; the leading number must change with the rendering."""
        settings = f"{self._shapes.count}/{self._shapes.objects}/{self._shapes.seed}"
        text = f"1/shapes/{settings}{_SUFFIX[self._split]}"
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def label(self, index: int) -> int | None:
        """kind * 6 + colour with one shape per image; None with more."""
        return None if self._labels is None else int(self._labels[index])

    def identify(self, index: int) -> str:
        """The number of the image."""
        return f"shapes image {index}"

    def read(self, index: int) -> NDArray[np.uint8]:
        """Image `index`, uint8 [R, R, 3]."""
        image: NDArray[np.uint8] = self.read_range(index, index + 1)[0]
        return image

    def read_range(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Images start..stop-1, uint8 [stop - start, R, R, 3]."""
        return render(factors(self._shapes, start, stop, self._split), self._resolution)


# --- signed distances to the edge, negative inside, in units of the side ------------------------------------

_Plane = NDArray[np.float32]


def _from_circle(dx: _Plane, dy: _Plane, size: _Plane) -> _Plane:
    outside: _Plane = np.sqrt(dx * dx + dy * dy) - size
    return outside


def _from_square(dx: _Plane, dy: _Plane, size: _Plane) -> _Plane:
    half = np.float32(_HALF_SIDE) * size
    outside: _Plane = np.maximum(np.abs(dx), np.abs(dy)) - half
    return outside


def _from_triangle(dx: _Plane, dy: _Plane, size: _Plane) -> _Plane:
    # Three edges at the inradius, half the circumradius: the bottom one, and two at 60 degrees to it.
    inradius = np.float32(_CIRCUMRADIUS / 2) * size
    leaning = np.abs(dx) * np.float32(np.sqrt(3) / 2) - dy * np.float32(0.5)
    outside: _Plane = np.maximum(leaning, dy) - inradius
    return outside
