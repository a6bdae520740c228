"""Feature networks from ONNX files: any that keeps the contract."""

import sys

import pytest
import torch
from helpers.golden_file import ROOT
from torch import nn

from gantx.errors import DataError, MissingError
from gantx.evaluation.features import open_features

CPU = torch.device("cpu")


class Small(nn.Module):
    """Images of any size to 6 features."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(3, 6, 3)

    def forward(self, images):
        return torch.relu(self.convolution(images / 255)).mean((2, 3))


def export(network, path, shape=(2, 3, 16, 16), open_sizes=(0,)):
    """Write `network` as ONNX; the sizes of the input that `open_sizes` numbers are left open."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    shapes = ({size: torch.export.Dim("batch" if size == 0 else f"size{size}") for size in open_sizes},)
    torch.onnx.export(
        network.eval(), (torch.zeros(shape),), path, dynamo=True, dynamic_shapes=shapes, verbose=False
    )
    return path


def opened(path):
    return open_features(str(path), resize="clean", weights=None, device=CPU, allow_unverified=False)


@pytest.fixture
def small():
    torch.manual_seed(0)
    return Small().eval()


def images(count=5, size=16):
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8)


@pytest.mark.parametrize("open_sizes", [(0,), ()])
def test_an_exported_network_gives_its_own_features(small, tmp_path, open_sizes):
    network = opened(export(small, tmp_path / "small.onnx", open_sizes=open_sizes))
    assert (network.name, network.dim, network.has_logits) == ("small", 6, False)
    pixels = images()
    with torch.no_grad():
        expected = small(pixels.float())
    torch.testing.assert_close(network(pixels).features, expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(DataError, match="takes images of 16×16 pixels, but these are 8×8"):
        network(images(size=8))


def test_a_network_of_any_size_takes_any_size(small, tmp_path):
    network = opened(export(small, tmp_path / "small.onnx", open_sizes=(0, 2, 3)))
    for size in (8, 16):
        pixels = images(size=size)
        with torch.no_grad():
            torch.testing.assert_close(network(pixels).features, small(pixels.float()), rtol=1e-5, atol=1e-6)


def test_an_onnx_network_without_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    (tmp_path / "x.onnx").write_bytes(b"")
    with pytest.raises(MissingError, match=r"gantx\[onnx\]"):
        opened(tmp_path / "x.onnx")


def test_networks_that_break_the_contract(tmp_path):
    class Map(nn.Module):
        def forward(self, x):
            return x.mean(1)

    class Grey(nn.Module):
        def forward(self, x):
            return x.flatten(1)

    class Pair(nn.Module):
        def forward(self, x, y):
            return (x + y).flatten(1)

    class Integers(nn.Module):
        def forward(self, x):
            return x.flatten(1).long()

    for name, network, shape in (
        ("map", Map(), (2, 3, 8, 8)),
        ("grey", Grey(), (2, 1, 8, 8)),
        ("integers", Integers(), (2, 3, 8, 8)),
    ):
        with pytest.raises(DataError, match=r"features \[B, D\]"):
            opened(export(network, tmp_path / f"{name}.onnx", shape))
    torch.onnx.export(
        Pair().eval(), (torch.zeros(2, 3, 8, 8),) * 2, tmp_path / "pair.onnx", dynamo=True, verbose=False
    )
    with pytest.raises(DataError, match="one input and one output"):
        opened(tmp_path / "pair.onnx")


def test_a_network_that_wants_another_type_of_image(tmp_path):
    class Bytes(nn.Module):
        def forward(self, x):
            return x.float().mean((2, 3))

    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    torch.onnx.export(Bytes().eval(), (images,), tmp_path / "bytes.onnx", dynamo=True, verbose=False)
    with pytest.raises(DataError, match=r"takes \(uint8\) images"):
        opened(tmp_path / "bytes.onnx")


def test_the_number_of_features_must_not_depend_on_the_image(tmp_path):
    class Flat(nn.Module):
        def forward(self, x):
            return nn.functional.avg_pool2d(x, 16).flatten(1)

    # Where the file leaves a size open, it is tried with 64.
    network = opened(export(Flat(), tmp_path / "flat.onnx", (2, 3, 32, 64), open_sizes=(0, 2)))
    with pytest.raises(DataError, match=r"gives 12 features .* and 48 for others"):
        network(torch.zeros(2, 3, 16, 64))


def test_the_digest_covers_weights_that_an_onnx_file_keeps_elsewhere(small, tmp_path):
    pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    weight = onnx.numpy_helper.from_array(torch.ones(400, 3).numpy(), "weight")
    onnx.external_data_helper.set_external_data(weight, "other-name.bin")
    float32 = onnx.TensorProto.FLOAT
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            [
                onnx.helper.make_node("GlobalAveragePool", ["x"], ["pooled"]),
                onnx.helper.make_node("Flatten", ["pooled"], ["flat"]),
                onnx.helper.make_node("Gemm", ["flat", "weight"], ["y"], transB=1),
            ],
            "graph",
            [onnx.helper.make_tensor_value_info("x", float32, [None, 3, None, None])],
            [onnx.helper.make_tensor_value_info("y", float32, [None, 400])],
            [weight],
        ),
        opset_imports=[onnx.helper.make_opsetid("", 17)],
        ir_version=9,
    )
    onnx.save(model, tmp_path / "x.onnx")
    before = opened(tmp_path / "x.onnx")
    assert before.dim == 400
    (tmp_path / "other-name.bin").write_bytes(torch.zeros(400, 3).numpy().tobytes())
    after = opened(tmp_path / "x.onnx")
    assert float(after(images()).features.abs().sum()) == 0
    assert after.digest != before.digest


def test_a_file_that_is_no_network(tmp_path):
    pytest.importorskip("onnxruntime")
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(DataError, match=r"text\.onnx is not an ONNX model"):
        opened(tmp_path / "text.onnx")


def test_the_cifar_network_beside_the_repository(tmp_path):
    folder = ROOT.parent / "shared" / "eval"
    if not folder.is_dir():
        pytest.skip("the CIFAR-10 feature network is not beside the repository")
    sys.path.insert(0, str(folder))
    try:
        import cifar_fd
    finally:
        sys.path.remove(str(folder))
    theirs = cifar_fd.load_network()
    network = opened(export(theirs, tmp_path / "cifar.onnx", (2, 3, 32, 32)))
    pixels = cifar_fd.read_images(ROOT.parent / "shared" / "data" / "cifar10-test.zip", 200)
    expected = cifar_fd.features(pixels, theirs)
    torch.testing.assert_close(network(pixels).features.double(), expected, rtol=1e-5, atol=1e-5)
