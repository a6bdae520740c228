"""What is said of the runs in a folder, and of damage to their files."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from gantx.errors import MissingError
from gantx.io import lock
from gantx.training.runs import runs_in, summary, verify

BEGUN = Path(__file__).resolve().parents[1] / "golden" / "begun_runs"


@pytest.fixture
def run(tmp_path):
    """A run that was stopped: its first 0.012 kimg, with a picture and a line of scores."""
    folder = tmp_path / "0001-vitgan"
    shutil.copytree(BEGUN / "vitgan", folder)
    (folder / "samples").mkdir(exist_ok=True)
    Image.new("RGB", (8, 8)).save(folder / "samples" / "kimg-000000.012.png")
    scored = {"kimg": 0.012, "images": 12, "scores": {"fid": 31.5}, "protocol_hash": "a"}
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(scored) + "\n")
    return folder


def test_a_run_is_summed_up(run):
    (found,) = runs_in(run.parent)
    assert found.path == run
    assert found.kimg == 0.012
    assert found.scores == {"fid": 31.5}
    assert found.state == ("done" if found.target_kimg <= 0.012 else "stopped")
    assert found.bytes > 10_000
    assert runs_in(run) == [found]  # a run may be named itself


def test_a_run_that_a_process_trains_is_running(run):
    with lock.claim(run / ".lock"):
        assert summary(run).state == "running"
    assert summary(run).state != "running"


def test_a_run_without_a_checkpoint_is_new(run):
    shutil.rmtree(run / "checkpoints")
    assert summary(run).state == "new"


def test_a_damaged_run_is_listed_with_the_reason(run):
    (newest,) = (run / "checkpoints").glob("*.safetensors")
    newest.write_bytes(newest.read_bytes()[:500])
    (found,) = runs_in(run.parent)
    assert found.state == "damaged"
    assert "cut off" in found.problem


def test_other_folders_are_no_runs(tmp_path):
    (tmp_path / "pictures").mkdir()
    assert runs_in(tmp_path) == []
    with pytest.raises(MissingError):
        runs_in(tmp_path / "nowhere")
    with pytest.raises(MissingError, match="is not a run"):
        verify(tmp_path)


def damage_checkpoint(run):
    (file,) = (run / "checkpoints").glob("*.safetensors")
    content = bytearray(file.read_bytes())
    content[-3] ^= 4
    file.write_bytes(content)
    return file


def damage_config(run):
    (run / "config.yaml").write_text("training: {")
    return run / "config.yaml"


def damage_metrics(run):
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"images": 3}\n')
    return run / "metrics.jsonl"


def damage_changes(run):
    (run / "changes.jsonl").write_text('{"images": 8, "changes": {"training.kimg": [1, 2]}}\n{"images": 8\n')
    return run / "changes.jsonl"


def remove_config(run):
    (run / "config.yaml").unlink()
    return run / "config.yaml"


def damage_picture(run):
    (file,) = (run / "samples").glob("*.png")
    file.write_bytes(file.read_bytes()[:45])
    return file


def test_the_files_of_a_sound_run_are_sound(run):
    found = verify(run)
    assert len(found) == 4
    assert [file.problem for file in found] == [None] * 4


@pytest.mark.parametrize(
    "damage",
    [damage_checkpoint, damage_config, remove_config, damage_metrics, damage_changes, damage_picture],
)
def test_damage_is_found_in_the_file_that_has_it(run, damage):
    path = damage(run)
    assert [file.path for file in verify(run) if file.problem] == [path]
