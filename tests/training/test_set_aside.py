"""Going back to an earlier checkpoint: the run continues from there, and what was newer is kept."""

import shutil

import pytest
from helpers.started_runs import assert_equal_runs, metrics, names, resume, start

from gantx import checkpoint
from gantx.errors import CheckpointError
from gantx.training import changes

KEPT = ("training.keep_checkpoints=9", "training.kimg=0.12")


@pytest.fixture
def whole(tmp_path):
    return start(tmp_path / "run", *KEPT)


def test_a_run_goes_back_and_reaches_the_same_end(whole, tmp_path, capsys):
    folder = whole
    before = metrics(folder)
    assert names(folder / "checkpoints") == ["kimg-000000.040", "kimg-000000.080", "kimg-000000.120"]
    reference = tmp_path / "reference"
    shutil.copytree(folder, reference)
    chosen = folder / "checkpoints" / checkpoint.checkpoint_name(40)
    resume(folder, back_to=chosen)
    assert_equal_runs(reference, folder)
    aside = folder / "set-aside" / "0001-after-kimg-0.04"
    assert names(aside / "checkpoints") == ["kimg-000000.080", "kimg-000000.120"]
    assert (aside / "checkpoints" / checkpoint.checkpoint_name(120)).read_bytes() == (
        reference / "checkpoints" / checkpoint.checkpoint_name(120)
    ).read_bytes()
    assert metrics(aside) == [line for line in before if line["images"] > 40]
    assert len(list((aside / "samples").iterdir())) == 3
    assert (aside / "config.yaml").is_file()
    said = "going back to 0.04 kimg: 2 checkpoints, 3 pictures, "
    assert said in " ".join(capsys.readouterr().out.split())
    assert said in (folder / "train.log").read_text()


def test_the_best_checkpoint_is_one_to_go_back_to(whole):
    folder = whole / "checkpoints"
    (folder / checkpoint.checkpoint_name(40)).rename(folder / checkpoint.best_name("kid"))  # pruned since
    shutil.copy(folder / checkpoint.checkpoint_name(80), folder / checkpoint.best_name("fid"))
    resume(whole, back_to=folder / checkpoint.best_name("kid"))
    assert names(folder) == ["kimg-000000.040", "kimg-000000.080", "kimg-000000.120"]
    assert list(checkpoint.best_in(folder)) == ["kid"]
    aside = whole / "set-aside" / "0001-after-kimg-0.04" / "checkpoints"
    assert checkpoint.read_header(aside / checkpoint.best_name("fid")).images == 80


def test_the_best_checkpoint_of_an_earlier_version_is_one_to_go_back_to(whole):
    folder = whole / "checkpoints"
    (folder / "best").mkdir()
    name = checkpoint.checkpoint_name(40)
    (folder / name).rename(folder / "best" / name)  # pruned since
    resume(whole, back_to=folder / "best" / name)
    assert names(folder) == ["kimg-000000.040", "kimg-000000.080", "kimg-000000.120"]
    assert (folder / "best" / name).is_file()


def test_changes_are_undone_by_going_back(whole):
    lr = "optimizer.generator.lr=0.01"
    resume(whole, lr, allow_changes=True, **{"training.kimg": 0.16})
    back = whole / "checkpoints" / checkpoint.checkpoint_name(80)
    resume(whole, back_to=back)
    header = checkpoint.read_header(checkpoint.find(whole))
    assert (header.config.optimizer.generator.lr, header.images) == (0.0001, 160)
    assert changes.entries(whole) == []
    assert changes.recorded(whole / "set-aside" / "0001-after-kimg-0.08") == {"optimizer.generator.lr": 0.01}
    # And another way is tried from there.
    resume(whole, "augment.policy=[color]", back_to=back, allow_changes=True)
    assert [entry["images"] for entry in changes.entries(whole)] == [80]


def test_a_damaged_checkpoint_moves_nothing(whole):
    chosen = whole / "checkpoints" / checkpoint.checkpoint_name(80)
    content = bytearray(chosen.read_bytes())
    content[-100] ^= 64
    chosen.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"go on from there with: gantx train --resume .*0\.040"):
        resume(whole, back_to=chosen)
    assert not (whole / "set-aside").exists()
    assert len(names(whole / "checkpoints")) == 3
