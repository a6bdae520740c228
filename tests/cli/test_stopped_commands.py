"""Commands that are stopped at whatever moment leave nothing unfinished."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]


@pytest.mark.slow  # 3 stops of each command; `helpers.command_storm` takes any number
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the storm forks its commands")
def test_a_storm_of_stops_leaves_nothing(tmp_path):
    path = os.pathsep.join(str(folder) for folder in (TESTS.parent, TESTS))
    result = subprocess.run(
        [sys.executable, "-m", "helpers.command_storm", str(tmp_path / "storm"), "--stops", "3"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    counts = [line.rpartition(": ") for line in result.stdout.splitlines() if ": " in line]
    assert sum(int(number) for _, _, number in counts) == 24, result.stdout
