"""One at a time, also after an owner was killed, and nothing that blocks is left behind."""

import errno
import os
import socket
import subprocess
import sys
import threading
import time

import filelock
import pytest

from gantx.io.lock import LockedError, alone, claim

OWNER = """
import sys, time
from pathlib import Path
from gantx.io import lock
with getattr(lock, sys.argv[1])(Path(sys.argv[2])):
    print("locked", flush=True)
    time.sleep(60)
"""


def owner(function, path):
    """A process that has the lock."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, function, path], stdout=subprocess.PIPE, env=environment
    )
    assert process.stdout.readline() == b"locked\n"
    return process


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


def test_waiting_is_reported_and_ends_when_the_owner_is_killed(tmp_path):
    process = owner("alone", tmp_path / "lock")
    told = []

    def waiting():
        told.append(True)
        process.kill()

    with alone(tmp_path / "lock", waiting):
        assert told
    process.communicate()


def test_a_claim_is_refused_at_once_with_the_owner_until_that_is_killed(tmp_path):
    process = owner("claim", tmp_path / "lock")
    for _ in range(2):  # a refused claim leaves the owner's process id alone
        with pytest.raises(LockedError) as caught:
            claim(tmp_path / "lock")
        assert caught.value.owner.startswith(f"{process.pid} on ")
    process.kill()
    process.communicate()
    with claim(tmp_path / "lock"), pytest.raises(LockedError) as caught:
        claim(tmp_path / "lock")
    assert caught.value.owner.startswith(f"{os.getpid()} on ")
    with claim(tmp_path / "lock"):
        pass


def test_a_claim_of_a_process_with_the_same_id_counts_and_a_dead_one_does_not(tmp_path, monkeypatch):
    """As in two containers, whose first processes both have the id 1."""
    process = owner("claim", tmp_path / "lock")
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: process.pid)
        with pytest.raises(LockedError):
            claim(tmp_path / "lock")
    process.kill()
    process.communicate()
    (tmp_path / "lock").write_text(f" {os.getpid()} on {socket.gethostname()}")  # an id that was used again
    with claim(tmp_path / "lock") as ours:
        assert ours.holds()


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP])
def test_on_a_file_system_without_locks_work_goes_on(tmp_path, monkeypatch, number):
    def acquire(self, timeout):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(filelock.FileLock, "acquire", acquire)
    with alone(tmp_path / "lock"), claim(tmp_path / "lock"):
        pass


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    for function in (alone, claim):
        with pytest.raises(OSError, match="file"), function(tmp_path / "file" / "lock"):
            pass


def test_a_claim_notices_that_its_folder_is_gone_or_another(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    with claim(folder / "lock") as held:
        assert held.holds()
        folder.rename(tmp_path / "renamed")
        assert not held.holds()
        folder.mkdir()
        with claim(folder / "lock"):
            assert not held.holds()
    with claim(tmp_path / "renamed" / "lock"):  # released where it went
        pass
