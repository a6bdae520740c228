"""What is scored and by which features, by names and paths.

This module imports no torch: wrong names are reported before that takes its seconds.
"""

from __future__ import annotations

from pathlib import Path

from gantx.checkpoint import is_demo
from gantx.errors import MissingError, UsageError
from gantx.io.decoding import SUFFIXES
from gantx.io.home import expanded

_FOREIGN_WEIGHTS = (".pth", ".pt", ".pkl", ".ckpt", ".bin")  # refused where a checkpoint is read


def is_checkpoint(target: Path) -> bool:
    """Whether `target` is a run or checkpoint rather than images."""
    if is_demo(target):
        return True
    if target.is_file():
        return target.suffix.lower() in (".safetensors", *_FOREIGN_WEIGHTS)
    if not target.is_dir():
        raise MissingError(f"there is no run, checkpoint or set of images at {target}")
    if (target / "config.yaml").is_file() or (target / "checkpoints").is_dir():
        return True
    if runs := sorted(path.parent.name for path in target.glob("*/checkpoints")):
        raise UsageError(f"{target} contains runs ({', '.join(runs[:4])}): name the one you mean")
    images = any(path.suffix.lower() in SUFFIXES for path in target.iterdir())
    return not images and any(target.glob("*.safetensors"))


def require_features(choice: str, weights: Path | None) -> None:
    """Check the name of a feature network, and that its file is there.

    Args:
        choice: `inception`, `random`, or an .onnx file.
        weights: file of the Inception weights, if one is named.

    Raises:
        UsageError: it is none of these, or weights are named for another network.
        MissingError: there is no such file.
    """
    if choice == "inception":
        return
    if weights is not None:
        raise UsageError(f"--weights are those of Inception, but the features are {choice}: omit one of them")
    if choice == "random":
        return
    path = expanded(choice)
    if path.suffix in (".pt2", ".pt", ".pth"):
        raise UsageError(
            f"the features {choice} are a PyTorch file, which could run code when it is opened: export the "
            f"network with torch.onnx.export(network, (images,), '{path.stem}.onnx', dynamo=True, "
            "dynamic_shapes=({0: torch.export.Dim('batch')},)) and give the .onnx file"
        )
    if path.suffix != ".onnx":
        raise UsageError(f"no features '{choice}': use inception, random, or an .onnx file")
    if not path.is_file():
        raise MissingError(f"there is no feature network at {path}")
