"""The procedural set: pure, balanced, inside the frame, of equal areas."""

import hashlib
import time

import numpy as np
import pytest

from gantx.config.schema import ShapesConfig
from gantx.data.shapes import CLASS_NAMES, COLOURS, KINDS, Factors, ShapesSource, factors, render


def test_an_image_depends_on_seed_objects_index_and_resolution_alone():
    few, many = ShapesConfig(count=40), ShapesConfig(count=1000)
    whole = ShapesSource(many, 16).read_range(0, 40)
    pieces = [ShapesSource(few, 16).read_range(start, min(start + 7, 40)) for start in range(0, 40, 7)]
    np.testing.assert_array_equal(np.concatenate(pieces), whole)
    np.testing.assert_array_equal(ShapesSource(few, 16).read(23), whole[23])
    assert not np.array_equal(ShapesSource(ShapesConfig(seed=1), 16).read(23), whole[23])
    assert not np.array_equal(ShapesSource(ShapesConfig(objects=2), 16).read(23), whole[23])


@pytest.mark.parametrize("objects", [1, 3, 8])
def test_factors_of_a_later_part_equal_those_of_the_whole(objects):
    shapes = ShapesConfig(objects=objects)
    whole, part = factors(shapes, 0, 50), factors(shapes, 31, 50)
    for name in Factors._fields:
        np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[31:])
    assert whole.kind.shape == (50, objects)
    assert whole.centre.shape == (50, objects, 2)


def test_the_generation_is_what_it_was():
    """A change here changes what everybody trained on: raise the number in ShapesSource.fingerprint."""
    images = np.concatenate([ShapesSource(ShapesConfig(objects=n), 16).read_range(0, 64) for n in (1, 4)])
    assert hashlib.sha256(images.tobytes()).hexdigest()[:16] == "085339c76c2d446a"


def test_labels_name_kind_and_colour():
    shapes = ShapesConfig(count=200)
    source, drawn = ShapesSource(shapes, 32), factors(shapes, 0, 200)
    assert len(source) == 200
    assert source.class_names == CLASS_NAMES
    assert len(CLASS_NAMES) == 18
    for index in range(200):
        kind, colour = drawn.kind[index, 0], drawn.colour[index, 0]
        assert source.label(index) == kind * 6 + colour
        assert CLASS_NAMES[source.label(index)] == f"{COLOURS[colour]} {KINDS[kind]}"


def test_the_colour_at_the_centre_is_the_labelled_one():
    shapes = ShapesConfig(count=300)
    images, drawn = ShapesSource(shapes, 32).read_range(0, 300), factors(shapes, 0, 300)
    bright = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1)}
    bright |= {"yellow": (1, 1, 0), "magenta": (1, 0, 1), "cyan": (0, 1, 1)}
    for image, colour, (x, y) in zip(images, drawn.colour[:, 0], drawn.centre[:, 0], strict=True):
        middle = image[int(y * 32), int(x * 32)]
        assert tuple((middle > 128).astype(int)) == bright[COLOURS[colour]]


def test_backgrounds_are_dark_and_shapes_stay_inside():
    shapes = ShapesConfig(count=500)
    images, drawn = ShapesSource(shapes, 64).read_range(0, 500), factors(shapes, 0, 500)
    ground = np.rint(drawn.ground * 255)[:, None, None]
    assert ground.max() <= 77
    assert ground.min() == 0
    channel = np.abs(images - ground).max((1, 2)).argmax(-1)  # the one that shows the shape best
    changed = np.abs(images - ground)[np.arange(500), :, :, channel]
    covered = (changed / changed.max((1, 2), keepdims=True)).mean((1, 2))  # share of the image
    np.testing.assert_allclose(covered, np.pi * drawn.size[:, 0] ** 2, rtol=0.03)  # nothing is cut off


def test_every_mode_is_as_likely():
    drawn = factors(ShapesConfig(), 0, 18000)
    counts = np.bincount((drawn.kind * 6 + drawn.colour)[:, 0], minlength=18)
    assert counts.min() > 850
    assert counts.max() < 1150


def test_kinds_differ_in_outline_and_not_in_area():
    count = len(KINDS)
    centre = np.full((count, 1, 2), 0.5, np.float32)
    size = np.full((count, 1), 0.2, np.float32)
    kind = np.arange(count)[:, None]
    drawn = Factors(kind, np.zeros_like(kind), centre, size, np.zeros((count, 3), np.float32))
    red = render(drawn, 128)[..., 0].astype(float) / 230
    np.testing.assert_allclose(red.mean((1, 2)), np.pi * 0.2**2, rtol=0.01)
    assert np.abs(red[0] - red[1]).mean() > 0.005
    assert np.abs(red[1] - red[2]).mean() > 0.005
    np.testing.assert_allclose(red, red[:, :, ::-1], atol=0.01)  # upright: mirror images of themselves
    rows = red[2].sum(1)
    assert rows[rows > 1][0] < rows[rows > 1][-1]  # the triangle points up


def test_edges_are_antialiased():
    image = ShapesSource(ShapesConfig(), 32).read(0)
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 8


def test_resolutions_show_the_same_scene():
    source = ShapesConfig(count=20)
    fine = ShapesSource(source, 64).read_range(0, 20).reshape(20, 32, 2, 32, 2, 3).mean((2, 4))
    coarse = ShapesSource(source, 32).read_range(0, 20)
    assert np.abs(fine - coarse).max() < 100  # of 255; only corners differ that much
    assert np.abs(fine - coarse).mean() < 0.5


def test_several_objects_have_factors_but_no_labels():
    source = ShapesSource(ShapesConfig(objects=3, count=10), 32)
    assert source.class_names == ()
    assert source.label(0) is None
    drawn = factors(ShapesConfig(objects=3), 0, 300)
    images = ShapesSource(ShapesConfig(objects=3, count=300), 32).read_range(0, 300)
    last = drawn.centre[:, -1]  # rendered last, hence never covered
    middles = images[np.arange(300), (last[:, 1] * 32).astype(int), (last[:, 0] * 32).astype(int)]
    palette = ShapesSource(ShapesConfig(count=300), 32)
    by_label = {palette.label(i) % 6: i for i in range(300)}
    alone = factors(ShapesConfig(), 0, 300).centre[:, 0]
    for middle, colour in zip(middles, drawn.colour[:, -1], strict=True):
        x, y = alone[by_label[colour]]
        np.testing.assert_array_equal(middle, palette.read(by_label[colour])[int(y * 32), int(x * 32)])


def test_fingerprint_follows_the_settings():
    prints = {
        ShapesSource(shapes, 32).fingerprint()
        for shapes in (ShapesConfig(), ShapesConfig(count=1), ShapesConfig(objects=2), ShapesConfig(seed=1))
    }
    assert len(prints) == 4


def test_test_images_are_no_training_images():
    shapes = ShapesConfig(count=500)
    train, test = factors(shapes, 0, 500), factors(shapes, 0, 500, "test")
    places = {tuple(place) for drawn in (train, test) for place in drawn.centre[:, 0].tolist()}
    assert len(places) == 1000
    held_out = ShapesSource(shapes, 16, "test")
    assert len(held_out) == 500
    assert held_out.label(7) == test.kind[7, 0] * 6 + test.colour[7, 0]
    np.testing.assert_array_equal(held_out.read(7), render(factors(shapes, 7, 8, "test"), 16)[0])


def test_the_fingerprint_of_training_is_what_it_was():
    """Another one would have every cached set made anew."""
    train, test = (ShapesSource(ShapesConfig(), 32, split).fingerprint() for split in ("train", "test"))
    assert train == "fe48b755406342d99e0831110a91a09b"
    assert test != train


def test_generation_is_quick():
    started = time.process_time()
    ShapesSource(ShapesConfig(), 32).read_range(0, 4096)
    assert time.process_time() - started < 5  # takes about 0.05 s
