"""ONNX export with standard operators, and inference in onnxruntime.

Needs the packages of the `onnx` extra, which the rest of gantx does not import.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from gantx.errors import CheckFailed, MissingError
from gantx.exporting.parity import Run
from gantx.exporting.program import quiet

OPSET = 20
OUTPUT = "images"
_BATCH = "batch"


def require_packages() -> None:
    """MissingError unless the packages of the `onnx` extra are installed."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        try:
            importlib.import_module(name)
        except ImportError as problem:
            raise MissingError(
                f'ONNX needs the package {name}, which is not installed: pip install "gantx[onnx]"'
            ) from problem


def write_onnx(path: Path, program: ExportedProgram, metadata: Mapping[str, str]) -> None:
    """Write a graph as ONNX: inputs keep their names, the output is `images`, the first axis `batch`.

    Raises:
        CheckFailed: the graph needs operators outside of the ONNX standard.
    """
    import onnx

    with quiet():
        exported = torch.onnx.export(
            program, dynamo=True, opset_version=OPSET, external_data=False, verbose=False
        )
        assert exported is not None
        model = exported.model_proto
    own = {node.domain for node in _nodes(model.graph)} | {function.domain for function in model.functions}
    if own - {"", "ai.onnx"}:
        raise CheckFailed(
            f"the network needs operators of {', '.join(sorted(own - {''}))}, not of ONNX itself"
        )
    _forget_origin(model.graph)
    _rename(model.graph)
    onnx.helper.set_model_props(model, dict(metadata))
    onnx.checker.check_model(model)
    onnx.save_model(model, path)


def open_onnx(path: Path) -> tuple[Run, str]:
    """Load an ONNX file in onnxruntime on the CPU: a callable, and the name and version of the runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors only
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [wanted.name for wanted in session.get_inputs()]

    def run(*inputs: Tensor) -> Tensor:
        given = {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}
        return torch.from_numpy(session.run(None, given)[0])

    return run, f"onnxruntime {onnxruntime.__version__}"


def _nodes(graph: Any) -> list[Any]:
    """All nodes of a graph and of its subgraphs."""
    inner = [attribute.g for node in graph.node for attribute in node.attribute if attribute.HasField("g")]
    return [*graph.node, *(node for part in inner for node in _nodes(part))]


def _forget_origin(graph: Any) -> None:
    """Remove the metadata that PyTorch adds to a graph, such as lines of source code."""
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")


def _rename(graph: Any) -> None:
    """Rename the output and the dynamic axis, whose names PyTorch generates."""
    (output,) = graph.output
    (symbol,) = {given.type.tensor_type.shape.dim[0].dim_param for given in graph.input}
    for node in graph.node:
        node.output[:] = [OUTPUT if name == output.name else name for name in node.output]
        node.input[:] = [OUTPUT if name == output.name else name for name in node.input]
    output.name = OUTPUT
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = dim.dim_param.replace(symbol, _BATCH)
