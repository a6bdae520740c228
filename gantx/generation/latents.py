"""Seeds, latents and styles: what images are generated from, and how it is read from text and files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gantx.errors import DataError, MissingError, UsageError
from gantx.generation.parsing import parse_seeds as parse_seeds
from gantx.generation.parsing import whole_number as whole_number
from gantx.io import sealed
from gantx.io.arrays import read_npy
from gantx.io.byte_names import utf8_path
from gantx.models.interfaces import Generator, StyleBased
from gantx.runtime.random import Draw, Spec

LABEL = "gantx:classes"  # in the metadata of a file: the class of the images, as in pictures
_DIGITS = 10  # more than a label has


def spec_of_one(generator: Generator) -> Spec:
    """Random inputs of one image: its latent `z` and the generator's `noise`."""
    return {"z": Draw("normal", (1, *generator.latent_shape)), "noise": generator.noise_spec(1)}


def require_labels(generator: Generator, labels: Sequence[int] | Tensor | None) -> None:
    """UsageError when a conditional generator is to generate images without labels."""
    if generator.classes and labels is None:
        raise UsageError(
            f"this model has {generator.classes} classes: choose one with --class (label= in Python)"
        )


def style_shape(generator: Generator) -> tuple[int, ...]:
    """Shape of the styles of one image of a `StyleBased` generator: (L, D), or (K, L, D) with K latents."""
    assert isinstance(generator, StyleBased)
    device = next(generator.parameters()).device
    latent = torch.zeros(1, *generator.latent_shape, dtype=torch.float32, device=device)
    label = torch.zeros(1, dtype=torch.int64, device=device)
    with torch.no_grad():
        return tuple(generator.mapping(latent, label).shape[1:])


def latent_shapes(generator: Generator) -> list[tuple[int, ...]]:
    """Shapes that `sampling.from_latents` accepts: of a latent, and of the styles of an image if any."""
    shapes = [tuple(generator.latent_shape)]
    if isinstance(generator, StyleBased):
        shapes.append(style_shape(generator))
    return shapes


def latents_for(generator: Generator, path: Path) -> Tensor:
    """Read latents, or styles if the generator has them, for `sampling.from_latents`; see `read_latents`."""
    return read_latents(path, *latent_shapes(generator))


def label_of(path: Path) -> int | None:
    """The class that a file of latents records for its images; None if it records none."""
    if path.suffix != ".safetensors" or not path.is_file():
        return None
    try:
        with utf8_path(path) as readable, safe_open(readable, framework="pt") as file:
            text = (file.metadata() or {}).get(LABEL, "")
    except (SafetensorError, OSError):
        return None  # `read_latents` says what is wrong
    return int(text) if text.isdecimal() and len(text) < _DIGITS else None


def read_latents(path: Path, *shapes: tuple[int, ...]) -> Tensor:
    """Read latents from a .npy array or the one tensor of a .safetensors file.

    Args:
        path: the file.
        shapes: the shapes that one latent may have.

    Returns:
        float32 [N, *shape], finite.

    Raises:
        MissingError: there is no such file.
        DataError: the file cannot be read, or is something else.
    """
    if not path.is_file():
        raise MissingError(f"there are no latents at {path}")
    try:
        if path.suffix == ".safetensors":
            sealed.check_header(path)
            with utf8_path(path) as readable, safe_open(readable, "pt") as file:
                stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
                damaged = sealed.damaged_tensors(stored, file.metadata() or {})
            (latents,) = stored.values()
            if damaged:
                raise sealed.Damaged
        else:
            latents = torch.from_numpy(np.array(read_npy(path)))
    except sealed.Damaged:
        raise DataError(f"{path} is damaged: its latents do not match their digest; project again") from None
    except (SafetensorError, OSError, ValueError, TypeError) as problem:
        raise DataError(
            f"cannot read latents from {path} ({problem}): give a .npy array, or a .safetensors file of one "
            "tensor"
        ) from problem
    return as_latents(latents, shapes, str(path))


def as_latents(latents: Tensor, shapes: Sequence[tuple[int, ...]], name: str) -> Tensor:
    """Check latents and convert them to float32 [N, *shape], where `shape` is one of `shapes`.

    Raises:
        DataError: the tensor called `name` has another shape or type, or is not finite.
    """
    if not latents.ndim or tuple(latents.shape[1:]) not in shapes or not len(latents):
        known = " or styles ".join(f"[N, {', '.join(map(str, shape))}]" for shape in shapes)
        raise DataError(
            f"{name} has the shape {list(latents.shape)}, but this generator takes latents {known}"
        )
    if not latents.is_floating_point() or not bool(latents.isfinite().all()):
        raise DataError(f"{name} contains values that are not finite floating-point numbers")
    return latents.float()
