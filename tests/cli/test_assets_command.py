"""`gantx assets`: what it shows, downloads and verifies, and how it ends."""

import hashlib
import json
import os
import subprocess
import sys

import pytest
from helpers.file_server import serving
from typer.testing import CliRunner

from gantx.cli import app
from gantx.evaluation import assets
from gantx.evaluation.assets import Asset, path_of

CONTENT = {"inception": b"torchscript" * 99, "inception-pytorch": b"state dict" * 99}


def run(*arguments):
    return CliRunner().invoke(app, ["assets", *map(str, arguments)])


@pytest.fixture
def server(monkeypatch):
    """Serves small files under the names of the published ones, which they stand in for."""
    monkeypatch.setenv("no_proxy", "*")
    with serving() as running:
        for name, asset in assets.ASSETS.items():
            content = CONTENT[name]
            running.files[asset.file] = content
            digest = hashlib.sha256(content).hexdigest()
            url = f"{running.url}/{asset.file}"
            small = Asset(name, asset.file, url, digest, len(content), asset.purpose)
            monkeypatch.setitem(assets.ASSETS, name, small)
        yield running


def rows(result):
    document = json.loads(result.stdout)
    assert document["schema"] == "gantx.assets/1"
    return {row["name"]: row for row in document["assets"]}


def test_ls_is_a_table_of_one_line_each(server):
    lines = run("ls").stdout.splitlines()
    assert lines[0].split() == ["asset", "size", "state", "file"]
    assert [line.split()[0] for line in lines[1:]] == ["inception", "inception-pytorch"]
    assert all("missing" in line for line in lines[1:])
    path = run("fetch", "inception").stdout.strip()
    lines = run("ls").stdout.splitlines()
    assert len(lines) == 3
    assert "verified" in lines[1]
    assert lines[1].split()[-1] == path
    assert len({line.index(word) for line, word in zip(lines, ("state", "verified", "missing"))}) == 1  # noqa: B905


def test_json_says_what_the_table_says_and_more(server):
    row = rows(run("ls", "--json"))["inception"]
    assert (row["state"], row["path"]) == ("missing", str(path_of(assets.ASSETS["inception"])))
    assert row["sha256"] == hashlib.sha256(CONTENT["inception"]).hexdigest()
    run("fetch", "inception")
    row = rows(run("ls", "--json"))["inception"]
    assert (row["state"], row["path"]) == ("verified", str(path_of(assets.ASSETS["inception"])))


def test_ls_is_quick_and_loads_no_torch():
    script = (
        "import sys\n"
        "from gantx.cli import app\n"
        "try:\n    app(['assets', 'ls'])\nexcept SystemExit:\n    pass\n"
        "sys.exit('torch' in sys.modules)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "inception-pytorch" in done.stdout


def test_fetch_prints_paths_on_stdout_and_nothing_else(server):
    result = run("fetch")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [str(path_of(asset)) for asset in assets.ASSETS.values()]
    assert result.stderr == ""
    for name, asset in assets.ASSETS.items():
        assert path_of(asset).read_bytes() == CONTENT[name]


def test_fetch_ends_with_3_and_one_sentence(server):
    server.files.clear()
    result = run("fetch", "inception")
    assert result.exit_code == 3
    assert len(result.stderr.splitlines()) == 1
    assert "404" in result.stderr
    assert run("fetch", "incepton").exit_code == 2


def test_ctrl_c_says_how_to_go_on(server, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(assets, "download", interrupted)
    result = run("fetch", "inception")
    assert result.exit_code == 130
    assert "resume with: gantx assets fetch inception" in result.stderr


def test_verify_ends_by_what_it_finds(server):
    result = run("verify")
    assert result.exit_code == 3
    assert "gantx assets fetch inception inception-pytorch" in result.stderr
    run("fetch", "inception")
    assert run("verify").exit_code == 0  # the other one is not needed
    assert run("verify", "inception-pytorch").exit_code == 3
    assert run("verify", "inception", "inception-pytorch").exit_code == 3
    path = path_of(assets.ASSETS["inception"])
    path.write_bytes(b"!" + path.read_bytes()[1:])
    result = run("verify", "--json")
    assert result.exit_code == 1
    assert rows(result)["inception"]["state"] == "wrong"
    assert str(path) in result.stderr
