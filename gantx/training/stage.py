"""One stage of training: whose parameters move, how often, on which images and draws, by which losses."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gantx.config import AdamConfig
from gantx.draws import Draws, Spec, take
from gantx.models import KeepsState

Reals = dict[str, Tensor]


class Outcome(NamedTuple):
    """What a loss gives.

    Attributes:
        loss: the scalar to minimise.
        observed: 0-d values worth reporting.
        kept: values, without graph, from which `Stage.keep` moves what is kept from step to step.
    """

    loss: Tensor
    observed: dict[str, Tensor]
    kept: dict[str, Tensor] = {}  # noqa: RUF012 - never written to


Loss = Callable[[Reals, Draws], Outcome]


class Pass(NamedTuple):
    """A loss, and how many samples it is computed on at once.

    Attributes:
        loss: pure function of (real images by stream, draws); a mean over the samples.
        samples: gradients accumulate over the rest of the stage's batch.
    """

    loss: Loss
    samples: int


class Player:
    """A network with its optimiser and one flat gradient.

    The gradients of all parameters are views of one buffer, so that zeroing, clipping and checking are one
    operation each.

    Args:
        network: the network; must be on its final device.
        settings: its optimiser.

    Attributes:
        lr: learning rate before the schedule.
        gradient: of all parameters, in their order.
        spilled: `gradient` holds what another player's stage left there; the next step starts from it.
        accumulating: `gradient` holds the first part of a step that is not finished.
    """

    def __init__(self, network: nn.Module, settings: AdamConfig) -> None:
        self.network = network
        self.settings = settings
        self.parameters = list(network.parameters())
        device = self.parameters[0].device
        self.gradient = torch.zeros(sum(p.numel() for p in self.parameters), device=device)
        self.spilled = self.accumulating = False
        offset = 0
        for parameter in self.parameters:
            parameter.grad = self.gradient[offset : offset + parameter.numel()].view_as(parameter)
            offset += parameter.numel()
        kind = torch.optim.AdamW if settings.name == "adamw" else torch.optim.Adam
        # Lazy steps come on top of the others (StyleGAN2, appendix B): k/(k + 1) of the rate and of the
        # decay in each step keep both the same by the iteration.
        ratio = 1.0 if settings.lazy_every is None else settings.lazy_every / (settings.lazy_every + 1)
        self.lr = settings.lr * ratio
        self.optimizer = kind(
            self.parameters,
            lr=self.lr,
            betas=(settings.betas[0] ** ratio, settings.betas[1] ** ratio),
            eps=settings.eps,
            weight_decay=settings.weight_decay,
            fused=device.type in ("cpu", "cuda"),
        )

    def set_rate(self, factor: float) -> None:
        """Scale the configured learning rate by the schedule's `factor`."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * factor

    @torch.no_grad()
    def step(self) -> Tensor:
        """Clip, move the parameters, return the gradient's norm before clipping (0-d, on the device)."""
        norm: Tensor = torch.linalg.vector_norm(self.gradient)
        if self.settings.clip_norm is not None:
            self.gradient.mul_((self.settings.clip_norm / (norm + 1e-6)).clamp(max=1.0))
        self.optimizer.step()
        return norm


@dataclass(frozen=True)
class Stage:
    """One kind of optimiser step.

    Attributes:
        name: names the stage's random stream and its metrics.
        moves: the player whose parameters move.
        holds: the players that stand still; gradients pass through them to the images only.
        every: the stage runs at every iteration that this number divides.
        batch: samples of one step.
        reals: the streams of real images it reads. `real` is what D sees in this iteration; any other
            stream advances with the stage's own steps.
        spec: every random tensor its losses use.
        passes: what is minimised, the sum of these; each has gradients of its own to accumulate.
        spills: leave the gradients of the players that stand still for their next step to start from.
        keep: moves what is kept from step to step beside networks and optimisers, from `Outcome.kept`.
        keep_every_pass: call `keep` after every loss that is computed, not once per step with the means.
    """

    name: str
    moves: Player
    holds: tuple[Player, ...]
    every: int
    batch: int
    reals: tuple[str, ...]
    spec: Spec
    passes: tuple[Pass, ...]
    spills: bool = False
    keep: Callable[[dict[str, Tensor]], None] = field(default=lambda kept: None)
    keep_every_pass: bool = False


class Statistics:
    """Means of 0-d tensors, accumulated on the device and read once per report."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, float] = {}

    def add(self, name: str, value: Tensor, weight: float = 1.0) -> None:
        """Add one observation."""
        weighted = value.detach().float() * weight
        self.sums[name] = self.sums[name] + weighted if name in self.sums else weighted
        self.counts[name] = self.counts.get(name, 0.0) + weight

    def means(self) -> dict[str, float]:
        """The mean of everything observed since `clear`; one copy from the device."""
        if not self.sums:
            return {}
        values = torch.stack(list(self.sums.values())).tolist()
        return {name: value / self.counts[name] for name, value in zip(self.sums, values, strict=True)}

    def clear(self) -> None:
        """Forget all observations."""
        self.sums, self.counts = {}, {}


def run_stage(
    stage: Stage,
    reals: Reals,
    draws: Draws,
    *,
    autocast: contextlib.AbstractContextManager[None],
    statistics: Statistics,
    meanwhile: Callable[[], None] | None = None,
) -> None:
    """Run one optimiser step of a stage.

    Args:
        stage: what to do.
        reals: real images [batch, 3, H, W] by stream.
        draws: the stage's spec, drawn for the whole batch.
        autocast: a reusable context in which the losses are computed.
        statistics: receives `<stage>/<value>` and `<stage>/gradient_norm`.
        meanwhile: called after the first of several micro-batches.
    """
    player = stage.moves
    for other in stage.holds:
        other.network.requires_grad_(stage.spills)
        if stage.spills and not other.accumulating:
            other.gradient.zero_()
            other.spilled = True
    player.network.requires_grad_(True)
    if not player.spilled:
        player.gradient.zero_()
    player.spilled = False

    total: Tensor | None = None
    kept: dict[str, Tensor] = {}
    for loss, samples in stage.passes:
        share = samples / stage.batch
        for start in range(0, stage.batch, samples):
            rows, whole = slice(start, start + samples), samples == stage.batch
            part_reals = reals if whole else {name: images[rows] for name, images in reals.items()}
            part_draws = draws if whole else take(draws, stage.spec, rows)
            with autocast:
                outcome = loss(part_reals, part_draws)
            (outcome.loss * share).backward()
            weighted = outcome.loss.detach() * share
            total = weighted if total is None else total + weighted
            for name, value in outcome.observed.items():
                statistics.add(f"{stage.name}/{name}", value, share)
            if stage.keep_every_pass:
                stage.keep(outcome.kept)
            else:
                for name, value in outcome.kept.items():
                    kept[name] = kept[name] + share * value if name in kept else share * value
            if meanwhile is not None:
                player.accumulating = True
                meanwhile()
                player.accumulating, meanwhile = False, None
                player.network.requires_grad_(True)
    assert total is not None
    statistics.add(f"{stage.name}/loss", total)
    statistics.add(f"{stage.name}/gradient_norm", player.step())
    with torch.no_grad():
        if isinstance(player.network, KeepsState):
            player.network.update_state()
        if not stage.keep_every_pass:
            stage.keep(kept)
