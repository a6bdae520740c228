"""Where a picture comes from: written into its text chunks, read back, and put to the test.

A seed means an image, so a picture that names its weights, seeds and truncation can be painted again and
compared, pixel by pixel.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from gantx import checkpoint
from gantx.checkpoint import Header
from gantx.errors import CheckFailed, CheckpointError, DataError, MissingError, UsageError
from gantx.generation import sampling
from gantx.generation.latents import parse_seeds
from gantx.generation.sampling import Weights
from gantx.generation.truncation import Truncation, parse_truncation
from gantx.io import imaging
from gantx.version import __version__

# What `describe` and `gantx sample` write; pictures that say more were made in another way.
_KNOWN = {"version", "preset", "images", "weights", "digest", "truncation", "cutoff", "seed", "seeds"}
_PART: dict[Weights, str] = {"ema": "generator_ema", "raw": "generator"}


def describe(
    header: Header, weights: Weights = "ema", truncation: Truncation | None = None
) -> dict[str, str]:
    """Text chunks of a picture, all but its seeds.

    Args:
        header: of the checkpoint that painted it.
        weights: which of its weights did.
        truncation: with which its styles were drawn to their average.
    """
    text = {
        "Software": "gantx",
        "gantx:version": __version__,
        "gantx:preset": header.config.name,
        "gantx:images": str(header.images),
        "gantx:weights": weights,
        "gantx:digest": header.digests[_PART[weights]],
    }
    if truncation is not None:
        text["gantx:truncation"] = repr(truncation.psi)
        if truncation.cutoff is not None:
            text["gantx:cutoff"] = str(truncation.cutoff)
    return text


@dataclass(frozen=True)
class Picture:
    """A picture and what it says about itself.

    Attributes:
        name: of the file.
        pixels: uint8 [3, H, W]; a grid of images is one picture.
        seeds: of its images, in reading order.
        digest: SHA-256 of the weights that painted it; "" when it does not say, as in pictures of training.
        images: real images that D had seen then, or None.
        truncation: of its styles.
    """

    name: str
    pixels: Tensor
    seeds: tuple[int, ...]
    digest: str
    images: int | None
    truncation: Truncation | None


@dataclass(frozen=True)
class Comparison:
    """A picture beside what was painted again.

    Attributes:
        name: of the file.
        regenerated: uint8 [3, H, W].
        largest: largest difference of a value, in grey levels.
        differing: share of the values that differ.
    """

    name: str
    regenerated: Tensor
    largest: int
    differing: float


def read_pictures(path: Path) -> list[Picture]:
    """Read pictures of `gantx sample`: a .png, or a folder or .zip of them, by name.

    Raises:
        MissingError: there is nothing of this name, or no PNG in it.
        DataError: a file is no picture, or says nothing about its origin.
        UsageError: a picture was made in another way than from seeds.
    """
    if path.is_dir():
        files = sorted(path.glob("*.png"))
        pictures = [_read(str(file), file.read_bytes()) for file in files]
    elif path.is_file() and path.suffix.lower() == ".zip":
        try:
            with zipfile.ZipFile(path) as archive:
                names = sorted(name for name in archive.namelist() if name.lower().endswith(".png"))
                pictures = [_read(f"{path}/{name}", archive.read(name)) for name in names]
        except zipfile.BadZipFile as problem:
            raise DataError(f"{path} is no zip archive: {problem}") from problem
    elif path.is_file():
        pictures = [_read(str(path), path.read_bytes())]
    else:
        raise MissingError(f"there is no picture at {path}")
    if not pictures:
        raise MissingError(f"there is no PNG in {path}")
    return pictures


def exported_generator(pictures: Sequence[Picture], target: Path | None, runs: Path) -> tuple[Path, Weights]:
    """The checkpoint that painted pictures, and which of its weights did.

    Args:
        pictures: all by the same weights.
        target: a run, a folder of checkpoints or a file; None to look through `runs`.
        runs: a folder of runs.

    Raises:
        UsageError: the pictures were painted by different weights.
        MissingError: no checkpoint has these weights.
        CheckFailed: the file that was named has other weights.
    """
    digests = {picture.digest for picture in pictures}
    if len(digests) > 1:
        raise UsageError(f"{len(digests)} different checkpoints painted these pictures: name them apart")
    (digest,) = digests
    if not digest:
        return _of_training(pictures[0], target), "ema"
    if target is not None and target.is_file():
        weights = _weights_of(checkpoint.read_header(target), digest)
        if weights is None:
            raise CheckFailed(
                f"{pictures[0].name} was painted by weights {digest[:12]}…, which are not in {target}"
            )
        return target, weights
    folder = runs if target is None else target
    for file in _candidates(folder):
        try:
            weights = _weights_of(checkpoint.read_header(file), digest)
        except CheckpointError:  # not a checkpoint: latents, statistics, a file that is still copied
            continue
        if weights is not None:
            return file, weights
    raise MissingError(
        f"no checkpoint in {folder.absolute()} has the weights {digest[:12]}… that painted "
        f"{pictures[0].name}: name the run or the file"
    )


def regenerate(
    generator: Any, pictures: Sequence[Picture], *, batch: int, device: torch.device, ratio: float = 1.0
) -> Iterator[Comparison]:
    """Paint pictures again and compare.

    Args:
        generator: a network of `gantx.models`, on `device`.
        pictures: in any number; runs of the same truncation share batches.
        batch: images computed at once.
        device: where the generator is.
        ratio: height / width to which images are cropped; see `sampling.crop`.

    Raises:
        DataError: a picture is not of the size of such images.
    """
    for truncation in dict.fromkeys(picture.truncation for picture in pictures):
        alike = [picture for picture in pictures if picture.truncation == truncation]
        seeds = [seed for picture in alike for seed in picture.seeds]
        batches = sampling.sample(
            generator, seeds, batch=batch, device=device, truncation=truncation, ratio=ratio
        )
        painted = (image for images in batches for image in images)
        for picture in alike:
            images = torch.stack([next(painted) for _ in picture.seeds])
            yield _compared(picture, images)


def _of_training(picture: Picture, target: Path | None) -> Path:
    """The checkpoint of a picture that training painted: of as many images, as far as that can be told."""
    if target is None:
        raise MissingError(f"{picture.name} does not say which weights painted it: name its run")
    if target.is_file() or picture.images is None:
        return checkpoint.find(target)
    name = checkpoint.checkpoint_name(picture.images)
    for file in _candidates(target):
        if file.name == name:
            return file
    raise MissingError(f"{target} has no {name}, which painted {picture.name}: only the last are kept")


def _candidates(folder: Path) -> list[Path]:
    """Files of weights in a folder of checkpoints, a run, or a folder of runs; links are followed."""
    depths = ("", "*/", "*/*/", "*/*/*/")  # runs / run / checkpoints / best
    return sorted({file for depth in depths for file in folder.glob(f"{depth}*.safetensors")}, reverse=True)


def _compared(picture: Picture, images: Tensor) -> Comparison:
    columns, rows = imaging.grid_of(picture.pixels.shape[-2:], images.shape[-2:])
    if columns * rows < len(images):
        height, width = images.shape[-2:]
        raise DataError(
            f"{picture.name} is {picture.pixels.shape[2]}x{picture.pixels.shape[1]} pixels, which is no grid "
            f"of {len(images)} images of {width}x{height}: it was cut or resized"
        )
    regenerated = imaging.grid(images, columns, rows)
    difference = (regenerated.int() - picture.pixels.int()).abs()
    return Comparison(
        picture.name, regenerated, int(difference.max()), float((difference > 0).float().mean())
    )


def _weights_of(header: Header, digest: str) -> Weights | None:
    return next((weights for weights, part in _PART.items() if header.digests.get(part) == digest), None)


def _read(name: str, data: bytes) -> Picture:
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            text = {str(key): value for key, value in image.info.items() if isinstance(value, str)}
            pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    except (UnidentifiedImageError, OSError, ValueError) as problem:
        raise DataError(f"cannot read {name}: {problem}") from problem
    said = {key[len("gantx:") :] for key in text if key.startswith("gantx:")}
    if not said:
        raise DataError(
            f"{name} does not say where it comes from: another program made it, or removed its text chunks"
        )
    seeds = text.get("gantx:seeds", text.get("gantx:seed"))
    if seeds is None or said - _KNOWN:
        raise UsageError(f"{name} was not painted from seeds by `gantx sample`, which cannot do it again")
    try:
        psi, cutoff = text.get("gantx:truncation"), text.get("gantx:cutoff")
        truncation = parse_truncation(float(psi) if psi else None, int(cutoff) if cutoff else None)
        return Picture(
            name=name,
            pixels=pixels,
            seeds=tuple(parse_seeds(seeds)),
            digest=text.get("gantx:digest", ""),
            images=int(images) if (images := text.get("gantx:images")) else None,
            truncation=truncation,
        )
    except (UsageError, ValueError) as problem:
        raise DataError(f"{name} has damaged text chunks: {problem}") from problem
