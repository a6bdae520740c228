"""Every family in onnxruntime and as a reloaded torch.export program: the same images at any batch size."""

import re
import zipfile
from pathlib import Path

import pytest
import torch
from helpers.exported_networks import SETTINGS, build

from gantx.errors import UsageError
from gantx.exporting import onnx, parity, program
from gantx.exporting.generator import ExportedGenerator, Morph, latents_of
from gantx.generation import sampling
from gantx.generation.truncation import Truncation
from gantx.models import interfaces

SEEDS = range(8)


@pytest.fixture(scope="module", params=SETTINGS)
def traced(request):
    """A generator, eight latents, and its graph."""
    generator = build(request.param)
    z = latents_of(generator, SEEDS)
    return generator, z, program.trace(ExportedGenerator(generator).eval(), [z])


def documented(name):
    """Run the example of docs/export.md that reads a file; its images."""
    text = (Path(__file__).parents[2] / "docs" / "export.md").read_text(encoding="utf-8")
    (example,) = [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if name in block]
    names = {}
    exec(example, names)
    return names["images"]


def test_as_onnx(traced, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    proto = pytest.importorskip("onnx")
    generator, z, graph = traced
    path = tmp_path / "model.onnx"
    onnx.write_onnx(path, graph, {"gantx.preset": "small"})
    run, _ = onnx.open_onnx(path)
    found = parity.compare(generator, run, [z])
    assert [difference.batch for difference in found] == [1, 3, 8]
    assert max(difference.relative for difference in found) <= 1e-4
    model = proto.load(path)
    assert {node.domain for node in model.graph.node} == {""}
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 20)]
    (given,), (generated,) = model.graph.input, model.graph.output
    sizes = [dim.dim_param or dim.dim_value for dim in given.type.tensor_type.shape.dim]
    assert (given.name, sizes) == ("z", ["batch", *generator.latent_shape])
    sizes = [dim.dim_param or dim.dim_value for dim in generated.type.tensor_type.shape.dim]
    assert (generated.name, sizes) == ("images", ["batch", *generator.image_shape])
    assert {prop.key: prop.value for prop in model.metadata_props} == {"gantx.preset": "small"}
    assert b"/gantx/" not in path.read_bytes()  # no path of the code it was made by
    monkeypatch.chdir(tmp_path)
    assert documented("model.onnx").shape == (4, *generator.image_shape)


def test_as_a_program(traced, tmp_path, monkeypatch):
    generator, z, graph = traced
    path = tmp_path / "model.pt2"
    program.write_program(path, graph, {"gantx.preset": "small"})
    found = parity.compare(generator, program.open_program(path), [z])
    assert max(difference.relative for difference in found) <= 1e-4
    extra = {program.EXTRA: ""}
    torch.export.load(path, extra_files=extra)
    assert extra == {program.EXTRA: '{"gantx.preset": "small"}'}
    with zipfile.ZipFile(path) as archive:
        assert not [name for name in archive.namelist() if b"/gantx/" in archive.read(name)]
    monkeypatch.chdir(tmp_path)
    assert documented("model.pt2").shape == (4, *generator.image_shape)


def test_range_and_truncation_are_built_in(tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    generator, truncation = build("vitgan"), Truncation(0.5, 1)
    z = latents_of(generator, SEEDS)
    exported = ExportedGenerator(generator, "uint8", truncation).eval()
    onnx.write_onnx(tmp_path / "m.onnx", program.trace(exported, [z]), {})
    run, _ = onnx.open_onnx(tmp_path / "m.onnx")
    images = run(z)
    cpu = torch.device("cpu")
    generated = next(sampling.from_latents(generator, z, batch=8, device=cpu, truncation=truncation))
    assert images.dtype == torch.uint8
    assert int((images.int() - sampling.quantise(generated).int()).abs().max()) <= 1
    assert float((images == sampling.quantise(generated)).float().mean()) > 0.99
    unit = ExportedGenerator(generator, "unit", truncation)(z)
    torch.testing.assert_close(unit, ((generated + 1) / 2).clamp(0, 1), atol=1e-5, rtol=0)


def test_only_networks_with_styles_are_truncated():
    with pytest.raises(UsageError, match="needs a network with styles"):
        ExportedGenerator(build("transgan"), truncation=Truncation(0.5))
    with pytest.raises(UsageError, match="99 layers"):
        ExportedGenerator(build("stylegan2"), truncation=Truncation(0.5, 99))


@pytest.mark.parametrize("family", ["transgan", "vitgan"])
def test_a_morph_begins_and_ends_at_its_seeds(family):
    generator = build(family)
    start, end = latents_of(generator, [3, 3]), latents_of(generator, [4, 4])
    inputs = [start, end, torch.tensor([0.0, 1.0])]
    if isinstance(generator, interfaces.StyleBased):
        inputs.append(torch.ones(2))
    generated = Morph(generator)(*inputs)
    expected = sampling.quantise(generator(torch.stack([start[0], end[1]])))
    assert int((generated.int() - expected.int()).abs().max()) <= 1
