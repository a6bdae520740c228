"""`gantx train` as a user types it: dry runs, and every error with its exit code."""

import re
import zipfile

import pytest
import torch
import yaml
from helpers.small_run import SMALL
from PIL import Image
from typer.testing import CliRunner

from gantx.cli import app
from gantx.cli.train import parse_time
from gantx.training import schedules


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def train(tmp_path):
    """Train the small network with the given arguments, into tmp_path/runs."""
    settings = tmp_path / "small.yaml"
    settings.write_text("training: {kimg: 0.008}\n")

    def call(*arguments, data="shapes", values=()):
        return run(
            "train",
            "--config",
            settings,
            "--data",
            data,
            "--runs",
            tmp_path / "runs",
            "--device",
            "cpu",
            *arguments,
            *SMALL[:-1],
            "training.threads=1",
            "training.kimg=0.008",
            *values,
        )

    return call


@pytest.fixture
def pictures(tmp_path):
    """A folder of eight good pictures."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(8):
        Image.new("RGB", (8, 8), (index * 30, 0, 0)).save(folder / f"{index}.png")
    return folder


def fails(result, code, *words):
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    message = " ".join(result.stderr.split())
    for word in words:
        assert word in message, message


def test_training_prints_the_run_folder(train, tmp_path, pictures):
    result = train(data=pictures)
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == str(tmp_path / "runs" / "0001-small-pictures")


def test_dry_run_writes_nothing_and_says_what_would_be(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run("train", "--preset", "transgan-s", "--dry-run", "--no-probe", "--kimg", "800")
    assert result.exit_code == 0, result.output
    assert "800 kimg = 12,500 D steps of 64 images" in result.stdout
    assert "2,500 of 128 images" in result.stdout
    assert "1.61 GFLOP" in result.stdout
    assert "34,368,555 parameters" in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_dry_run_fails_where_training_would(train, tmp_path, pictures):
    fails(train("--dry-run", "--no-probe", data=tmp_path / "nowhere"), 3, "there is no data at")
    (pictures / "broken.png").write_bytes(b"no image")
    fails(train("--dry-run", "--no-probe", data=pictures), 4, "broken.png", "on_bad_image=skip")


def test_dry_run_tries_steps(train, tmp_path):
    result = train("--dry-run")
    assert result.exit_code == 0, result.output
    assert re.search(r"^fits +whole batches, [\d.]+ of [\d.]+ GiB on cpu at the peak$", result.stdout, re.M)
    assert re.search(
        r"^speed +[\d.,]+ images/s on cpu \(fp32, 1 thread, 4 samples at once\) in 20 iterations$",
        result.stdout,
        re.M,
    )
    assert re.search(r"^time +\d+s for 0.008 kimg", result.stdout, re.M)
    assert not (tmp_path / "runs").exists()


def test_print_config_is_pure_yaml_that_config_reads_back(tmp_path):
    result = run("train", "--preset", "transgan-s", "--print-config", "--seed", "7", "training.batch=32")
    tree = yaml.safe_load(result.stdout)
    assert tree["training"]["seed"] == 7
    assert tree["training"]["batch"] == 32
    path = tmp_path / "mine.yaml"
    path.write_text(result.stdout)
    assert run("train", "--config", path, "--print-config").stdout == result.stdout


def test_overrides_win_over_files_and_presets(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("training: {batch: 16, seed: 3}\n")
    result = run(
        "train", "--preset", "transgan-s", "--config", path, "--set", "training.batch=8", "--print-config"
    )
    training = yaml.safe_load(result.stdout)["training"]
    assert (training["batch"], training["seed"], training["generator_batch"]) == (8, 3, 128)


def test_no_recipe():
    fails(run("train", "--data", "shapes"), 2, "--preset")


def test_unknown_preset_key_and_value():
    fails(run("train", "--preset", "transgan-z"), 2, "did you mean")
    fails(
        run("train", "--preset", "transgan-s", "training.bach=3"), 2, "training.bach", "did you mean 'batch'"
    )
    fails(run("train", "--preset", "transgan-s", "objective.loss=hing"), 2, "did you mean 'hinge'")


def test_impossible_combinations():
    fails(run("train", "--preset", "transgan-s", "data.resolution=40"), 2, "have 32 pixels", "40")
    fails(run("train", "--preset", "transgan-s", "training.micro_batch=48"), 2, "not divisible")


def test_no_such_path(train, tmp_path):
    fails(train(data=tmp_path / "nothing"), 3, "nothing")


def test_empty_folder(train, tmp_path):
    (tmp_path / "empty").mkdir()
    fails(train(data=tmp_path / "empty"), 4, "empty")


def test_truncated_image_stops_or_is_skipped(train, tmp_path, pictures):
    whole = (pictures / "3.png").read_bytes()
    (pictures / "broken.png").write_bytes(whole[: len(whole) // 2])
    fails(train(data=pictures), 4, "broken.png", "skip")
    result = train("--on-bad-image", "skip", data=pictures)
    assert result.exit_code == 0, result.output
    assert "broken.png" in result.stderr
    assert "broken.png" in (tmp_path / "runs" / "0001-small-pictures" / "train.log").read_text()


def test_zip_with_escaping_names(train, tmp_path):
    path = tmp_path / "bad.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../evil.png", b"x")
    fails(train(data=path), 4, "../evil.png")


def test_archive_digest_mismatch(train, tmp_path):
    path = tmp_path / "cifar-10-python.tar.gz"
    path.write_bytes(b"not the archive")
    fails(train(data=path), 4, "cifar-10-python.tar.gz")


def test_decompression_bomb(train, pictures, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    Image.new("RGB", (64, 64)).save(pictures / "bomb.png")
    fails(train(data=pictures), 4, "bomb.png")


def test_images_too_small(train, pictures):
    Image.new("RGB", (4, 4)).save(pictures / "small.png")
    fails(train(data=pictures), 4, "small.png", "allow_upscale")


def test_output_exists(train, tmp_path):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "thesis.txt").write_text("mine")
    fails(train("--out", tmp_path / "used"), 2, "not empty")


def test_unwritable_runs_folder(train, tmp_path):
    (tmp_path / "runs").write_text("a file where the folder should be")
    fails(train(), 2, "cannot make a run in", "is a file, not a folder")


def test_no_cuda(train, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    fails(train("--device", "cuda"), 3, "CUDA")


def test_loss_turns_nan(train, monkeypatch):
    # G's first step moves nothing; its second, after the first checkpoint, ruins it.
    monkeypatch.setattr(schedules, "learning_rate_factor", lambda settings, images, *_: float(images > 0))
    result = train(
        values=["optimizer.generator.lr=1e18", "objective.n_critic=7", "training.kimg=2"],
    )
    fails(result, 5, "diverged", "last good checkpoint", "lower learning rate")


def test_resume_refuses_what_the_run_knows_already(tmp_path):
    fails(run("train", "--resume", tmp_path, "--preset", "transgan-s"), 2, "omit --preset")
    fails(run("train", "--resume", tmp_path / "nothing"), 3, "is not a run")


def test_resume_extends_a_run(train, tmp_path):
    train()
    folder = tmp_path / "runs" / "0001-small-shapes"
    result = run("train", "--resume", folder, "--kimg", "0.016", "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == str(folder)
    fails(run("train", "--resume", folder, "--seed", "4"), 2, "training.seed")


def test_resume_auto_starts_resumes_and_is_done(train, tmp_path):
    out = tmp_path / "run"
    for kimg, said in (("0.008", "starting"), ("0.016", "resuming at 0.008"), ("0.016", "nothing to do")):
        result = train("--out", out, "--resume", "auto", values=[f"training.kimg={kimg}"])
        assert result.exit_code == 0, result.output
        assert result.stdout.strip() == str(out)
        assert said in " ".join(result.stderr.split())
    fails(train("--out", out, "--resume", "auto", "--seed", "3"), 2, "other values of training.seed")
    fails(train("--resume", "auto"), 2, "--resume auto needs", "--out DIR")


def test_max_time_saves_and_stops(train, tmp_path, monkeypatch):
    monkeypatch.setattr("gantx.cli.train.parse_time", lambda text: 0.001)
    result = train("--out", tmp_path / "run", "--max-time", "45m", values=["training.kimg=1000"])
    assert result.exit_code == 75, result.output
    assert "stopped" in result.stderr


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("45m", 2700), ("3h50m", 13800), ("1d2h", 93600), ("1d1h1m1s", 90061)]
)
def test_lengths_of_time(text, seconds):
    assert parse_time(text) == seconds


@pytest.mark.parametrize("text", ["", "5", "0s", "m", "50m3h", "1.5h", "-3h", "3 h", "99999999999d", "²h"])
def test_what_is_no_length_of_time(tmp_path, text):
    result = run("train", "--preset", "transgan-tiny", "--data", "shapes", f"--max-time={text}")
    fails(result, 2, "--max-time", "is not a length of time: write 90s, 45m, 3h50m or 1d2h")


@pytest.mark.parametrize(
    "environment",
    [
        {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"},  # torchrun
        {"LOCAL_RANK": "1"},
        {"OMPI_COMM_WORLD_SIZE": "4"},
        {"PMI_SIZE": "4"},
        {"SLURM_STEP_NUM_TASKS": "2"},
    ],
)
def test_a_launch_of_several_processes_is_refused(train, tmp_path, monkeypatch, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    fails(train(), 2, "several GPUs", "start `gantx train` once", "--device cuda:0")
    assert not (tmp_path / "runs").exists()


def test_a_launch_of_one_process_is_fine(train, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    assert train().exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (
            ("training.evaluate_every=1", "evaluation.features=random", "evaluation.metrics=[is]"),
            "class scores",
        ),
        (("training.evaluate_every=1",), "the weights inception-2015-12-05.pt are not on this machine"),
    ],
)
def test_a_dry_run_fails_where_the_scores_of_the_run_would(arguments, complaint, tmp_path, monkeypatch):
    monkeypatch.setenv("GANTX_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    preset = ("--preset", "transgan-s", "--data", "shapes", "data.shapes.count=64")
    result = run("train", *preset, "--dry-run", "--no-probe", *arguments)
    assert result.exit_code in (2, 3)
    assert complaint in result.stderr
    assert "to train without scores, add training.evaluate_every=null" in result.stderr
    instead = ("training.evaluate_every=null", "--dry-run", "--no-probe")
    assert run("train", *preset, *arguments, *instead).exit_code == 0


def test_a_dry_run_refuses_a_folder_in_use(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.txt").touch()
    preset = ("--preset", "transgan-tiny", "--data", "shapes", "--dry-run", "--no-probe")
    result = run("train", *preset, "--out", tmp_path / "pictures")
    assert result.exit_code == 2
    assert result.stderr.endswith("is not empty: name another folder\n")


def test_a_probe_is_omitted_from_a_dry_run_only():
    fails(run("train", "--preset", "transgan-tiny", "--data", "shapes", "--no-probe"), 2, "is for --dry-run")


def test_a_dry_run_checks_the_scores_of_a_set_that_is_not_downloaded_yet(tmp_path, monkeypatch):
    monkeypatch.setenv("GANTX_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    preset = ("--preset", "transgan-s", "--data", "cifar10", "--dry-run", "--no-probe")
    fails(
        run("train", *preset, "training.evaluate_every=1"),
        3,
        "inception-2015-12-05.pt are not on this machine",
    )
    assert run("train", *preset).exit_code == 0
    assert not (tmp_path / "cache").exists()
