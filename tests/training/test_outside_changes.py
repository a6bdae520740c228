"""What changes around a run while it trains: its clock, its images, its folder."""

import json
import shutil
import time

import pytest
from helpers.started_runs import assert_equal_runs, resume, start

from gantx import checkpoint
from gantx.errors import MissingError
from gantx.runtime import signals
from gantx.training.run_logger import RunLogger

SETTINGS = (
    "training.kimg=0.064",
    "training.report_kimg=0.016",
    "training.sample_kimg=0.03",
    "training.evaluate_every=0.03",
    "evaluation.features=random",
    "evaluation.metrics=[fid]",
    "evaluation.num_during_training=8",
)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GANTX_CACHE", str(tmp_path_factory.mktemp("cache")))
        return start(tmp_path_factory.mktemp("undisturbed") / "run", *SETTINGS)


@pytest.fixture
def between_iterations(monkeypatch):
    """Calls a function with the number of images after every iteration."""

    def arrange(function):
        usual = RunLogger.after_iteration

        def changed(self, before, *, finished):
            function(self.state.images)
            usual(self, before, finished=finished)

        monkeypatch.setattr(RunLogger, "after_iteration", changed)

    return arrange


def test_a_clock_that_jumps_changes_nothing(undisturbed, tmp_path, monkeypatch, capsys):
    jumps = iter([1e9, -1e9, 86_400.0, -3_600.0] * 100_000)
    usual = time.time
    monkeypatch.setattr(time, "time", lambda: usual() + next(jumps))
    with signals.time_limit(3_600):
        folder = start(tmp_path / "run", *SETTINGS)
    assert_equal_runs(undisturbed, folder)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    seconds = [line["seconds"] for line in lines]
    assert seconds == sorted(seconds)
    assert 0 <= seconds[-1] < 600
    assert all(line["images_per_second"] > 0 for line in lines if "images_per_second" in line)
    assert not [line for line in lines if "health" in line]
    assert "eta 0s" in capsys.readouterr().err
    with monkeypatch.context() as patch:  # a limit is a length of time, whatever the clock says
        stopped = []
        patch.setattr(signals, "_terminate", lambda: stopped.append(True))
        with signals.time_limit(0.05):
            time.sleep(0.3)
        assert stopped


def test_images_that_vanish_while_a_run_trains(undisturbed, tmp_path, monkeypatch, between_iterations):
    cache = tmp_path / "cache"
    monkeypatch.setenv("GANTX_CACHE", str(cache))
    between_iterations(lambda images: shutil.rmtree(cache, ignore_errors=True))
    assert_equal_runs(undisturbed, start(tmp_path / "run", *SETTINGS))


def test_a_run_whose_images_are_gone_says_so_and_keeps_what_it_has(tmp_path):
    from PIL import Image

    images = tmp_path / "images"
    images.mkdir()
    for number in range(9):
        Image.new("RGB", (8, 8), (number, 9, 200)).save(images / f"{number}.png")
    values = {"data.source": str(images)}
    folder = start(tmp_path / "run", "training.kimg=0.016", **values)
    shutil.rmtree(images)
    before = sorted(folder.rglob("*"))
    with pytest.raises(MissingError, match="images") as caught:
        resume(folder, **{"training.kimg": 0.032})
    assert caught.value.exit_code == 3
    assert sorted(folder.rglob("*")) == before
    assert checkpoint.read_header(checkpoint.find(folder)).images == 16


@pytest.mark.parametrize(
    ("change", "moment"),  # a report; a score, a picture and the best checkpoint; the end
    [("removed", 16), ("replaced", 64), pytest.param("renamed", 32, marks=pytest.mark.slow)],
)
def test_a_run_whose_folder_vanishes_ends_and_makes_none(tmp_path, between_iterations, moment, change):
    folder = tmp_path / "run"

    def vanish(images):
        if images != moment:
            return
        if change == "removed":
            shutil.rmtree(folder)
        else:
            folder.rename(tmp_path / "renamed")
        if change == "replaced":
            folder.mkdir()

    between_iterations(vanish)
    with pytest.raises(MissingError, match="was renamed or removed") as caught:
        start(folder, *SETTINGS)
    assert caught.value.exit_code == 3
    assert not folder.exists() or list(folder.iterdir()) == []
