"""Downloads: verified, resumed, safe among processes; and one plain sentence when they fail."""

import errno
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from urllib.error import URLError

import pytest
from helpers.file_server import serving

from gantx.data import downloads
from gantx.data.downloads import Remote, digest_of, download
from gantx.errors import MissingError

CONTENT = bytes(range(256)) * 4096  # 1 MiB
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with serving() as running:
        running.files["weights.pt"] = CONTENT
        yield running


@pytest.fixture
def remote(server):
    return Remote(
        url=f"{server.url}/weights.pt",
        algorithm="sha256",
        digest=SHA256,
        title="weights.pt",
        instead="put it there by hand",
        size=len(CONTENT),
    )


@pytest.fixture
def target(tmp_path):
    return tmp_path / "cache" / "weights.pt"


def part_of(target):
    return target.with_name(f".{target.name}.part")


def beside(target):
    return sorted(path.name for path in target.parent.iterdir()) if target.parent.is_dir() else []


def refused(remote, target):
    with pytest.raises(MissingError) as caught:
        download(remote, target)
    message = str(caught.value)
    assert "\n" not in message
    assert not target.exists()
    return message


def interrupted_after(length, server, remote, target):
    """Leave a download that the server has cut off after so many bytes."""
    server.cut_after = length
    refused(remote, target)
    server.cut_after = None
    server.asked.clear()


# --- what comes -------------------------------------------------------------------------------------------


def test_a_file_comes_whole_and_is_not_asked_for_again(server, remote, target):
    seen = []
    download(remote, target, lambda *numbers: seen.append(numbers))
    assert target.read_bytes() == CONTENT
    assert beside(target) == ["weights.pt"]
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert seen == sorted(seen)
    download(remote, target)
    assert server.asked == [None]


def test_size_need_not_be_known(server, remote, target):
    download(replace(remote, size=None), target)
    assert target.read_bytes() == CONTENT
    server.chunked = True
    target.unlink()
    download(replace(remote, size=None), target)
    assert target.read_bytes() == CONTENT


def test_md5_serves_too(server, remote, target):
    download(replace(remote, algorithm="md5", digest=hashlib.md5(CONTENT).hexdigest()), target)
    assert digest_of(target, "sha256") == SHA256


def test_redirects_are_followed(server, remote, target):
    download(replace(remote, url=f"{server.url}/moved/weights.pt"), target)
    assert target.read_bytes() == CONTENT


def test_a_wrong_file_at_the_target_is_replaced(server, remote, target):
    target.parent.mkdir()
    target.write_bytes(CONTENT[:-1] + b"!")
    download(remote, target)
    assert target.read_bytes() == CONTENT


# --- interruptions ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunked", [False, True])
def test_a_cut_connection_is_resumed_where_it_was_cut(server, remote, target, chunked):
    server.chunked = chunked
    server.cut_after = 300_000
    message = refused(remote, target)
    assert "after 300,000 of 1,048,576 bytes, which are kept" in message
    assert beside(target) == [".weights.pt.part"]
    server.cut_after = None
    seen = []
    download(remote, target, lambda done, total: seen.append(done))
    assert server.asked == [None, "bytes=300000-"]
    assert target.read_bytes() == CONTENT
    assert beside(target) == ["weights.pt"]
    assert seen[0] > 300_000


def test_a_redirected_download_is_resumed(server, remote, target):
    remote = replace(remote, url=f"{server.url}/moved/weights.pt")
    interrupted_after(300_000, server, remote, target)
    download(remote, target)
    assert server.asked == ["bytes=300000-"] * 2
    assert target.read_bytes() == CONTENT


def test_a_server_without_ranges_sends_all_of_it_again(server, remote, target):
    interrupted_after(300_000, server, remote, target)
    server.ranges = False
    download(remote, target)
    assert target.read_bytes() == CONTENT


def test_a_beginning_of_another_content_is_thrown_away(server, remote, target):
    interrupted_after(300_000, server, remote, target)
    part_of(target).write_bytes(b"x" * 300_000)
    download(remote, target)
    assert server.asked == ["bytes=300000-", None]
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize("left", [b"x" * len(CONTENT), CONTENT + b"more"])
@pytest.mark.parametrize("size", [len(CONTENT), None])
def test_what_was_left_is_as_long_or_longer(server, remote, target, left, size):
    target.parent.mkdir()
    part_of(target).write_bytes(left)
    download(replace(remote, size=size), target)
    assert target.read_bytes() == CONTENT


def test_a_complete_part_needs_no_server(remote, target):
    target.parent.mkdir()
    part_of(target).write_bytes(CONTENT)
    download(replace(remote, url="http://127.0.0.1:9/nobody", size=None), target)
    assert target.read_bytes() == CONTENT


def test_ctrl_c_keeps_what_came_and_gives_it_no_name(server, remote, target):
    def press(done, total):
        if done > 100_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download(remote, target, press)
    assert beside(target) == [".weights.pt.part"]
    kept = part_of(target).read_bytes()
    assert kept == CONTENT[: len(kept)] != b""
    server.asked.clear()
    download(remote, target)
    assert server.asked == [f"bytes={len(kept)}-"]
    assert target.read_bytes() == CONTENT


PROGRAM = """
import sys
from pathlib import Path
from gantx.data.downloads import Remote, download
url, digest, size, target = sys.argv[1:]
download(Remote(url, "sha256", digest, "weights.pt", "-", int(size)), Path(target))
"""


def process(remote, target):
    arguments = [remote.url, remote.digest, remote.size, target]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *map(str, arguments)], env=environment, stderr=subprocess.PIPE
    )


def until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_killed_process_is_gone_on_with(server, remote, target):
    server.hold = threading.Event()
    running = process(remote, target)
    until(lambda: part_of(target).is_file() and part_of(target).stat().st_size > 500_000)
    running.send_signal(signal.SIGKILL)
    running.communicate()
    assert not target.exists()
    kept = part_of(target).stat().st_size
    server.hold.set()
    server.asked.clear()
    download(remote, target)
    assert server.asked == [f"bytes={kept}-"]
    assert target.read_bytes() == CONTENT


def test_of_several_processes_one_downloads(server, remote, target):
    server.hold = threading.Event()
    running = [process(remote, target) for _ in range(3)]
    until(lambda: part_of(target).is_file() and part_of(target).stat().st_size > 500_000)
    seen = []

    def watch(done, total):
        seen.append((done, total))
        server.hold.set()  # only now may the one that downloads finish

    download(remote, target, watch)
    assert seen[0][0] > 500_000
    for one in running:
        assert one.communicate()[1] == b""
        assert one.returncode == 0
    assert server.asked == [None]
    assert target.read_bytes() == CONTENT
    assert beside(target) == ["weights.pt"]


# --- what does not come -----------------------------------------------------------------------------------


def test_another_content_is_not_kept(server, remote, target):
    server.files["weights.pt"] = other = CONTENT[:-1] + b"!"
    message = refused(remote, target)
    assert f"SHA256 {hashlib.sha256(other).hexdigest()} instead of {SHA256}" in message
    assert message.endswith("put it there by hand")
    assert beside(target) == []


def test_another_length_is_refused_before_it_comes(server, remote, target):
    server.files["weights.pt"] = CONTENT + b"!"
    assert "offers 1,048,577 bytes instead of 1,048,576" in refused(remote, target)
    assert beside(target) == []


def test_an_endless_answer_is_given_up(server, remote, target):
    server.files["weights.pt"] = CONTENT * 20
    server.chunked = True
    assert "instead of" in refused(remote, target)
    assert beside(target) == []


def test_an_error_page_is_not_kept(server, remote, target):
    message = refused(replace(remote, url=f"{server.url}/other.pt"), target)
    assert "the server says 404 Not Found" in message
    assert beside(target) == []


def test_a_log_in_page_is_not_kept(server, remote, target):
    interrupted_after(300_000, server, remote, target)
    server.ranges = False
    server.kind = "text/html; charset=utf-8"
    assert "web page" in refused(remote, target)
    assert part_of(target).read_bytes() == CONTENT[:300_000]  # what came before is still good


def test_no_network_is_one_sentence(remote, target, monkeypatch):
    def refuse(*args, **kwargs):
        raise URLError(OSError("Name or service\nnot known"))

    monkeypatch.setattr(downloads, "urlopen", refuse)
    assert refused(remote, target) == (
        f"cannot download weights.pt from {remote.url} (Name or service not known): put it there by hand"
    )
    assert beside(target) == []


def test_a_silent_server_is_given_up(server, remote, target, monkeypatch):
    monkeypatch.setattr(downloads, "_TIMEOUT", 0.2)
    server.hold = threading.Event()
    message = refused(remote, target)
    assert "no answer for 0.2 seconds after 1,048,575 of 1,048,576 bytes, which are kept" in message


def test_too_little_space_is_reported_before_it_is_used(server, remote, target, monkeypatch):
    usage = namedtuple("Usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1, 1, 1000))
    assert "takes another 1 MB but" in refused(remote, target)
    assert beside(target) == []


def test_a_disk_that_fills_up(server, remote, target, monkeypatch):
    opened = Path.open

    def full(piece):
        raise OSError(errno.ENOSPC, "No space left on device")

    def open_on_full_disk(self, *args, **kwargs):
        file = opened(self, *args, **kwargs)
        if self == part_of(target):
            file.write = full
        return file

    monkeypatch.setattr(Path, "open", open_on_full_disk)
    message = refused(remote, target)
    assert "cannot keep weights.pt in" in message
    assert "(No space left on device)" in message
    assert beside(target) == []


def test_a_folder_that_cannot_be_made(remote, target):
    target.parent.write_bytes(b"a file")
    assert "cannot keep weights.pt in" in refused(remote, target)
