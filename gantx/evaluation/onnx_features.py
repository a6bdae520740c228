"""Feature networks of the user's own, as ONNX files.

The contract: float32 images [B, 3, H, W] with values 0..255 in, float features [B, D] out. An ONNX file is
data: reading and running it executes no code from the file.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gantx.errors import DataError, MissingError
from gantx.io.byte_names import utf8_path

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

CONTRACT = "it must turn float32 images [B, 3, H, W] with values 0..255 into features [B, D]"
_TRIAL_SHAPE = (2, 3, 64, 64)  # of the trial run, where the file leaves a size open
# How protobuf encodes the name of another file in which an ONNX file keeps tensors: the key "location".
_EXTERNAL_DATA = re.compile(rb"\x0a\x08location\x12([\x01-\x7f])([^\x00]+)")


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
        self._session, self._input, shape = _open_session(path)
        if len(shape) != 4 or shape[1] not in (3, None):
            raise DataError(f"{path} takes an input of shape {shape}: {CONTRACT}")
        self._fixed = shape  # None where a size is open
        trial = [size or default for size, default in zip(shape, _TRIAL_SHAPE, strict=True)]
        self.dim = self._run(torch.zeros(trial, dtype=torch.float32, device=device)).shape[1]
        self.digest = _digest(path)

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

    def _run(self, images: Tensor) -> Tensor:
        try:
            (output,) = self._session.run(None, {self._input: images.cpu().numpy()})
        except Exception as problem:  # onnxruntime's errors have no common public base
            first = " ".join(str(problem).split())[:200] or type(problem).__name__
            raise DataError(
                f"{self._path} cannot run on images {list(images.shape)} ({first}): {CONTRACT}"
            ) from None
        features = torch.from_numpy(output)
        if features.ndim != 2 or len(features) != len(images) or not features.is_floating_point():
            found = f"{str(features.dtype).removeprefix('torch.')} {list(features.shape)}"
            raise DataError(f"{self._path} gives {found} for images {list(images.shape)}: {CONTRACT}")
        return features.float().to(self._device)


def _open_session(path: Path) -> tuple[InferenceSession, str, list[int | None]]:
    """The session, the name of its input, and the input's shape with None for open sizes."""
    try:
        import onnxruntime
    except ImportError as problem:
        raise MissingError(
            f'{path} needs onnxruntime, which is not installed: pip install "gantx[onnx]"'
        ) from problem
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        with utf8_path(path) as readable:
            session = onnxruntime.InferenceSession(readable, options, providers=["CPUExecutionProvider"])
        (wanted,), (_,) = session.get_inputs(), session.get_outputs()
    except Exception as problem:  # onnxruntime's errors have no common public base
        first = " ".join(str(problem).split())[:200]
        raise DataError(
            f"{path} is not an ONNX model of one input and one output ({first}): {CONTRACT}"
        ) from problem
    if wanted.type != "tensor(float)":
        raise DataError(f"{path} takes {wanted.type.removeprefix('tensor')} images: {CONTRACT}")
    return session, wanted.name, [size if isinstance(size, int) else None for size in wanted.shape]


def _digest(path: Path) -> str:
    """SHA-256 of the file, and of the files beside it that it keeps its tensors in."""
    content = path.read_bytes()
    digest = hashlib.sha256(content)
    names = {name[: length[0]].decode() for length, name in _EXTERNAL_DATA.findall(content)}
    for name in sorted(names):
        with (path.parent / name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
