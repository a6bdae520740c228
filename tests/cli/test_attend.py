"""`gantx attend` on checkpoints of every family."""

import re

import numpy as np
import pytest
import torch
from helpers.styled_networks import save_styled
from PIL import Image
from typer.testing import CliRunner

from gantx import checkpoint
from gantx.cli import app
from gantx.config import presets
from gantx.training.state import TrainingState


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def pixels(path):
    with Image.open(path) as file:
        return np.asarray(file).astype(int)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A run folder with one checkpoint of the tiny preset, untrained."""
    folder = tmp_path_factory.mktemp("runs") / "0001-transgan-tiny-shapes"
    state = TrainingState(presets.load("transgan-tiny"), torch.device("cpu"))
    state.save(
        folder / "checkpoints" / checkpoint.checkpoint_name(0),
        {"name": "shapes", "digest": "", "images": 9},
    )
    return folder


def test_a_sheet_has_a_row_for_each_seed_and_says_where_it_comes_from(run_folder, tmp_path):
    output = tmp_path / "maps.png"
    result = run("attend", run_folder, "--seeds", "3,1", "--layer", "all", "-o", output, "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == str(output)
    assert "columns: image, 8x8.0.mean.softblend" in " ".join(result.stderr.split())
    with Image.open(output) as sheet:
        text = sheet.text
        columns = text["gantx:columns"].split(", ")
        assert columns[0] == "image"
        assert len(columns) == 1 + sum(presets.load("transgan-tiny").generator.depths)
        across = 128 * len(columns) + 4 * (len(columns) - 1)
        assert across < sheet.width < across + 100  # seeds and queries on the left
        assert 2 * 128 < sheet.height < 2 * 220
    assert text["gantx:digest"] == checkpoint.read_header(checkpoint.find(run_folder)).digest
    assert text["gantx:seeds"] == "3,1"
    assert re.fullmatch(r"\d+,\d+(;\d+,\d+)?", text["gantx:query"])
    assert "gantx:truncation" not in text


def test_a_folder_contains_the_image_that_sample_generates(run_folder, tmp_path):
    assert run("attend", run_folder, "--seed", "7", "-o", tmp_path / "maps").exit_code == 0
    assert run("sample", run_folder, "--seed", "7", "-n", "1", "-o", tmp_path / "images").exit_code == 0
    names = {path.name for path in (tmp_path / "maps").iterdir()}
    assert names == {"seed-000007.image.png", "seed-000007.16x16.0.mean.softblend.png"}
    generated = pixels(tmp_path / "images" / "seed-000007.png")
    assert np.abs(pixels(tmp_path / "maps" / "seed-000007.image.png") - generated).max() <= 1


def test_another_query_gives_another_map_of_the_same_image(run_folder, tmp_path):
    for name, query in (("a", "2,3"), ("b", "30,20")):
        options = ("--query", query, "--kind", "soft", "-o", tmp_path / name)
        assert run("attend", run_folder, *options).exit_code == 0
    for name, same in (("image", True), ("16x16.0.mean.soft", False)):
        file = f"seed-000000.{name}.png"
        assert np.array_equal(pixels(tmp_path / "a" / file), pixels(tmp_path / "b" / file)) == same


def test_ganformer_is_truncated_unless_asked_otherwise(tmp_path):
    file = save_styled(tmp_path, "ganformer")
    images = []
    for name, options in (("a", ()), ("b", ("--truncation", "0.7")), ("c", ("--truncation", "1"))):
        result = run("attend", file, "--kind", "argmax,softblend", *options, "-o", tmp_path / name)
        assert result.exit_code == 0, result.output
        assert (tmp_path / name / "seed-000000.16x16.1.head0.softblend.png").is_file()
        with Image.open(tmp_path / name / "seed-000000.image.png") as image:
            images.append((image.text["gantx:truncation"], image.tobytes()))
    assert images[0] == images[1]
    assert [psi for psi, _ in images] == ["0.7", "0.7", "1.0"]
    assert images[0][1] != images[2][1]


def test_vitgan_with_truncation(tmp_path):
    output = tmp_path / "maps.png"
    options = ("--layer", "all", "--truncation", "0.5", "--query", "0,15", "-o", output)
    result = run("attend", save_styled(tmp_path, "vitgan"), *options)
    assert result.exit_code == 0, result.output
    with Image.open(output) as sheet:
        assert sheet.text["gantx:columns"] == "image, 4x4.0.mean.softblend, 4x4.1.mean.softblend"
        assert sheet.text["gantx:truncation"] == "0.5"


def test_a_network_without_attention(tmp_path):
    result = run("attend", save_styled(tmp_path, "stylegan2"), "-o", tmp_path / "maps.png")
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert "no attention maps" in result.stderr
    assert not (tmp_path / "maps.png").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--seeds", "1", "--seed", "2"], "omit --seed"),
        (["--weights", "best"], "ema or raw"),
        (["--noise", "loud"], "const or random"),
        (["--ratio", "0"], "height / width"),
        (["--query", "12"], "row,column"),
        (["--query", "12,99"], "no pixel 12,99"),
        (["--kind", "soft", "--kind", "argmax"], "cannot be drawn as 'argmax'"),
        (["--layer", "first"], "this network has 8x8.0"),
        (["--head", "9"], "has no head 9"),
        (["--truncation", "0.7"], "needs a network with styles"),
        (["-o", "x.bmp"], "cannot write '.bmp'"),
    ],
)
def test_usage_errors(run_folder, tmp_path, monkeypatch, options, words):
    monkeypatch.chdir(tmp_path)
    result = run("attend", run_folder, *options)
    assert result.exit_code == 2, result.output
    assert words in " ".join(result.stderr.split())
    assert list(tmp_path.iterdir()) == []


def test_an_existing_output_is_kept_unless_forced(run_folder, tmp_path):
    output = tmp_path / "maps.png"
    output.write_bytes(b"thesis figure")
    assert run("attend", run_folder, "-o", output).exit_code == 2
    assert output.read_bytes() == b"thesis figure"
    assert run("attend", run_folder, "-o", output, "--force").exit_code == 0
    assert Image.open(output).text["Software"] == "gantx"
