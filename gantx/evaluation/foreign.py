"""Feature networks of the user's own, as torch.export (.pt2) or ONNX files.

The contract: float32 images [B, 3, H, W] with values 0..255 in, float features [B, D] out. A file is data and
must not run code: ONNX knows none, and gantx.evaluation.programs opens a .pt2 so that none of its own runs.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gantx.errors import DataError, MissingError
from gantx.evaluation.programs import open_program

CONTRACT = "it must turn float32 images [B, 3, H, W] with values 0..255 into features [B, D]"
_TRIAL = (2, 3, 64, 64)  # images of the trial run, where the file leaves a size open


class ForeignNetwork:
    """A feature network from a file, tried once when it is opened.

    Args:
        path: a .pt2 or .onnx file.
        device: where to compute; an ONNX file is run on the CPU.

    Attributes:
        dim: number of features.
        digest: SHA-256 of the file and of any other that it keeps its tensors in.

    Raises:
        MissingError: the package that runs ONNX files is not installed.
        DataError: the file is damaged, could run code, or does something else than the contract says.
    """

    def __init__(self, path: Path, device: torch.device) -> None:
        self._path = path
        self._device = device
        open_ = _open_onnx if path.suffix == ".onnx" else _open_export
        self._run, shape = open_(path, device)
        if len(shape) != 4 or shape[1] not in (3, None):
            raise DataError(f"{path} takes an input of shape {shape}: {CONTRACT}")
        self._fixed = shape  # None where a size is open
        trial = [size or default for size, default in zip(shape, _TRIAL, strict=True)]
        self.dim = self._checked(torch.zeros(trial, device=device)).shape[1]
        self.digest = _digest(path)

    @property
    def batch(self) -> int | None:
        """The number of images it takes at once, or None for any."""
        return self._fixed[0]

    def __call__(self, images: Tensor) -> Tensor:
        """Features float32 [B, D] of float images [B, 3, H, W] of any number.

        Raises:
            DataError: the network takes images of another size.
        """
        for have, want in zip(images.shape[2:], self._fixed[2:], strict=True):
            if want not in (None, have):
                wanted = "×".join(str(size or "any") for size in self._fixed[2:])
                raise DataError(
                    f"{self._path} takes images of {wanted} pixels, but these are "
                    f"{images.shape[2]}×{images.shape[3]}: export it for this size, or with a resizing in it"
                )
        found = []
        for part in images.split(self.batch or len(images)):
            missing = (self.batch or len(part)) - len(part)
            filled = torch.cat([part, part[-1:].expand(missing, -1, -1, -1)]) if missing else part
            found.append(self._checked(filled)[: len(part)])
        features = torch.cat(found)
        if features.shape[1] != self.dim:
            raise DataError(
                f"{self._path} gives {features.shape[1]} features for images of {images.shape[2]}×"
                f"{images.shape[3]} and {self.dim} for others: average over the places before the output"
            )
        return features

    def _checked(self, images: Tensor) -> Tensor:
        try:
            features = self._run(images)
        except Exception as problem:  # whatever the network's operations raise
            first = " ".join(str(problem).split())[:200] or type(problem).__name__
            raise DataError(
                f"{self._path} cannot look at images {list(images.shape)} ({first}): {CONTRACT}"
            ) from None
        good = isinstance(features, Tensor) and features.ndim == 2 and len(features) == len(images)
        if not good or not features.is_floating_point():
            what = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise DataError(f"{self._path} gives {what} for images {list(images.shape)}: {CONTRACT}")
        result: Tensor = features.float()
        return result


Run = Callable[[Tensor], Any]


def _open_export(path: Path, device: torch.device) -> tuple[Run, list[int | None]]:
    program = open_program(path, device)
    if program.dtype != torch.float32:
        raise DataError(f"{path} takes {str(program.dtype).removeprefix('torch.')} images: {CONTRACT}")
    return program.run, list(program.shape)


def _open_onnx(path: Path, device: torch.device) -> tuple[Run, list[int | None]]:
    try:
        import onnxruntime
    except ImportError as problem:
        raise MissingError(
            f'{path} needs onnxruntime, which is not installed: pip install "gantx[onnx]"'
        ) from problem
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        (wanted,), (_,) = session.get_inputs(), session.get_outputs()
    except Exception as problem:  # onnxruntime's errors have no common public base
        first = " ".join(str(problem).split())[:200]
        raise DataError(
            f"{path} is not an ONNX model of one input and one output ({first}): {CONTRACT}"
        ) from problem

    if wanted.type != "tensor(float)":
        raise DataError(f"{path} takes {wanted.type.removeprefix('tensor')} images: {CONTRACT}")

    def run(images: Tensor) -> Tensor:
        found = session.run(None, {wanted.name: images.cpu().numpy()})
        return torch.from_numpy(found[0]).to(device)

    return run, [size if isinstance(size, int) else None for size in wanted.shape]


# Where an ONNX file keeps tensors in another file, an entry of protobuf has the key "location" and its name.
_ELSEWHERE = re.compile(rb"\x0a\x08location\x12([\x01-\x7f])([^\x00]+)")


def _digest(path: Path) -> str:
    """SHA-256 of the file, and of the files beside it that an ONNX file keeps its tensors in."""
    content = path.read_bytes()
    digest = hashlib.sha256(content)
    if path.suffix == ".onnx":
        names = {name[: length[0]].decode() for length, name in _ELSEWHERE.findall(content)}
        for name in sorted(names):
            with (path.parent / name).open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
