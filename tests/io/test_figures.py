"""Single pictures in every format: pixels, origin, and packages that are not installed."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from gantx.errors import MissingError, UsageError
from gantx.io import figures, sheets
from gantx.io.decoding import text_of
from gantx.io.sheets import Cell, Sheet

TEXT = {"Software": "gantx", "gantx:seeds": "1,5", "gantx:preset": "a=b"}
IMAGES = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def drawing(factor=4):
    cells = [Cell(image, f"seed {number}") for image, number in zip(IMAGES, (1, 5), strict=True)]
    return sheets.lay_out(Sheet(cells, 2, factor))


@pytest.mark.parametrize("suffix", [".png", ".webp", ".jpg", ".JPEG"])
def test_raster_formats_keep_the_picture_and_tell_its_origin(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    figures.save(path, drawing(), TEXT)
    with Image.open(path) as image:
        assert text_of(image) == TEXT
        pixels = np.asarray(image.convert("RGB")).astype(int)
    apart = np.abs(pixels - drawing().pixels().permute(1, 2, 0).numpy())
    assert apart.max() == 0 if suffix in figures.EXACT else apart.mean() < 6


def test_a_picture_of_another_program_says_nothing(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.jpg")
    with Image.open(tmp_path / "a.jpg") as image:
        assert text_of(image) == {}


@pytest.mark.parametrize("suffix", [".pdf", ".svg"])
def test_vector_formats_tell_the_origin_and_are_reproducible(tmp_path, suffix):
    pytest.importorskip("matplotlib", reason="the extra 'figures' is not installed")
    files = []
    for name in ("a", "b"):
        figures.save(tmp_path / f"{name}{suffix}", drawing(), TEXT)
        files.append((tmp_path / f"{name}{suffix}").read_bytes())
    assert files[0] == files[1]
    assert b"gantx:seeds=1,5" in files[0]
    assert files[0].startswith(b"%PDF" if suffix == ".pdf" else b"<?xml")


@pytest.mark.parametrize("suffix", [".pdf", ".svg"])
def test_vector_formats_without_the_package_say_what_to_install(tmp_path, monkeypatch, suffix):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingError, match=r'pip install "gantx\[figures\]"') as caught:
        figures.check(tmp_path / f"a{suffix}")
    assert caught.value.exit_code == 3


def test_what_no_format_can_store_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"cannot write '\.bmp' files: use \.png, .*\.svg, or a folder name"):
        figures.check(tmp_path / "a.bmp", "or a folder name")
    with pytest.raises(UsageError, match="without a suffix"):
        figures.check(tmp_path / "a")
    with pytest.raises(UsageError, match=r"too large for \.webp"):
        figures.require_size(tmp_path / "a.webp", 17_000, 10)
    assert list(tmp_path.iterdir()) == []
