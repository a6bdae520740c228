"""torch.export: a network as a graph, and that graph as a .pt2 file."""

from __future__ import annotations

import contextlib
import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from gantx.exporting.parity import Run

EXTRA = "gantx.json"  # where a .pt2 keeps what it says about itself
# What a graph tells about the source code it was made from: paths of this machine among them.
_TOLD = ("stack_trace", "nn_module_stack", "source_fn_stack", "from_node", "torch_fn")


def trace(network: nn.Module, inputs: Sequence[Tensor]) -> ExportedProgram:
    """The graph of a network, for any number of rows.

    Args:
        network: takes the inputs one after the other.
        inputs: each with the same number of rows, at least two: a dimension of one is taken for a constant.
    """
    any_batch = tuple({0: Dim.DYNAMIC} for _ in inputs)
    # strict: the networks ask for len() of their batch, which only the compiler's front end leaves open.
    with quiet():
        program = torch.export.export(network, tuple(inputs), dynamic_shapes=any_batch, strict=True)
    for module in program.graph_module.modules():
        for node in getattr(module, "graph", torch.fx.Graph()).nodes:
            for told in _TOLD:
                node.meta.pop(told, None)
    return program


def write_program(path: Path, program: ExportedProgram, metadata: Mapping[str, str]) -> None:
    """Write a .pt2 with `metadata` as JSON in its extra file `gantx.json`."""
    with quiet():
        torch.export.save(program, path, extra_files={EXTRA: json.dumps(metadata)})


def open_program(path: Path) -> Run:
    """Load a .pt2 of our own making, as its users will."""
    with quiet():
        run: Run = torch.export.load(path).module()
    return run


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep exporters from telling users what only their authors can use."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
