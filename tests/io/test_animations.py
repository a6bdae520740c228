"""Animations: what other programs read in them, and memory that does not grow with their length."""

import sys
import tracemalloc
import weakref

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from gantx.errors import MissingError, UsageError
from gantx.io import animations

TEXT = {"Software": "gantx", "gantx:walk": "1,5,9" * 60}  # longer than a block of a GIF


def moving(count, walks=2, side=(8, 12)):
    """A soft gradient that moves, uint8 [walks, 3, H, W] for every frame."""
    height, width = side
    for frame in range(count):
        line = (torch.arange(width) * 6 + frame * 5) % 256
        yield line.to(torch.uint8).expand(walks, 3, height, width).contiguous()


def save(path, count=7, fps=30, shape=(2, 1), **how):
    animations.save(path, moving(count, **how), count, shape=shape, fps=fps, text=TEXT)


def expected(count=7):
    return [
        torch.cat([a, torch.full((3, 8, 2), 255, dtype=torch.uint8), b], dim=2).permute(1, 2, 0).numpy()
        for a, b in moving(count)
    ]


def read(path):
    with Image.open(path) as image:
        assert image.n_frames == 7
        frames = [
            (np.asarray(frame.convert("RGB")), frame.info["duration"])
            for frame in ImageSequence.Iterator(image)
        ]
        return [pixels for pixels, _ in frames], [duration for _, duration in frames], dict(image.info)


def test_apng_is_exact_and_tells_its_origin(tmp_path):
    save(tmp_path / "a.apng")
    frames, durations, said = read(tmp_path / "a.apng")
    assert all(np.array_equal(got, wanted) for got, wanted in zip(frames, expected(), strict=True))
    assert durations == pytest.approx([1000 / 30] * 7)
    assert said["loop"] == 0
    assert said["gantx:walk"] == TEXT["gantx:walk"]


def test_gif_has_its_colours_and_its_time(tmp_path):
    save(tmp_path / "a.gif")
    frames, durations, said = read(tmp_path / "a.gif")
    for got, wanted in zip(frames, expected(), strict=True):
        assert np.abs(got.astype(int) - wanted).max() <= 4
    assert sum(durations) == pytest.approx(7000 / 30, abs=10)  # rounded to 10 ms, without adding up
    assert set(durations) == {30, 40}
    assert said["loop"] == 0
    assert said["comment"].decode() == f"Software=gantx\ngantx:walk={TEXT['gantx:walk']}"


def test_webp_is_close_and_tells_its_origin(tmp_path):
    save(tmp_path / "a.webp")
    frames, durations, said = read(tmp_path / "a.webp")
    for got, wanted in zip(frames, expected(), strict=True):
        assert np.abs(got.astype(int) - wanted).mean() < 6
    assert sum(durations) == pytest.approx(7000 / 30, abs=1)
    assert said["loop"] == 0
    with Image.open(tmp_path / "a.webp") as image:
        assert "gantx:walk=1,5,9" in image.getexif()[0x010E]


def test_mp4_where_the_package_is(tmp_path):
    av = pytest.importorskip("av", reason="the extra 'video' is not installed")
    save(tmp_path / "a.mp4", side=(33, 40))  # odd height
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert container.metadata["comment"].startswith("Software=gantx")
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 7
    assert frames[0].shape == (34, 82, 3)
    first = next(moving(1, side=(33, 40)))[0].permute(1, 2, 0).numpy()
    assert np.abs(frames[0][:33, :40].astype(int) - first).mean() < 10


def test_mp4_without_the_package_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingError, match=r"pip install 'gantx\[video\]'") as caught:
        save(tmp_path / "a.mp4")
    assert caught.value.exit_code == 3
    assert list(tmp_path.iterdir()) == []


def test_a_film_strip_has_a_row_for_each_walk(tmp_path):
    save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (7 * 14 - 2, 2 * 10 - 2)
        assert image.text == TEXT
        pixels = np.asarray(image)
    for column, frame in enumerate(moving(7)):
        for row in range(2):
            cell = pixels[row * 10 : row * 10 + 8, column * 14 : column * 14 + 12]
            assert np.array_equal(cell, frame[row].permute(1, 2, 0).numpy())


def test_a_folder_of_frames(tmp_path):
    save(tmp_path / "frames")
    names = sorted(path.name for path in (tmp_path / "frames").iterdir())
    assert names == [f"frame-{index:06d}.png" for index in range(7)]
    with Image.open(tmp_path / "frames" / "frame-000003.png") as image:
        assert image.text == TEXT | {"gantx:frame": "3"}
        assert np.array_equal(np.asarray(image), expected()[3])


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.apng", "a.mp4"])
def test_memory_does_not_grow_with_the_length(tmp_path, name):
    if name == "a.mp4":
        pytest.importorskip("av", reason="the extra 'video' is not installed")
    alive = []

    def watched(count):
        for frame in moving(count, 1, (64, 64)):
            alive.append(weakref.ref(frame))
            assert sum(reference() is not None for reference in alive[-20:]) <= 3
            yield frame

    peaks = []
    for count in (4, 20, 120):  # the first loads what Pillow loads when it is first used
        tracemalloc.start()
        animations.save(tmp_path / name, watched(count), count, shape=(1, 1), fps=20, text={})
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < peaks[1] + 64 * 64 * 3 * 2, peaks


@pytest.mark.parametrize(
    ("name", "fps", "words"),
    [("a.avi", 30, "cannot write '.avi'"), ("a.gif", 60, "at most 50 frames")],
)
def test_what_no_format_can_do_is_reported_before_anything_is_generated(tmp_path, name, fps, words):
    def never():
        raise AssertionError("generated")
        yield

    with pytest.raises(UsageError, match=words):
        animations.save(tmp_path / name, never(), 1, shape=(1, 1), fps=fps, text={})


def test_frames_that_are_too_large_and_failures_leave_no_file(tmp_path):
    with pytest.raises(UsageError, match=r"too large for \.webp"):
        save(tmp_path / "a.webp", count=1, walks=1, shape=(1, 1), side=(2, 17_000))

    def broken():
        yield from moving(3)
        raise RuntimeError("the generator failed")

    for name in ("a.gif", "a.webp", "a.apng", "a.png"):
        with pytest.raises(RuntimeError):
            animations.save(tmp_path / name, broken(), 9, shape=(2, 1), fps=30, text={})
    assert list(tmp_path.iterdir()) == []
