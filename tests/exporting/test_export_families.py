"""Every family in onnxruntime and as a reloaded torch.export program: the same images at any batch size.

All are conditional, with a label for no class; one is not.
"""

import json
import re
import zipfile
from pathlib import Path

import pytest
import torch
from helpers.exported_networks import SETTINGS, build

from gantx.errors import UsageError
from gantx.exporting import onnx, parity, program
from gantx.exporting.classes import mixed_labels
from gantx.exporting.generator import ExportedGenerator, latents_of, morph_of
from gantx.generation import sampling
from gantx.generation.truncation import Truncation
from gantx.models import interfaces

LABELS = 3
IN_EVERY_RUN = ("stylegan2", "transgan", "implicit")  # the others take longest
NAMES = {"gantx.classes": '["cat", "dog"]'}


@pytest.fixture(
    scope="module",
    params=[
        *(
            pytest.param((family, LABELS), marks=() if family in IN_EVERY_RUN else pytest.mark.slow)
            for family in SETTINGS
        ),
        ("transgan", 0),
    ],
    ids="{0[0]}-{0[1]}".format,
)
def traced(request):
    """A generator, eight latents and labels, and its graph."""
    generator = build(*request.param)
    exported = ExportedGenerator(generator).eval()
    inputs = exported.inputs(8)
    return generator, inputs, program.trace(exported, inputs)


def expected(generator):
    """What an exported program is compared with, through the network itself."""
    return lambda z, *label: generator(z, None, *label)


def documented(name):
    """Run the example of docs/export.md that reads a file; its images."""
    text = (Path(__file__).parents[2] / "docs" / "export.md").read_text(encoding="utf-8")
    (example,) = [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if name in block]
    names = {}
    exec(example, names)
    return names["images"]


def test_as_onnx(traced, tmp_path, monkeypatch):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    proto = pytest.importorskip("onnx")
    generator, inputs, graph = traced
    path = tmp_path / ("classes.onnx" if generator.classes else "model.onnx")
    onnx.write_onnx(path, graph, NAMES)
    run, _ = onnx.open_onnx(path)
    found = parity.compare(expected(generator), run, inputs)
    assert [difference.batch for difference in found] == [1, 3, 8]
    assert max(difference.relative for difference in found) <= 1e-4
    model = proto.load(path)
    assert {node.domain for node in model.graph.node} == {""}
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 20)]
    shapes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    label = {"label": ["batch"]} if generator.classes else {}
    assert shapes == {
        "z": ["batch", *generator.latent_shape], **label, "images": ["batch", *generator.image_shape]
    }  # fmt: skip
    assert {prop.key: prop.value for prop in model.metadata_props} == NAMES
    assert b"/gantx/" not in path.read_bytes()  # no path of the code it was made by
    monkeypatch.chdir(tmp_path)
    assert documented(path.name).shape == (4, *generator.image_shape)
    for unknown in (-1, LABELS) if generator.classes else ():
        with pytest.raises(
            onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument, match="out of data bo"
        ):
            run(inputs[0][:2], torch.tensor([0, unknown]))


def test_as_a_program(traced, tmp_path, monkeypatch):
    generator, inputs, graph = traced
    path = tmp_path / ("classes.pt2" if generator.classes else "model.pt2")
    program.write_program(path, graph, NAMES)
    run = program.open_program(path)
    found = parity.compare(expected(generator), run, inputs)
    assert max(difference.relative for difference in found) <= 1e-4
    extra = {program.EXTRA: ""}
    torch.export.load(path, extra_files=extra)
    assert json.loads(extra[program.EXTRA]) == NAMES
    with zipfile.ZipFile(path) as archive:
        assert not [name for name in archive.namelist() if b"/gantx/" in archive.read(name)]
    monkeypatch.chdir(tmp_path)
    assert documented(path.name).shape == (4, *generator.image_shape)
    for unknown in (-1, LABELS) if generator.classes else ():
        with pytest.raises(IndexError, match="out of range"):
            run(inputs[0][:2], torch.tensor([0, unknown]))


@pytest.mark.parametrize("count", [1, 2, 3, 20])
def test_labels_of_a_comparison_differ_within_a_batch(count):
    labels = mixed_labels(count, 8)
    assert int(labels.min()) >= 0
    assert int(labels.max()) == count - 1  # the label for no class, where there is one, is among them
    assert len(set(labels[:3].tolist())) == min(count, 3)


def test_range_and_truncation_are_built_in(tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    generator, truncation = build("vitgan", LABELS), Truncation(0.5, 1)
    exported = ExportedGenerator(generator, "uint8", truncation).eval()
    z, labels = inputs = exported.inputs(8)
    onnx.write_onnx(tmp_path / "m.onnx", program.trace(exported, inputs), {})
    run, _ = onnx.open_onnx(tmp_path / "m.onnx")
    images = run(z, labels)
    how = {"batch": 8, "device": torch.device("cpu"), "truncation": truncation, "labels": labels}
    generated = next(sampling.from_latents(generator, z, **how))
    assert images.dtype == torch.uint8
    assert int((images.int() - sampling.quantise(generated).int()).abs().max()) <= 1
    assert float((images == sampling.quantise(generated)).float().mean()) > 0.99
    unit = ExportedGenerator(generator, "unit", truncation)(z, labels)
    torch.testing.assert_close(unit, ((generated + 1) / 2).clamp(0, 1), atol=1e-5, rtol=0)


def test_only_networks_with_styles_are_truncated():
    with pytest.raises(UsageError, match="needs a network with styles"):
        ExportedGenerator(build("transgan"), truncation=Truncation(0.5))
    with pytest.raises(UsageError, match="99 layers"):
        ExportedGenerator(build("stylegan2"), truncation=Truncation(0.5, 99))


@pytest.mark.parametrize("labels", [0, LABELS])
@pytest.mark.parametrize("family", ["transgan", "vitgan"])
def test_a_morph_begins_and_ends_at_its_seeds_and_classes(family, labels):
    generator = build(family, labels)
    start, end = latents_of(generator, [3, 3]), latents_of(generator, [4, 4])
    inputs = [start, end, torch.tensor([0.0, 1.0])]
    if isinstance(generator, interfaces.StyleBased):
        inputs.append(torch.ones(2))
    of_ends = [torch.tensor([2, 2]), torch.tensor([1, 1])] if labels else []
    generated = morph_of(generator)(*inputs, *of_ends)
    given = {"labels": torch.tensor([2, 1])} if labels else {}
    expected = sampling.quantise(generator(torch.stack([start[0], end[1]]), **given))
    assert int((generated.int() - expected.int()).abs().max()) <= 1
