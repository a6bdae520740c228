"""Provenance of pictures: written into PNG text chunks, read back and verified.

A seed determines an image, so a picture that names its weights, seeds and truncation can be generated again
and compared pixel by pixel.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gantx import checkpoint
from gantx.checkpoint import Header
from gantx.config.schema import ConditioningConfig
from gantx.errors import CheckFailed, CheckpointError, DataError, MissingError, UsageError
from gantx.generation import sampling
from gantx.generation.labels import drawn_labels
from gantx.generation.latents import parse_seeds, whole_number
from gantx.generation.sampling import Weights
from gantx.generation.truncation import Truncation, parse_truncation
from gantx.io import archives, imaging, sheets
from gantx.io.channels import extended, to_rgb
from gantx.io.decoding import JPEG, decoded
from gantx.models.interfaces import Generator
from gantx.version import __version__

# Keys of `describe` and `gantx sample`; pictures with other keys were not generated from seeds alone.
_KNOWN = {"version", "preset", "images", "weights", "digest", "truncation", "cutoff", "seed", "seeds"}
_KNOWN |= {"scale", "labels", "classes"}
_UNCONDITIONAL = ConditioningConfig()
MOST_BYTES = 2**31  # of the pixels of all pictures that are read at once
_PART: dict[Weights, str] = {"ema": "generator_ema", "raw": "generator"}


def describe(
    header: Header, weights: Weights = "ema", truncation: Truncation | None = None
) -> dict[str, str]:
    """Text chunks of a picture, except for its seeds.

    Args:
        header: of the checkpoint.
        weights: the running average or the trained weights.
        truncation: of the styles.
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
    """A picture and its provenance.

    Attributes:
        name: of the file.
        pixels: uint8 [3 or 4, H, W]; a grid of images is one picture.
        seeds: of its images, in reading order.
        digest: SHA-256 of the weights; "" if it is not recorded, as in pictures written during training.
        images: number of real images shown to the discriminator before, or None.
        truncation: of its styles, or None.
        scale: factor by which its images are enlarged.
        labels: whether a line above each image names its seed.
        classes: of its images, one for all or one for each; () where each seed has its own.
    """

    name: str
    pixels: Tensor
    seeds: tuple[int, ...]
    digest: str
    images: int | None
    truncation: Truncation | None
    scale: int = 1
    labels: bool = False
    classes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """A picture compared with its regeneration.

    Attributes:
        name: of the file.
        regenerated: uint8 [3 or 4, H, W].
        largest: largest difference of a value, in grey levels.
        differing: fraction of the values that differ.
    """

    name: str
    regenerated: Tensor
    largest: int
    differing: float


def read_pictures(path: Path) -> list[Picture]:
    """Read pictures of `gantx sample`: a .png or .webp, or a folder or .zip of .png, sorted by name.

    Raises:
        MissingError: the path does not exist, or there is no PNG in it.
        DataError: a file is not a picture, or has no provenance.
        UsageError: a picture was not generated from seeds.
    """
    pictures, total = [], 0
    for name, content in _files_of(path):
        pictures.append(_read(name, content))
        total += pictures[-1].pixels.numel()
        if total > MOST_BYTES:
            raise UsageError(
                f"the pictures in {path} take more than {MOST_BYTES:,} bytes: pass fewer at once"
            )
    if not pictures:
        raise MissingError(f"there is no PNG in {path}")
    return pictures


def _files_of(path: Path) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the PNGs in a folder or a .zip, or of one file; see `read_pictures`."""
    try:
        if path.is_dir():
            yield from ((str(file), file.read_bytes()) for file in sorted(path.glob("*.png")))
        elif path.is_file() and path.suffix.lower() == ".zip":
            with archives.open_zip(path) as archive:
                entries = [entry for entry in archive.infolist() if entry.filename.lower().endswith(".png")]
                for entry in sorted(entries, key=lambda entry: entry.filename):
                    yield f"{path}/{entry.filename}", archives.read_entry(archive, entry)
        elif path.is_file():
            yield str(path), path.read_bytes()
        else:
            raise MissingError(f"there is no picture at {path}")
    except ValueError as problem:
        raise DataError(f"{path} is a damaged zip archive: {problem}") from problem
    except OSError as problem:
        raise MissingError(f"cannot read {path}: {problem.strerror or problem}") from problem


def find_weights(pictures: Sequence[Picture], target: Path | None, runs: Path) -> tuple[Path, Weights]:
    """The checkpoint that generated pictures, and which of its weights.

    Args:
        pictures: all generated by the same weights.
        target: a run, a folder of checkpoints, a file or `demo`; None to search `runs`.
        runs: a folder of runs.

    Raises:
        UsageError: the pictures were generated by different weights.
        MissingError: no checkpoint has these weights.
        CheckFailed: the named file has other weights.
    """
    digests = {picture.digest for picture in pictures}
    if len(digests) > 1:
        raise UsageError(
            f"{len(digests)} different checkpoints generated these pictures: pass them separately"
        )
    (digest,) = digests
    if target is not None and checkpoint.is_demo(target):
        target = checkpoint.find(target)
    if not digest:
        return _of_training(pictures[0], target), "ema"
    if target is not None and target.is_file():
        weights = _weights_of(checkpoint.read_header(target), digest)
        if weights is None:
            raise CheckFailed(
                f"{pictures[0].name} was generated by weights {digest[:12]}…, which are not in {target}"
            )
        return target, weights
    folder = runs if target is None else target
    for file in _candidates(folder):
        try:
            weights = _weights_of(checkpoint.read_header(file), digest)
        except CheckpointError:  # not a checkpoint: latents, statistics, an incomplete copy
            continue
        if weights is not None:
            return file, weights
    raise MissingError(
        f"no checkpoint in {folder.absolute()} has the weights {digest[:12]}… that generated "
        f"{pictures[0].name}: name the run or the file"
    )


def regenerate(
    generator: Generator,
    pictures: Sequence[Picture],
    *,
    batch: int,
    device: torch.device,
    ratio: float = 1.0,
    conditioning: ConditioningConfig = _UNCONDITIONAL,
) -> Iterator[Comparison]:
    """Generate pictures again and compare them.

    Args:
        generator: a network of `gantx.models`, on `device`.
        pictures: to compare; those with the same truncation share batches.
        batch: images computed at once.
        device: where the generator is.
        ratio: height / width to which images are cropped; see `sampling.crop`.
        conditioning: of the run.

    Raises:
        DataError: the classes of a picture are not those of the model, or its size does not fit its images.
    """
    for truncation in dict.fromkeys(picture.truncation for picture in pictures):
        alike = [picture for picture in pictures if picture.truncation == truncation]
        seeds = [seed for picture in alike for seed in picture.seeds]
        labels = [label for picture in alike for label in _labels_of(picture, conditioning)]
        batches = sampling.sample(
            generator,
            seeds,
            batch=batch,
            device=device,
            truncation=truncation,
            ratio=ratio,
            labels=labels if generator.classes else None,
        )
        generated = (image for images in batches for image in images)
        for picture in alike:
            images = torch.stack([next(generated) for _ in picture.seeds])
            yield _compared(picture, images)


def _labels_of(picture: Picture, conditioning: ConditioningConfig) -> list[int]:
    """The labels of the images of a picture; [] for an unconditional model."""
    count = conditioning.labels
    if not picture.classes:
        return drawn_labels(conditioning, picture.seeds) or []
    labels = picture.classes * (len(picture.seeds) if len(picture.classes) == 1 else 1)
    if len(labels) != len(picture.seeds) or max(labels) >= count:
        raise DataError(
            f"{picture.name} names classes that do not fit its {len(picture.seeds)} images of {count} classes"
        )
    return list(labels)


def _of_training(picture: Picture, target: Path | None) -> Path:
    """The checkpoint of a picture written during training, by its number of images if that is recorded."""
    if target is None:
        raise MissingError(f"{picture.name} does not say which weights generated it: name its run")
    if target.is_file() or picture.images is None:
        return checkpoint.find(target)
    name = checkpoint.checkpoint_name(picture.images)
    for file in _candidates(target):
        if file.name == name or _is_best_at(file, picture.images):
            return file
    raise MissingError(
        f"{target} has no {name}, which generated {picture.name}: only the last checkpoints are kept"
    )


def _is_best_at(file: Path, images: int) -> bool:
    """Whether a file is a best checkpoint of this number of images."""
    if file not in checkpoint.best_in(file.parent).values():
        return False
    with contextlib.suppress(CheckpointError):
        return checkpoint.read_header(file).images == images
    return False


def _candidates(folder: Path) -> list[Path]:
    """Weight files in a folder of checkpoints, a run, or a folder of runs; links are followed."""
    depths = ("", "*/", "*/*/", "*/*/*/")  # runs / run / checkpoints / best of earlier versions
    return sorted({file for depth in depths for file in folder.glob(f"{depth}*.safetensors")}, reverse=True)


def _compared(picture: Picture, images: Tensor) -> Comparison:
    count, _, height, width = images.shape
    height, width = height * picture.scale, width * picture.scale
    gap = sheets.gap_for(picture.scale)
    above = sheets.caption_height(width) if picture.labels else 0
    columns, rows = imaging.grid_of(picture.pixels.shape[-2:], (above + height, width), gap)
    if columns * rows < count:
        raise DataError(
            f"{picture.name} is {picture.pixels.shape[2]}x{picture.pixels.shape[1]} pixels, not a grid of "
            f"{count} images of {width}x{height}: it was cut or resized"
        )
    channels = picture.pixels.shape[0]
    shown = to_rgb(images) if channels == 3 else images  # an opaque picture may be stored without alpha
    images = torch.stack([extended(image, channels) for image in sheets.enlarged(shown, picture.scale)])
    if picture.labels:  # their letters depend on the version of a font: only images are compared
        regenerated = picture.pixels.clone()
        for index, image in enumerate(images):
            y, x = index // columns * (above + height + gap) + above, index % columns * (width + gap)
            regenerated[:, y : y + height, x : x + width] = image
    else:
        regenerated = imaging.grid(images, columns, rows, gap)
    difference = (regenerated.int() - picture.pixels.int()).abs()
    return Comparison(
        picture.name, regenerated, int(difference.max()), float((difference > 0).float().mean())
    )


def _weights_of(header: Header, digest: str) -> Weights | None:
    return next((weights for weights, part in _PART.items() if header.digests.get(part) == digest), None)


def _with_alpha_kept(image: Image.Image) -> Image.Image:
    return image if image.mode == "RGBA" else image.convert("RGB")


def _read(name: str, data: bytes) -> Picture:
    image, text = decoded(data, name, _with_alpha_kept)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    said = {key[len("gantx:") :] for key in text if key.startswith("gantx:")}
    if not said:
        raise DataError(
            f"{name} does not say where it comes from: another program made it, or removed its text chunks"
        )
    if data.startswith(JPEG):
        raise UsageError(
            f"{name} does not keep exact pixels, so it cannot be compared: write a .png or .webp"
        )
    seeds = text.get("gantx:seeds", text.get("gantx:seed"))
    if seeds is None or said - _KNOWN:
        raise UsageError(
            f"{name} was not generated from seeds by `gantx sample`, so it cannot be regenerated"
        )
    try:
        psi, cutoff = text.get("gantx:truncation"), text.get("gantx:cutoff")
        truncation = parse_truncation(float(psi) if psi else None, int(cutoff) if cutoff else None)
        numbers = parse_seeds(seeds)
        if len(numbers) > pixels[0].numel():
            raise ValueError(f"{len(numbers):,} seeds for {pixels[0].numel():,} pixels")
        return Picture(
            name=name,
            pixels=pixels,
            seeds=tuple(numbers),
            digest=text.get("gantx:digest", ""),
            images=int(images) if (images := text.get("gantx:images")) else None,
            truncation=truncation,
            scale=whole_number(int(text.get("gantx:scale", "1")), "scale", 1),
            labels="gantx:labels" in text,
            classes=tuple(parse_seeds(text["gantx:classes"])) if "gantx:classes" in text else (),
        )
    except (UsageError, ValueError) as problem:
        raise DataError(f"{name} has damaged text chunks: {problem}") from problem
