"""torch.export: tracing a network, and .pt2 files."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from gantx.exporting.parity import Run

EXTRA = "gantx.json"  # extra file of a .pt2 with the metadata
# Node metadata about the traced source code, which includes local paths.
_SOURCE_KEYS = ("stack_trace", "nn_module_stack", "source_fn_stack", "from_node", "torch_fn")


def trace(network: nn.Module, inputs: Sequence[Tensor]) -> ExportedProgram:
    """Trace a network with a dynamic batch size.

    Args:
        network: called with `inputs` as positional arguments.
        inputs: all with the same batch size of at least two; a dimension of one is specialized.
    """
    any_batch = tuple({0: Dim.DYNAMIC} for _ in inputs)
    # strict: networks take len() of their batch, which only Dynamo keeps dynamic.
    with quiet():
        program = torch.export.export(network, tuple(inputs), dynamic_shapes=any_batch, strict=True)
    for module in program.graph_module.modules():
        for node in getattr(module, "graph", torch.fx.Graph()).nodes:
            for key in _SOURCE_KEYS:
                node.meta.pop(key, None)
    return program


def write_program(path: Path, program: ExportedProgram, metadata: Mapping[str, str]) -> None:
    """Write a .pt2 with `metadata` as JSON in its extra file `gantx.json`."""
    content = io.BytesIO()  # PyTorch's own writer ends the process when the disk is full
    with quiet():
        torch.export.save(program, content, extra_files={EXTRA: json.dumps(metadata)})
    path.write_bytes(content.getbuffer())


def open_program(path: Path) -> Run:
    """Load a .pt2 without gantx code, as its users do."""
    with quiet():
        run: Run = torch.export.load(path).module()
    return run


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress warnings and log messages of the exporters."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
