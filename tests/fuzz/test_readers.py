"""Every reader of files, fed with damaged and hostile ones: documented errors, bounded time and memory.

The environment variable GANTX_FUZZ_CASES sets the number of cases for each reader (300):
`GANTX_FUZZ_CASES=20000 pytest tests/fuzz` takes more than an hour.
"""

import contextlib
import io
import json
import pickle
import tarfile
import zipfile

import numpy as np
import pytest
import torch
import yaml
from helpers.evaluation_results import result_of
from helpers.mutations import altered, damaged, fuzzed, survives, values
from helpers.official_snapshot import Network, pickled
from helpers.small_run import SMALL
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin
from safetensors import safe_open
from safetensors.torch import save

from gantx import checkpoint, models
from gantx.config import presets
from gantx.config.schema import DataConfig
from gantx.data.pixels import to_rgb
from gantx.data.sources import open_source
from gantx.evaluation import reference, reports
from gantx.evaluation.image_sets import open_images
from gantx.evaluation.onnx_features import OnnxFeatures
from gantx.evaluation.results import read_result
from gantx.evaluation.scores import Score
from gantx.generation import provenance, sampling
from gantx.generation.latents import read_latents
from gantx.importing import reading
from gantx.io.decoding import FORMATS, decoded
from gantx.training import metrics_file

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def picture(form="PNG", size=(9, 7), **how):
    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8)
    written = io.BytesIO()
    Image.fromarray(pixels).save(written, "PPM" if form == "PNM" else form, **how)
    return written.getvalue()


def picture_of_ours(seeds="0-2"):
    about = PngImagePlugin.PngInfo()
    for key, value in {"seeds": seeds, "digest": "0" * 64, "images": "12", "truncation": "0.7"}.items():
        about.add_text(f"gantx:{key}", value)
    return picture(pnginfo=about)


# --- checkpoints ------------------------------------------------------------------------------------------


CONFIG = presets.load("transgan-s", overrides=SMALL)


@pytest.fixture(scope="module")
def small_checkpoint(folder):
    """The bytes of a small checkpoint, its metadata as trees, and its tensors."""
    torch.manual_seed(0)
    network = models.build(CONFIG.generator)
    tensors = {f"generator_ema.{name}": tensor for name, tensor in network.state_dict().items()}
    path = folder / "original.safetensors"
    checkpoint.write(
        path,
        tensors,
        config=CONFIG,
        progress={"images": 8, "iteration": 1, "seconds": 1.5, "observations": {"a": 1}},
        data={"name": "shapes", "digest": "d", "images": 37},
    )
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    trees = {key: json.loads(metadata[key]) for key in ("config", "progress", "data", "versions", "digests")}
    return path.read_bytes(), trees, tensors


@fuzzed
@given(st.data())
def test_checkpoints(small_checkpoint, folder, data):
    original, trees, tensors = small_checkpoint
    path = folder / "checkpoint.safetensors"
    if data.draw(st.booleans()):
        length = 8 + int.from_bytes(original[:8], "little")
        header = data.draw(damaged([original[:length]]))
        path.write_bytes(header + original[length:])
        survives(lambda: checkpoint.read_part(checkpoint.read_header(path), "generator_ema"))
    else:
        changed = data.draw(altered(trees))
        metadata = {"format": "gantx", "format_version": "1"}
        if isinstance(changed, dict):
            metadata |= {key: json.dumps(tree) for key, tree in changed.items()}
        path.write_bytes(save(tensors, metadata))
        survives(lambda: sampling.open_generator(path, CPU))


# --- pictures ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pictures():
    made = [picture(form) for form in FORMATS if form not in ("MPO",) and form in _WRITABLE]
    return [
        *made,
        picture_of_ours(),
        picture_of_ours("0-99999999999"),
        picture("TIFF", compression="tiff_lzw"),
    ]


_WRITABLE = {"PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "QOI", "AVIF"}


@fuzzed
@given(st.data())
def test_images(pictures, data):
    survives(decoded, data.draw(damaged(pictures)), "x.png", to_rgb)


@fuzzed
@given(st.data())
def test_pictures_of_ours(folder, data):
    path = folder / "ours.png"
    seeds = data.draw(
        st.text(st.sampled_from("0123456789-, "), max_size=30).filter(lambda text: text.strip())
    )
    path.write_bytes(data.draw(damaged([picture_of_ours(seeds)]) | st.just(picture_of_ours(seeds))))
    survives(provenance.read_pictures, path)


# --- zips -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def zips():
    made = []
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA):
        written = io.BytesIO()
        with zipfile.ZipFile(written, "w", method) as archive:
            for name in ("a/1.png", "b/2.png"):
                archive.writestr(name, picture_of_ours())
            archive.writestr("b/notes.txt", "x" * 100)
        made.append(written.getvalue())
    return made


@fuzzed
@given(st.data())
def test_zips(zips, folder, data):
    path = folder / "images.zip"
    path.write_bytes(data.draw(damaged(zips)))

    def read_all():
        source = open_source(DataConfig(source=str(path)))
        assert all(name.isprintable() for name in source.notes)
        open_images(path)

    survives(read_all)
    survives(provenance.read_pictures, path)


# --- configurations ---------------------------------------------------------------------------------------

PARTS = {key: CONFIG.model_dump(mode="json")[key] for key in ("data", "ema", "augment", "optimizer")}
_YAML = st.text(st.sampled_from("ab1-:[]{}!&*|>'\"#%@`,? \n\t\\x0.e~<="), max_size=60)


@fuzzed
@given(st.data())
def test_configurations(folder, data):
    path = folder / "config.yaml"
    kind = data.draw(st.sampled_from(("bytes", "tree", "text")))
    if kind == "bytes":
        path.write_bytes(data.draw(damaged([b"training: &a {kimg: 3, seed: 0x1f}\nema: {beta: 0.5}\n"])))
    elif kind == "tree":
        path.write_text(yaml.safe_dump(data.draw(altered(PARTS)), allow_unicode=True), "utf-8", "replace")
    else:
        path.write_text(data.draw(_YAML), encoding="utf-8")
    survives(lambda: presets.load(files=[path]))


@fuzzed
@given(
    st.sampled_from(("training.kimg", "training.seed", "data.ratio", "generator.depths", "augment", "a", "")),
    _YAML | st.text(max_size=30) | values.map(json.dumps),
)
def test_overrides(key, value):
    survives(lambda: presets.load(base=CONFIG, overrides=[f"{key}={value}"]))


# --- JSON -------------------------------------------------------------------------------------------------

RESULT = json.loads(reports.as_json(result_of(Score("fid", 20.0, 19.0, 21.0), Score("kid", 0.01))))


@fuzzed
@given(st.data())
def test_results(folder, data):
    path = folder / "eval.json"
    text = json.dumps(RESULT)
    path.write_bytes(data.draw(damaged([text.encode()]) | altered(RESULT).map(json.dumps).map(str.encode)))

    def read_and_show():
        result = read_result(path)
        reports.markdown(result)
        reports.junit(result, "x")

    survives(read_and_show)


LINE = {"kimg": 0.1, "images": 100, "seconds": 1.5, "scores": {"fid": 2.0}, "protocol_hash": "0" * 16}


@fuzzed
@given(st.data())
def test_lines_of_metrics(data):
    line = data.draw(altered(LINE).map(json.dumps) | damaged([json.dumps(LINE).encode()]).map(_text))
    for _, found in metrics_file.kept_lines([line], 1000):
        assert 0 <= found["images"] <= 1000
        if metrics_file.is_score(found):
            assert {type(value) for value in found["scores"].values()} <= {int, float}
        if metrics_file.is_report(found):
            assert found["seconds"] >= 0


def _text(content):
    return content.decode("utf-8", "replace")


# --- arrays and statistics --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sets(folder):
    """Image sets in one file: .npy, .npz, .tar, .parquet, .mdb."""
    images = np.zeros((2, 4, 4, 3), np.uint8)
    packed, shard = io.BytesIO(), io.BytesIO()
    np.savez_compressed(packed, images=images, labels=np.arange(2))
    with tarfile.open(fileobj=shard, mode="w") as archive:
        for name in ("0.png", "0.cls", "1.png", "1.cls"):
            content = b"7" if name.endswith("cls") else picture()
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return {
        ".npy": [npy(images)],
        ".npz": [packed.getvalue()],
        ".tar": [shard.getvalue()],
        ".parquet": tables(),
        ".mdb": [database(folder)],
    }


def tables():
    """Parquet files of the same rows: packed in two ways, and not."""
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = arrow.table({"image": [{"bytes": picture(), "path": "a"}] * 3, "label": [0, 1, 1]})
    made = []
    for how in ({}, {"compression": "zstd", "row_group_size": 2}, {"compression": "none", "version": "1.0"}):
        written = io.BytesIO()
        parquet.write_table(table, written, **how)
        made.append(written.getvalue())
    return made


def database(folder):
    """An LMDB file with values in a leaf and beside it."""
    lmdb = pytest.importorskip("lmdb")
    (folder / "database").mkdir()
    with lmdb.open(str(folder / "database"), map_size=2**20) as opened, opened.begin(write=True) as writer:
        for number in range(80):
            writer.put(f"{number:04}".encode(), picture(size=(9, 7) if number % 9 else (40, 40)))
    return (folder / "database" / "data.mdb").read_bytes()


@fuzzed
@given(st.data())
def test_image_sets(sets, folder, data):
    suffix = data.draw(st.sampled_from((".npy", ".npz", ".tar")))
    read_damaged(folder / f"set{suffix}", data.draw(damaged(sets[suffix])))


@pytest.mark.parametrize("suffix", [".parquet", ".mdb"])
@fuzzed
@given(data=st.data())
def test_tables_and_databases(sets, folder, suffix, data):
    read_damaged(folder / f"set{suffix}", data.draw(damaged(sets[suffix])))


def read_damaged(path, content):
    path.write_bytes(content)

    def read_all():
        source = open_source(DataConfig(source=str(path)))
        for index in range(min(len(source), 4)):
            source.label(index)
            with contextlib.suppress(Exception):  # as the protocol says of an image that cannot be read
                source.read(index)

    survives(read_all)


def npy(array):
    written = io.BytesIO()
    np.save(written, array)
    return written.getvalue()


@fuzzed
@given(damaged([npy(np.zeros((2, 3), np.float32)), npy(np.zeros((2, 4, 4, 3), np.uint8))]))
def test_arrays(folder, content):
    path = folder / "x.npy"
    path.write_bytes(content)
    survives(lambda: read_latents(path, (3,)))
    survives(open_images, path)


@pytest.fixture(scope="module")
def statistics(folder):
    moments = {"mean": torch.zeros(3, dtype=torch.float64), "covariance": torch.eye(3, dtype=torch.float64)}
    path = folder / "original.stats"
    features = torch.zeros(4, 3)
    stamp = {"extractor": "random", "n_ref": 4, "ratio": 1.0}
    reference.write(path, reference.Reference(4, *moments.values(), features, stamp))
    written = io.BytesIO()
    np.savez_compressed(written, mu=np.zeros(3), sigma=np.eye(3))
    return [path.read_bytes(), written.getvalue()]


@fuzzed
@given(st.data())
def test_statistics(statistics, folder, data):
    path = folder / "x.stats"
    path.write_bytes(data.draw(damaged(statistics)))

    def read_and_use():
        found = reference.read(path)
        assert found.count is None or found.count >= 2
        found.covariance_by(0)

    survives(read_and_use)


# --- official files ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def official():
    made = []
    for zipped in (True, False):
        written = io.BytesIO()
        content = {"gen_state_dict": {"a": torch.zeros(3), "b": torch.zeros(2, 2)[:, 0]}, "epoch": 3}
        torch.save(content, written, _use_new_zipfile_serialization=zipped)
        made.append(written.getvalue())
    with pytest.MonkeyPatch.context() as patch:
        state = {"mapping.weight": torch.zeros(3), "w_avg": torch.zeros(2)}
        made.append(pickled(patch, {"G": Network(state, {"z_dim": 4}), "cur": 3}))
    return [*made, pickle.dumps({"a": [1, 2.5, ("x", None)], "b": {3: b"y"}}, 2)]


@fuzzed
@given(st.data())
def test_official_files(official, folder, data):
    path = folder / "official.pkl"
    path.write_bytes(data.draw(damaged(official) | st.binary(max_size=60).map(lambda end: b"\x80\x04" + end)))
    survives(reading.read_torch, path)
    survives(reading.read_snapshot, path)


# --- ONNX -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def network_file():
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    helper, kinds = onnx.helper, onnx.TensorProto
    weights = onnx.numpy_helper.from_array(np.ones((3, 4), np.float32), "w")
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["m"], axes=[2, 3], keepdims=0),
        helper.make_node("MatMul", ["m", "w"], ["y"]),
    ]
    ends = (
        [helper.make_tensor_value_info("x", kinds.FLOAT, ["b", 3, None, None])],
        [helper.make_tensor_value_info("y", kinds.FLOAT, ["b", 4])],
    )
    graph = helper.make_graph(nodes, "g", *ends, [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    return model.SerializeToString()


@fuzzed
@given(st.data())
def test_feature_networks(network_file, folder, data):
    path = folder / "x.onnx"
    path.write_bytes(data.draw(damaged([network_file])))
    survives(OnnxFeatures, path, CPU)
