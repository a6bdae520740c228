"""`gantx runs`: what a user sees of the runs in a folder."""

import json
import shutil
from pathlib import Path

from typer.testing import CliRunner

from gantx.cli import app

BEGUN = Path(__file__).resolve().parents[1] / "golden" / "begun_runs"


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_runs_are_listed_one_a_line(tmp_path):
    for family in ("vitgan", "transgan"):
        shutil.copytree(BEGUN / family, tmp_path / family)
    result = run("runs", "ls", tmp_path)
    assert result.exit_code == 0
    heading, *lines = result.stdout.splitlines()
    assert heading.split() == ["run", "state", "kimg", "MB", "scores"]
    assert [line.split()[0] for line in lines] == ["transgan", "vitgan"]
    document = json.loads(run("runs", "ls", tmp_path, "--json").stdout)
    assert document["schema"] == "gantx.runs/1"
    assert [entry["kimg"] for entry in document["runs"]] == [0.012, 0.012]


def test_a_folder_without_runs_says_so(tmp_path):
    assert run("runs", "ls", tmp_path).stdout == f"no runs in {tmp_path}\n"
    assert run("runs", "ls", tmp_path / "nowhere").exit_code == 3


def test_verification_names_what_is_damaged(tmp_path):
    shutil.copytree(BEGUN / "vitgan", tmp_path / "vitgan")
    assert "sound" in run("runs", "verify", tmp_path / "vitgan").stdout
    (file,) = (tmp_path / "vitgan" / "checkpoints").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-1])
    result = run("runs", "verify", tmp_path / "vitgan")
    assert result.exit_code == 1
    assert str(file) in result.stdout
    assert json.loads(run("runs", "verify", tmp_path / "vitgan", "--json").stdout)["files"][1]["problem"]


def test_the_best_scores_are_listed_beside_the_last(tmp_path):
    folder = tmp_path / "vitgan"
    shutil.copytree(BEGUN / "vitgan", folder)
    (file,) = (folder / "checkpoints").glob("*.safetensors")
    shutil.copy(file, file.with_name("best-fid.safetensors"))
    with (folder / "metrics.jsonl").open("a") as metrics:
        for images, fid in (12, 31.5), (18, 40.25):
            line = {"images": images, "scores": {"fid": fid, "kid": 2.0}, "protocol_hash": "a"}
            metrics.write(json.dumps(line) + "\n")
    assert run("runs", "ls", tmp_path).stdout.endswith("  fid 40.25 (best 31.5 at 0.012), kid 2\n")
    (found,) = json.loads(run("runs", "ls", tmp_path, "--json").stdout)["runs"]
    assert found["best"] == {"fid": {"kimg": 0.012, "value": 31.5}}


def test_a_checkpoint_from_before_there_was_a_digest_of_headers_is_marked(tmp_path):
    folder = tmp_path / "vitgan"
    shutil.copytree(BEGUN / "vitgan", folder)
    assert "no digest of the header (written before gantx kept one)" in run("info", folder).stdout
    assert json.loads(run("info", folder, "--json").stdout)["sealed"] is False
    assert run("sample", folder, "-n", 1, "-o", tmp_path / "one.png").exit_code == 0
    assert run("runs", "verify", folder).exit_code == 0


def test_odd_lines_and_hostile_names_are_shown_safely(tmp_path):
    folder = tmp_path / "\x1b[31mred"
    shutil.copytree(BEGUN / "vitgan", folder)
    (file,) = (folder / "checkpoints").glob("*.safetensors")
    shutil.copy(file, file.with_name("best-\x1b[31m.safetensors"))
    scored = {"images": 12, "scores": {"\x1b[31m": 3.5}, "protocol_hash": "a"}
    odd = ([1], {"scores": {"fid": 10**400}, "protocol_hash": "a"}, {"scores": [1]}, "x", None)
    lines = [json.dumps(line) for line in (scored, *odd)]
    (folder / "metrics.jsonl").write_text("\n".join(lines))
    shown = run("runs", "ls", tmp_path)
    assert shown.exit_code == 0, shown.output
    assert r"\x1b[31m 3.5 (best 3.5 at 0.012)" in shown.stdout
    assert "\x1b" not in shown.output + run("runs", "verify", folder).output
