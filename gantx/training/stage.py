"""One stage of training: whose parameters move, how often, on which images and draws, by which loss."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gantx.config import AdamConfig
from gantx.draws import Draws, Spec, take
from gantx.models import KeepsState

Reals = dict[str, Tensor]
Loss = Callable[[Reals, Draws], tuple[Tensor, dict[str, Tensor]]]


class Player:
    """A network with its optimiser and one flat gradient.

    The gradients of all parameters are views of one buffer, so that zeroing, clipping and checking are one
    operation each.

    Args:
        network: the network; must be on its final device.
        settings: its optimiser.

    Attributes:
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
        self.optimizer = kind(
            self.parameters,
            lr=settings.lr,
            betas=settings.betas,
            eps=settings.eps,
            weight_decay=settings.weight_decay,
            fused=device.type in ("cpu", "cuda"),
        )

    def set_rate(self, factor: float) -> None:
        """Scale the configured learning rate by the schedule's `factor`."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.lr * factor

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
        spec: every random tensor its loss uses.
        loss: pure function of (real images by stream, draws) that returns a scalar to minimise and the
            0-d values worth reporting.
        spills: leave the gradients of the players that stand still for their next step to start from.
    """

    name: str
    moves: Player
    holds: tuple[Player, ...]
    every: int
    batch: int
    reals: tuple[str, ...]
    spec: Spec
    loss: Loss
    spills: bool = False


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
    micro_batch: int | None,
    autocast: contextlib.AbstractContextManager[None],
    statistics: Statistics,
    meanwhile: Callable[[], None] | None = None,
) -> None:
    """Run one optimiser step of a stage.

    Args:
        stage: what to do.
        reals: real images [batch, 3, H, W] by stream.
        draws: the stage's spec, drawn for the whole batch.
        micro_batch: samples computed at once; gradients accumulate over the rest. None means all.
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

    size = micro_batch or stage.batch
    share = size / stage.batch
    for start in range(0, stage.batch, size):
        rows = slice(start, start + size)
        whole = size == stage.batch
        part_reals = reals if whole else {name: images[rows] for name, images in reals.items()}
        part_draws = draws if whole else take(draws, stage.spec, rows)
        with autocast:
            loss, observed = stage.loss(part_reals, part_draws)
        (loss * share).backward()
        statistics.add(f"{stage.name}/loss", loss, share)
        for name, value in observed.items():
            statistics.add(f"{stage.name}/{name}", value, share)
        if meanwhile is not None and start == 0:
            player.accumulating = True
            meanwhile()
            player.accumulating = False
            player.network.requires_grad_(True)
    statistics.add(f"{stage.name}/gradient_norm", player.step())
    if isinstance(player.network, KeepsState):
        with torch.no_grad():
            player.network.update_state(**observed)
