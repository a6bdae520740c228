"""Feature networks of the user's own, as ONNX files.

The contract: float32 images [B, 3, H, W] with values 0..255 in, float features [B, D] out. An ONNX file is
data: reading and running it executes no code from the file. It may still ask for any amount of memory and
time, so it is tried once within limits before it is used.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import threading
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gantx.errors import DataError, MissingError
from gantx.io.byte_names import utf8_path
from gantx.io.escaping import shortened

if TYPE_CHECKING:
    from onnxruntime import InferenceSession, RunOptions

CONTRACT = "it must turn float32 images [B, 3, H, W] with values 0..255 into features [B, D]"
_TRIAL_SHAPE = (2, 3, 64, 64)  # of the trial run, where the file leaves a size open
TRIAL_BYTES = 2**30  # of memory that the trial may take, beside twice the size of the files
TRIAL_SECONDS = 60.0  # that the trial may take


class OnnxFeatures:
    """A feature network from an ONNX file, run on the CPU and tried once when it is opened.

    Args:
        path: an .onnx file.
        device: where images and features are.

    Attributes:
        dim: number of features.
        digest: SHA-256 of the file and of any other that it keeps its tensors in.

    Raises:
        MissingError: onnxruntime is not installed.
        DataError: the file is damaged, or does not follow the contract.
    """

    def __init__(self, path: Path, device: torch.device) -> None:
        self._path = path
        self._device = device
        files = [path, *_external_files(path)]
        session, self._input, shape = _open_session(path, sum(file.stat().st_size for file in files))
        if len(shape) != 4 or shape[1] not in (3, None):
            raise DataError(f"{path} takes an input of shape {shape}: {CONTRACT}")
        self._fixed = shape  # None where a size is open
        trial = [size or default for size, default in zip(shape, _TRIAL_SHAPE, strict=True)]
        if 4 * math.prod(trial) > TRIAL_BYTES:
            raise DataError(f"{path} takes an input of shape {shape}, which is too large: {CONTRACT}")
        self._session = session
        with _limited_run() as options:
            self.dim = self._run(torch.zeros(trial, dtype=torch.float32, device=device), options).shape[1]
        self._session, *_ = _open_session(path, None)
        self.digest = _digest(files)

    @property
    def batch(self) -> int | None:
        """The number of images it takes at once, or None for any."""
        return self._fixed[0]

    def __call__(self, images: Tensor) -> Tensor:
        """Features float32 [B, D] of float images [B, 3, H, W] of any number.

        Raises:
            DataError: the network takes images of another size, or fails.
        """
        for have, want in zip(images.shape[2:], self._fixed[2:], strict=True):
            if want not in (None, have):
                wanted = "×".join(str(size or "any") for size in self._fixed[2:])
                raise DataError(
                    f"{self._path} takes images of {wanted} pixels, but these are "
                    f"{images.shape[2]}×{images.shape[3]}: export it for this size, or with a resizing in it"
                )
        parts = []
        for part in images.split(self.batch or len(images)):
            missing = (self.batch or len(part)) - len(part)
            filled = torch.cat([part, part[-1:].expand(missing, -1, -1, -1)]) if missing else part
            parts.append(self._run(filled)[: len(part)])
        features = torch.cat(parts)
        if features.shape[1] != self.dim:
            raise DataError(
                f"{self._path} gives {features.shape[1]} features for images of {images.shape[2]}×"
                f"{images.shape[3]} and {self.dim} for others: average over the positions before the output"
            )
        return features

    def _run(self, images: Tensor, options: RunOptions | None = None) -> Tensor:
        try:
            (output,) = self._session.run(None, {self._input: images.cpu().numpy()}, options)
            features = torch.from_numpy(output)
        except Exception as problem:  # onnxruntime's errors have no common public base
            first = " ".join(str(problem).split())[:200] or type(problem).__name__
            raise DataError(
                f"{self._path} cannot run on images {list(images.shape)} ({first}): {CONTRACT}"
            ) from None
        if features.ndim != 2 or len(features) != len(images) or not features.is_floating_point():
            found = f"{str(features.dtype).removeprefix('torch.')} {list(features.shape)}"
            raise DataError(f"{self._path} gives {found} for images {list(images.shape)}: {CONTRACT}")
        return features.float().to(self._device)


def _packages(path: Path) -> tuple[Any, Any]:
    try:
        import onnx
        import onnxruntime
    except ImportError as problem:
        raise MissingError(
            f'{path} needs onnx and onnxruntime, which are not installed: pip install "gantx[onnx]"'
        ) from problem
    return onnx, onnxruntime


def _open_session(path: Path, size: int | None) -> tuple[InferenceSession, str, list[int | None]]:
    """The session, the name of its input, and the input's shape with None for open sizes.

    Args:
        path: the file.
        size: bytes of its files, to limit the memory of the session by; None for no limit.
    """
    _, onnxruntime = _packages(path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # what is wrong is raised
    try:
        if size is not None:
            kinds = onnxruntime.OrtAllocatorType, onnxruntime.OrtMemType
            memory = onnxruntime.OrtMemoryInfo("Cpu", kinds[0].ORT_ARENA_ALLOCATOR, 0, kinds[1].DEFAULT)
            limit = onnxruntime.OrtArenaCfg({"max_mem": TRIAL_BYTES + 2 * size, "arena_extend_strategy": 1})
            onnxruntime.create_and_register_allocator(memory, limit)
            options.add_session_config_entry("session.use_env_allocators", "1")
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        with utf8_path(path) as readable:
            session = onnxruntime.InferenceSession(readable, options, providers=["CPUExecutionProvider"])
        (wanted,), (_,) = session.get_inputs(), session.get_outputs()
        kind, name, shape = wanted.type, wanted.name, wanted.shape  # texts that may not be UTF-8
    except Exception as problem:  # onnxruntime's errors have no common public base
        first = " ".join(str(problem).split())[:200]
        raise DataError(
            f"{path} is not an ONNX model of one input and one output ({first}): {CONTRACT}"
        ) from problem
    if kind != "tensor(float)":
        raise DataError(f"{path} takes {kind.removeprefix('tensor')} images: {CONTRACT}")
    return session, name, [size if isinstance(size, int) else None for size in shape]


@contextlib.contextmanager
def _limited_run() -> Iterator[RunOptions]:
    """Options of a run that ends with an error after `TRIAL_SECONDS`."""
    import onnxruntime

    options = onnxruntime.RunOptions()
    options.log_severity_level = 4
    timer = threading.Timer(TRIAL_SECONDS, setattr, (options, "terminate", True))
    timer.daemon = True
    timer.start()
    try:
        yield options
    finally:
        timer.cancel()


def _external_files(path: Path) -> list[Path]:
    """The files beside an ONNX file that it keeps tensors in; DataError where they are not there."""
    onnx, _ = _packages(path)
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as problem:  # protobuf's errors have no common public base
        first = " ".join(str(problem).split())[:200]
        raise DataError(f"{path} is not an ONNX model ({first}): {CONTRACT}") from problem
    nodes = [model.graph, *model.functions]
    names: set[str] = set()
    while nodes:
        part = nodes.pop()
        tensors = list(getattr(part, "initializer", ()))
        tensors += [half for pair in getattr(part, "sparse_initializer", ()) for half in _halves(pair)]
        for attribute in (attribute for node in part.node for attribute in node.attribute):
            tensors += [attribute.t, *attribute.tensors]
            sparse = [attribute.sparse_tensor, *attribute.sparse_tensors]
            tensors += [half for pair in sparse for half in _halves(pair)]
            nodes += [attribute.g, *attribute.graphs]
        names |= {
            entry.value for tensor in tensors for entry in tensor.external_data if entry.key == "location"
        }
    for name in sorted(names):
        plain = PurePosixPath(name.replace("\\", "/"))
        if plain.is_absolute() or ".." in plain.parts or not (path.parent / name).is_file():
            raise DataError(
                f"{path} keeps tensors in {shortened(name)}, which is no file beside it: copy both into one "
                "folder"
            )
    return [path.parent / name for name in sorted(names)]


def _halves(sparse: Any) -> tuple[Any, Any]:
    """The two tensors of a sparse one."""
    return sparse.values, sparse.indices


def _digest(files: list[Path]) -> str:
    """SHA-256 of the file, and of the files beside it that it keeps its tensors in."""
    first, *others = files
    digest = hashlib.sha256(first.read_bytes())
    for path in others:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
