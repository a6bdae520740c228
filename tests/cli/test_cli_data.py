"""`gantx data`: what a user sees of a set of images before training."""

import json

import numpy as np
from PIL import Image
from typer.testing import CliRunner

from gantx.cli import app


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def save(folder, count=3, size=(20, 16)):
    folder.mkdir()
    for number in range(count):
        noise = np.random.default_rng(number).integers(0, 256, (*size[::-1], 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{number}.png")
    return folder


def test_a_sound_set_is_reported(tmp_path):
    result = run("data", "check", save(tmp_path / "set"), "--resolution", "16")
    assert result.exit_code == 0
    assert "images       3" in result.stdout
    assert "sizes        20×16 (3)" in result.stdout
    assert "cropped      3 of another shape" in result.stdout
    assert "fewer than 100 images" in result.stdout


def test_images_that_training_would_refuse_end_the_check_with_4(tmp_path):
    folder = save(tmp_path / "set")
    (folder / "text.png").write_text("text")
    result = run("data", "check", folder, "--resolution", "32", "--json")
    assert result.exit_code == 4
    assert "4 of 4 images" in result.stderr
    assert "--on-bad-image skip" in result.stderr
    report = json.loads(result.stdout)
    assert report["schema"] == "gantx.data/1"
    assert report["usable"] == 0
    assert len(report["small"]) == 3
    assert report["unreadable"][0][0].endswith("text.png")


def test_a_ratio_of_zero_is_refused(tmp_path):
    assert run("data", "check", tmp_path, "--ratio", "0").exit_code == 2


def test_a_preview_has_the_prepared_images_above_the_augmented_ones(tmp_path):
    sheet = tmp_path / "seen.png"
    command = ("data", "preview", save(tmp_path / "set", 4, (32, 32)), "--preset", "transgan-tiny", "-n", 4)
    assert run(*command, "-o", sheet).exit_code == 0
    assert Image.open(sheet).size == (4 * 34 - 2, 32)  # without augmentation
    result = run(*command, "-o", sheet, "--set", "augment.policy=[brightness]", "--force")
    assert result.exit_code == 0
    image = np.asarray(Image.open(sheet)).astype(int)
    assert image.shape == (32 + 8 + 32, 4 * 34 - 2, 3)
    shift = image[40:, :32] - image[:32, :32]
    inside = (image[40:, :32] > 0) & (image[40:, :32] < 255)
    assert shift[inside].max() - shift[inside].min() <= 2  # brightness adds one number to an image
    assert run(*command, "-o", sheet).exit_code == 2  # it exists


def test_a_preview_needs_enough_images_and_a_recipe(tmp_path):
    folder = save(tmp_path / "set", 2, (32, 32))
    usual = run("data", "preview", folder, "--preset", "transgan-tiny", "-o", tmp_path / "all.png")
    assert usual.exit_code == 0, usual.output
    few = run("data", "preview", folder, "--preset", "transgan-tiny", "-n", 32, "-o", tmp_path / "a.png")
    assert few.exit_code == 2
    assert "show at most as many (-n)" in few.output
    assert run("data", "preview", folder, "-o", tmp_path / "a.png").exit_code == 2


def test_names_of_files_and_classes_are_escaped(tmp_path):
    (tmp_path / "set").mkdir()
    for name in "\x1b[31mred", "blue":
        save(tmp_path / "set" / name)
    result = run("data", "check", tmp_path / "set")
    assert r"\x1b[31mred 3" in result.stdout
    assert "\x1b" not in result.output
