"""Import of official checkpoints: read by the adapter of their family, checked, and written as our own."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from gantx import checkpoint, models
from gantx.config.schema import RunConfig
from gantx.config.section import Section
from gantx.errors import CheckFailed, CheckpointError, DataError, MissingError, UsageError
from gantx.importing.ganformer import read_ganformer
from gantx.importing.layouts import Conversion, Imported
from gantx.importing.transgan import read_transgan
from gantx.importing.vitgan import read_vitgan
from gantx.io.byte_names import utf8_path
from gantx.models.interfaces import Discriminator, Generator

ADAPTERS: dict[str, Callable[[Path, RunConfig], Conversion]] = {
    "transgan": read_transgan,
    "transgan2": read_transgan,
    "ganformer": read_ganformer,
    "stylegan2": read_ganformer,  # as GANformer's code trains it for comparison
    "vitgan": read_vitgan,
}
"""Reader of official files, by the family of the generator."""

# Settings that cannot be inferred from tensors, or that only training uses.
_UNTOLD = frozenset({"locality", "init"})
TOLERANCE = 1e-4  # of the largest value of an output


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
        path: a file of the official training script, or a folder where a family keeps several.
        config: the preset, with overrides where the file is of other settings.

    Raises:
        MissingError: there is no such file.
        CheckpointError: it cannot be read without running code, its keys are not those of the networks, or
            it is of other settings than `config` says; the message then lists the overrides that fit.
    """
    if (family := config.generator.family) not in ADAPTERS:
        raise UsageError(f"{config.name} is our own: there is no official checkpoint of the family {family}")
    conversion = ADAPTERS[family](path, config)
    if "generator_ema" not in conversion.parts:
        held = ", ".join((*conversion.called.values(), *conversion.skipped)) or "nothing that is known"
        raise CheckpointError(f"{path} contains no averaged generator: {held}")
    _require_same(conversion.parts, config, path)
    return conversion


def compare(conversion: Conversion, path: Path, *, device: torch.device | str = "cpu") -> list[Difference]:
    """Run the imported networks on recorded inputs, without noise, and compare their outputs.

    Args:
        conversion: from `convert`.
        path: a .safetensors file of latents `input.z`, images `input.x`, and the outputs of the
            official networks for them: `output.<network>`, by the official name (`avg_gen`, `Gs`, `gen_ema`,
            ...). Images are in the range of the official code.
        device: where to run them.

    Raises:
        MissingError: there is no such file.
        DataError: it contains none of the outputs, or outputs of another size.
    """
    if not path.is_file():
        raise MissingError(f"there are no recorded outputs at {path}")
    try:
        with utf8_path(path) as readable:
            recorded = load_file(readable)
    except SafetensorError as problem:
        raise DataError(f"{path} is not a readable safetensors file: {problem}") from problem
    scale, shift = conversion.pixels
    with torch.device("meta"):
        generator = models.build(conversion.parts["generator_ema"].section)
    assert isinstance(generator, Generator)
    found = []
    for part, called in conversion.called.items():
        of_discriminator = part == "discriminator"
        name, source = f"output.{called}", "input.x" if of_discriminator else "input.z"
        if name not in recorded or source not in recorded:
            continue
        network = _built(conversion.parts[part]).to(device)
        shape = generator.image_shape if of_discriminator else generator.latent_shape
        given = _shaped(recorded, source, shape, path).to(device)
        with torch.no_grad():
            made = network((given - shift) / scale) if of_discriminator else network(given) * scale + shift
        expected = _shaped(recorded, name, made.shape[1:], path)
        if len(expected) != len(made):
            raise DataError(f"{path} contains {len(made)} samples in {source} but {len(expected)} in {name}")
        largest = float((made.cpu() - expected).abs().max())
        found.append(Difference(name, largest, float(expected.abs().max())))
    if not found:
        names = ", ".join(f"output.{called}" for called in conversion.called.values())
        raise DataError(f"{path} contains no input.z or input.x with one of {names}")
    return found


def require_close(differences: Sequence[Difference], path: Path) -> None:
    """CheckFailed when a difference is more than rounding."""
    for difference in differences:
        if not difference.largest <= TOLERANCE * max(difference.scale, 1e-6):
            raise CheckFailed(
                f"{difference.name} differs from {path} by {difference.largest:.3g} where values reach "
                f"{difference.scale:.3g}: a setting that the file does not contain (such as heads, "
                "normalize_latent, windows or patch_size) is not that of its training; nothing was written"
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


def _require_same(parts: Mapping[str, Imported], config: RunConfig, path: Path) -> None:
    """CheckpointError with the overrides that fit when the file has other settings than the configuration."""
    overrides: list[str] = []
    for part, imported in parts.items():
        kind = part.removesuffix("_ema")
        overrides += _overrides(kind, getattr(config, kind), imported.section)
    generator = parts["generator_ema"].section
    if generator.resolution != config.data.resolution:
        sided = ("data",) if "discriminator" in parts else ("data", "discriminator")
        overrides += [f"{section}.resolution={generator.resolution}" for section in sided]
    if overrides:
        fitting = " ".join(shlex.quote(override) for override in dict.fromkeys(overrides))
        raise CheckpointError(f"{path} is of other settings than this configuration: add {fitting}")


def _overrides(kind: str, wanted: Section, found: Section) -> list[str]:
    """The overrides, as typed on the command line, that turn the section `wanted` into `found`."""
    if type(wanted) is not type(found):
        others = found.model_dump(mode="json", exclude_defaults=True)
        return [f"{kind}={_as_yaml({**found.model_dump(include={'family'}), **others})}"]
    ours, theirs = wanted.model_dump(mode="json"), found.model_dump(mode="json")
    return [
        f"{kind}.{name}={_as_yaml(theirs[name])}"
        for name in ours
        if name not in _UNTOLD and ours[name] != theirs[name]
    ]


def _as_yaml(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def _shaped(recorded: Mapping[str, Tensor], name: str, shape: Sequence[int], path: Path) -> Tensor:
    """A recorded tensor as [B, *shape]; DataError when it is of another size."""
    tensor = recorded[name]
    if not tensor.numel() or tensor.numel() % math.prod(shape):
        raise DataError(
            f"{name} of {path} has {list(tensor.shape)} numbers where this network has [B, "
            f"{', '.join(map(str, shape))}]"
        )
    return tensor.reshape(-1, *shape)


def _built(imported: Imported) -> Generator | Discriminator:
    network: Generator | Discriminator = models.build_to_load(imported.section)
    network.load_state_dict(imported.tensors)
    return network.eval().requires_grad_(False)
