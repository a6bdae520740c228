"""What a run will be, worked out without data, memory or time: for `gantx train --dry-run`."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from gantx import models
from gantx.config.schema import RunConfig
from gantx.models.interfaces import Discriminator, Generator
from gantx.training.loop import target_images
from gantx.training.memory import peaks
from gantx.training.optimized_network import OptimizedNetwork
from gantx.training.phases import phases
from gantx.training.schedules import window_scale


def plan(settings: RunConfig) -> dict[str, str]:
    """Labels and values that describe the run: sizes, arithmetic, steps, memory, disk.

    The networks are built on the meta device: nothing is allocated.
    """
    with torch.device("meta"):
        generator: Any = models.build(settings.generator)
        discriminator: Any = models.build(settings.discriminator)
    training, images = settings.training, target_images(settings)
    iterations = images // training.batch
    sizes = parameters(generator), parameters(discriminator)
    side = settings.data.resolution
    # In float32: G, its average and two moments; D and two moments.
    checkpoint_gb = (4 * sizes[0] + 3 * sizes[1]) * 4 / 2**30
    work = flops(generator, (1, *generator.latent_shape)), flops(discriminator, (1, 3, side, side))
    generator_steps = -(-iterations // settings.objective.n_critic)
    figures = {
        "generator": f"{sizes[0]:,} parameters, {work[0]:.2f} GFLOP a forward pass",
        "discriminator": f"{sizes[1]:,} parameters, {work[1]:.2f} GFLOP a forward pass",
        "length": f"{images / 1000:,g} kimg = {iterations:,} D steps of {training.batch} images",
        "generator steps": f"{generator_steps:,} of {settings.generator_batch} images",
        "micro-batch": micro_batch(settings),
        "memory": memory(settings, generator, discriminator),
        "checkpoints": (
            f"every {training.checkpoint_kimg:g} kimg, the last {training.keep_checkpoints} kept, "
            f"{checkpoint_gb:.2f} GiB each"
        ),
        "pictures": f"every {training.sample_kimg:g} kimg, {training.samples} images",
    }
    if (schedule := training.attention_window) is not None:
        scale = window_scale(schedule, training.kimg)
        figures["attention window"] = ", ".join(
            f"{window} until {until * scale:g} kimg" for until, window in schedule.steps
        )
    return figures


def micro_batch(settings: RunConfig) -> str:
    """How many samples are computed at once, and what that does to losses of a whole batch."""
    size = settings.training.micro_batch
    if size is None:
        return "whole batches"
    if size == "auto":
        return "auto: on a GPU the largest that fits, found when the run starts; elsewhere whole batches"
    # What a loss takes from several samples together, and not from each.
    shared = []
    if settings.objective.loss == "wgangp-eps":
        shared.append("the drift of the loss")
    if getattr(settings.discriminator, "group_size", 1) > 1:
        shared.append("the spread across a batch that D sees")
    if settings.objective.path_length is not None:
        shared.append("the mean path length")
    return f"{size} samples" + (f"; {', '.join(shared)}: taken from each micro-batch" if shared else "")


def memory(settings: RunConfig, generator: Generator, discriminator: Discriminator) -> str:
    """What a run keeps in memory all the time, and what each pass takes on top at its peak, in float32.

    Args:
        settings: the run.
        generator: G on the meta device.
        discriminator: D on the meta device.
    """
    lasting, on_top = needed(settings, generator, discriminator)
    passes = ", ".join(f"{name} {size / 2**30:.2f}" for name, size in on_top)
    return (
        f"{lasting / 2**30:.2f} GiB throughout, and at the peak, in fp32 with attention written out, about: "
        f"{passes} GiB"
    )


def needed(
    settings: RunConfig, generator: Generator, discriminator: Discriminator
) -> tuple[int, list[tuple[str, int]]]:
    """Bytes that a run keeps all the time, and those of each pass on top; arguments as for `memory`."""
    of_generator: OptimizedNetwork[Generator] = OptimizedNetwork(generator, settings.optimizer.generator)
    of_discriminator: OptimizedNetwork[Discriminator] = OptimizedNetwork(
        discriminator, settings.optimizer.discriminator
    )
    # Weights, gradient and two moments of both; the average of G.
    lasting = 4 * (5 * parameters(generator) + 4 * parameters(discriminator))
    on_top = [
        (phase.name if place == 0 else "its penalty", size)
        for phase in phases(settings, of_generator, of_discriminator)
        for place, size in enumerate(peaks(phase, settings.data.resolution))
    ]
    return lasting, on_top


def parameters(network: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


def flops(network: nn.Module, shape: tuple[int, ...]) -> float:
    """GFLOP of one forward pass on an input of `shape`, two per multiply-add."""
    network.requires_grad_(False)  # a parameter that is an input of a module would confuse the counter
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.empty(shape, device="meta"))
    return int(counter.get_total_flops()) / 1e9
