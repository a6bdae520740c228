"""One at a time, also after a holder was killed, and nothing left behind."""

import os
import subprocess
import sys
import threading
import time

from gantx.io.lock import alone

HOLDER = """
import sys, time
from pathlib import Path
from gantx.io.lock import alone
with alone(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_only_one_runs_at_a_time(tmp_path):
    inside, most = 0, 0

    def work():
        nonlocal inside, most
        for _ in range(20):
            with alone(tmp_path / "lock"):
                inside += 1
                most = max(most, inside)
                time.sleep(0.001)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert list(tmp_path.iterdir()) == []


def test_the_wait_is_told_and_ends_when_the_holder_is_killed(tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path / "lock"], stdout=subprocess.PIPE, env=environment
    )
    assert holder.stdout.readline() == b"held\n"
    told = []

    def waiting():
        told.append(True)
        holder.kill()

    with alone(tmp_path / "lock", waiting):
        assert told
    holder.communicate()
