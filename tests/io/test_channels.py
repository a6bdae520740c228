"""Grey, RGB and RGBA pictures are converted as Pillow does it."""

import numpy as np
import pytest
import torch
from PIL import Image

from gantx.io.channels import extended, to_rgb
from gantx.io.figures import encode
from gantx.io.sheets import Cell, Sheet, lay_out

PIXELS = torch.randint(0, 256, (4, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_rgba_is_composited_over_white():
    layer = Image.fromarray(PIXELS.permute(1, 2, 0).contiguous().numpy())
    white = Image.new("RGBA", layer.size, "white")
    expected = np.asarray(Image.alpha_composite(white, layer).convert("RGB"), int)
    found = to_rgb(PIXELS)
    assert found.dtype == torch.uint8
    assert np.abs(found.permute(1, 2, 0).numpy().astype(int) - expected).max() <= 1
    exact = to_rgb(PIXELS.double())
    assert (exact - found).abs().max() <= 0.5


def test_grey_is_repeated_and_rgb_stays():
    assert torch.equal(to_rgb(PIXELS[None, :1]), PIXELS[None, :1].expand(1, 3, 16, 16))
    assert to_rgb(PIXELS[:3]).data_ptr() == PIXELS.data_ptr()
    assert torch.equal(extended(PIXELS[:1], 4)[:3], PIXELS[:1].expand(3, 16, 16))
    assert (extended(PIXELS[:1], 4)[3] == 255).all()


@pytest.mark.parametrize(("channels", "caption", "expected"), [(1, "", 1), (1, "a", 3), (4, "a", 4)])
def test_a_sheet_has_the_channels_of_its_images_and_of_its_texts(channels, caption, expected):
    pixels = lay_out(Sheet([Cell(PIXELS[:channels], caption)], 1)).pixels()
    assert pixels.shape[0] == expected
    assert torch.equal(pixels[:, -16:], extended(PIXELS[:channels], expected))


@pytest.mark.parametrize(("suffix", "mode"), [(".png", "RGBA"), (".webp", "RGBA"), (".jpg", "RGB")])
def test_formats_without_alpha_show_what_is_transparent_on_white(tmp_path, suffix, mode):
    clear = torch.zeros(4, 16, 16, dtype=torch.uint8)
    path = tmp_path / f"picture{suffix}"
    path.write_bytes(encode(clear, suffix, {}))
    picture = Image.open(path)
    assert picture.mode == mode
    assert picture.getpixel((3, 3)) == ((255, 255, 255) if mode == "RGB" else (0, 0, 0, 0))
