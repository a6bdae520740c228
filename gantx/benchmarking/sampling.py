"""Sampling speed of a preset: its generator alone, and the whole path from seeds to one file."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from gantx import models
from gantx.benchmarking.machine import Machine, measuring, this_machine
from gantx.benchmarking.timing import durations
from gantx.config.schema import RunConfig
from gantx.generation import sampling
from gantx.generation.latents import spec_of_one
from gantx.generation.sampling import BatchRunner
from gantx.io import imaging
from gantx.models.interfaces import Generator
from gantx.runtime import devices
from gantx.runtime.random import for_seeds

WARM_UP, PASSES = 3, 10  # passes that are not measured (the third captures the CUDA graph), and that are
IMAGES_ON_GPU, IMAGES_ELSEWHERE = 50_000, 512  # images of the file by default

Log = Callable[[str], None]


@dataclass(frozen=True)
class SamplingFigures:
    """Sampling speed of a preset.

    Attributes:
        preset: its name.
        batch: images generated at once.
        number: images of the file.
        compiled: whether the generator was.
        generator_images_per_second: of the generator alone, from latents on the device to images there.
        file_images_per_second: from seeds to a complete .npy file.
        share_of_generator: `file_images_per_second` against `generator_images_per_second`.
        file_seconds: that the file took.
        warm_up_seconds: additional time of the first passes of the generator: compilation, and the capture
            of the CUDA graph.
        peak_memory_gib: of the GPU: all that was reserved at once; on the CPU: of the process.
        machine: where.
    """

    preset: str
    batch: int
    number: int
    compiled: bool
    generator_images_per_second: float
    file_images_per_second: float
    share_of_generator: float
    file_seconds: float
    warm_up_seconds: float
    peak_memory_gib: float
    machine: Machine


def measure(
    settings: RunConfig,
    device: torch.device,
    *,
    batch: int | None,
    number: int | None,
    compile: bool = False,
    log: Log,
) -> SamplingFigures:
    """Measure the sampling speed of a preset, with random weights.

    Args:
        settings: whose generator.
        device: where.
        batch: images generated at once; None for as many as `gantx sample` would.
        number: images of the file; None for 50,000 on a GPU and 512 elsewhere.
        compile: whether the generator is compiled, as by `gantx sample --compile`.
        log: receives a line for each thing that is measured.

    Raises:
        MissingError: the device or the disk has too little space, or a requirement of compilation is missing.
    """
    count = number or (IMAGES_ON_GPU if device.type == "cuda" else IMAGES_ELSEWHERE)
    with measuring(device, settings.training.threads, batch):
        generator = random_generator(settings, device)
        batch = batch or sampling.batch_for(generator, device, count)
        compiling = 0.0
        if compile:
            log(f"compiling the generator of {settings.name}")
            generator = sampling.compiled(generator)
            before = time.perf_counter()
            generator_rate(generator, batch, device, log, passes=1)
            compiling = time.perf_counter() - before
        log(f"measuring the generator of {settings.name}")
        alone, warm_up = generator_rate(generator, batch, device, log)
        log(f"generating {count:,} images to a file")
        with tempfile.TemporaryDirectory() as folder:
            how = {"batch": batch, "device": device, "ratio": settings.data.ratio, "constant": compile}
            write = partial(_write, generator, {**how, "log": log})
            write(Path(folder) / "first.npy", min(count, 2 * batch))
            before = time.perf_counter()
            write(Path(folder) / "all.npy", count)
            seconds = time.perf_counter() - before
        return SamplingFigures(
            preset=settings.name,
            batch=batch,
            number=count,
            compiled=compile,
            generator_images_per_second=alone,
            file_images_per_second=count / seconds,
            share_of_generator=count / seconds / alone,
            file_seconds=seconds,
            warm_up_seconds=compiling + warm_up,
            peak_memory_gib=devices.memory_gb(device),
            machine=this_machine(device),
        )


def random_generator(settings: RunConfig, device: torch.device) -> Generator:
    """The generator of a preset at random weights, as in `gantx sample`: evaluation mode, no gradients."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.training.seed)
        generator = models.build(settings.generator, settings.data.channels)
    return generator.to(device).eval().requires_grad_(False)


@torch.no_grad()
def generator_rate(
    generator: Generator, batch: int, device: torch.device, log: Log, passes: int = WARM_UP + PASSES
) -> tuple[float, float]:
    """Speed of a generator, from latents to float images on the device; CUDA graphs are replayed.

    A conditional generator is given all classes in turn.

    Args:
        generator: a network of `gantx.models`, on `device`.
        batch: images generated at once.
        device: where.
        log: receives a line if CUDA graphs cannot be used.
        passes: of the generator; the first `WARM_UP` are not measured.

    Returns:
        Images per second, and the additional time of the first passes in seconds.
    """
    q: Any = for_seeds(spec_of_one(generator), range(batch), device)
    if generator.classes:
        q["label"] = torch.arange(batch, device=device) % generator.classes

    def forward(q: Any) -> Tensor:
        return sampling.render(generator, q["z"], q["noise"], None, q.get("label"))

    runner = BatchRunner(forward, device, batches=passes, log=log)
    seconds = durations(lambda: runner(q), device, passes)
    usual = median(seconds[WARM_UP:] or seconds)
    return batch / usual, max(0.0, sum(seconds[:WARM_UP]) - WARM_UP * usual)


def _write(generator: Generator, how: Mapping[str, Any], path: Path, count: int) -> None:
    """Generate seeds 0..count-1 into a .npy file, as `gantx sample` does; `how` goes to `sampling.sample`."""
    seeds = range(count)
    labels = [seed % generator.classes for seed in seeds] if generator.classes else None
    imaging.save_images(path, sampling.sample(generator, seeds, labels=labels, **how), seeds, {})
