"""Every command with --device on a GPU that is not there: no tensor is elsewhere, results as on the CPU."""

import json
import shutil

import numpy as np
import pytest
from helpers.pretended_cuda import CPU, pretended_cuda
from helpers.small_families import small
from PIL import Image
from typer.testing import CliRunner

import gantx
from gantx.benchmarking import training as benchmark
from gantx.cli import app
from gantx.training import run as training


def run(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A run with styles and with the classes of shapes."""
    folder = tmp_path_factory.mktemp("model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GANTX_CACHE", str(folder / "cache"))
        settings = small("implicit", "dcgan", "conditioning.classes=auto", "data.shapes.count=64")
        return training.start(
            settings, parent=folder, out=folder / "run", device=CPU, command=["gantx"], log=lambda text: None
        )


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GANTX_DEBUG", "1")


def on_gpu(*arguments):
    """The output of a command on the GPU."""
    with pretended_cuda() as gpu:
        output = run(*arguments, "--device", "cuda")
    assert gpu.functions > 10
    return output


def frames(path):
    with Image.open(path) as image:
        found = []
        for index in range(getattr(image, "n_frames", 1)):
            image.seek(index)
            found.append(np.asarray(image.convert("RGB"), np.int16))
    return np.stack(found)


@pytest.mark.parametrize(
    "command",
    [
        ("sample", "-n", 80, "--class", "red circle"),  # more than are generated without replay
        ("sample", "-n", 2, "--class", "all", "--truncation", 0.7),
        ("interpolate", "--class", "0,1", "--seeds", "1,2", "--frames", 3),
        ("attend", "--class", 3),
        ("mix", "--class", 3),
        ("project", "--class", 3, "--steps", 3, "--starts", 2),
    ],
    ids=lambda command: "-".join(map(str, command[:4])).replace(" ", ""),
)
def test_pictures_are_those_of_the_cpu(command, model):
    name, *options = command
    if name == "project":
        run("sample", model, "--seeds", 5, "--scale", 1, "-o", "target.png")
    target = ["target.png"] if name == "project" else []
    run(name, *target, model, *options, "-o", "cpu.png", "--device", "cpu")
    on_gpu(name, *target, model, *options, "-o", "cuda.png")
    expected, found = frames("cpu.png"), frames("cuda.png")
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1


def test_scores_are_those_of_the_cpu(model):
    metrics = [word for metric in ("fid", "pr") for word in ("--metric", metric)]
    options = ("--features", "random", "--num", 40, "--per-class", "--json", "--no-intervals")
    expected = json.loads(run("eval", model, *metrics, *options, "--device", "cpu"))
    found = json.loads(on_gpu("eval", model, *metrics, *options))
    assert len(found["classes"]) == len(expected["classes"]) == 18
    for name, score in expected["metrics"].items():
        assert found["metrics"][name]["value"] == pytest.approx(score["value"], rel=1e-3), name


def test_statistics_are_computed():
    np.save("images.npy", np.random.default_rng(0).integers(0, 256, (16, 16, 16, 3), np.uint8))
    on_gpu("stats", "images.npy", "--resolution", 16, "--features", "random", "-o", "statistics.safetensors")


def test_a_run_continues(model, tmp_path):
    shutil.copytree(model, tmp_path / "run")
    on_gpu("train", "--resume", "run", "--kimg", 0.016, "training.precision=bf16", "--allow-changes")


@pytest.mark.parametrize("what", ["sample", pytest.param("train", marks=pytest.mark.slow)])
def test_benchmarks(what, monkeypatch):
    # There is no profiler without a driver, and a GPU's matrices would take a CPU minutes.
    monkeypatch.setattr(benchmark, "busy_seconds", lambda work, device: work() and None)
    monkeypatch.setattr(benchmark, "matmul_ceiling", lambda device, precision: 1.0)
    options = ["--compile", "off", "--steps", 1] if what == "train" else ["-n", 80, "--batch", 8]
    on_gpu("bench", what, "--preset", "implicit-tiny", *options, "data.shapes.count=64")


def test_the_api(model):
    with pretended_cuda():
        images = gantx.load(model, device="cuda").sample(3, label="red circle")
    assert images.shape == (3, 3, 16, 16)
