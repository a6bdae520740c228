"""`gantx bench` as a user types it: tables, JSON, and every error with its exit code."""

import json

import pytest
from helpers.small_run import SMALL
from typer.testing import CliRunner

from gantx.cli import app


def run(*arguments):
    return CliRunner().invoke(app, ["bench", *map(str, arguments)])


# On top of a preset of another size, so what SMALL leaves out is said as well.
TINY = [
    *(setting for setting in SMALL if not setting.startswith("name=")),
    "generator.rgb_patch=1",
    "discriminator.patch_size=2",
    "objective.r2=null",
    "objective.loss=hinge",
]


def bench(what, *arguments):
    return run(what, "--preset", "transgan-tiny", "--device", "cpu", *arguments, *TINY)


def test_train_prints_a_row_for_every_stage_and_what_sums_them_up():
    result = bench("train", "--steps", 1)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("transgan-tiny: batch 8, fp32, eager") or "bf16" in result.stdout
    for row in ("discriminator", "r1_every_3", "generator", "average of G", "whole iteration"):
        assert any(line.startswith(row) for line in result.stdout.splitlines()), result.stdout
    assert "images/s over 6 iterations" in result.stdout
    assert any(line.split() == ["host", "gaps", "-"] for line in result.stdout.splitlines())


def test_train_prints_one_json_document():
    result = bench("train", "--steps", 1, "--batch", 4, "--compile", "off", "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert (document["schema"], document["what"]) == ("gantx.bench/1", "train")
    assert document["preset"] == "transgan-tiny"
    assert document["idle_share"] is None
    assert [phase["name"] for phase in document["stages"]] == ["discriminator", "r1_every_3", "generator"]
    assert document["machine"]["versions"].keys() == {"gantx", "python", "torch"}


def test_what_the_command_line_says_of_the_batch_wins():
    settings = [*TINY, "training.batch=8"]
    result = run("train", "--preset", "transgan-tiny", "--device", "cpu", "--json", "--steps", 1, *settings)
    assert json.loads(result.stdout)["batch"] == 8


def test_sample_prints_both_speeds():
    result = bench("sample", "-n", 16, "--batch", 8)
    assert result.exit_code == 0, result.output
    assert "generator" in result.stdout
    assert "16 images in" in result.stdout
    document = json.loads(bench("sample", "-n", 16, "--batch", 8, "--json").stdout)
    assert (document["what"], document["number"], document["batch"]) == ("sample", 16, 8)


def test_eval_prints_generator_and_features():
    result = bench("eval", "--batch", 8, "evaluation.features=random")
    assert result.exit_code == 0, result.output
    assert "(random)" in result.stdout
    document = json.loads(bench("eval", "--batch", 8, "--json", "evaluation.features=random").stdout)
    assert (document["what"], document["features"]) == ("eval", "random")


def test_progress_goes_to_stderr():
    result = bench("train", "--steps", 1, "--json")
    assert "measuring" in result.stderr
    assert len(result.stdout.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["train", "--preset", "transgan-tyni"], 2, "did you mean 'transgan-tiny'"),
        (["train", "--preset", "transgan-tiny", "training.bacth=2"], 2, "did you mean 'batch'"),
        (["train", "--preset", "transgan-tiny", "--device", "tpu"], 2, "unknown device 'tpu'"),
        (["train", "--preset", "transgan-tiny", "--compile", "maybe"], 2, "maybe"),
        (["train", "--preset", "transgan-tiny", "--batch", "0"], 2, "batch"),
        (["train"], 2, "--preset"),
        (["sample", "--preset", "transgan-tiny", "-n", "0"], 2, "-n"),
        (["eval", "--preset", "transgan-tiny", "--device", "cpu", "evaluation.features=x.onnx"], 3, "x.onnx"),
    ],
)
def test_errors_are_sentences(arguments, code, message):
    result = run(*arguments)
    assert result.exit_code == code, result.output
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.output
