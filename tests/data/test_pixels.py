"""Images become the channels that are asked for: grey, RGB, or RGB and alpha."""

import numpy as np
import pytest
from PIL import Image

from gantx.config.schema import DataConfig, ShapesConfig
from gantx.data.pixels import converted
from gantx.data.prepare import prepare


def translucent_palette():
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 50, 100, 150])
    image.info["transparency"] = 1
    return image


@pytest.mark.parametrize(
    ("image", "grey", "rgba"),
    [
        (Image.new("RGB", (4, 4), (255, 0, 0)), 76, (255, 0, 0, 255)),
        (Image.new("L", (4, 4), 7), 7, (7, 7, 7, 255)),
        (Image.new("1", (4, 4), 1), 255, (255, 255, 255, 255)),
        (Image.fromarray(np.full((4, 4), 65535, np.uint16)), 255, (255, 255, 255, 255)),
        (Image.new("LA", (4, 4), (0, 51)), 204, (0, 0, 0, 51)),
        (Image.new("RGBA", (4, 4), (255, 255, 255, 128)), 255, (255, 255, 255, 128)),
        # Colours that nobody sees.
        (Image.new("RGBA", (4, 4), (9, 99, 199, 0)), 255, (0, 0, 0, 0)),
        (translucent_palette(), 255, (0, 0, 0, 0)),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else "",
)
def test_conversion(image, grey, rgba):
    assert converted(image, 1).mode == "L"
    assert converted(image, 1).getpixel((0, 0)) == grey
    assert converted(image, 4).mode == "RGBA"
    assert converted(image, 4).getpixel((0, 0)) == rgba
    assert converted(image, 3).mode == "RGB"


def made(folder, channels, said=None, **settings):
    data = DataConfig(source=str(folder), channels=channels, **{"resolution": 8} | settings)
    return prepare(data, log=(said if said is not None else []).append)


def test_sets_of_each_channel_count_are_prepared_apart(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 4), np.uint8)
    Image.fromarray(pixels).save(folder / "a.png")
    grey, colours, alpha = (made(folder, channels) for channels in (1, 3, 4))
    assert [each.images.shape for each in (grey, colours, alpha)] == [(1, c, 8, 8) for c in (1, 3, 4)]
    assert len({each.digest for each in (grey, colours, alpha)}) == 3
    luminance = Image.fromarray(colours.images[0].transpose(1, 2, 0)).convert("L")
    assert np.array_equal(grey.images[0, 0], luminance)
    assert np.array_equal(alpha.images[0].transpose(1, 2, 0), np.where(pixels[..., 3:] > 0, pixels, 0))


def test_resizing_does_not_let_invisible_colours_in(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    pixels = np.zeros((16, 16, 4), np.uint8)
    pixels[:, :8] = (200, 100, 50, 255)
    pixels[:, 8:] = (0, 255, 0, 0)
    Image.fromarray(pixels).save(folder / "a.png")
    image = made(folder, 4).images[0].transpose(1, 2, 0)
    seen = image[image[..., 3] > 16]  # below, 8 bits are few for a colour that was weighted by alpha
    assert len(seen)
    assert np.abs(seen[:, :3].astype(int) - (200, 100, 50)).max() <= 10
    assert not image[image[..., 3] == 0].any()


def test_a_ratio_leaves_transparent_borders(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("RGB", (8, 4), "white").save(folder / "a.png")
    image = made(folder, 4, ratio=0.5).images[0]
    assert (image[:, 2:6] == 255).all()
    assert not image[:, :2].any()


@pytest.mark.parametrize("channels", [1, 4])
def test_arrays_and_rendered_images(tmp_path, channels):
    """They are converted as files are."""
    pixels = np.random.default_rng(1).integers(0, 256, (3, 8, 8, channels), np.uint8)
    if channels == 4:
        pixels[..., 3] |= 1
    np.save(tmp_path / "images.npy", pixels)
    assert np.array_equal(made(tmp_path / "images.npy", channels).images, pixels.transpose(0, 3, 1, 2))
    shapes = {"resolution": 16, "shapes": ShapesConfig(count=4)}
    colours, found = (made("shapes", each, **shapes).images for each in (3, channels))
    if channels == 4:
        assert np.array_equal(found[:, :3], colours)
        assert (found[:, 3] == 255).all()
    else:
        for one, other in zip(found, colours, strict=True):
            assert np.array_equal(one[0], Image.fromarray(other.transpose(1, 2, 0)).convert("L"))


def test_the_log_names_channels_that_are_lost_or_of_no_use(tmp_path):
    """A set that is all grey, and transparency that is composited away."""
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("L", (8, 8), 9).save(folder / "a.png")
    advice, composited = "every image is grey: data.channels=1", "1 of 2 images have transparency: composited"
    for channels, expected in ((3, 1), (1, 0)):
        made(folder, channels, said := [])
        assert sum(advice in line for line in said) == expected
    Image.new("RGBA", (8, 8), (9, 9, 9, 9)).save(folder / "b.png")
    for channels, expected in ((3, 1), (4, 0)):
        made(folder, channels, said := [])
        assert sum(composited in line for line in said) == expected
        assert not any(advice in line for line in said)
