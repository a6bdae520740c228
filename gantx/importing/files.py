"""Files of official training runs: read without running code from them, converted, and checked.

A file of torch.save is a pickle. It is read by torch's own restricted unpickler, which admits tensors and
plain containers and refuses everything else before anything is called.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from gantx import checkpoint, models
from gantx.architectures import (
    TransGAN2DiscriminatorConfig,
    TransGAN2GeneratorConfig,
    TransGANDiscriminatorConfig,
    TransGANGeneratorConfig,
)
from gantx.config import RunConfig
from gantx.errors import CheckFailed, CheckpointError, DataError, MissingError, UsageError
from gantx.importing.layouts import Imported
from gantx.importing.transgan import (
    transgan_v1_discriminator,
    transgan_v1_generator,
    transgan_v2_discriminator,
    transgan_v2_generator,
)
from gantx.sections import Section

# Official entry of the file, our part of a checkpoint, our section of the configuration.
_ENTRIES = (
    ("gen_state_dict", "generator", "generator"),
    ("avg_gen_state_dict", "generator_ema", "generator"),
    ("dis_state_dict", "discriminator", "discriminator"),
)
# What the tensors of a network cannot tell, or what only training looks at.
_UNTOLD = frozenset({"locality", "init"})
TOLERANCE = 1e-4  # of the largest value of an output


@dataclass(frozen=True)
class Conversion:
    """An official file under our names.

    Attributes:
        parts: our part of a checkpoint to its network.
        skipped: entries of the file that are no networks: optimiser states, notes of the training script.
        origin: where it comes from, for the header of the checkpoint.
    """

    parts: dict[str, Imported]
    skipped: tuple[str, ...]
    origin: dict[str, Any]


@dataclass(frozen=True)
class Difference:
    """How far an imported network is from recorded outputs.

    Attributes:
        name: of the output.
        largest: largest absolute difference.
        scale: largest absolute value of the recorded output.
    """

    name: str
    largest: float
    scale: float


def convert(path: Path, config: RunConfig) -> Conversion:
    """Read an official checkpoint and map it to the networks that `config` describes.

    Args:
        path: a file of the official training script, or of a bare generator.
        config: the preset, with overrides where the file is of another size.

    Raises:
        MissingError: there is no such file.
        CheckpointError: it cannot be read without running code, its keys are not those of the networks, or
            it is of another size than `config` says; the message then lists the overrides that fit.
        UsageError: no official layout is known for the family.
    """
    stored = _read(path)
    used = {entry for entry, _, _ in _ENTRIES}
    if not used & stored.keys():  # the weights of a generator and nothing else
        stored = {"gen_state_dict": stored, "avg_gen_state_dict": stored}
    parts = {}
    for entry, part, kind in _ENTRIES:
        if entry in stored:
            section: Section = getattr(config, kind)
            imported = _reader(section)(_tensors(stored[entry], entry, path), section)
            _require_same(section, imported.section, kind, path)
            parts[part] = imported
    if "generator_ema" not in parts:
        raise CheckpointError(f"{path} holds no averaged generator: {', '.join(stored)}")
    origin = {
        "file": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        **{name: value for name in ("epoch", "best_fid") if (value := _number(stored.get(name))) is not None},
    }
    skipped = tuple(str(entry) for entry in stored if entry not in used)
    return Conversion(parts, skipped, origin)


def compare(conversion: Conversion, path: Path, *, device: torch.device | str = "cpu") -> list[Difference]:
    """Run the imported networks on recorded inputs.

    Args:
        conversion: from `convert`.
        path: a .safetensors file of `input.z`, `input.x`, and `output.gen`, `output.avg_gen`, `output.dis`.
        device: where to run them.

    Raises:
        MissingError: there is no such file.
        DataError: it holds none of the outputs.
    """
    if not path.is_file():
        raise MissingError(f"there are no recorded outputs at {path}")
    try:
        recorded = load_file(path)
    except SafetensorError as problem:
        raise DataError(f"{path} is not a readable safetensors file: {problem}") from problem
    found = []
    for name, part, source in (
        ("output.gen", "generator", "input.z"),
        ("output.avg_gen", "generator_ema", "input.z"),
        ("output.dis", "discriminator", "input.x"),
    ):
        if name in recorded and source in recorded and part in conversion.parts:
            network = _built(conversion.parts[part]).to(device)
            with torch.no_grad():
                output = network(recorded[source].to(device)).cpu()
            expected = recorded[name].reshape(output.shape)
            found.append(
                Difference(name, float((output - expected).abs().max()), float(expected.abs().max()))
            )
    if not found:
        raise DataError(
            f"{path} holds no input.z or input.x with an output.gen, output.avg_gen or output.dis"
        )
    return found


def require_close(differences: Sequence[Difference], path: Path) -> None:
    """CheckFailed when a difference is more than rounding."""
    for difference in differences:
        if not difference.largest <= TOLERANCE * max(difference.scale, 1e-6):
            raise CheckFailed(
                f"{difference.name} differs from {path} by {difference.largest:.3g} where values reach "
                f"{difference.scale:.3g}: a setting that the tensors do not tell (heads, normalize_latent, "
                "windows) is not that of the file; nothing was written"
            )


def write(path: Path, conversion: Conversion, config: RunConfig) -> None:
    """Write the networks as a checkpoint of gantx; MissingError when that is impossible."""
    tensors = {
        f"{part}.{name}": tensor
        for part, imported in conversion.parts.items()
        for name, tensor in _built(imported).state_dict().items()
    }
    checkpoint.write(
        path,
        tensors,
        config=config,
        progress={"images": 0},
        data={"name": "imported", "images": 0, "imported_from": conversion.origin},
    )


Reader = Callable[[Mapping[str, Tensor], Any], Imported]


def _reader(section: Section) -> Reader:
    readers: dict[type[Section], Reader] = {
        TransGANGeneratorConfig: lambda state, s: transgan_v1_generator(state, _one(s.heads)),
        TransGANDiscriminatorConfig: lambda state, s: transgan_v1_discriminator(state, s.heads),
        TransGAN2GeneratorConfig: lambda state, s: transgan_v2_generator(state, s.heads, s.normalize_latent),
        TransGAN2DiscriminatorConfig: lambda state, s: transgan_v2_discriminator(
            state, s.heads, next((window for window in s.windows or () if window), 4)
        ),
    }
    if type(section) not in readers:
        raise UsageError(
            f"no official layout is known for {type(section).__name__.removesuffix('Config')}: import knows "
            "TransGAN, versions 1 and 2"
        )
    return readers[type(section)]


def _one(heads: int | tuple[int, ...]) -> int:
    return heads if isinstance(heads, int) else heads[0]


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise MissingError(f"there is no checkpoint at {path}")
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as problem:
        first = str(problem).strip().splitlines()[0]
        raise CheckpointError(
            f"{path} holds more than tensors and plain containers, and could run code, so it is not opened "
            f"({first})"
        ) from problem
    except Exception as problem:  # a damaged file makes torch raise almost anything
        first = (str(problem).strip().splitlines() or [type(problem).__name__])[0]
        raise CheckpointError(f"{path} is not a readable file of torch.save ({first})") from problem
    if not isinstance(stored, Mapping):
        raise CheckpointError(f"{path} holds a {type(stored).__name__} where a checkpoint is a dictionary")
    return dict(stored)


def _tensors(state: Any, entry: str, path: Path) -> dict[str, Tensor]:
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{entry} of {path} is not a dictionary of tensors")
    return {str(name): tensor for name, tensor in state.items()}


def _require_same(wanted: Section, found: Section, kind: str, path: Path) -> None:
    """CheckpointError with the overrides that fit when the file is of another size than the configuration."""
    ours, theirs = wanted.model_dump(mode="json"), found.model_dump(mode="json")
    different = [
        f"{kind}.{name}={json.dumps(theirs[name], separators=(',', ':'))}"
        for name in ours
        if name not in _UNTOLD and ours[name] != theirs[name]
    ]
    if different:
        raise CheckpointError(f"{path} is of another size than this configuration: add {' '.join(different)}")


def _built(imported: Imported) -> nn.Module:
    network = models.build(imported.section)
    network.load_state_dict(imported.tensors)
    return network.eval().requires_grad_(False)


def _number(value: Any) -> float | int | None:
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None
