"""Temporary names are random, exclusive, and removed once their owner has ended."""

import os
import secrets
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gantx.io import temporary
from gantx.io.atomic import replacing, scratch_folder

OWNER = """
import sys, time
from pathlib import Path
from gantx.io.atomic import replacing, scratch_folder
with replacing(Path(sys.argv[1]) / "file"), scratch_folder(Path(sys.argv[1]) / "folder") as folder:
    (folder / "deep").mkdir()
    (folder / "deep" / "half").write_text("half")
    print("made", flush=True)
    time.sleep(60)
"""


def test_a_planted_link_is_not_followed(tmp_path, monkeypatch):
    target = tmp_path / "victim"
    target.write_text("unharmed")
    monkeypatch.setattr(temporary, "_host", lambda: "0" * 6)
    tokens = iter(["0" * 10, "1" * 10])
    monkeypatch.setattr(secrets, "token_hex", lambda count: next(tokens))
    (tmp_path / f".file.{'0' * 16}.part").symlink_to(target)
    with replacing(tmp_path / "file") as beside:
        assert beside.name == f".file.{'0' * 6}{'1' * 10}.part"
        beside.write_text("new")
    assert target.read_text() == "unharmed"
    assert (tmp_path / "file").read_text() == "new"


def test_names_differ_between_processes_of_one_id(tmp_path):
    with replacing(tmp_path / "file") as one, replacing(tmp_path / "file") as other:
        assert one != other


@pytest.mark.parametrize("name", ["x" * 255, "ä" * 127])
def test_long_names_can_be_replaced(tmp_path, name):
    with replacing(tmp_path / name) as beside:
        beside.write_text("new")
    assert (tmp_path / name).read_text() == "new"


def test_leftovers_are_swept_once_their_owner_has_ended(tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, tmp_path], stdout=subprocess.PIPE, env=environment
    )
    assert process.stdout.readline() == b"made\n"
    others = {".file.part", ".file.12345.part", "file.0123456789abcdef.part", "kept.txt"}
    for name in others:
        (tmp_path / name).write_text("")
    (tmp_path / f".link.{'0' * 16}.part").symlink_to(tmp_path / "kept.txt")
    before = {path.name for path in tmp_path.iterdir()}
    temporary.sweep(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == before
    process.kill()
    process.communicate()
    with replacing(tmp_path / "new") as beside:
        assert {path.name for path in tmp_path.iterdir()} == {
            *others,
            f".link.{'0' * 16}.part",
            beside.name,
        }


@pytest.mark.skipif(sys.platform != "linux", reason="needs namespaces of processes")
def test_the_files_of_a_container_stay_until_it_ends(tmp_path):
    container = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child"]
    if subprocess.run([*container, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this system does not let its users make namespaces")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [*container, sys.executable, "-c", f"import os; assert os.getpid() == 1\n{OWNER}", tmp_path],
        stdout=subprocess.PIPE,
        env=environment,
    )
    assert process.stdout.readline() == b"made\n"
    before = sorted(tmp_path.iterdir())
    # Another container, whose process has the same id.
    sweep = "import sys, pathlib; from gantx.io.temporary import *; sweep(pathlib.Path(sys.argv[1]))"
    subprocess.run([*container, sys.executable, "-c", sweep, tmp_path], env=environment, check=True)
    assert sorted(tmp_path.iterdir()) == before
    assert len(before) == 2
    process.kill()
    process.communicate()  # its id, 1, is that of a living process here
    temporary.sweep(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_another_host_made_is_swept_after_a_while(tmp_path):
    left = tmp_path / f".file.{'0' * 16}.part"
    left.mkdir()
    (left / "half").write_text("")
    temporary.sweep(tmp_path)
    assert left.exists()
    old = time.time() - 7000
    os.utime(left, (old, old))
    temporary.sweep(tmp_path)
    assert left.exists()
    os.utime(left / "half", (old, old))
    temporary.sweep(tmp_path)
    assert not left.exists()


def test_a_wrong_clock_of_this_machine_sweeps_nothing_early(tmp_path, monkeypatch):
    left = tmp_path / f".file.{'0' * 16}.part"
    left.write_text("half")
    for years in 40, -40:
        now = time.time() + years * 3.2e7
        with monkeypatch.context() as patch:
            patch.setattr(time, "time", lambda now=now: now)
            temporary.sweep(tmp_path)
        assert left.exists()
    os.utime(left, (2**32, 2**32))  # made while a clock was wrong
    temporary.sweep(tmp_path)
    assert left.exists()


def test_without_locks_only_what_is_old_is_swept(tmp_path, monkeypatch):
    def fails(*_):
        raise OSError(37, "No locks available")

    left = tmp_path / f".file.{temporary._host()}{'0' * 10}.part"
    left.write_text("")
    monkeypatch.setattr(temporary.fcntl, "flock", fails)
    temporary.sweep(tmp_path)
    assert left.exists()
    old = time.time() - 100_000
    os.utime(left, (old, old))
    temporary.sweep(tmp_path)
    assert not left.exists()
    with replacing(tmp_path / "file") as beside, scratch_folder(tmp_path / "folder"):
        beside.write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_stop_during_the_removal_does_not_leave_the_rest(tmp_path, monkeypatch):
    rmtree, calls = shutil.rmtree, []

    def interrupted(*args, **options):
        calls.append(args)
        if len(calls) == 1:
            raise KeyboardInterrupt
        rmtree(*args, **options)

    monkeypatch.setattr(shutil, "rmtree", interrupted)
    with pytest.raises(KeyboardInterrupt), scratch_folder(tmp_path / "folder"):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("make", ["create_file", "create_folder"])
def test_a_stop_at_the_moment_of_creation_leaves_nothing(tmp_path, monkeypatch, make):
    """A handler runs as soon as the system call returns, before the program knows what was made."""

    def stopped(call):
        def made(*given, **named):
            call(*given, **named)
            raise KeyboardInterrupt

        return made

    where, name = (os, "open") if make == "create_file" else (Path, "mkdir")
    monkeypatch.setattr(where, name, stopped(getattr(where, name)))
    with pytest.raises(KeyboardInterrupt):
        getattr(temporary, make)(tmp_path / "target")
    assert list(tmp_path.iterdir()) == []
