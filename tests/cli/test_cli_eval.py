"""`gantx eval` and `gantx stats` as a user types them."""

import dataclasses
import hashlib
import json
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from helpers.golden_file import ROOT
from helpers.random_inception import random_inception, write_torchscript
from helpers.small_run import SMALL
from PIL import Image
from typer.testing import CliRunner

from gantx import checkpoint
from gantx.cli import app
from gantx.config import presets
from gantx.evaluation import assets
from gantx.evaluation.request import Request, images_to_generate, settings_of_run
from gantx.training.state import TrainingState

FAST = ("--features", "random", "--device", "cpu", "--threads", "1")


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def run_folder(tmp_path, monkeypatch):
    """A run of the small network on shapes, untrained, in ./runs of the current folder."""
    monkeypatch.chdir(tmp_path)
    settings = presets.load(overrides=SMALL, settings={"data.source": "shapes"})
    folder = tmp_path / "runs" / "0001-small-shapes"
    TrainingState(settings, torch.device("cpu")).save(
        folder / "checkpoints" / checkpoint.checkpoint_name(0), {"name": "shapes", "digest": "", "images": 37}
    )
    return folder


def document(*arguments):
    result = run("eval", *arguments, "--json", *FAST)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_the_newest_run_by_its_own_data(run_folder):
    older = run_folder.with_name("0000-older")
    (older / "checkpoints").mkdir(parents=True)
    found = document("--metric", "fid", "--num", "16")
    assert found["schema"] == "gantx.eval/1"
    assert found["checkpoint"]["path"].startswith("runs/0001-small-shapes")
    assert set(found["metrics"]) == {"fd_rand", "kd_rand"}
    assert found["metrics"]["fd_rand"]["value"] > 0
    assert found["protocol"]["reference"]["n_ref"] == 37
    again = document("--metric", "fid", "--num", "16")
    assert again["metrics"] == found["metrics"]
    assert again["protocol_hash"] == found["protocol_hash"]


def test_no_run_and_no_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run("eval", "--metric", "fid", *FAST)
    assert result.exit_code == 3
    assert "no run with a checkpoint" in result.stderr
    for name in ("0.png", "1.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    result = run("eval", tmp_path, "--metric", "fid", *FAST)
    assert result.exit_code == 3
    assert "--data" in result.stderr
    assert "--reference" in result.stderr


def test_metrics_are_separated_by_commas_or_repeated(run_folder):
    separated = document("--metric", "fid, kid,fid", "--num", "16")
    assert separated["metrics"] == document("--metric", "fid", "--metric", "kid", "--num", "16")["metrics"]
    result = run("eval", "--metric", "fid,fit", *FAST)
    assert result.exit_code == 2
    assert "no metric 'fit' (did you mean 'fid'?)" in result.stderr


def test_images_of_another_size_get_advice_that_the_command_takes(tmp_path):
    for name, size in (("small", 8), ("big", 16)):
        (tmp_path / name).mkdir()
        for index in range(3):
            Image.new("RGB", (size, size), (index, 9, 9)).save(tmp_path / name / f"{index}.png")
    result = run("eval", tmp_path / "big", "--data", tmp_path / "small", "--metric", "fid", *FAST)
    assert result.exit_code == 4
    assert "0.png: 8×8 pixels, smaller than the resolution 16" in result.stderr
    assert "real images of at least this size with --data" in result.stderr
    stats = ("--resolution", "16", "-o", tmp_path / "s.safetensors", *FAST)
    lower = run("stats", tmp_path / "small", *stats)
    assert lower.exit_code == 4
    assert "give a lower --resolution" in lower.stderr
    (tmp_path / "big" / "1.png").write_bytes(b"noise")
    broken = run("stats", tmp_path / "big", *stats)
    assert broken.exit_code == 4
    assert "1.png" in broken.stderr
    assert "repair or remove it" in broken.stderr
    assert "data." not in result.stderr + lower.stderr + broken.stderr


def test_without_weights_one_sentence_tells_how_to_get_them(run_folder):
    result = run("eval", "--metric", "fid", "--device", "cpu")
    assert result.exit_code == 3
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert "inception-2015-12-05.pt" in line
    assert "gantx assets fetch inception" in line
    assert "--weights" in line
    assert "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4" in line
    assert result.stdout == ""


def test_gates_decide_the_exit_code(run_folder, tmp_path, monkeypatch):
    summary = tmp_path / "summary.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    passed = run("eval", "--metric", "fid", "--num", "16", "--fail-above", "fd_rand=1e9", *FAST)
    assert passed.exit_code == 0, passed.output
    assert "passed" in passed.stdout
    failed = run(
        "eval", "--metric", "fid", "--num", "16", "--fail-above", "fd_rand=0", "--junit", "out.xml",
        "--md", "out.md", "-o", "eval.json", *FAST,
    )  # fmt: skip
    assert failed.exit_code == 1
    assert "is above 0" in failed.stdout
    assert ElementTree.parse("out.xml").find(".//failure") is not None
    assert "failed" in (tmp_path / "out.md").read_text()
    assert json.loads((tmp_path / "eval.json").read_text())["status"] == "failed"
    assert summary.read_text().count("## gantx eval") == 2
    undecided = run("eval", "--metric", "fid", "--num", "16", "--fail-above", "fid=20", *FAST)
    assert undecided.exit_code == 3
    assert "inconclusive" in undecided.stdout


def test_a_baseline_of_another_protocol_is_refused_before_anything_is_generated(run_folder, monkeypatch):
    assert run("eval", "--metric", "fid", "--num", "16", "-o", "eval.json", *FAST).exit_code == 0
    gate = ("--baseline", "eval.json", "--max-regression", "fd_rand=5%")
    same = run("eval", "--metric", "fid", "--num", "16", *gate, *FAST)
    assert same.exit_code == 0, same.output
    monkeypatch.setattr("gantx.generation.sampling.generate", None)
    other = run("eval", "--metric", "fid", "--num", "24", *gate, *FAST)
    assert other.exit_code == 2
    assert "n_gen: 16 -> 24" in other.stderr
    alone = run("eval", "--baseline", "eval.json", *FAST)
    assert alone.exit_code == 2
    assert "--max-regression" in alone.stderr


def test_images_and_the_generator_that_made_them_score_alike(run_folder, tmp_path):
    for name in ("images.npy", "images.zip", "folder"):
        assert run("sample", run_folder, "-n", "24", "-o", name, "--device", "cpu").exit_code == 0
    generated = document(run_folder, "--metric", "fid", "--metric", "pr", "--num", "24")
    for name in ("images.npy", "images.zip", "folder"):
        found = document(name, "--reference", _stats(tmp_path), "--metric", "fid", "--metric", "pr")
        for metric, record in generated["metrics"].items():
            assert found["metrics"][metric]["value"] == pytest.approx(record["value"], rel=1e-5), metric


def _stats(tmp_path):
    """Statistics of the 37 shapes that the small run was trained on."""
    folder = tmp_path / "reals"
    if not folder.exists():
        from gantx.data.prepare import prepare

        folder.mkdir()
        data = presets.load(overrides=SMALL, settings={"data.source": "shapes"}).data
        for index, image in enumerate(prepare(data, log=print).images):
            Image.fromarray(image.transpose(1, 2, 0)).save(folder / f"{index:02d}.png")
        result = run("stats", folder, "--resolution", "8", "-o", tmp_path / "s.safetensors", *FAST)
        assert result.exit_code == 0, result.output
    return tmp_path / "s.safetensors"


def test_statistics_of_moments_give_fid_alone(run_folder, tmp_path):
    whole = _stats(tmp_path)
    small = tmp_path / "small.safetensors"
    arguments = ("stats", tmp_path / "reals", "--resolution", "8", "--moments", "-o", small, *FAST)
    assert run(*arguments).exit_code == 0
    assert small.stat().st_size > 1000
    assert run(*arguments).exit_code == 2  # there already
    both = [
        document(run_folder, "--reference", path, "--metric", "fid", "--num", "16") for path in (whole, small)
    ]
    values = [found["metrics"]["fd_rand"]["value"] for found in both]
    assert values[0] == pytest.approx(values[1], rel=1e-6, abs=1e-6)
    assert "kd_rand" not in both[1]["metrics"]
    assert both[0]["protocol_hash"] == both[1]["protocol_hash"]
    result = run("eval", run_folder, "--reference", small, "--metric", "kid", *FAST)
    assert result.exit_code == 2
    assert "moments alone" in result.stderr


def test_statistics_of_other_tools_and_of_other_networks(run_folder, tmp_path):
    found = document(run_folder, "--metric", "fid", "--num", "16")
    dim = found["protocol"]["feature_dim"]
    np.savez(tmp_path / "other.npz", mu=np.zeros(dim), sigma=np.eye(dim))
    assert document(run_folder, "--reference", "other.npz", "--metric", "fid", "--num", "16")["metrics"][
        "fd_rand"
    ]
    np.savez(tmp_path / "small.npz", mu=np.zeros(5), sigma=np.eye(5))
    result = run("eval", run_folder, "--reference", "small.npz", "--metric", "fid", *FAST)
    assert result.exit_code == 2
    assert "5 features" in result.stderr


def test_fewer_images_than_asked_for(tmp_path):
    np.save(tmp_path / "few.npy", np.zeros((5, 8, 8, 3), np.uint8))
    result = run("eval", tmp_path / "few.npy", "--data", "shapes", "--num", "6", *FAST)
    assert result.exit_code == 4
    assert "5 images, fewer than the 6" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--metric", "fdi"), "did you mean 'fid'"),
        (("--metric", "is"), "class scores"),
        (("--fail-above", "fid"), "fid=20"),
        (("--engine", "fast"), "--engine: 'fast' is not one of 'gantx', 'cleanfid'"),
        (("--split", "val"), "'train', 'test'"),
        (("-o", "a.xml", "--junit", "a.xml"), "give them different names"),
        (("--baseline", "b", "--max-regression", "fid=1%", "-o", "b"), "would replace the --baseline"),
        (("--data", "shapes", "--reference", "x.npz"), "give one of them"),
        (("--strict", "--no-intervals"), "drop one of them"),
        (("--junit", "."), "is a folder"),
        (("--protocol", "clean"), "did you mean 'clean-50k'"),
    ],
)
def test_wrong_usage_is_explained(run_folder, arguments, complaint):
    result = run("eval", *arguments, *FAST)
    assert result.exit_code == 2
    assert complaint in result.stderr
    assert "Traceback" not in result.stderr


def test_modes_need_shapes(run_folder):
    found = document("--metric", "modes", "--num", "16")
    assert set(found["metrics"]) == {"modes", "confident", "whole"}
    assert found["protocol"]["extractor"] is None
    np.save("images.npy", np.zeros((5, 32, 32, 3), np.uint8))
    result = run("eval", "images.npy", "--metric", "modes", "--data", ".", *FAST)
    assert result.exit_code == 2
    assert "shapes" in result.stderr


@pytest.mark.slow
def test_a_run_scored_in_the_cifar_network_beside_the_repository(tmp_path, monkeypatch):
    shared = ROOT.parent / "shared"
    if not (shared / "eval").is_dir():
        pytest.skip("the CIFAR-10 feature network is not beside the repository")
    monkeypatch.syspath_prepend(str(shared / "eval"))
    import cifar_fd

    monkeypatch.chdir(tmp_path)
    settings = presets.load("transgan-tiny")
    target = tmp_path / "kimg-000000.000.safetensors"
    TrainingState(settings, torch.device("cpu")).save(target, {"name": "shapes", "digest": "", "images": 0})
    reals = cifar_fd.read_images(shared / "data" / "cifar10-test.zip", 300)
    (tmp_path / "reals").mkdir()
    for index, image in enumerate(reals):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / "reals" / f"{index:03d}.png")
    network = cifar_fd.load_network()
    torch.onnx.export(
        network,
        (torch.zeros(2, 3, 32, 32),),
        "cifar.onnx",
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        verbose=False,
    )

    result = run(
        "eval", target, "--data", "reals", "--features", "cifar.onnx", "--metric", "fid", "--num", "200",
        "--json", "--device", "cpu", "--threads", "1",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert run("sample", target, "-n", "200", "-o", "generated.npy", "--device", "cpu").exit_code == 0
    generated = cifar_fd.features(cifar_fd.read_images(tmp_path / "generated.npy"), network)
    expected = cifar_fd.frechet(generated, cifar_fd.features(reals, network))
    assert json.loads(result.stdout)["metrics"]["fd[cifar]"]["value"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_inception_from_a_file_verified_or_marked(run_folder, tmp_path, monkeypatch):
    weights = tmp_path / "weights.pt"
    write_torchscript(random_inception(), weights)
    options = ("--metric", "fid", "--metric", "is", "--weights", weights, "--num", "12", "--json")
    cpu = ("--device", "cpu", "--threads", "1", "--no-intervals")
    refused = run("eval", *options, *cpu)
    assert refused.exit_code == 4
    assert "--allow-unverified-weights" in refused.stderr

    marked = run("eval", *options, "--allow-unverified-weights", *cpu)
    assert marked.exit_code == 0, marked.output
    found = json.loads(marked.stdout)
    assert set(found["metrics"]) == {"fid", "kid", "is"}
    assert found["protocol"]["weights_verified"] is False
    assert found["metrics"]["fid"]["note"] == "unverified weights"
    assert any("not the published ones" in warning for warning in found["warnings"])

    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    asset = dataclasses.replace(assets.ASSETS["inception"], sha256=digest, size=weights.stat().st_size)
    monkeypatch.setitem(assets.ASSETS, "inception", asset)
    verified = run("eval", *options, *cpu)
    assert verified.exit_code == 0, verified.output
    again = json.loads(verified.stdout)
    assert again["metrics"]["fid"]["value"] == found["metrics"]["fid"]["value"]
    assert again["protocol"]["weights_verified"] is True
    assert again["protocol_hash"] != found["protocol_hash"]

    theirs = run("eval", *options[:2], *options[4:], "--engine", "cleanfid", *cpu)
    assert theirs.exit_code == 0, theirs.output
    value = json.loads(theirs.stdout)["metrics"]["fid"]["value"]
    assert value == pytest.approx(found["metrics"]["fid"]["value"], rel=1e-5)


def test_another_protocol_than_the_presets_has_its_own_number_of_images(tmp_path):
    settings = presets.load("transgan-s", settings={"data.source": "shapes"})
    for protocol, num in ((None, 20_000), ("transgan-test", 20_000), ("vitgan-release", 10_000)):
        request = Request(protocol=protocol, features="random")
        taken = images_to_generate(settings.evaluation, settings_of_run(settings, request), None, print)
        assert taken == num


def test_a_folder_of_runs_is_no_set_of_images(run_folder):
    Image.new("RGB", (8, 8)).save(run_folder / "grid.png")
    result = run("eval", run_folder.parent, "--data", "shapes", *FAST)
    assert result.exit_code == 2
    assert "contains runs (0001-small-shapes)" in result.stderr


def test_a_pipe_gets_whole_rows(run_folder):
    result = run("eval", "--metric", "fid", "--num", "16", "--fail-above", "fd_rand=123456.789012", *FAST)
    assert result.exit_code == 0
    assert result.stdout.splitlines()[0].split()[-1] == "verdict"
    assert "at most 123456.789012" in result.stdout or "123456.789" in result.stdout


def test_an_unwritable_summary_does_not_hide_a_failed_gate(run_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "absent" / "summary.md"))
    result = run("eval", "--metric", "fid", "--num", "16", "--fail-above", "fd_rand=0", *FAST)
    assert result.exit_code == 1
    assert "warning: cannot append" in result.stderr


def test_statistics_of_another_resolution_are_refused(run_folder, tmp_path):
    _stats(tmp_path)
    other = tmp_path / "other.safetensors"
    assert run("stats", tmp_path / "reals", "--resolution", "4", "-o", other, *FAST).exit_code == 0
    result = run("eval", "--metric", "fid", "--num", "16", "--reference", other, *FAST)
    assert result.exit_code == 2
    assert "another resolution (4, here 8)" in result.stderr


def test_jpeg_reals_are_warned_about(run_folder, tmp_path):
    (tmp_path / "lossy").mkdir()
    for index in range(3):
        Image.new("RGB", (8, 8), (index, 0, 0)).save(tmp_path / "lossy" / f"{index}.jpg")
    found = document("--data", tmp_path / "lossy", "--metric", "fid", "--num", "16")
    assert any("3 of the real images are JPEG" in warning for warning in found["warnings"])


def test_without_intervals_no_score_has_one():
    result = run("eval", "demo", "--metric", "modes", "--num", "32", "--no-intervals", "--json")
    metrics = json.loads(result.stdout)["metrics"]
    assert list(metrics) == ["modes", "confident", "whole"]
    assert all(score["ci95"] is None for score in metrics.values())
