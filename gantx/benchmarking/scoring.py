"""Scoring speed of a preset: its generator, the resizing and the feature network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from gantx.benchmarking.machine import Machine, measuring, this_machine
from gantx.benchmarking.sampling import PASSES, WARM_UP, generator_rate, random_generator
from gantx.benchmarking.timing import durations
from gantx.config.schema import RunConfig
from gantx.evaluation import protocols
from gantx.evaluation.features import open_features
from gantx.evaluation.inception import Inception
from gantx.evaluation.resizing import resize
from gantx.runtime import devices
from gantx.runtime.precision import full_precision

Log = Callable[[str], None]


@dataclass(frozen=True)
class ScoringFigures:
    """Scoring speed of a preset.

    Attributes:
        preset: its name.
        batch: images generated, resized and scored at once.
        features: the feature network.
        number: images that the preset's evaluation takes.
        generator_images_per_second: of the generator alone.
        resizing_images_per_second: of resizing by the protocol; None if images are not resized.
        features_images_per_second: of the network alone, from images of its size to features.
        images_per_second: of all three in sequence.
        seconds: for `number` images, without reference images and statistics.
        peak_memory_gib: of the GPU: all that was reserved at once; on the CPU: of the process.
        machine: where.
    """

    preset: str
    batch: int
    features: str
    number: int
    generator_images_per_second: float
    resizing_images_per_second: float | None
    features_images_per_second: float
    images_per_second: float
    seconds: float
    peak_memory_gib: float
    machine: Machine


def measure(settings: RunConfig, device: torch.device, *, batch: int, log: Log) -> ScoringFigures:
    """Measure the scoring speed of a preset, with random weights of its generator and of Inception.

    Args:
        settings: the run; `evaluation` selects the feature network and the resizing.
        device: where.
        batch: images at once.
        log: receives a line for each thing that is measured.

    Raises:
        UsageError: there is no such feature network.
        MissingError: its file is not there, or the device has too little memory.
    """
    wanted = settings.evaluation
    rules = protocols.named(wanted.protocol)
    with measuring(device, settings.training.threads, batch):
        extract = _inception(device) if wanted.features == "inception" else _other(wanted.features, device)
        generator = random_generator(settings, device)
        log(f"measuring the generator of {settings.name}")
        generating, _ = generator_rate(generator, batch, device, log)
        log(f"measuring the features of {wanted.features}")
        shape = batch, 3, *generator.image_shape[1:]  # whatever it generates: scores are those of RGB
        images = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
        resizing = None
        if wanted.features == "inception":
            resizing = _rate(lambda pixels: resize(pixels, rules.resize), images, device)
            images = resize(images, rules.resize)
        extracting = _rate(extract, images, device)
        memory, machine = devices.memory_gb(device), this_machine(device)
    together = 1 / sum(1 / rate for rate in (generating, resizing, extracting) if rate is not None)
    number = wanted.num or rules.num
    return ScoringFigures(
        preset=settings.name,
        batch=batch,
        features=wanted.features,
        number=number,
        generator_images_per_second=generating,
        resizing_images_per_second=resizing,
        features_images_per_second=extracting,
        images_per_second=together,
        seconds=number / together,
        peak_memory_gib=memory,
        machine=machine,
    )


def _rate(work: Callable[[Tensor], object], images: Tensor, device: torch.device) -> float:
    """Images per second of `work` on a batch."""
    return len(images) / median(durations(lambda: work(images), device, WARM_UP + PASSES)[WARM_UP:])


def _inception(device: torch.device) -> Callable[[Tensor], Tensor]:
    """Inception with random weights: as fast as with the published ones, without a download."""
    network = Inception(centred=True).to(device).to(memory_format=torch.channels_last)

    @torch.no_grad()
    def extract(images: Tensor) -> Tensor:
        with full_precision():
            features: Tensor = network(images)[0]
        return features

    return extract


def _other(choice: str, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Any other feature network of `gantx eval`; images are not resized."""
    network = open_features(choice, resize="none", weights=None, device=device, allow_unverified=False)
    return lambda images: network(images).features
