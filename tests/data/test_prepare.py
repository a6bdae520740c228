"""Images become uint8 of one size by fixed rules, once, and the cache is whole or not there."""

import errno
import hashlib
import io
import json
import resource
import shutil
import struct
import subprocess
import sys
import threading
import zipfile
import zlib
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from helpers.flipped_bits import COUNTS, flips
from PIL import Image

from gantx.config.schema import DataConfig, ShapesConfig
from gantx.data import blocks
from gantx.data import pixels as pixels_module
from gantx.data import prepare as module
from gantx.data.pixels import to_rgb
from gantx.data.prepare import check, prepare, require_enough
from gantx.data.shapes import ShapesSource
from gantx.data.sources import ZipSource, open_source
from gantx.errors import DataError, MissingError, UsageError
from gantx.io import temporary
from gantx.io.atomic import scratch_folder
from gantx.io.cache import cache_folder
from gantx.runtime import cores

ROOT = Path(__file__).resolve().parents[2]
CIFAR_TEST = ROOT.parent / "shared" / "data" / "cifar10-test.zip"


def photo(width=8, height=8, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def save(folder, **images):
    """Save images as PNG: save(folder, a=image)."""
    folder.mkdir(exist_ok=True, parents=True)
    for name, image in images.items():
        image.save(folder / f"{name}.png")
    return folder


def made(source, resolution=8, said=None, progress=None, **settings):
    settings = DataConfig(source=str(source), resolution=resolution, **settings)
    return prepare(settings, log=(said if said is not None else []).append, progress=progress)


def pixels(prepared, index=0):
    """Image `index` as [H, W, 3]."""
    return prepared.images[index].transpose(1, 2, 0)


def cached():
    folder = cache_folder() / "prepared"
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


# --- one image --------------------------------------------------------------------------------------------


def test_a_square_rgb_image_of_the_right_size_is_taken_as_it_is(tmp_path):
    image = photo()
    prepared = made(save(tmp_path / "set", a=image))
    assert prepared.images.shape == (1, 3, 8, 8)
    assert prepared.images.dtype == np.uint8
    np.testing.assert_array_equal(pixels(prepared), np.asarray(image))


@pytest.mark.parametrize("suffix", ["bmp", "ppm", "tif", "tiff", "webp", "gif", "jpg", "jpeg", "png"])
def test_formats(tmp_path, suffix):
    options = {"lossless": True} if suffix == "webp" else {"quality": 100} if suffix.startswith("jp") else {}
    Image.new("RGB", (8, 8), (200, 40, 90)).save(tmp_path / f"a.{suffix}", **options)
    np.testing.assert_allclose(pixels(made(tmp_path)), np.full((8, 8, 3), (200, 40, 90)), atol=2)


def test_of_an_animation_the_first_frame_counts(tmp_path):
    first, second = Image.new("RGB", (8, 8), (255, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 255))
    first.save(tmp_path / "a.gif", save_all=True, append_images=[second])
    np.testing.assert_array_equal(pixels(made(tmp_path))[0, 0], (255, 0, 0))


def palette(transparent):
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 50, 100, 150])
    if transparent:
        image.info["transparency"] = 1
    return image


def clear_rgb():
    image = Image.new("RGB", (8, 8), (9, 9, 9))
    image.info["transparency"] = (9, 9, 9)
    return image


def sixteen_bits(value, kind=np.uint16):
    return Image.fromarray(np.full((8, 8), value, kind))


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("L", (8, 8), 77), (77, 77, 77)),
        (Image.new("1", (8, 8), 1), (255, 255, 255)),
        (Image.new("LA", (8, 8), (0, 255)), (0, 0, 0)),
        (Image.new("LA", (8, 8), (0, 0)), (255, 255, 255)),
        (Image.new("RGBA", (8, 8), (255, 0, 0, 255)), (255, 0, 0)),
        (Image.new("RGBA", (8, 8), (255, 0, 0, 0)), (255, 255, 255)),
        (Image.new("RGBA", (8, 8), (0, 0, 0, 51)), (204, 204, 204)),
        (palette(transparent=False), (50, 100, 150)),
        (palette(transparent=True), (255, 255, 255)),
        (clear_rgb(), (255, 255, 255)),
        (sixteen_bits(65535), (255, 255, 255)),
        (sixteen_bits(257 * 40), (40, 40, 40)),
        (sixteen_bits(257 * 40 + 129), (41, 41, 41)),
        (sixteen_bits(200), (1, 1, 1)),
        (sixteen_bits(200, np.int32), (200, 200, 200)),
        (sixteen_bits(257 * 40, np.int32), (40, 40, 40)),
        (Image.new("CMYK", (8, 8), (255, 0, 0, 0)), (0, 255, 255)),
        (Image.new("YCbCr", (8, 8), (255, 128, 128)), (255, 255, 255)),
    ],
)
def test_modes(image, expected):
    converted = to_rgb(image)
    assert converted.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(converted), np.broadcast_to(np.uint8(expected), (8, 8, 3)))


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("L", (8, 8), 77), (77, 77, 77)),
        (Image.new("LA", (8, 8), (0, 0)), (255, 255, 255)),
        (palette(transparent=True), (255, 255, 255)),
        (clear_rgb(), (255, 255, 255)),
        (sixteen_bits(257 * 40), (40, 40, 40)),
    ],
)
def test_modes_through_files(tmp_path, image, expected):
    np.testing.assert_array_equal(pixels(made(save(tmp_path / "set", a=image)))[3, 3], expected)


def test_cmyk_jpeg(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
    np.testing.assert_allclose(pixels(made(tmp_path))[3, 3], (255, 0, 0), atol=3)


@pytest.mark.parametrize(
    ("kind", "value", "words"),
    [(np.float32, 0.5, "floating-point"), (np.int32, 70000, "70000"), (np.int32, -1, "-1")],
)
def test_pixels_of_unknown_range_are_refused(tmp_path, kind, value, words):
    Image.fromarray(np.full((8, 8), value, kind)).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=f"a.tif: .*{words}"):
        made(tmp_path)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_exif_orientation_is_applied(tmp_path, suffix):
    image = Image.new("RGB", (16, 16), "white")
    image.paste((0, 0, 0), (0, 0, 16, 8))  # black above
    exif = image.getexif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    image.save(tmp_path / f"a.{suffix}", exif=exif, **({"lossless": True} if suffix == "webp" else {}))
    turned = pixels(made(tmp_path, 16))
    assert turned[:, 9:].max() < 40  # black on the right
    assert turned[:, :7].min() > 215


def test_broken_exif_is_ignored(tmp_path):
    photo().save(tmp_path / "a.jpg", exif=b"Exif\0\0garbage")
    assert len(made(tmp_path).images) == 1


def test_the_centre_square_is_used(tmp_path):
    wide, tall = photo(14, 8), photo(8, 13)
    said = []
    prepared = made(save(tmp_path / "set", a=wide, b=tall, c=photo()), said=said)
    np.testing.assert_array_equal(pixels(prepared, 0), np.asarray(wide)[:, 3:11])
    np.testing.assert_array_equal(pixels(prepared, 1), np.asarray(tall)[2:10])
    assert [line for line in said if "not square" in line] == [
        "data: 2 of 3 images are not square: the centre square is used"
    ]


def test_resizing_is_antialiased(tmp_path):
    lines = np.zeros((64, 64, 3), np.uint8)
    lines[:, ::2] = 255
    shrunk = pixels(made(save(tmp_path / "set", a=Image.fromarray(lines))))
    assert shrunk[2:6, 2:6].min() > 120  # taking single pixels would give 0 or 255
    assert shrunk[2:6, 2:6].max() < 135


def test_small_images_are_refused_by_name(tmp_path):
    save(tmp_path / "set", a=photo(16, 16), b=photo(9, 5), c=photo(4, 4))
    with pytest.raises(DataError, match=r"b\.png: 9×5 pixels.*data\.allow_upscale") as caught:
        made(tmp_path / "set")
    assert caught.value.exit_code == 4
    assert "c.png: 4×4 pixels" in str(caught.value)
    assert cached() == []


def test_small_images_are_skipped_on_demand(tmp_path):
    save(tmp_path / "set", a=photo(16, 16), b=photo(9, 5))
    prepared = made(tmp_path / "set", on_bad_image="skip")
    assert len(prepared.images) == 1
    assert prepared.skipped[0].endswith("b.png")


def test_all_unusable_images_are_in_one_message(tmp_path):
    save(tmp_path / "set", good=photo(), small=photo(4, 4))
    for number in range(6):
        (tmp_path / "set" / f"bad{number}.png").write_bytes(b"this is text")
    with pytest.raises(
        DataError, match=r"cannot use 7 of 8 images: .*bad0\.png: .*on_bad_image=skip"
    ) as caught:
        made(tmp_path / "set")
    listed = Path(str(caught.value).split("(all in ")[1].split(")")[0]).read_text().splitlines()
    assert len(listed) == 7
    assert "small.png: 4×4 pixels" in listed[-1]


def test_small_images_may_be_enlarged(tmp_path):
    said = []
    save(tmp_path / "set", a=photo(16, 16), b=Image.new("RGB", (4, 4), (10, 20, 30)))
    prepared = made(tmp_path / "set", allow_upscale=True, said=said)
    np.testing.assert_array_equal(pixels(prepared, 1), np.full((8, 8, 3), (10, 20, 30)))
    assert any("1 of 2 images are smaller than 8 pixels" in line for line in said)


# --- images that are not square ---------------------------------------------------------------------------


def test_an_image_of_the_ratio_lies_between_black_rows(tmp_path):
    image = photo(8, 6)
    said = []
    prepared = made(save(tmp_path / "set", a=image), ratio=0.75, said=said)
    np.testing.assert_array_equal(pixels(prepared)[1:7], np.asarray(image))
    assert not pixels(prepared)[[0, 7]].any()
    assert any("8×6 in squares of 8×8" in line for line in said)
    assert not any("not of the ratio" in line for line in said)


def test_other_images_are_cropped_to_the_ratio_in_the_middle(tmp_path):
    wide, tall, large = photo(12, 6), photo(8, 9), photo(20, 12)
    said = []
    prepared = made(save(tmp_path / "set", a=wide, b=tall, c=large), ratio=0.75, said=said)
    np.testing.assert_array_equal(pixels(prepared, 0)[1:7], np.asarray(wide)[:, 2:10])
    np.testing.assert_array_equal(pixels(prepared, 1)[1:7], np.asarray(tall)[1:7])
    shrunk = large.crop((2, 0, 18, 12)).resize((8, 6), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(pixels(prepared, 2)[1:7], np.asarray(shrunk))
    assert not prepared.images[:, :, [0, 7]].any()
    assert "data: 3 of 3 images are not of the ratio 0.75: the centre is used" in said


def test_of_an_odd_number_of_black_rows_one_more_is_below(tmp_path):
    prepared = made(save(tmp_path / "set", a=Image.new("RGB", (8, 5), "white")), ratio=0.625)
    assert pixels(prepared).any((1, 2)).tolist() == [False] + 5 * [True] + 2 * [False]


def test_images_of_a_ratio_are_cropped_after_they_were_turned(tmp_path):
    lying = photo(6, 8)
    exif = lying.getexif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    lying.save(tmp_path / "a.png", exif=exif)
    turned = np.asarray(lying.transpose(Image.Transpose.ROTATE_270))
    np.testing.assert_array_equal(pixels(made(tmp_path, ratio=0.75))[1:7], turned)


def test_images_too_small_for_the_ratio(tmp_path):
    save(tmp_path / "set", a=photo(8, 6), b=photo(20, 5))
    with pytest.raises(DataError, match=r"b\.png is 20×5 pixels, .* 8 at the ratio 0\.75: .*allow_upscale"):
        made(tmp_path / "set", ratio=0.75)
    assert len(made(tmp_path / "set", ratio=0.75, allow_upscale=True).images) == 2


def test_of_the_built_in_shapes_the_rows_in_the_middle_are_taken():
    whole, cut = (made("shapes", 16, shapes={"count": 5}, ratio=ratio) for ratio in (1.0, 0.5))
    np.testing.assert_array_equal(cut.images[:, :, 4:12], whole.images[:, :, 4:12])
    assert not cut.images[:, :, :4].any()
    assert not cut.images[:, :, 12:].any()


def test_ratios_are_cached_apart_and_squares_keep_their_name(tmp_path):
    folder = save(tmp_path / "set", a=photo(16, 16))
    square = made(folder)
    source = open_source(DataConfig(source=str(folder))).fingerprint()
    before_ratios = hashlib.blake2b(f"{source}/8/error/False".encode(), digest_size=16).hexdigest()
    assert square.fingerprint == made(folder, ratio=1).fingerprint == before_ratios
    names = {made(folder, ratio=ratio).fingerprint for ratio in (1, 0.75, 0.5)}
    assert names == set(cached())
    assert len(names) == 3


# --- bad images -------------------------------------------------------------------------------------------


def bomb(side=20000):
    """A PNG whose header promises side x side pixels."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def truncated():
    file = io.BytesIO()
    photo(64, 64).save(file, "JPEG")
    return file.getvalue()[:-200]


BAD = {
    "text.png": (b"this is text", "it is not a JPEG"),
    "empty.jpg": (b"", "it is not a JPEG"),
    "cut.jpg": (truncated(), "truncated"),
    "bomb.png": (bomb(), "pixels that gantx decodes"),
    "warned.png": (bomb(10000), "pixels that gantx decodes"),  # where Pillow only warns
    # Pillow would hand this one to an external interpreter, were it allowed to.
    "program.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n", "it is not a JPEG"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.filterwarnings("ignore")
def test_a_bad_image_is_an_error_that_names_it(tmp_path, name):
    content, reason = BAD[name]
    (tmp_path / name).write_bytes(content)
    save(tmp_path, good=photo())
    with pytest.raises(DataError, match=rf"cannot use .*{name}: .*{reason}.*on_bad_image=skip") as caught:
        made(tmp_path)
    assert caught.value.exit_code == 4
    assert "\n" not in str(caught.value)
    assert cached() == []


def test_the_first_bad_image_is_named_whatever_the_threads(tmp_path, monkeypatch):
    monkeypatch.setattr(cores, "allowed", lambda: set(range(4)))
    monkeypatch.setattr(pixels_module, "_WORTH_A_THREAD", 0)
    save(tmp_path, **{f"{number:04}": photo(seed=number) for number in range(700)})
    for number in (300, 301, 650):
        (tmp_path / f"{number:04}.png").write_bytes(b"bad")
    with pytest.raises(DataError, match=r"0300\.png"):
        made(tmp_path)


def test_bad_images_are_skipped_on_demand(tmp_path):
    for name, (content, _) in BAD.items():
        (tmp_path / "cat").mkdir(exist_ok=True)
        (tmp_path / "cat" / name).write_bytes(content)
    images = {name: photo(seed=seed) for seed, name in enumerate("abc")}
    save(tmp_path / "cat", a=images["a"], zz=images["b"])
    save(tmp_path / "dog", c=images["c"])
    (tmp_path / "cat" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    for origin in ("prepared in", "from cache"):
        said = []
        prepared = made(tmp_path, on_bad_image="skip", said=said)
        assert [Path(name).name for name in prepared.skipped] == sorted([*BAD, "gone.png"])
        assert prepared.images.shape == (3, 3, 8, 8)
        np.testing.assert_array_equal(prepared.labels, [0, 0, 1])
        for index, name in enumerate("abc"):
            np.testing.assert_array_equal(pixels(prepared, index), np.asarray(images[name]))
        assert said[-2].startswith("data: 7 unusable left out: ")
        assert f"(see {cache_folder()}/prepared" in said[-2]
        assert "3 images, 2 classes" in said[-1]
        assert origin in said[-1]
    listed = (cache_folder() / "prepared" / prepared.fingerprint / "skipped.txt").read_text().splitlines()
    assert len(listed) == 7
    assert any(line.endswith("gone.png: No such file or directory") for line in listed)


def test_a_damaged_zip_entry_is_a_bad_image(tmp_path):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in ("a.png", "b.png"):
            content = io.BytesIO()
            photo().save(content, "PNG")
            archive.writestr(name, content.getvalue())
    content = bytearray(file.getvalue())
    content[content.index(b"b.png") + 40] ^= 0xFF
    (tmp_path / "set.zip").write_bytes(content)
    with pytest.raises(DataError, match=r"set\.zip:b\.png: .*CRC"):
        made(tmp_path / "set.zip")
    assert len(made(tmp_path / "set.zip", on_bad_image="skip").images) == 1


def test_a_set_of_nothing_but_bad_images(tmp_path):
    (tmp_path / "a.png").write_bytes(b"bad")
    (tmp_path / "b.png").write_bytes(b"bad")
    with pytest.raises(DataError, match="none of the 2 images") as caught:
        made(tmp_path, on_bad_image="skip")
    assert caught.value.exit_code == 4
    assert cached() == []


# --- the cache --------------------------------------------------------------------------------------------


def never(*args):
    raise AssertionError("decoded again")


def test_a_second_start_maps_the_cache_and_decodes_nothing(tmp_path, monkeypatch):
    save(tmp_path / "cat", a=photo(seed=1))
    save(tmp_path / "dog", b=photo(seed=2))
    said = []
    first = made(tmp_path, said=said)
    assert said[-1].startswith("data: 2 images, 2 classes, 8×8 (prepared in ")
    monkeypatch.setattr(pixels_module, "read_chunk", never)
    monkeypatch.setattr(Image, "open", never)
    said.clear()
    second = made(tmp_path, said=said)
    assert said == ["data: 2 images, 2 classes, 8×8 (from cache)"]
    np.testing.assert_array_equal(second.images, first.images)
    np.testing.assert_array_equal(second.labels, first.labels)
    assert second.labels.dtype == np.int64
    assert second.class_names == first.class_names == ("cat", "dog")
    assert second.fingerprint == first.fingerprint
    assert second.name == tmp_path.name
    assert isinstance(second.images, np.memmap)
    assert not second.images.flags.writeable
    assert cached() == [first.fingerprint]


def test_a_changed_source_or_setting_is_another_set(tmp_path):
    save(tmp_path, a=photo(16, 16))
    prints = {made(tmp_path).fingerprint, made(tmp_path, 16).fingerprint}
    prints.add(made(tmp_path, allow_upscale=True).fingerprint)
    prints.add(made(tmp_path, mirror=True).fingerprint)  # decided later, when batches are made
    assert len(prints) == 3
    save(tmp_path, b=photo(16, 16, seed=1))
    assert made(tmp_path).fingerprint not in prints
    assert len(made(tmp_path).images) == 2


def cut(folder):
    with (folder / "images.npy").open("r+b") as file:
        file.truncate(200)


def lengthen(folder):
    with (folder / "images.npy").open("ab") as file:
        file.write(b"x")


def lose_labels(folder):
    (folder / "labels.npy").unlink()


def garble(folder):
    (folder / "meta.json").write_text("{")


def age(folder):
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps({**meta, "format": meta["format"] - 1}))


def empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def flip(folder):
    images = bytearray((folder / "images.npy").read_bytes())
    images[-100] ^= 128
    (folder / "images.npy").write_bytes(images)


def relabel(folder):
    np.save(folder / "labels.npy", np.array([1, 0]))


def unseal(folder):
    meta = json.loads((folder / "meta.json").read_text())
    del meta["sha256"]
    (folder / "meta.json").write_text(json.dumps(meta))


@pytest.mark.parametrize("damage", [cut, lengthen, lose_labels, garble, age, empty, flip, relabel, unseal])
def test_a_damaged_or_old_cache_is_made_again(tmp_path, damage):
    save(tmp_path / "cat", a=photo(seed=1))
    save(tmp_path / "dog", b=photo(seed=2))
    first = made(tmp_path)
    expected = np.array(first.images)
    damage(cache_folder() / "prepared" / first.fingerprint)
    said = []
    second = made(tmp_path, said=said)
    np.testing.assert_array_equal(second.images, expected)
    np.testing.assert_array_equal(second.labels, [0, 1])
    assert any("made again" in line for line in said)
    assert cached() == [first.fingerprint]


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("name", ["images.npy", "labels.npy", "meta.json"])
def test_every_flipped_bit_is_found_or_changes_nothing(tmp_path, name, count):
    save(tmp_path / "cat", a=photo(seed=1))
    save(tmp_path / "dog", b=photo(seed=2))
    first = made(tmp_path)
    folder = cache_folder() / "prepared" / first.fingerprint
    for place in flips(folder / name, count):
        if (found := module._load(folder, 8, first.name)) is not None:
            np.testing.assert_array_equal(found.images, first.images, place)
            np.testing.assert_array_equal(found.labels, first.labels, place)
            assert (found.digest, found.class_names) == (first.digest, first.class_names), place


def test_a_large_set_is_verified_before_its_images_are_used(tmp_path, monkeypatch):
    """Large: it is not verified when it is mapped."""
    monkeypatch.setattr(blocks, "BLOCK", 100)
    save(tmp_path / "set", a=photo(seed=1), b=photo(seed=2), c=photo(seed=3))
    first = made(tmp_path / "set")
    monkeypatch.setattr(module, "_AT_ONCE", 0)
    flip(cache_folder() / "prepared" / first.fingerprint)  # the last image
    damaged = made(tmp_path / "set")
    damaged.verify(np.array([0, 1]))
    with pytest.raises(DataError, match="are damaged: start again"):
        damaged.verify(np.array([1, 2]))
    with pytest.raises(DataError, match="are damaged"):
        damaged.verify()
    said = []
    made(tmp_path / "set", said=said).verify()
    assert any("made again" in line for line in said)


@pytest.mark.parametrize("damaged", [False, True])
def test_two_that_prepare_at_once_both_end_well(tmp_path, monkeypatch, damaged):
    save(tmp_path / "set", a=photo(), b=photo(seed=1))
    if damaged:
        garble(cache_folder() / "prepared" / made(tmp_path / "set").fingerprint)
    together, write, results = threading.Barrier(2, timeout=20), module._write, []

    def write_together(*args):
        write(*args)
        together.wait()

    monkeypatch.setattr(module, "_write", write_together)
    threads = [threading.Thread(target=lambda: results.append(made(tmp_path / "set"))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 2
    np.testing.assert_array_equal(results[0].images, results[1].images)
    assert cached() == [results[0].fingerprint]


def test_a_full_disk_is_noticed_before_the_work(tmp_path, monkeypatch):
    save(tmp_path / "set", a=photo())
    usage = namedtuple("usage", "total used free")(100, 0, 100)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(MissingError, match=r"GANTX_CACHE") as caught:
        made(tmp_path / "set")
    assert caught.value.exit_code == 3
    assert cached() == []


def test_a_disk_that_fills_up_leaves_nothing_behind(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))  # stands in for the disk
    try:
        with pytest.raises(MissingError, match=r"cannot write the prepared images .*GANTX_CACHE") as caught:
            made("shapes", 32, shapes=ShapesConfig(count=1000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.__cause__.errno == errno.EFBIG
    assert cached() == []


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    save(tmp_path / "set", a=photo())
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GANTX_CACHE", str(tmp_path / "file" / "below"))
    with pytest.raises(MissingError, match=r"cannot write the prepared images .*a file is where"):
        made(tmp_path / "set")


def test_ctrl_c_leaves_nothing_behind(tmp_path):
    def interrupt(done, total):
        raise KeyboardInterrupt

    save(tmp_path / "set", a=photo())
    with pytest.raises(KeyboardInterrupt):
        made(tmp_path / "set", progress=interrupt)
    assert cached() == []


# --- whole sets -------------------------------------------------------------------------------------------


def test_order_labels_and_progress_are_the_same_with_many_threads(tmp_path, monkeypatch):
    monkeypatch.setattr(cores, "allowed", lambda: set(range(4)))
    monkeypatch.setattr(pixels_module, "_WORTH_A_THREAD", 0)
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for number in range(900):
            content = io.BytesIO()
            Image.new("RGB", (8, 8), (number % 256, number // 256, 0)).save(content, "BMP")
            archive.writestr(f"{'ab'[number >= 450]}/{number:04}.bmp", content.getvalue())
    steps = []
    prepared = made(tmp_path / "set.zip", progress=lambda done, total: steps.append((done, total)))
    numbers = prepared.images[:, 0, 0, 0].astype(int) + 256 * prepared.images[:, 1, 0, 0].astype(int)
    np.testing.assert_array_equal(numbers, np.arange(900))
    np.testing.assert_array_equal(prepared.labels, np.arange(900) >= 450)
    assert steps == [(256, 900), (512, 900), (768, 900), (900, 900)]


def test_shapes_go_the_same_way(monkeypatch):
    shapes, said = ShapesConfig(count=300), []
    prepared = made("shapes", 16, shapes=shapes, said=said)
    source = ShapesSource(shapes, 16)
    np.testing.assert_array_equal(prepared.images, source.read_range(0, 300).transpose(0, 3, 1, 2))
    assert prepared.labels.tolist() == [source.label(index) for index in range(300)]
    assert (prepared.name, len(prepared.class_names), prepared.skipped) == ("shapes", 18, ())
    assert said[-1].startswith("data: 300 images, 18 classes, 16×16")
    monkeypatch.setattr(pixels_module, "read_chunk", never)
    assert made("shapes", 16, shapes=shapes).fingerprint == prepared.fingerprint


def test_splits_are_sets_of_their_own(tmp_path):
    save(tmp_path / "train", a=photo(seed=1))
    save(tmp_path / "test", a=photo(seed=2), b=photo(seed=3))
    for source, counts in ((tmp_path, (1, 2)), ("shapes", (20, 20))):
        shapes = ShapesConfig(count=20)
        train, test = (made(source, shapes=shapes, split=split) for split in ("train", "test"))
        assert (len(train.images), len(test.images)) == counts
        assert train.fingerprint != test.fingerprint
        assert not (set(map(bytes, train.images)) & set(map(bytes, test.images)))


def test_several_shapes_have_no_labels():
    prepared = made("shapes", 16, shapes=ShapesConfig(count=30, objects=2))
    assert prepared.labels is None
    assert prepared.class_names == ()


def test_nothing_named():
    with pytest.raises(UsageError):
        prepare(DataConfig(), log=print)


def test_preparing_imports_no_torch():
    """Only batches need it; a start that fails on the data fails at once."""
    code = "import sys, gantx.data.prepare; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.skipif(not CIFAR_TEST.is_file(), reason="the shared CIFAR-10 zip is not on this machine")
def test_real_photographs():
    prepared = made(CIFAR_TEST, 32)
    assert prepared.images.shape == (10000, 3, 32, 32)
    np.testing.assert_array_equal(np.bincount(prepared.labels), [1000] * 10)
    assert (prepared.name, prepared.class_names[:2]) == ("cifar10-test", ("airplane", "automobile"))
    np.testing.assert_array_equal(pixels(prepared, 4321), np.asarray(ZipSource(CIFAR_TEST).read(4321)))


def test_leftovers_of_killed_preparations_are_swept(tmp_path):
    save(tmp_path / "set", a=photo())
    prepared = made(tmp_path / "set")
    folder = cache_folder() / "prepared"
    left = folder / f".{prepared.fingerprint}.{temporary._host()}{'0' * 10}.part"
    left.mkdir()
    (left / "images.npy").write_bytes(b"unfinished")
    (folder / prepared.fingerprint / "meta.json").unlink()
    temporary._swept.clear()
    with scratch_folder(folder / prepared.fingerprint) as beside:  # of another process
        made(tmp_path / "set")
        assert not left.exists()
        assert beside.exists()
    assert cached() == [prepared.fingerprint]


# --- a check without a cache ------------------------------------------------------------------------------


def test_a_check_refuses_what_the_preparation_would_and_stores_nothing(tmp_path):
    save(tmp_path / "set", a=photo(), b=photo(seed=1))
    said = []
    assert check(DataConfig(source=str(tmp_path / "set"), resolution=8), log=said.append) == 2
    assert said == ["data: 2 images, 8×8"]
    assert cached() == []
    (tmp_path / "set" / "c.png").write_bytes(b"bad")
    with pytest.raises(DataError, match=r"c\.png"):
        check(DataConfig(source=str(tmp_path / "set"), resolution=8), log=said.append)


def test_a_check_trusts_the_cache(tmp_path, monkeypatch):
    made(save(tmp_path / "set", a=photo()))
    monkeypatch.setattr(pixels_module, "read_chunk", never)
    assert check(DataConfig(source=str(tmp_path / "set"), resolution=8), log=print) == 1


def test_few_images_are_a_warning_and_one_is_an_error_unless_asked_for():
    said = []
    require_enough(100, DataConfig(), said.append)
    assert said == []
    require_enough(99, DataConfig(), said.append)
    assert "99 images are few" in said.pop()
    with pytest.raises(DataError, match=r"data\.allow_single=true"):
        require_enough(1, DataConfig(), said.append)
    require_enough(1, DataConfig(allow_single=True), said.append)


def test_portraits_lie_between_black_columns(tmp_path):
    said = []
    image = photo(8, 12)
    folder = save(tmp_path / "set", a=image, b=Image.new("RGB", (20, 12), "white"))
    prepared = made(folder, 12, ratio=1.5, said=said)
    np.testing.assert_array_equal(pixels(prepared)[:, 2:10], np.asarray(image))
    assert pixels(prepared, 1)[:, 2:10].min() == 255
    assert not prepared.images[..., [0, 1, 10, 11]].any()
    assert any("8×12 in squares of 12×12" in line for line in said)
