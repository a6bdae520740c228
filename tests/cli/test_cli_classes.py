"""Classes of a conditional model on the command line: chosen, drawn for each seed, and generated again."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.small_run import SMALL
from PIL import Image
from typer.testing import CliRunner

import gantx
from gantx.cli import app
from gantx.config import presets
from gantx.config.schema import ConditioningConfig
from gantx.errors import UsageError
from gantx.generation.labels import parse_class
from gantx.training import run as training


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in (*arguments, "--device", "cpu")])


def done(*arguments):
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of a few images of 8x8 shapes, with their 18 classes; its average has moved from the start."""
    folder = tmp_path_factory.mktemp("classes")
    training.start(
        presets.load(
            overrides=[*SMALL, "conditioning.classes=auto", "training.kimg=0.04", "ema.half_life_kimg=0.001"],
            settings={"data.source": "shapes"},
        ),
        parent=folder,
        out=folder / "run",
        device=torch.device("cpu"),
        command=["gantx"],
        log=lambda text: None,
    )
    return folder / "run"


@pytest.fixture
def here(trained, tmp_path, monkeypatch):
    """The run in a working folder of the test's own."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path


def cells(path, rows, columns, size=8, gap=2):
    with Image.open(path) as image:
        pixels = np.asarray(image)
    return [
        [
            pixels[y * (size + gap) : y * (size + gap) + size, x * (size + gap) : x * (size + gap) + size]
            for x in range(columns)
        ]
        for y in range(rows)
    ]


def test_all_classes_are_rows_of_the_same_seeds_and_can_be_generated_again(here):
    done("sample", "run", "--class", "all", "-n", 3, "--scale", 1, "-o", "all.png")
    grid = cells("all.png", 18, 3)
    assert not np.array_equal(grid[0][0], grid[1][0])
    model = gantx.load("run", device="cpu")
    for label in (0, 17):
        images = model.sample(3, label=label).permute(0, 2, 3, 1).numpy()
        for column in range(3):
            np.testing.assert_array_equal(grid[label][column], images[column])
    assert "the same to the last bit" in done("sample", "--from", "all.png", "run").stdout


def test_every_seed_has_a_class_of_its_own_unless_one_is_chosen(here):
    done("sample", "run", "-n", 4, "--scale", 1, "-o", "drawn.png")
    assert "the same to the last bit" in done("sample", "--from", "drawn.png", "run").stdout
    done("sample", "run", "-n", 2, "--class", "red square", "-o", "one")
    assert "the same to the last bit" in done("sample", "--from", "one", "run").stdout
    model = gantx.load("run", device="cpu")
    assert len(model.classes) == 18
    assert torch.equal(model.sample(2, label="red square"), model.of_class("red square").sample(2))
    assert torch.equal(model.sample(2, label=["red square", 0])[0], model.sample(1, label="red square")[0])


def test_other_commands_take_a_class_or_that_of_the_first_seed(here):
    walk = ("interpolate", "run", "--seeds", "1,5", "--frames", 3)
    assert "class: " in done(*walk, "-o", "drawn.png").stderr
    assert "class: " not in done(*walk, "--class", 3, "-o", "chosen.png").stderr
    with Image.open("chosen.png") as picture:
        assert picture.text["gantx:classes"] == "3"
    done("attend", "run", "--class", 3, "-o", "maps.png")


def test_a_walk_leads_from_class_to_class(here):
    done("interpolate", "run", "--class", "red circle,blue square", "--seeds", 5, "--frames", 3, "-o", "walk")
    done("sample", "run", "--class", "blue square", "--seeds", 5, "-o", "blue.png")
    with Image.open("walk/frame-000002.png") as last, Image.open("blue.png") as image:
        assert last.text["gantx:classes"] == "0,8"
        np.testing.assert_array_equal(np.asarray(last), np.asarray(image))
    one = run("interpolate", "run", "--class", "red circle", "--seeds", 5, "-o", "one.gif")
    assert one.exit_code == 2
    assert "nothing would move" in one.stderr
    model = gantx.load("run", device="cpu")
    frames = list(model.interpolate([5], 3, label=["red circle", 8]))
    assert torch.equal(frames[2][0], model.sample(seeds=[5], label=8)[0])
    assert torch.equal(next(model.interpolate([5, 6], 3))[0], model.sample(seeds=[5])[0])
    with pytest.raises(UsageError, match="generates the class red circle alone"):
        model.of_class(0).walk([5, 6], label=1)


def test_the_class_of_an_image_is_searched_and_kept_with_its_latent(here, monkeypatch):
    monkeypatch.setattr("gantx.generation.projection.CANDIDATES", 16)
    done("sample", "run", "--class", "blue square", "--seeds", 7, "--scale", 1, "-o", "target.png")
    found = done("project", "target.png", "run", "--steps", 2, "--starts", 1, "-o", "found.png")
    assert "class: blue square, the closest of 18 after 10 steps" in found.stderr
    done("sample", "run", "--latents", "found.safetensors", "--scale", 1, "-o", "again.png")
    with Image.open("again.png") as again, Image.open("target.png") as target:
        assert again.text["gantx:classes"] == target.text["gantx:classes"] == "8"
        assert np.abs(np.asarray(again).astype(int) - np.asarray(target)).max() <= 1
    among = ("--class", "red circle,1", "--steps", 1, "-o", "other.png")
    assert "the closest of 2" in done("project", "target.png", "run", *among).stderr
    fixed = ("--class", "red circle", "--steps", 1, "-o", "fixed.png")
    assert "class:" not in done("project", "target.png", "run", *fixed).stderr


def test_an_exported_program_takes_labels_or_generates_one_class(here):
    z = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    model, labels = gantx.load("run", device="cpu"), [2, 17, 0]
    for file, chosen, label in (("all.pt2", (), labels), ("one.pt2", ("--class", "2"), 2)):
        result = CliRunner().invoke(app, ["export", "run", *chosen, "-o", file])
        assert result.exit_code == 0, result.output
        given = () if chosen else (torch.tensor(labels),)
        extra = {"gantx.json": ""}
        exported = torch.export.load(file, extra_files=extra).module()(z, *given)
        torch.testing.assert_close(exported, next(model.generate(z, label=label)), rtol=0, atol=1e-4)
    files = json.loads(Path("export.json").read_text())["files"]
    assert files["all.pt2"]["label"]["values"] == "0..17"
    assert files["all.pt2"]["classes"] == list(model.classes)
    assert files["all.pt2"]["class_counts"] == list(model.config.conditioning.counts)
    assert json.loads(extra["gantx.json"])["gantx.class"] == model.classes[2]
    assert files["one.pt2"]["class"] == model.classes[2]
    assert not {"label", "classes"} & set(files["one.pt2"])


def test_what_there_is_no_class_for_is_refused(here):
    unknown = run("sample", "run", "--class", "cat", "-o", "x.png")
    assert unknown.exit_code == 2
    assert "no class 'cat'" in unknown.stderr
    several = run("sample", "run", "--class", "0-3", "-o", "folder")
    assert several.exit_code == 2
    assert "rows of one picture" in several.stderr
    assert run("sample", "demo", "--class", "0", "-o", "x.png").exit_code == 2
    model = gantx.load("run", device="cpu")
    with pytest.raises(UsageError, match="give one class, or a name or number for"):
        model.sample(3, label=[1, 2])
    with pytest.raises(UsageError, match="no class 'cat'"):
        model.sample(2, label=[0, "cat"])
    with pytest.raises(UsageError, match="no classes to choose from"):
        model.of_class(0).sample(1, label=["red circle"])
    for unknown, words in ([0, 18], "no class 18: this model has 18"), ([0, -1], "-1"), ([0, 0.5], "0.5"):
        with pytest.raises(UsageError, match=words):
            gantx.load("run", device="cpu").sample(2, label=unknown)
    weights = CliRunner().invoke(app, ["export", "run", "--class", "0", "-o", "hub"])
    assert weights.exit_code == 2
    assert "contains the weights of all classes: omit --class" in weights.stderr


def test_names_that_are_numbers_are_not_taken_for_labels(trained):
    """Classes called 1 to 18 have the labels 0 to 17; an integer is a label, a text is a name first."""
    model = gantx.load(trained, device="cpu")
    named = {"conditioning.names": [str(number) for number in range(1, 19)]}
    config = presets.load(base=model.config, settings=named)
    renamed = gantx.Model(model.network, replace(model.header, config=config), "ema", model.device)
    images = [model.sample(1, label=label) for label in range(3)]
    assert torch.equal(renamed.sample(1, label="2"), images[1])
    assert torch.equal(renamed.sample(1, label=2), images[2])
    assert torch.equal(renamed.of_class(2).sample(1), images[2])
    with pytest.raises(UsageError, match="no class 18: this model has 18 classes, 0 1, 1 2"):
        renamed.sample(1, label=18)


def test_a_withheld_class_has_a_label_of_its_own():
    conditioning = ConditioningConfig(classes=2, names=("cat", "dog"), counts=(1, 1), dropout=0.1)
    assert parse_class(conditioning, "none") == parse_class(conditioning, 2) == 2


SCORED = ("--metric", "fid", "--features", "random", "--no-intervals", "--threads", "1")


def test_scores_of_each_class_leave_those_of_all_images_as_they_are(here, monkeypatch):
    monkeypatch.setattr("gantx.evaluation.feature_scores.KID_SUBSETS", 2)
    scored = ("eval", "run", *SCORED, "--num", 64)
    plain = json.loads(done(*scored, "--json").stdout)
    shown = done(*scored, "--per-class", "-o", "eval.json", "--fail-above", "fd_rand=1e9")
    assert max(map(len, shown.stdout.split("\n\n")[1].splitlines())) <= 80
    assert "red circle" in shown.stdout
    document = json.loads(Path("eval.json").read_text())
    assert document["protocol_hash"] == plain["protocol_hash"]
    assert document["metrics"]["fd_rand"]["value"] == plain["metrics"]["fd_rand"]["value"]
    classes = document["classes"]
    assert [len(classes), sum(each["n_gen"] for each in classes)] == [18, 64]
    assert sum(each["n_ref"] for each in classes) == 37
    assert run(*scored, "--per-class", "--fail-above", "fd_rand=0").exit_code == 1
    api = gantx.evaluate("run", ["fid"], num=64, features="random", intervals=False, per_class=True)
    assert [each.protocol_hash for each in api.classes] == [each["protocol_hash"] for each in classes]


def test_the_labels_are_part_of_the_protocol(here):
    scored = ("eval", "run", *SCORED, "--num", 16)
    done(*scored, "-o", "data.json")
    gate = ("--baseline", "data.json", "--max-regression", "fd_rand=1e9")
    done(*scored, "--class", "data", *gate)
    uniform = run(*scored, "--class", "uniform", *gate)
    assert uniform.exit_code == 2
    assert "labels: as in the training data -> uniform" in uniform.stderr
    one = json.loads(done(*scored, "--class", "red circle", "--json").stdout)
    assert one["protocol"]["labels"] == "class red circle"
    assert one["protocol"]["reference"]["class"] == 0
    assert one["protocol"]["n_ref"] < 37


def test_scores_of_classes_that_there_are_not_are_refused(here):
    assert "without classes: omit --per-class" in run("eval", "demo", *SCORED, "--per-class").stderr
    (here / "images").mkdir()
    for number in range(3):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(here / "images" / f"{number}.png")
    for arguments, words in (
        (("run", "--per-class", "--data", "images"), "images has no labels"),
        (("images", "--per-class", "--data", "images"), "has no classes to choose from"),
        (("run", "--per-class", "--class", "3"), "omit one of them"),
        (("run", "--class", "cat"), "no class 'cat'"),
    ):
        refused = run("eval", *arguments, *SCORED, "--num", 16)
        assert refused.exit_code in (2, 4)
        assert words in refused.stderr
        assert refused.stderr.count("error:") == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [("4-2", "the range ends before it begins"), ("9" * 5000, "no class '99999"), ("1-", "no class '1-'")],
)
def test_numbers_that_are_no_classes_are_refused(text, expected):
    with pytest.raises(UsageError, match=expected) as refused:
        parse_class(ConditioningConfig(classes=18), text)
    assert len(str(refused.value)) < 200
