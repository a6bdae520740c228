"""What is scored: a checkpoint or images. Imports no torch: a wrong path is reported before that."""

from __future__ import annotations

from pathlib import Path

from gantx.errors import MissingError, UsageError
from gantx.io.decoding import SUFFIXES

_FOREIGN_WEIGHTS = (".pth", ".pt", ".pkl", ".ckpt", ".bin")  # refused where a checkpoint is read


def is_checkpoint(target: Path) -> bool:
    """Whether `target` is a run or checkpoint rather than images."""
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
