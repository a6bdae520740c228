"""Weights are found where they lie, believed only by their digest, and come whole or not at all."""

import hashlib
import json
import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.file_server import serving

from gantx.errors import DataError, MissingError, UsageError
from gantx.evaluation import assets
from gantx.evaluation.assets import ASSETS, Asset, fetch, locate, named, path_of, status, verify
from gantx.io.cache import cache_folder

CONTENT = b"weights" * 1000
DIGEST = hashlib.sha256(CONTENT).hexdigest()
OTHER = CONTENT[:-1] + b"!"


@pytest.fixture
def asset(tmp_path):
    """A small asset that another tool would leave in tmp_path/tool."""
    return Asset(
        name="inception",
        file="inception-2015-12-05.pt",
        url="http://127.0.0.1:9/inception-2015-12-05.pt",
        sha256=DIGEST,
        size=len(CONTENT),
        purpose="test",
        elsewhere=lambda: (tmp_path / "tool" / "inception-2015-12-05.pt",),
    )


def put(path, content=CONTENT):
    path.parent.mkdir(parents=True, exist_ok=True)
    time.sleep(0.02)  # a tick of the clock of the file system
    path.write_bytes(content)
    return path


@pytest.fixture
def reads(monkeypatch):
    """The names of the files that are read through, in order."""
    names = []

    def counted(path, algorithm):
        names.append(path.name)
        return digest_of(path, algorithm)

    digest_of = assets.digest_of
    monkeypatch.setattr(assets, "digest_of", counted)
    return names


# --- the published files ----------------------------------------------------------------------------------


def test_published_files_are_told_apart():
    assert {asset.name for asset in ASSETS.values()} == set(ASSETS) == {"inception", "inception-pytorch"}
    for asset in ASSETS.values():
        assert len(bytes.fromhex(asset.sha256)) == 32
        assert asset.url.startswith("https://")
        assert asset.url.endswith(f"/{asset.file}")
    assert ASSETS["inception-pytorch"].sha256[:8] in ASSETS["inception-pytorch"].file  # torch.hub's custom


def test_an_unknown_name_gets_the_closest():
    with pytest.raises(UsageError, match="did you mean 'inception'"):
        named("incepton")


def test_places_of_other_tools_follow_their_settings(tmp_path, monkeypatch):
    hub = ASSETS["inception-pytorch"].elsewhere
    monkeypatch.delenv("TORCH_HOME", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    names = ("pt_inception-2015-12-05-6726825d.pth", "weights-inception-2015-12-05-6726825d.pth")
    assert hub() == tuple(tmp_path / "xdg/torch/hub/checkpoints" / name for name in names)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    assert hub()[0].parent == tmp_path / "torch/hub/checkpoints"
    assert [path.name for path in ASSETS["inception"].elsewhere()] == ["inception-2015-12-05.pt"]


# --- finding ----------------------------------------------------------------------------------------------


def test_order_of_the_places(asset, tmp_path):
    theirs = put(asset.elsewhere()[0])
    assert locate(asset) == (theirs, DIGEST, True)
    ours = put(path_of(asset))
    assert ours.parent == cache_folder() / "assets"
    assert locate(asset) == (ours, DIGEST, True)
    given = put(tmp_path / "mine.bin")
    assert locate(asset, given) == (given, DIGEST, True)


def test_a_right_file_elsewhere_stands_in_for_a_damaged_one_of_ours(asset):
    put(path_of(asset), OTHER)
    theirs = put(asset.elsewhere()[0])
    assert locate(asset).path == theirs


def test_nothing_found_says_file_digest_places_and_ways_out(asset):
    with pytest.raises(MissingError) as caught:
        locate(asset, allow_unverified=True)
    message = str(caught.value)
    for word in (asset.file, DIGEST, str(path_of(asset)), str(asset.elsewhere()[0])):
        assert word in message
    assert "`gantx assets fetch inception`" in message
    assert "--weights FILE" in message
    assert "\n" not in message


@pytest.mark.parametrize("content", [OTHER, CONTENT[:-5]])
def test_elsewhere_only_the_right_file_counts(asset, content):
    put(asset.elsewhere()[0], content)
    with pytest.raises(MissingError, match="another file is there"):
        locate(asset, allow_unverified=True)


@pytest.mark.parametrize(
    ("content", "reason"), [(OTHER, "its SHA-256 is"), (CONTENT[:-5], "only 6,995 of 7,000 bytes")]
)
@pytest.mark.parametrize("is_given", [True, False])
def test_a_wrong_file_is_refused_unless_allowed(asset, tmp_path, content, reason, is_given):
    path = put(tmp_path / "mine.pt" if is_given else path_of(asset), content)
    given = path if is_given else None
    with pytest.raises(DataError, match=reason) as caught:
        locate(asset, given)
    assert str(path) in str(caught.value)
    assert "--allow-unverified-weights" in str(caught.value)
    found = locate(asset, given, allow_unverified=True)
    assert found == (path, hashlib.sha256(content).hexdigest(), False)


def test_the_file_of_another_asset_is_identified(asset, tmp_path, monkeypatch):
    twin = replace(asset, name="twin", file="twin.pth", sha256=hashlib.sha256(OTHER).hexdigest())
    monkeypatch.setitem(ASSETS, "twin", twin)
    with pytest.raises(DataError, match=r"\(it is twin\.pth\)"):
        locate(asset, put(tmp_path / "some.pt", OTHER))


@pytest.mark.parametrize("kind", ["absent", "folder"])
def test_a_given_path_that_is_no_file(asset, tmp_path, kind):
    if kind == "folder":
        (tmp_path / "x").mkdir()
    put(path_of(asset))  # is not taken instead
    with pytest.raises(MissingError, match="cannot read the weights"):
        locate(asset, tmp_path / "x")


# --- remembered digests -----------------------------------------------------------------------------------


def test_a_file_is_read_through_once(asset, reads):
    ours = put(path_of(asset))
    assert [locate(asset).verified for _ in range(3)] == [True] * 3
    assert reads == [asset.file]
    verify(asset)
    assert len(reads) == 2
    put(ours, OTHER)
    with pytest.raises(DataError):
        locate(asset)
    assert len(reads) == 3


def test_a_change_is_seen_though_size_and_time_are_the_same(asset):
    ours = put(path_of(asset))
    os.utime(ours, ns=(10**18, 10**18))
    assert locate(asset).verified
    put(ours, OTHER)
    os.utime(ours, ns=(10**18, 10**18))
    with pytest.raises(DataError):
        locate(asset)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:-20],
        lambda text: "",
        lambda text: "\0\xff",
        lambda text: "[1]",
        lambda text: json.dumps({path: [] for path in json.loads(text)}),
        lambda text: json.dumps(dict.fromkeys(json.loads(text))),
        lambda text: json.dumps({path: [*entry[:-1], 5] for path, entry in json.loads(text).items()}),
    ],
)
def test_a_damaged_memory_is_made_anew(asset, reads, damage):
    put(path_of(asset))
    locate(asset)
    memory = cache_folder() / "assets" / "digests.json"
    memory.write_text(damage(memory.read_text()), encoding="latin-1")
    assert locate(asset).verified
    assert len(reads) == 2
    locate(asset)
    assert len(reads) == 2


def test_a_memory_that_cannot_be_written_is_done_without(asset, tmp_path, monkeypatch):
    given = put(tmp_path / "mine.pt")
    put(tmp_path / "cache", b"a file where the cache should be")
    monkeypatch.setenv("GANTX_CACHE", str(tmp_path / "cache"))
    assert locate(asset, given).verified


def test_writers_at_once_forget_nothing(asset, tmp_path):
    files = [put(tmp_path / f"{number}.pt") for number in range(16)]
    threads = [threading.Thread(target=locate, args=(asset, file)) for file in files]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    known = json.loads((cache_folder() / "assets" / "digests.json").read_text())
    assert {Path(name) for name in known} == set(files)
    files[0].unlink()
    files[1].write_bytes(OTHER)
    locate(asset, files[1], allow_unverified=True)
    known = json.loads((cache_folder() / "assets" / "digests.json").read_text())
    assert len(known) == 15
    assert known[str(files[1])][3] == hashlib.sha256(OTHER).hexdigest()


# --- downloading ------------------------------------------------------------------------------------------


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with serving() as running:
        running.files["inception-2015-12-05.pt"] = CONTENT
        yield running


def test_fetch_then_locate(asset, server, reads):
    asset = replace(asset, url=f"{server.url}/{asset.file}")
    seen = []
    path = fetch(asset, progress=lambda *numbers: seen.append(numbers))
    assert path == path_of(asset)
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert status(asset) == (asset, "verified", path)
    assert locate(asset) == (path, DIGEST, True)
    assert fetch(asset, progress=None) == path
    assert server.asked == [None]
    assert reads == []  # what the download has verified is not read again


def test_fetch_goes_on_with_what_came_before(asset, server):
    asset = replace(asset, url=f"{server.url}/{asset.file}")
    server.cut_after = 1000
    with pytest.raises(MissingError, match="kept"):
        fetch(asset)
    assert status(asset).state == "missing"
    server.cut_after = None
    assert fetch(asset).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=1000-"]


def test_fetch_replaces_a_damaged_file(asset, server):
    asset = replace(asset, url=f"{server.url}/{asset.file}")
    put(path_of(asset), OTHER)
    assert fetch(asset).read_bytes() == CONTENT


def test_fetch_without_network_says_what_to_do_by_hand(asset):
    with pytest.raises(MissingError) as caught:
        fetch(asset)
    message = str(caught.value)
    for word in (asset.url, asset.file, DIGEST, str(path_of(asset)), "--weights FILE"):
        assert word in message
    assert "\n" not in message
    assert caught.value.exit_code == 3


# --- overview ---------------------------------------------------------------------------------------------


def test_status_reads_nothing_through(asset, reads):
    assert status(asset) == (asset, "missing", path_of(asset))
    theirs = put(asset.elsewhere()[0])
    assert status(asset) == (asset, "present", theirs)
    ours = put(path_of(asset), OTHER)
    assert status(asset) == (asset, "present", ours)
    assert reads == []
    locate(asset)
    assert status(asset) == (asset, "verified", theirs)
    theirs.unlink()
    assert status(asset) == (asset, "wrong", ours)


def test_a_file_elsewhere_of_another_size_is_none(asset):
    put(asset.elsewhere()[0], CONTENT[:-1])
    assert status(asset).state == "missing"


def test_verify_looks_at_every_file(asset):
    assert verify(asset) == [(asset, "missing", path_of(asset))]
    ours, theirs = put(path_of(asset)), put(asset.elsewhere()[0], OTHER)
    assert verify(asset) == [(asset, "verified", ours), (asset, "wrong", theirs)]
