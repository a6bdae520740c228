"""Export a checkpoint to files for other programs, checked in the runtime they are meant for."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from gantx.checkpoint import Header
from gantx.errors import DataError, MissingError, system_reason
from gantx.exporting import classes, hub, onnx, parity, program, web
from gantx.exporting.generator import ExportedGenerator, Morph, morph_of
from gantx.exporting.parity import Difference, Run
from gantx.exporting.request import FOLDERS, PACKAGE, RANGES, UNSTATED, Kind, Request, require_valid
from gantx.generation import sampling
from gantx.generation.labels import parse_class, with_label
from gantx.io.atomic import replacing, scratch_folder
from gantx.io.byte_names import utf8_name, utf8_path
from gantx.models.interfaces import Generator
from gantx.runtime.activity import Working, unnoticed
from gantx.version import __version__

SCHEMA = "gantx.export/1"
RECORD = "export.json"
CPU = torch.device("cpu")


Log = Callable[[str], None]


def export(target: Path, request: Request, log: Log, working: Working = unnoticed) -> Path:
    """Export the averaged generator of a checkpoint and verify it; files are renamed into place afterwards.

    Args:
        target: a run, a folder of checkpoints or a file.
        request: output, format and options.
        log: receives lines of log.
        working: shows which step goes on.

    Returns:
        Path of the record (`export.json`); it also contains earlier exports to the same folder.

    Raises:
        CheckFailed: the other runtime computes different images; nothing is written.
        UsageError, MissingError, CheckpointError, DataError: the export is not possible as requested.
    """
    require_valid(request)
    if request.kind in ("onnx", "web"):
        onnx.require_packages()
    generator, header = sampling.open_generator(target, CPU)
    if request.class_ is not None:
        generator = with_label(generator, parse_class(header.config.conditioning, request.class_))
    folder = request.kind in FOLDERS
    home = request.output if folder else request.output.parent
    earlier = _read_record(home / RECORD)
    with _aside(request.output) as scratch:
        name, entry = _FORMATS[request.kind](generator, header, request, scratch, log, working)
        entry = {
            "kind": request.kind,
            "sha256": hashlib.sha256((scratch / name).read_bytes()).hexdigest(),
            "checkpoint": {
                "preset": header.config.name,
                "kimg": header.images / 1000,
                "digest": header.digest,
                "license": _license(header, request),
            },
            **entry,
            "versions": {"gantx": __version__, "torch": str(torch.__version__)},
        }
        for path in sorted(path for path in scratch.rglob("*") if path.is_file()):
            with replacing(home / path.relative_to(scratch) if folder else request.output) as beside:
                path.replace(beside)
    name = name if folder else request.output.name
    record = {"schema": SCHEMA, "files": {**earlier, name: entry}}
    with replacing(home / RECORD) as beside:
        hub.write_text(beside, json.dumps(record, indent=2) + "\n")
    return home / RECORD


# --- formats: each function writes into a folder, verifies the result and returns its name and record entry

Format = Callable[[Generator, Header, Request, Path, Log, Working], tuple[str, dict[str, Any]]]


def _onnx(
    generator: Generator, header: Header, request: Request, folder: Path, log: Log, working: Working
) -> tuple[str, dict[str, Any]]:
    exported = _with_output(generator, header, request)
    name = utf8_name(request.output.name)
    checked = _write_onnx(folder / name, exported, _metadata(header, request), log, working)
    return name, {"opset": onnx.OPSET, **_interface(exported, header, request), "parity": checked}


def _pt2(
    generator: Generator, header: Header, request: Request, folder: Path, log: Log, working: Working
) -> tuple[str, dict[str, Any]]:
    exported = _with_output(generator, header, request)
    name = utf8_name(request.output.name)
    inputs, traced = _traced(exported, working)
    program.write_program(folder / name, traced, _metadata(header, request))
    runtime = f"torch.export.load {torch.__version__}"
    with working(_VERIFYING.format("torch.export.load")):
        checked = _checked(exported.unrounded(), program.open_program(folder / name), inputs, runtime, log)
    return name, {**_interface(exported, header, request), "parity": checked}


def _safetensors(
    generator: Generator, header: Header, request: Request, folder: Path, log: Log, working: Working
) -> tuple[str, dict[str, Any]]:
    name = utf8_name(request.output.name)
    scores = hub.read_scores(request.scores, header)
    hub.write_weights(folder / name, generator, header, _license(header, request), scores)
    return name, {"parity": _checked_weights(generator, folder / name, log)}


def _hf(
    generator: Generator, header: Header, request: Request, folder: Path, log: Log, working: Working
) -> tuple[str, dict[str, Any]]:
    scores = hub.read_scores(request.scores, header)
    hub.write_folder(folder, generator, header, _license(header, request), scores)
    log(f"scores on the card: {len(scores) or 'none'}")
    checked = _checked_weights(generator, folder / hub.WEIGHTS, log)
    return hub.WEIGHTS, {"scores": [result.protocol_hash for result in scores], "parity": checked}


def _web(
    generator: Generator, header: Header, request: Request, folder: Path, log: Log, working: Working
) -> tuple[str, dict[str, Any]]:
    (folder / "ort").mkdir()
    fetching = f"fetching {PACKAGE} with npm" if request.runtime is None else f"unpacking {request.runtime}"
    with working(fetching):
        runtime_files = web.write_runtime(folder / "ort", request.runtime)
    network = morph_of(generator, ratio=header.config.data.ratio).eval()
    web.write_page(folder, network, header, request.class_)
    checked = _write_onnx(folder / web.MODEL, network, _metadata(header, request), log, working)
    about = classes.describe(header.config.conditioning, request.class_)
    return web.MODEL, {"opset": onnx.OPSET, **about, "runtime": runtime_files, "parity": checked}


_VERIFYING = "verifying in {} at batch " + ", ".join(map(str, parity.BATCHES))
_FORMATS: dict[Kind, Format] = {
    "onnx": _onnx,
    "pt2": _pt2,
    "safetensors": _safetensors,
    "hf": _hf,
    "web": _web,
}


def _with_output(generator: Generator, header: Header, request: Request) -> ExportedGenerator:
    """The generator with what the request builds into it."""
    ratio = header.config.data.ratio
    return ExportedGenerator(generator, request.pixels, request.truncation, ratio=ratio).eval()


def _traced(exported: ExportedGenerator | Morph, working: Working) -> tuple[list[Tensor], ExportedProgram]:
    """Inputs of the largest batch that is verified, and the program that is traced with them."""
    inputs = exported.inputs(max(parity.BATCHES))
    with working("tracing the generator with torch.export"):
        return inputs, program.trace(exported, inputs)


def _write_onnx(
    path: Path, exported: ExportedGenerator | Morph, metadata: dict[str, str], log: Log, working: Working
) -> dict[str, Any]:
    """Write a generator as ONNX and verify the file; return the record of the check."""
    inputs, traced = _traced(exported, working)
    with working("converting it to ONNX"):
        onnx.write_onnx(path, traced, metadata)
    with working(_VERIFYING.format("onnxruntime")):
        run, runtime = onnx.open_onnx(path)
        return _checked(exported.unrounded(), run, inputs, runtime, log)


# --- checks -----------------------------------------------------------------------------------------------


def _checked(
    reference: nn.Module, run: Run, inputs: Sequence[Tensor], runtime: str, log: Log
) -> dict[str, Any]:
    """Compare with another runtime: the record of a passed check; CheckFailed otherwise."""
    differences = parity.compare(reference, run, inputs)
    for difference in differences:
        log(_sentence(difference, runtime))
    parity.require_close(differences, runtime)
    return {
        "runtime": runtime,
        "tolerance": parity.TOLERANCE,
        "batches": [difference.to_document() for difference in differences],
    }


def _checked_weights(generator: Generator, path: Path, log: Log) -> dict[str, Any]:
    """As `_checked`, for a checkpoint that is loaded again."""
    again, _ = sampling.open_generator(path, CPU)
    reference = ExportedGenerator(generator)
    inputs = reference.inputs(max(parity.BATCHES))
    return _checked(reference, ExportedGenerator(again), inputs, f"gantx {__version__}", log)


def _sentence(difference: Difference, runtime: str) -> str:
    return (
        f"{runtime}, batch {difference.batch}: largest difference {difference.largest:.2g}, "
        f"values to {difference.scale:.3g}"
    )


def _license(header: Header, request: Request) -> str:
    """The licence asked for, or the one that an exported file names."""
    return request.license or str(header.data.get("license") or UNSTATED)


# --- metadata ---------------------------------------------------------------------------------------------


def _metadata(header: Header, request: Request) -> dict[str, str]:
    """Metadata stored inside the file."""
    metadata = {
        "gantx.version": __version__,
        "gantx.preset": header.config.name,
        "gantx.kimg": f"{header.images / 1000:g}",
        "gantx.digest": header.digest,
        "gantx.license": _license(header, request),
    }
    described = classes.describe(header.config.conditioning, request.class_)
    if request.kind != "web":
        label = "; label, the number of a class" if "classes" in described else ""
        metadata |= {"gantx.input": f"z, standard normal{label}", "gantx.range": RANGES[request.pixels]}
    metadata |= classes.metadata(described)
    if request.truncation is not None:
        metadata["gantx.truncation"] = json.dumps(request.truncation._asdict())
    return metadata


# What the channels of images are that are not RGB.
_CHANNELS = {1: {"channels": "grey"}, 4: {"channels": "red, green, blue, alpha (not premultiplied)"}}


def _interface(exported: ExportedGenerator, header: Header, request: Request) -> dict[str, Any]:
    """Names, types, shapes and ranges of inputs and output."""
    generator, truncation = exported.generator, exported.truncation
    label = {
        "name": "label",
        "type": "int64",
        "shape": ["batch"],
        "values": f"0..{generator.classes - 1}",
    }
    return {
        "input": {
            "name": "z",
            "type": "float32",
            "shape": ["batch", *generator.latent_shape],
            "values": "standard normal",
        },
        **({"label": label} if generator.classes else {}),
        **classes.describe(header.config.conditioning, request.class_),
        "output": {
            "name": onnx.OUTPUT,
            "type": "uint8" if exported.pixels == "uint8" else "float32",
            "shape": ["batch", *exported.image_shape],
            "values": RANGES[exported.pixels],
            **_CHANNELS.get(exported.image_shape[0], {}),
        },
        "truncation": None if truncation is None else truncation._asdict(),
        "noise": "at its stored value" if generator.noise_spec(1) else None,
    }


def _read_record(path: Path) -> dict[str, Any]:
    """The entries of an earlier record in the folder; DataError if the file is something else."""
    if not path.exists():
        return {}
    try:
        record = json.loads(path.read_bytes())
        if record["schema"] != SCHEMA:
            raise ValueError(f"its schema is {record['schema']}")
        return dict(record["files"])
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise DataError(
            f"{path} is no record of gantx export ({problem}), but the checks of this export would be "
            "noted there: move it, or name another folder"
        ) from problem


@contextlib.contextmanager
def _aside(output: Path) -> Iterator[Path]:
    """A temporary folder beside the output, for files that are not verified yet; its path is valid UTF-8."""
    with contextlib.ExitStack() as stack:
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            scratch = stack.enter_context(scratch_folder(output))
        except OSError as problem:
            raise MissingError(f"cannot write beside {output}: {system_reason(problem)}") from problem
        readable = stack.enter_context(utf8_path(scratch))
        try:
            yield readable
        except OSError as problem:
            raise MissingError(f"cannot write {output}: {system_reason(problem)}") from problem
