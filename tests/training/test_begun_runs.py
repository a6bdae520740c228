"""Runs that an earlier version began go on, to the numbers that version came to."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from gantx.training import run

BEGUN = Path(__file__).parent.parent / "golden" / "begun_runs"
OF_THE_MACHINE = ("seconds", "images_per_second", "memory_gb")


@pytest.mark.parametrize("family", ["transgan", "transgan2", "vitgan", "stylegan2", "ganformer"])
def test_a_run_that_an_earlier_version_began_goes_on(family, tmp_path):
    folder = tmp_path / family
    shutil.copytree(BEGUN / family, folder)
    run.resume(
        folder,
        changes={"training.kimg": 0.024},
        overrides=[],
        device=torch.device("cpu"),
        command=["gantx", "train", "--resume", str(folder)],
        log=lambda text: None,
    )
    line = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    expected = json.loads((BEGUN / family / "metrics_at_0.024_kimg.json").read_text())
    later = {name for name in line if name.startswith("health/")}  # not reported by that version
    assert line.keys() - later == expected.keys()
    # Another processor rounds the last bits otherwise.
    for name in expected.keys() - set(OF_THE_MACHINE):
        assert line[name] == pytest.approx(expected[name], rel=5e-3, abs=1e-5), name
