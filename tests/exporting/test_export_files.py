"""Exports as files: checked before they are there, complete, described, and free of this machine's paths."""

import contextlib
import json
import re
import shutil
import sys
import tarfile

import pytest
import torch
import yaml
from helpers.exported_networks import NAMES, build, save

import gantx
from gantx import checkpoint
from gantx.errors import CheckFailed, DataError, MissingError, UsageError
from gantx.evaluation.results import Result
from gantx.evaluation.scores import Score
from gantx.exporting import export, hub, parity, program, request, web
from gantx.exporting.generator import morph_of
from gantx.generation.labels import drawn_labels
from gantx.generation.sampling import open_generator
from gantx.generation.truncation import Truncation

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder with one checkpoint."""
    folder = tmp_path_factory.mktemp("run")
    save(folder, "transgan")
    return folder


@pytest.fixture
def own_run(run, tmp_path):
    """A copy of it that a test may add files to."""
    return shutil.copytree(run, tmp_path / "run")


def result_of(header, fid=12.5, sha256=None):
    return Result(
        scores=(Score("fid", fid, 12.0, 13.0),),
        protocol={"name": "clean-50k", "n_gen": 50_000, "n_ref": 50_000},
        checkpoint={"path": "/somewhere/else", "sha256": sha256 or header.digest, "kimg": 12, "preset": "p"},
        warnings=(),
        timing={},
        versions={},
    )


def test_a_program_and_its_record(run, tmp_path, capsys):
    record = export.export(run, export.Request(tmp_path / "m.pt2", "pt2", "uint8"), print)
    assert record == tmp_path / "export.json"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["export.json", "m.pt2"]
    header = checkpoint.read_header(checkpoint.find(run))
    entry = json.loads(record.read_text())["files"]["m.pt2"]
    assert entry["checkpoint"] == {
        "preset": "small-transgan", "kimg": 12.0, "digest": header.digest, "license": "unknown"
    }  # fmt: skip
    assert entry["input"]["shape"] == ["batch", 8]
    assert entry["output"] == {
        "name": "images",
        "type": "uint8",
        "shape": ["batch", 3, 8, 8],
        "values": "0..255",
    }
    assert [batch["batch"] for batch in entry["parity"]["batches"]] == [1, 3, 8]
    assert capsys.readouterr().out.count("largest difference") == 3
    assert program.open_program(tmp_path / "m.pt2")(torch.zeros(2, 8)).dtype == torch.uint8


def test_exports_of_one_folder_share_a_record(run, tmp_path):
    export.export(run, export.Request(tmp_path / "g.safetensors", "safetensors"), print)
    export.export(run, export.Request(tmp_path / "h.safetensors", "safetensors"), print)
    assert set(json.loads((tmp_path / "export.json").read_text())["files"]) == {
        "g.safetensors",
        "h.safetensors",
    }


def test_a_record_of_something_else_is_kept(run, tmp_path):
    (tmp_path / "export.json").write_text('{"schema": "mine"}')
    with pytest.raises(DataError, match="no record of gantx export"):
        export.export(run, export.Request(tmp_path / "g.safetensors", "safetensors"), print)
    assert [path.name for path in tmp_path.iterdir()] == ["export.json"]


def test_a_runtime_that_generates_something_else_leaves_no_file(run, tmp_path, monkeypatch):
    honest = program.open_program
    monkeypatch.setattr(program, "open_program", lambda path: lambda z: honest(path)(z) * 1.001)
    with pytest.raises(CheckFailed, match=r"differs from PyTorch .* nothing was written"):
        export.export(run, export.Request(tmp_path / "m.pt2", "pt2"), print)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", [lambda z: z + 1e-3, lambda z: z * torch.nan, lambda z: z.flip(0)])
def test_what_the_check_does_not_let_through(wrong):
    z = torch.linspace(-1, 1, 8)[:, None]
    parity.require_close(parity.compare(torch.nn.Identity(), lambda z: z + 1e-5, [z]), "runtime")
    with pytest.raises(CheckFailed, match="runtime differs"):
        parity.require_close(parity.compare(torch.nn.Identity(), wrong, [z]), "runtime")


def test_another_shape_is_a_difference():
    with pytest.raises(CheckFailed, match=r"have the shape \[1\] instead of \[1, 2\]"):
        parity.compare(torch.nn.Identity(), lambda z: z[:, 0], [torch.zeros(8, 2)])


@pytest.mark.parametrize(("offset", "passes"), [(0.0, True), (0.15, True), (0.6, False), (-0.9, False)])
def test_grey_levels_are_compared_with_unrounded_values(offset, passes):
    found = parity.compare(
        torch.nn.Identity(),
        lambda levels: (levels + offset + 0.5).floor().to(torch.uint8),
        [torch.full((8, 3, 2, 2), 100.3)],
    )
    assert (max(difference.largest for difference in found) <= 255 * parity.TOLERANCE) == passes


def test_weights_alone_are_a_checkpoint(run, tmp_path):
    path = tmp_path / "g.safetensors"
    export.export(run, export.Request(path, "safetensors", license="cc-by-4.0"), print)
    before, after = checkpoint.read_header(checkpoint.find(run)), checkpoint.read_header(path)
    assert after.digests == {"generator_ema": before.digest}
    assert (after.images, after.config.generator) == (12000, before.config.generator)
    assert after.data == {"name": "faces", "images": 9, "digest": "d", "license": "cc-by-4.0"}
    assert after.config.data.source == "faces"
    assert b"/somewhere" not in path.read_bytes()
    generator, _ = open_generator(path, CPU)
    assert all(map(torch.equal, generator.parameters(), build("transgan").parameters()))


def test_a_folder_for_the_hub(own_run, tmp_path):
    header = checkpoint.read_header(checkpoint.find(own_run))
    (own_run / "eval.json").write_text(json.dumps(result_of(header).to_document()))
    (own_run / "other.json").write_text(json.dumps(result_of(header, 1.25, "0" * 64).to_document()))
    (own_run / "notes.json").write_text("[]")
    export.export(own_run, export.Request(tmp_path / "hub", "hf", license="cc-by-4.0"), print)
    names = ["README.md", "config.json", "export.json", "model.safetensors", "samples.png"]
    assert sorted(path.name for path in (tmp_path / "hub").iterdir()) == names
    _, front, text = (tmp_path / "hub" / "README.md").read_text().split("---\n", 2)
    matter = yaml.safe_load(front)
    assert (matter["license"], matter["library_name"]) == ("cc-by-4.0", "gantx")
    (measured,) = matter["model-index"][0]["results"]
    stamp = result_of(header).protocol_hash
    assert measured["metrics"] == [{"type": "fid", "value": 12.5, "name": f"fid ({stamp})"}]
    assert f"protocol {stamp}: name clean-50k" in text
    assert header.digest in text
    assert not [path for path in (tmp_path / "hub").iterdir() if b"/somewhere" in path.read_bytes()]
    assert (
        json.loads((tmp_path / "hub" / "config.json").read_text())["config"]["generator"]["latent_dim"] == 8
    )
    assert open_generator(tmp_path / "hub", CPU)[1].digest == header.digest


def test_classes_in_a_folder_for_the_hub_and_behind_a_page(tmp_path):
    path = save(tmp_path, "transgan", NAMES)
    export.export(path, export.Request(tmp_path / "hub", "hf"), print)
    shown = ["cat", r"<b>dog</b> & \u202eco."]
    about = json.loads((tmp_path / "hub" / "config.json").read_text())
    assert [about[key] for key in ("classes", "class_counts", "no_class")] == [shown, [1, 2], 2]
    card = (tmp_path / "hub" / "README.md").read_text()
    assert "8×8 images of 2 classes" in card
    assert "| 0 | cat |\n| 1 | \\<b\\>dog\\</b\\> \\& \\\\u202eco. |" in card
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    names = {}
    with contextlib.chdir(tmp_path / "hub"):
        exec(code, names)
    generator, header = open_generator(tmp_path / "hub", CPU)
    assert torch.equal(names["images"], gantx.load(path, device="cpu").sample(8, label="cat"))
    (tmp_path / "demo").mkdir()
    web.write_page(tmp_path / "demo", morph_of(generator), header)
    described = json.loads((tmp_path / "demo" / "demo.json").read_text())
    assert described.items() >= {key: about[key] for key in ("classes", "class_counts", "no_class")}.items()
    assert described["labels"] == drawn_labels(header.config.conditioning, range(web.SEEDS))


def test_an_export_of_an_export_keeps_licence_and_scores(own_run, tmp_path):
    header = checkpoint.read_header(checkpoint.find(own_run))
    (own_run / "eval.json").write_text(json.dumps(result_of(header).to_document()))
    first, second = tmp_path / "g.safetensors", tmp_path / "hub"
    export.export(own_run, export.Request(first, "safetensors", license="cc-by-4.0"), print)
    assert b"/somewhere" not in first.read_bytes()
    export.export(first, export.Request(second, "hf"), print)
    card = (second / "README.md").read_text()
    assert "license: cc-by-4.0" in card
    assert f"protocol {result_of(header).protocol_hash}: name clean-50k" in card
    record = json.loads((second / "export.json").read_text())["files"]["model.safetensors"]
    assert record["checkpoint"]["license"] == "cc-by-4.0"
    export.export(second, export.Request(tmp_path / "h.safetensors", "safetensors", license="mit"), print)
    after = checkpoint.read_header(tmp_path / "h.safetensors")
    assert after.data["license"] == "mit"
    assert [document["metrics"]["fid"]["value"] for document in after.data["scores"]] == [12.5]


def test_scores_of_other_weights_are_refused(run, tmp_path):
    header = checkpoint.read_header(checkpoint.find(run))
    path = tmp_path / "eval.json"
    path.write_text(json.dumps(result_of(header, sha256="0" * 64).to_document()))
    with pytest.raises(UsageError, match="scores of other weights"):
        hub.read_scores([path], header)


def npm_package(folder, name=request.PACKAGE):
    """A stand-in for the npm package: right names, no content to speak of."""
    (folder / "dist").mkdir(parents=True)
    (folder / "package.json").write_text(json.dumps({"name": name, "version": "1.2.3", "license": "MIT"}))
    for file in web.RUNTIME_FILES:
        (folder / "dist" / file).write_text(f"content of {file}")
    return folder


def test_a_page_with_its_runtime(run, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    package = npm_package(tmp_path / "package")
    with tarfile.open(tmp_path / "p.tgz", "w:gz") as archive:
        archive.add(package, "package")
    export.export(run, export.Request(tmp_path / "demo", "web", runtime=tmp_path / "p.tgz"), print)
    demo = tmp_path / "demo"
    found = {path.relative_to(demo).as_posix() for path in demo.rglob("*") if path.is_file()}
    own = {"index.html", "demo.json", "latents.bin", "model.onnx", "export.json"}
    assert found == own | {f"ort/{name}" for name in web.RUNTIME_FILES}
    page = (demo / "index.html").read_text(encoding="utf-8")
    assert "http:" not in page
    assert "https:" not in page
    assert (demo / "latents.bin").stat().st_size == 4 * 8 * web.SEEDS
    entry = json.loads((demo / "export.json").read_text())["files"]["model.onnx"]
    assert (entry["runtime"]["version"], entry["runtime"]["license"]) == ("1.2.3", "MIT")
    assert web.write_runtime(tmp_path, package) == entry["runtime"]  # a folder does as well


def test_packages_that_are_not_the_runtime(tmp_path, monkeypatch):
    with pytest.raises(MissingError, match="no package onnxruntime-web at"):
        web.write_runtime(tmp_path, tmp_path / "nothing")
    with pytest.raises(DataError, match="npm package left-pad, not onnxruntime-web"):
        web.write_runtime(tmp_path, npm_package(tmp_path / "a", "left-pad"))
    package = npm_package(tmp_path / "b")
    (package / "dist" / web.RUNTIME_FILES[1]).unlink()
    with pytest.raises(DataError, match="not a whole npm package"):
        web.write_runtime(tmp_path, package)
    (tmp_path / "c.tgz").write_bytes(b"nonsense")
    with pytest.raises(DataError, match="not a whole npm package"):
        web.write_runtime(tmp_path, tmp_path / "c.tgz")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MissingError, match="no npm here"):
        web.write_runtime(tmp_path, None)


def test_without_the_onnx_extra(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    monkeypatch.setitem(sys.modules, "onnx", None)
    for wanted in (export.Request(tmp_path / "m.onnx", "onnx"), export.Request(tmp_path / "d", "web")):
        with pytest.raises(MissingError, match=r"pip install .gantx\[onnx\]"):
            export.export(run, wanted, print)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"output": "g.safetensors", "kind": "safetensors", "truncation": Truncation(0.5)}, "no truncation"),
        ({"output": "hub", "kind": "hf", "pixels": "uint8"}, "no range"),
        ({"output": "m.pt2", "kind": "pt2", "scores": ("x.json",)}, "scores go on the card"),
        ({"output": "m.pt2", "kind": "pt2", "runtime": "x"}, "is for the page"),
        ({"output": "folder", "kind": "pt2"}, "is a folder"),
        ({"output": "file", "kind": "hf"}, "is a file"),
        ({"output": "file", "kind": "pt2"}, "already exists"),
        ({"output": "folder", "kind": "hf"}, "already exists"),
    ],
)
def test_requests_without_sense(request_, words, run, tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis").write_text("mine")
    with pytest.raises(UsageError, match=words):
        export.export(run, export.Request(**{**request_, "output": tmp_path / request_["output"]}), print)
    assert (tmp_path / "file").read_text() == "mine"


def test_force_leaves_other_files_of_a_folder(run, tmp_path):
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "thesis").write_text("mine")
    (tmp_path / "hub" / "README.md").write_text("old")
    export.export(run, export.Request(tmp_path / "hub", "hf", force=True), print)
    assert (tmp_path / "hub" / "thesis").read_text() == "mine"
    assert "small-transgan" in (tmp_path / "hub" / "README.md").read_text()


@pytest.mark.parametrize(
    ("name", "wanted", "kind"),
    [
        ("m.onnx", None, "onnx"),
        ("m.PT2", None, "pt2"),
        ("g.safetensors", None, "safetensors"),
        ("hub", None, "hf"),
        ("v1.2", "hf", "hf"),
        ("demo", "web", "web"),
    ],
)
def test_the_name_tells_the_form(name, wanted, kind, tmp_path):
    assert request.kind_of(tmp_path / name, wanted) == kind


@pytest.mark.parametrize(
    ("name", "wanted", "words"),
    [
        ("m.pth", None, "cannot export to .* add --format hf"),
        ("m.onnx", "pt2", "called .pt2"),
        ("m.onnx", "web", "is a folder, but .*m.onnx is the name of a file: omit .onnx"),
        ("m", "coreml", "no format"),
    ],
)
def test_names_that_tell_nothing(name, wanted, words, tmp_path):
    with pytest.raises(UsageError, match=words):
        request.kind_of(tmp_path / name, wanted)
