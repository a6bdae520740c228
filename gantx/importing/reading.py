"""Reading of official files without running code from them.

Both kinds are pickles, which can call any function by name. Files of torch.save are read by torch's
restricted unpickler. Snapshots of GANformer contain the source text of their networks and name functions of
their own project: only those that build tensors are called, and every other object is replaced by an inert
one.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import mmap
import pickle
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gantx.errors import CheckpointError, MissingError
from gantx.io import torch_files
from gantx.io.pickles import check_pickle


def read_torch(path: Path) -> dict[str, Any]:
    """What torch.save wrote: a dictionary of tensors, plain containers and numbers.

    Raises:
        MissingError: there is no such file.
        CheckpointError: it contains anything else, or is damaged.
    """
    _require_file(path)
    try:
        stored = torch_files.load(path)
    except pickle.UnpicklingError as problem:
        raise CheckpointError(
            f"{path} is no file of tensors and plain containers alone and could run code: it is not opened"
        ) from problem
    except Exception as problem:  # a damaged file makes torch raise almost anything
        raise CheckpointError(f"{path} is not a readable file of torch.save ({_first_line(problem)})") from (
            problem
        )
    if not isinstance(stored, Mapping):
        raise CheckpointError(f"{path} contains a {type(stored).__name__} where a checkpoint is a dictionary")
    return dict(stored)


def tensors_of(state: Any, entry: str, path: Path) -> dict[str, Tensor]:
    """A state dict by the text of its keys; CheckpointError when it contains anything but tensors."""
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{entry} of {path} is not a dictionary of tensors")
    return {str(name): tensor for name, tensor in state.items()}


def origin_of(path: Path, files: Iterable[Path], **notes: Any) -> dict[str, Any]:
    """Where a checkpoint comes from, for its header: name and SHA-256, and what else the file says.

    Args:
        path: what the user named, a file or a folder.
        files: all that was read; the digest is that of their contents, one after the other.
        notes: such as the epoch.
    """
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return {"file": path.resolve().name, "sha256": digest.hexdigest(), **notes}


# --- snapshots of GANformer ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class PickledNetwork:
    """A network of a snapshot.

    Attributes:
        tensors: its state dict.
        arguments: of its constructor.
    """

    tensors: dict[str, Tensor]
    arguments: Mapping[str, Any]


def read_snapshot(path: Path) -> dict[str, Any]:
    """What a `network-snapshot-*.pkl` of GANformer's PyTorch code contains, by name.

    Networks (`G`, `D`, `Gs`) come as `PickledNetwork`, everything else as it is.

    Raises:
        MissingError: there is no such file.
        CheckpointError: it is no such snapshot, is damaged, or names anything that a snapshot has no need of.
    """
    _require_file(path)
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            check_pickle(content)
            stored = _SnapshotUnpickler(file).load()
        if not isinstance(stored, dict):
            raise CheckpointError(
                f"{path} contains a {type(stored).__name__} where a snapshot is a dictionary"
            )
        return {str(name): _network(value) for name, value in stored.items()}
    except _Refused as problem:
        raise CheckpointError(f"{path} {problem}, so it is not opened") from None
    except CheckpointError:
        raise
    except Exception as problem:  # a damaged pickle can raise almost anything
        raise CheckpointError(f"{path} is not a readable snapshot ({_first_line(problem)})") from problem


class _Refused(pickle.UnpicklingError):
    """The file names something that is not needed to read tensors."""


class _Inert:
    """Stands for an object that is not needed: accepts any arguments and any state, and ignores them."""

    def __new__(cls, *arguments: Any, **options: Any) -> _Inert:
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        """Ignore the state."""


class _PlainDict(dict[str, Any]):
    """Stands for a dictionary whose entries can also be had as attributes."""


@dataclass(frozen=True)
class _Module:
    """A pickled module of the official code: its attributes, without its source text."""

    attributes: dict[str, Any]


_MOST_MODULES = 100_000


def _module(described: Any) -> _Module:
    return _Module(described["state"])


def _storage(content: Any) -> Any:
    return torch_files.load_stream(io.BytesIO(content))


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *unused: Any) -> Tensor:
    """A view of a storage; RuntimeError when it reaches beyond it, where torch's own would enlarge it."""
    if not isinstance(storage, torch.TypedStorage):
        raise pickle.UnpicklingError("a tensor without numbers")
    flat = torch.empty(0, dtype=storage.dtype).set_(storage)
    tensor = flat.as_strided(size, stride, offset)
    if tensor.numel() > flat.numel():  # by strides of zero
        raise pickle.UnpicklingError("a tensor of more numbers than the file holds")
    return tensor


def _parameter(tensor: Any, *unused: Any) -> Any:
    return tensor


_STAND_INS: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch.storage", "_load_from_bytes"): _storage,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _module,
    ("collections", "OrderedDict"): OrderedDict,
    ("dnnlib.util", "EasyDict"): _PlainDict,
    ("numpy.core.multiarray", "scalar"): _Inert,
    ("numpy._core.multiarray", "scalar"): _Inert,
    ("numpy", "dtype"): _Inert,
    ("torch.nn.modules.dropout", "Dropout"): _Inert,
}


class _SnapshotUnpickler(pickle.Unpickler):
    """Unpickles only the names that snapshots use, and refuses every other before it is called."""

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for `module.name`."""
        if module.startswith("dnnlib.tflib"):
            raise _Refused(
                "is a snapshot of the TensorFlow code, which carries source text that would be run: convert "
                "it to PyTorch with the official project's converter first"
            )
        if (module, name) not in _STAND_INS:
            raise _Refused(f"names {module}.{name}, which no snapshot of GANformer does and could run code")
        return _STAND_INS[module, name]


def _network(value: Any) -> Any:
    if not isinstance(value, _Module):
        return value
    arguments = value.attributes.get("_init_kwargs")
    tensors = dict(_walk(value, "", itertools.count()))
    return PickledNetwork(tensors, arguments if isinstance(arguments, Mapping) else {})


def _walk(module: _Module, prefix: str, visited: Iterator[int]) -> Iterable[tuple[str, Tensor]]:
    """Parameters and saved buffers of a module and of those inside it, by the keys of a state dict."""
    if next(visited) > _MOST_MODULES:
        raise pickle.UnpicklingError("modules that contain one another too often")
    held = module.attributes
    for name, tensor in (held["_parameters"] | held["_buffers"]).items():
        if isinstance(tensor, Tensor) and name not in held.get("_non_persistent_buffers_set", ()):
            yield prefix + name, tensor
    for name, child in held["_modules"].items():
        if isinstance(child, _Module):
            yield from _walk(child, f"{prefix}{name}.", visited)


def _require_file(path: Path) -> None:
    if path.is_dir():
        raise MissingError(f"{path} is a folder: name the checkpoint in it")
    if not path.is_file():
        raise MissingError(f"there is no checkpoint at {path}")


def _first_line(problem: Exception) -> str:
    return (str(problem).strip().splitlines() or [type(problem).__name__])[0]
