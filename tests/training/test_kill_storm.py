"""Whatever stops a run, at whatever moment: what comes of it is what comes of an undisturbed run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]


@pytest.mark.slow  # 60 stops; `helpers.kill_storm` takes any number
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the storm forks its runs")
def test_a_storm_of_stops_changes_no_bit(tmp_path):
    path = os.pathsep.join(str(folder) for folder in (TESTS.parent, TESTS))
    result = subprocess.run(
        [sys.executable, "-m", "helpers.kill_storm", str(tmp_path / "storm"), "--stops", "60"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    counts = dict(line.split(": ") for line in result.stdout.splitlines())
    assert int(counts["compared"]) >= 3, result.stdout
