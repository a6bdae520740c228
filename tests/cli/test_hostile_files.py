"""Hostile and odd files and values: each command ends with a documented code and one sentence."""

import io
import json
import zipfile

import numpy as np
import pytest
import torch
from helpers.small_run import SMALL
from PIL import Image, PngImagePlugin
from typer.testing import CliRunner

from gantx import checkpoint
from gantx.cli import app
from gantx.config import presets
from gantx.errors import GantxError
from gantx.exporting import hub
from gantx.generation import sampling
from gantx.io.decoding import MOST_PIXELS
from gantx.training.state import TrainingState

ESCAPE = "\x1b[31m"


def said(code, *arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, (result.output, result.exception)
    assert "Traceback" not in result.output
    assert "\x1b" not in result.output
    return result.output


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A checkpoint of a tiny run, with a hostile name of its data."""
    config = presets.load("transgan-s", overrides=SMALL)
    path = tmp_path_factory.mktemp("run") / f"kimg-{ESCAPE}.safetensors"
    data = {"name": "`x`\n\n# <script>alert(1)</script>" + ESCAPE, "images": 37, "digest": "d"}
    TrainingState(config, torch.device("cpu")).save(path, data)
    return path


# --- pictures ---------------------------------------------------------------------------------------------


def png(width, height, **text):
    """A PNG of one colour, of a few kB whatever its size."""
    about = PngImagePlugin.PngInfo()
    for key, value in text.items():
        about.add_text(f"gantx:{key}", value)
    written = io.BytesIO()
    Image.new("1", (width, height)).save(written, "PNG", pnginfo=about)
    return written.getvalue()


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%id) (w) file closefile showpage\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (EPS, "not a JPEG, PNG"),
        (png(10_000, MOST_PIXELS // 10_000 + 1), f"more than the {MOST_PIXELS:,} allowed"),
        (png(8, 8)[:45], "cannot read"),
        (png(8, 8, seeds="0-99999999999"), "100,000,000,000 seeds for 64 pixels"),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_pictures(trained, tmp_path, content, words):
    path = tmp_path / "x.png"
    path.write_bytes(content)
    assert words in said(4, "sample", "--from", path)
    if b"gantx" not in content:
        assert words in said(4, "project", path, trained, "-o", tmp_path / "found.png")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr(f"{ESCAPE}.png", content)
    assert r"\x1b[31m" in said(4, "sample", "--from", tmp_path / "x.zip")


def test_a_zip_of_images_with_a_nameless_entry(tmp_path):
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("name.png", png(8, 8))
    path.write_bytes(path.read_bytes().replace(b"name.png", b"\0ame.png"))
    assert "an entry without a name" in said(4, "sample", "--from", path)
    small = ("--preset", "transgan-s", *SMALL, "--out", tmp_path / "run")
    assert "an entry without a name" in said(4, "train", "--data", path, *small)


def test_images_that_are_too_large_to_score(tmp_path):
    (tmp_path / "images").mkdir()
    for name in "ab":
        (tmp_path / "images" / f"{name}.png").write_bytes(png(2049, 2))
    assert "longer side has 4 to 2,048 pixels" in said(4, "eval", tmp_path / "images", "--data", "shapes")


@pytest.mark.parametrize("content", [b"PK\x03\x04" + bytes(30), b"\x93NUMPY\x01\0\x10\0{'descr': '|u1', \n"])
def test_arrays(trained, tmp_path, content):
    (tmp_path / "x.npy").write_bytes(content)
    assert "x.npy" in said(4, "eval", tmp_path / "x.npy", "--data", "shapes")
    assert "x.npy" in said(
        4, "sample", trained, "--latents", tmp_path / "x.npy", "-o", tmp_path / "g.png", "--device", "cpu"
    )


# --- checkpoints and what is shown of them ----------------------------------------------------------------


def test_what_comes_from_a_checkpoint_is_escaped(trained):
    shown = said(0, "info", trained)
    assert r"kimg-\x1b[31m.safetensors" in shown
    assert r"# <script>alert(1)</script>\x1b[31m (37 images" in shown


def test_the_card_has_no_html_from_names():
    config = presets.load("transgan-s", overrides=SMALL)
    hostile = "`x`\n\n# <script>alert(1)</script>"
    header = checkpoint.Header("x", config, {"images": 8}, {"name": hostile}, {}, {"generator_ema": "0"})
    card = hub.card(header, "mit`\n\n<script>alert(2)</script>", [])
    body = card.split("---\n", 2)[2]
    assert "\n# <script>" not in body
    assert "- images: `` `x` # <script>alert(1)</script> ``" in body  # within a code span
    assert r"Weights: mit\` \<script\>alert(2)\</script\>" in body


def _header(path):
    content = path.read_bytes()
    return json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])


def _with_header(original, path, **entries):
    """A copy of a checkpoint with other entries in its header, as one without a digest of it."""
    header, content = _header(original), original.read_bytes()
    header["__metadata__"] = {
        key: value for key, value in header["__metadata__"].items() if not key.endswith("_sha256")
    }
    header["__metadata__"] |= {key: json.dumps(value) for key, value in entries.items()}
    changed = json.dumps(header).encode()
    tensors = content[8 + int.from_bytes(content[:8], "little") :]
    path.write_bytes(len(changed).to_bytes(8, "little") + changed + tensors)
    return path


def test_a_configuration_deeper_than_its_file(trained, tmp_path):
    config = json.loads(_header(trained)["__metadata__"]["config"])
    for depths, words in (([1024, 1, 1], "more than the"), ([100_000, 1, 1], "cannot be 100000")):
        config["generator"]["depths"] = depths
        path = _with_header(trained, tmp_path / "deep.safetensors", config=config)
        assert words in said(4, "sample", path, "-o", tmp_path / "g.png", "--device", "cpu")


def test_a_run_does_not_take_over_networks_larger_than_their_file(trained, tmp_path):
    shared = tmp_path / "shared.safetensors"  # without a discriminator
    header = checkpoint.read_header(trained)
    hub.write_weights(shared, sampling.open_generator(trained, torch.device("cpu"))[0], header, "mit")
    for file, network, values, words in (
        (trained, "generator", {"depths": [1024, 1, 1]}, "more than the"),
        (trained, "discriminator", {"depth": 1024}, "more than the"),
        (shared, "discriminator", {"dim": 4096, "depth": 64}, "more than 67,108,864 weights and has none"),
    ):
        config = json.loads(_header(file)["__metadata__"]["config"])
        config[network] |= values
        path = _with_header(file, tmp_path / "huge.safetensors", config=config)
        for more in (), ("--dry-run",):
            train = ("train", "--init", path, "--data", "shapes", "--runs", tmp_path / "runs")
            assert words in " ".join(said(4, *train, "--device", "cpu", *more).split())
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("entry", "value"),
    [("progress", {"images": 10**400}), ("progress", []), ("data", {"images": "x"}), ("digests", {"a": 1})],
)
def test_headers_with_other_types(trained, tmp_path, entry, value):
    path = _with_header(trained, tmp_path / "x.safetensors", **{entry: value})
    assert "damaged header" in said(4, "info", path)


# --- configurations ---------------------------------------------------------------------------------------


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{new}: &{new} [{','.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BOMB, "more than 5,000 values"),
        ("a: " + "{a: " * 500, "more than 32 levels"),
        ("a: &a [*a]", "contains itself"),
        ("a: 2026-13-45", "month must be in 1..12"),
        ("a: !!int x", "invalid literal"),
        ("a: " + "9" * 5000, "a number of 5,000 characters in line 1"),
        ("x: '" + "x" * 2**18 + "'", "more than 262,144 bytes"),
        ("extends: [a]", "extends names a preset"),
        ("summary: [" + "1," * 100 + "1]", "summary cannot be [1, 1"),
        (r'training: {kimg: "\e[31m"}', "training.kimg"),
    ],
)
def test_files_of_settings(tmp_path, text, words):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    shown = said(2, "train", "--config", path, "--print-config")
    assert words in shown
    assert len(shown) < 1000


def test_a_long_chain_of_files(tmp_path):
    for number in range(20):
        (tmp_path / f"{number}.yaml").write_text(f"extends: '{number + 1}'\n")
    assert "more than 16 files" in said(2, "train", "--config", tmp_path / "0.yaml", "--print-config")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.kimg=1e306", "use 1e-06 to 1e+09"),
        (f"training.seed={2**64}", f"use 0 to {2**63 - 1}"),
        ("data.shapes.count=99999999999999", "use 1 to 10000000"),
        ("training.report_kimg=1e-300", "use 1e-06 to 1e+09"),
        ("generator.depths=[1,2,100000]", "100000"),
        ("training.kimg=" + "9" * 5000, "training.kimg"),
    ],
)
def test_numbers_out_of_range(override, words):
    assert words in said(2, "train", "--preset", "transgan-s", "--print-config", override)


# --- feature networks and statistics ----------------------------------------------------------------------


@pytest.mark.parametrize("location", ["/dev/zero", "../x.bin", "fifo"])
def test_a_feature_network_that_names_another_file(tmp_path, location):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    import os

    from gantx.evaluation.onnx_features import OnnxFeatures

    os.mkfifo(tmp_path / "fifo")
    weights = onnx.numpy_helper.from_array(np.ones((3, 4), np.float32), "w")
    weights.ClearField("raw_data")
    weights.data_location = onnx.TensorProto.EXTERNAL
    entry = weights.external_data.add()
    entry.key, entry.value = "location", location
    graph = onnx.helper.make_graph([], "g", [], [], [weights])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "x.onnx")
    with pytest.raises(GantxError, match="no file beside it"):
        OnnxFeatures(tmp_path / "x.onnx", torch.device("cpu"))


def test_a_feature_network_that_takes_all_memory_or_time(tmp_path, monkeypatch):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from gantx.evaluation import onnx_features

    helper, kinds = onnx.helper, onnx.TensorProto
    images = [helper.make_tensor_value_info("x", kinds.FLOAT, ["b", 3, None, None])]
    features = [helper.make_tensor_value_info("y", kinds.FLOAT, ["b", 3])]
    pooled = helper.make_node("ReduceMean", ["x"], ["m"], axes=[2, 3], keepdims=0)
    huge = [
        helper.make_node("ConstantOfShape", ["shape"], ["big"]),
        helper.make_node("ReduceSum", ["big"], ["s"], keepdims=0),
        pooled,
        helper.make_node("Add", ["m", "s"], ["y"]),
    ]
    inside = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["c2"]), helper.make_node("Identity", ["v"], ["v2"])],
        "body",
        [
            helper.make_tensor_value_info("i", kinds.INT64, []),
            helper.make_tensor_value_info("c", kinds.BOOL, []),
            helper.make_tensor_value_info("v", kinds.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("c2", kinds.BOOL, []),
            helper.make_tensor_value_info("v2", kinds.FLOAT, None),
        ],
    )
    endless = [pooled, helper.make_node("Loop", ["n", "t", "m"], ["y"], body=inside)]
    given = [
        onnx.numpy_helper.from_array(np.array([10**10], np.int64), "shape"),
        onnx.numpy_helper.from_array(np.array(10**12, np.int64), "n"),
        onnx.numpy_helper.from_array(np.array(True), "t"),
    ]
    monkeypatch.setattr(onnx_features, "TRIAL_SECONDS", 0.5)
    for nodes, used in ((huge, given[:1]), (endless, given[1:])):
        graph = helper.make_graph(nodes, "g", images, features, used)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
        onnx.save(model, tmp_path / "x.onnx")
        with pytest.raises(GantxError, match="cannot run on images"):
            onnx_features.OnnxFeatures(tmp_path / "x.onnx", torch.device("cpu"))


def test_statistics_of_one_image(tmp_path):
    from gantx.evaluation import reference

    moments = torch.zeros(3, dtype=torch.float64), torch.eye(3, dtype=torch.float64)
    for count, words in ((1, "of 1 images"), (-5, "of -5 images"), (10**20, "of 1000")):
        reference.write(tmp_path / "x", reference.Reference(count, *moments, None, {}))
        with pytest.raises(GantxError, match=words):
            reference.read(tmp_path / "x")
