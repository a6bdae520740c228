"""torch.export programs (.pt2), opened without running code from the file.

torch.export.load trusts its file: it unpickles example inputs, old-style weights and opaque constants,
evaluates symbolic sizes and guards as Python, imports modules that a tree of outputs names, links compiled
libraries, and executes source text that it builds from the graph. So torch never sees the file itself. What
a network of one input and one output needs (graph, plain weights, plain constants) is taken out, every text
in it is checked against what its place may hold, and torch gets a new archive made of that.
"""

from __future__ import annotations

import io
import json
import logging
import re
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gantx.errors import DataError

_MODEL = "models/model.json"
_CONFIGS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
_PLAIN = re.compile(
    r"\.data/version|archive_format|archive_version|byteorder|data/(weights/weight|constants/tensor)_\d+",
    re.A,
)
_SAMPLES = "data/sample_inputs/model.pt"  # must be there; empty means none

# What a text may be, by the key it stands under. Names become Python identifiers.
_NAME = re.compile(r"([A-Za-z_]\w*)?", re.A)
_NAMES = frozenset({"name", "as_name"})
# The arithmetic of sympy's classes and of symbols such as s77, with keywords such as positive=True.
_EXPRESSION = re.compile(r"(?:'\w++'|[A-Z]\w*+|[su]\d++|[a-z]\w*(?==\w)|\d++|[\s+\-*/%(),<>=&|~])*+", re.A)
# Operations on tensors and sizes, without the two that open files.
_OPERATION = re.compile(
    r"torch\.ops\.(?:aten|prims|torchvision)\.(?!save\b|from_file\b)\w+\.\w+"
    r"|torch\.ops\.higher_order\.wrap_with_(?:set_grad_enabled|autocast)"
    r"|_operator\.(?:add|sub|mul|truediv|floordiv|mod|pow|neg|pos|eq|ne|lt|le|gt|ge|and_|or_|not_|getitem)"
    r"|math\.\w+|torch\.sym_\w+",
    re.A,
)
_OPERATIONS = frozenset({"target", "as_operator"})
_OTHER = re.compile(r"[\w.-]*", re.A)  # dotted names of weights, kinds of things, -Infinity
_FREE = frozenset({"as_string", "as_strings"})  # arguments of operations: torch quotes them

# One positional tensor in, one tensor out, in torch's notation for nested arguments.
_LEAF = '{"type": null, "context": null, "children_spec": []}'
_TREE_IN = (
    '[1, {"type": "builtins.tuple", "context": "null", "children_spec": ['
    f'{{"type": "builtins.tuple", "context": "null", "children_spec": [{_LEAF}]}}, '
    '{"type": "builtins.dict", "context": "[]", "children_spec": []}]}]'
)
_TREE_OUT = f"[1, {_LEAF}]"


class Program(NamedTuple):
    """A program of one tensor in and one tensor out.

    Attributes:
        run: the program; raises whatever its operations raise.
        shape: of its input; None where any size will do.
        dtype: of its input.
    """

    run: Callable[[Tensor], Tensor]
    shape: tuple[int | None, ...]
    dtype: torch.dtype


def open_program(path: Path, device: torch.device) -> Program:
    """Open a program of one tensor in and one tensor out.

    Args:
        path: a file written by `torch.export.save`.
        device: where weights and computation go, wherever they were when the program was exported.

    Raises:
        DataError: the file is damaged, of another kind, or holds anything that such a program does not need
            and that could run code.
    """
    said = _Said()
    logger = logging.getLogger("torch.export")
    logger.addFilter(said)
    try:
        clean = _rebuilt(path, device)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch speaks to those who export
            program = torch.export.load(clean)
            run = program.module()
        (name,) = program.graph_signature.user_inputs
        (images,) = [node.meta["val"] for node in program.graph.nodes if node.name == name]
        shape = tuple(size if isinstance(size, int) else None for size in images.shape)
        return Program(run, shape, images.dtype)
    except DataError:
        raise
    except Exception as problem:  # a damaged archive makes zipfile and torch raise almost anything
        cause = said.cause or problem
        first = " ".join(str(cause).split())[:200] or type(cause).__name__
        raise DataError(
            f"{path} is not a torch.export program that this torch {torch.__version__} can open ({first}): "
            "write it with torch.export.save"
        ) from problem
    finally:
        logger.removeFilter(said)


class _Said(logging.Filter):
    """Keeps a logger quiet, and the error that torch logs before it raises another without content.

    Attributes:
        cause: that error, or None.
    """

    cause: BaseException | None = None

    def filter(self, record: logging.LogRecord) -> bool:
        """Take the record out."""
        if record.exc_info:
            self.cause = record.exc_info[1]
        return False


def _rebuilt(path: Path, device: torch.device) -> io.BytesIO:
    """A new archive of the checked parts of the one at `path`."""

    def refuse(why: str) -> DataError:
        return DataError(f"{path} {why}, so it is not opened: export the network again with torch.export")

    rebuilt = io.BytesIO()
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(rebuilt, "w") as clean:
        # Everything lies in one folder, called as the file was when it was written.
        members = {name.partition("/")[2]: name for name in archive.namelist()}
        if any(name.startswith("data/aotinductor/") for name in members):
            raise refuse("holds compiled code")
        if _MODEL not in members:
            raise refuse("holds no program named model")
        for name, member in members.items():
            if _PLAIN.fullmatch(name):
                clean.writestr(f"program/{name}", archive.read(member))
        for name in _CONFIGS:
            config = json.loads(archive.read(members[name]))
            _check_payloads(config, refuse)
            clean.writestr(f"program/{name}", json.dumps(_placed(_checked(config, "", refuse), device)))
        model = _reduced(json.loads(archive.read(members[_MODEL])), refuse)
        clean.writestr(
            f"program/{_MODEL}", json.dumps(_with_trees(_placed(_checked(model, "", refuse), device)))
        )
        clean.writestr(f"program/{_SAMPLES}", b"")
    rebuilt.seek(0)
    return rebuilt


def _check_payloads(config: dict[str, Any], refuse: Callable[[str], DataError]) -> None:
    """Refuse weights and constants that are not plain bytes."""
    for payload in config["config"].values():
        if payload["use_pickle"] or not re.fullmatch(r"(weight|tensor)_\d+", payload["path_name"]):
            raise refuse("holds pickled weights or constants, which could run code")


def _reduced(model: dict[str, Any], refuse: Callable[[str], DataError]) -> dict[str, Any]:
    """The program without what only tells where it came from, and without guards: sizes are checked here."""
    module = model["graph_module"]
    signature = module["signature"]
    inputs = [spec for spec in signature["input_specs"] if "user_input" in spec]
    if _trains(module["graph"]) or any("buffer_mutation" in spec for spec in signature["output_specs"]):
        raise refuse("is a network in training mode, whose features depend on chance (call eval() first)")
    outputs = len(signature["output_specs"])
    if len(inputs) != 1 or outputs != 1:
        raise refuse(f"takes {len(inputs)} inputs and gives {outputs} outputs where one of each is wanted")
    return {
        "graph_module": {
            "graph": _without_metadata(module["graph"]),
            "signature": signature,
            "module_call_graph": [],
            "metadata": {},
            "treespec_namedtuple_fields": {},
        },
        "opset_version": model["opset_version"],
        "range_constraints": model["range_constraints"],
        "schema_version": model["schema_version"],
        "verifiers": model["verifiers"],
        "torch_version": "",
        "guards_code": [],
    }


def _trains(value: Any) -> bool:
    """Whether an operation of a graph, such as dropout or batch normalisation, is in training mode."""
    if isinstance(value, list):
        return any(_trains(item) for item in value)
    if not isinstance(value, dict):
        return False
    if value.get("name") in ("train", "training") and value.get("arg") == {"as_bool": True}:
        return True
    return any(_trains(item) for item in value.values())


def _without_metadata(value: Any) -> Any:
    """A graph, and the graphs within it, whose operations forget their source lines and modules."""
    if isinstance(value, list):
        return [_without_metadata(item) for item in value]
    if not isinstance(value, dict):
        return value
    kept = {key: _without_metadata(item) for key, item in value.items()}
    return {**kept, "metadata": {}} if "target" in kept else kept


def _checked(value: Any, key: str, refuse: Callable[[str], DataError]) -> Any:
    """`value` as it is, when no text within it is anything else than its place allows."""
    if isinstance(value, dict):
        for inner, item in value.items():
            _checked(inner, "expr_str" if key == "range_constraints" else "", refuse)
            _checked(item, inner, refuse)
    elif isinstance(value, list):
        for item in value:
            _checked(item, key, refuse)
    elif isinstance(value, str) and key not in _FREE:
        if key in _OPERATIONS:
            if not _OPERATION.fullmatch(value):
                raise refuse(f"uses the operation {value[:80]!r}, which is none on tensors")
        elif key == "expr_str":
            if not _EXPRESSION.fullmatch(value):
                raise refuse("holds an expression that is no arithmetic and could run code")
        elif not (_NAME if key in _NAMES else _OTHER).fullmatch(value):
            raise refuse(f"holds the name {value[:80]!r}, which could run code")
    return value


def _placed(value: Any, device: torch.device) -> Any:
    """`value` with every device in it replaced by `device`."""
    if isinstance(value, list):
        return [_placed(item, device) for item in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"type", "index"}:
        return {"type": device.type, "index": device.index}
    return {key: _placed(item, device) for key, item in value.items()}


def _with_trees(model: dict[str, Any]) -> dict[str, Any]:
    """`model` with the one way to call it that is known to be harmless."""
    call = {
        "inputs": [],
        "outputs": [],
        "in_spec": _TREE_IN,
        "out_spec": _TREE_OUT,
        "forward_arg_names": ["images"],
    }
    model["graph_module"]["module_call_graph"] = [{"fqn": "", "signature": call}]
    return model
