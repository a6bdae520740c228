"""What a user asks an export for, and whether the format can do it.

This module imports no torch: wrong requests are reported before that takes its seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from gantx.errors import UsageError
from gantx.generation.parsing import Truncation

UNSTATED = "unknown"  # the Hugging Face Hub's identifier of an unstated licence
PACKAGE = "onnxruntime-web"  # the npm package of the runtime of web pages

Pixels = Literal["float", "unit", "uint8"]
RANGES: dict[Pixels, str] = {
    "float": "nominally -1..1, not clamped",
    "unit": "0..1",
    "uint8": "0..255",
}

Kind = Literal["onnx", "pt2", "safetensors", "hf", "web"]
_KINDS_OF_SUFFIX: dict[str, Kind] = {".onnx": "onnx", ".pt2": "pt2", ".safetensors": "safetensors", "": "hf"}
FOLDERS: tuple[Kind, ...] = ("hf", "web")


@dataclass(frozen=True)
class Request:
    """Settings of an export.

    Attributes:
        output: a file, or a folder for `hf` and `web`.
        kind: the format; see `kind_of`.
        pixels: range of the output of `onnx` and `pt2`.
        truncation: built into `onnx` and `pt2`.
        class_: name or number of the one class that `onnx`, `pt2` and `web` generate of a conditional model;
            None for all of them, with the label as an input.
        license: identifier of the weights' licence on the Hugging Face Hub; None for the one that an exported
            file names.
        scores: results of `gantx eval` for the card of `hf`; empty to take those found beside the checkpoint.
        runtime: the npm package onnxruntime-web for `web`, or None to fetch it with npm.
        force: overwrite existing files; other files of a folder are kept.
    """

    output: Path
    kind: Kind
    pixels: Pixels = "float"
    truncation: Truncation | None = None
    class_: str | None = None
    license: str | None = None
    scores: tuple[Path, ...] = ()
    runtime: Path | None = None
    force: bool = False


def kind_of(output: Path, wanted: str | None) -> Kind:
    """The format `wanted`, or else the one of the output's suffix.

    Raises:
        UsageError: the format is unknown, or does not fit the name of the output.
    """
    suffix = output.suffix.lower()
    if wanted is None:
        kind = "hf" if output.is_dir() else _KINDS_OF_SUFFIX.get(suffix)
        if kind is None:
            raise UsageError(
                f"cannot export to '{output}': use .onnx, .pt2 or .safetensors; for a folder of this name, "
                "add --format hf or --format web"
            )
        return kind
    kinds: tuple[Kind, ...] = get_args(Kind)
    found = next((kind for kind in kinds if kind == wanted), None)
    if found is None:
        raise UsageError(f"no format '{wanted}': use {', '.join(kinds)}")
    if found not in FOLDERS and suffix != f".{found}":
        raise UsageError(f"the format {found} is a file called .{found}, but the output is {output}")
    if found in FOLDERS and suffix and suffix in _KINDS_OF_SUFFIX:
        raise UsageError(f"the format {found} is a folder, but {output} is the name of a file: omit {suffix}")
    return found


def pixels_named(name: str) -> Pixels:
    """Parse a key of `RANGES`; UsageError for anything else."""
    found = next((pixels for pixels in RANGES if pixels == name), None)
    if found is None:
        raise UsageError(f"no pixels '{name}': use {', '.join(RANGES)}")
    return found


def require_valid(request: Request) -> None:
    """UsageError if an option does not apply, or a file would be overwritten without --force."""
    if request.kind not in ("onnx", "pt2"):
        if request.truncation is not None:
            raise UsageError(f"the format {request.kind} has no truncation built in: only onnx and pt2 have")
        if request.pixels != "float":
            raise UsageError(f"the format {request.kind} has no range built in: only onnx and pt2 have")
        if request.class_ is not None and request.kind != "web":
            raise UsageError(f"the format {request.kind} contains the weights of all classes: omit --class")
    if request.scores and request.kind != "hf":
        raise UsageError("scores go on the card of a Hugging Face folder: give a folder as the output")
    if request.runtime is not None and request.kind != "web":
        raise UsageError(f"--{PACKAGE} is for the page: add --format web")
    if request.kind in FOLDERS and request.output.is_file():
        raise UsageError(f"{request.output} is a file, but the format {request.kind} is a folder")
    if request.kind not in FOLDERS and request.output.is_dir():
        raise UsageError(f"{request.output} is a folder: name a file in it")
    there = any(request.output.iterdir()) if request.output.is_dir() else request.output.exists()
    if there and not request.force:
        raise UsageError(
            f"{request.output} already exists: name another output, or add --force to write over it"
        )
