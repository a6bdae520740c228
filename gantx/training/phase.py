"""One phase of training: whose parameters move, how often, on which images and draws, by which losses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from gantx.models.interfaces import KeepsState
from gantx.runtime.random import Draws, Spec, take
from gantx.training.optimized_network import OptimizedNetwork

Reals = dict[str, Tensor]


class LossOutput(NamedTuple):
    """What a loss gives.

    Attributes:
        loss: the scalar to minimise.
        observed: 0-d values worth reporting.
        kept: values, without graph, from which `Phase.keep` moves what is kept from step to step.
    """

    loss: Tensor
    observed: dict[str, Tensor]
    kept: dict[str, Tensor] = {}  # noqa: RUF012 - never written to


Loss = Callable[[Reals, Draws], LossOutput]
Gradients = Sequence[Tensor | None]
Differentiate = Callable[[Loss, Sequence[Tensor], Reals, Draws, float], tuple[LossOutput, Gradients]]


def differentiate(
    loss: Loss, parameters: Sequence[Tensor], reals: Reals, draws: Draws, share: float
) -> tuple[LossOutput, Gradients]:
    """Compute a loss and the gradients of `share` times its value.

    Args:
        loss: of real images and draws.
        parameters: to differentiate by.
        reals: real images [B, 3, H, W] by stream.
        draws: everything random in the loss.
        share: of the samples in the whole batch.

    Returns:
        The outcome, and a gradient for each parameter, None where the loss does not depend on it.
    """
    outcome = loss(reals, draws)
    value = outcome.loss if share == 1 else outcome.loss * share
    return outcome, torch.autograd.grad(value, parameters, allow_unused=True)


class Pass(NamedTuple):
    """A loss, and how many samples it is computed on at once.

    Attributes:
        loss: pure function of (real images by stream, draws); a mean over the samples.
        samples: gradients accumulate over the rest of the phase's batch.
        differentiate: computes the loss and its gradients; see `differentiate`.
    """

    loss: Loss
    samples: int
    differentiate: Differentiate = differentiate


@dataclass(frozen=True)
class Phase:
    """One kind of optimiser step.

    Attributes:
        name: names the phase's random stream and its metrics.
        trained: the network whose parameters are trained.
        frozen: the networks that are frozen; gradients pass through them to the images only.
        every: the phase runs at every iteration that this number divides.
        batch: samples of one step.
        reals: the streams of real images it reads. `real` is what D sees in this iteration; any other
            stream advances with the phase's own steps.
        spec: every random tensor its losses use.
        passes: what is minimised, the sum of these; each has gradients of its own to accumulate.
        keep: moves what is kept from step to step beside networks and optimisers, from `LossOutput.kept`.
        update_every_pass: call `keep` after every loss that is computed, not once per step with the means.
    """

    name: str
    trained: OptimizedNetwork
    frozen: tuple[OptimizedNetwork, ...]
    every: int
    batch: int
    reals: tuple[str, ...]
    spec: Spec
    passes: tuple[Pass, ...]
    keep: Callable[[dict[str, Tensor]], None] = field(default=lambda kept: None)
    update_every_pass: bool = False


class Statistics:
    """Means of 0-d tensors, summed on the device in tensors that stay, and read once per report.

    Attributes:
        sums: of everything ever observed, by name; 0-d.
        counts: of the observations since `clear`.
    """

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, float] = {}
        self._groups: dict[tuple[str, ...], Tensor] = {}

    def group(self, names: tuple[str, ...], device: torch.device) -> Tensor:
        """The sums of values that are always observed together, as one tensor [n]."""
        if names not in self._groups:
            sums = torch.zeros(len(names), device=device)
            for place, name in enumerate(names):
                if name in self.sums:  # of a run that goes on
                    sums[place] = self.sums[name]
                self.sums[name] = sums[place]
            self._groups[names] = sums
        return self._groups[names]

    def count(self, names: Sequence[str]) -> None:
        """Count one observation of each; the device has added or will add its value."""
        for name in names:
            self.counts[name] = self.counts.get(name, 0.0) + 1.0

    def means(self) -> dict[str, float]:
        """The mean of everything observed since `clear`; one copy from the device."""
        if not self.counts:
            return {}
        values = torch.stack([self.sums[name] for name in self.counts]).tolist()
        return {name: value / count for (name, count), value in zip(self.counts.items(), values, strict=True)}

    def clear(self) -> None:
        """Forget all observations."""
        for sums in self._groups.values():
            sums.zero_()
        self.counts = {}

    def restore(self, sums: dict[str, Tensor], counts: dict[str, float]) -> None:
        """Go on from stored sums and counts, before anything is observed."""
        self.sums, self.counts = dict(sums), dict(counts)


def run_phase(phase: Phase, reals: Reals, draws: Draws, statistics: Statistics) -> tuple[str, ...]:
    """Run one optimiser step of a phase.

    All of it happens on tensors that stay where they are and without waiting for the device, so it can be
    captured and replayed. The caller counts what was observed.

    Args:
        phase: what to do.
        reals: real images [batch, 3, H, W] by stream.
        draws: the phase's spec, drawn for the whole batch.
        statistics: receives the values of what was observed.

    Returns:
        Their names: `<phase>/<value>`, `<phase>/loss` and `<phase>/gradient_norm`.
    """
    optimized = phase.trained
    for other in phase.frozen:
        other.train_parameters(False)
    optimized.train_parameters(True)

    observed: dict[str, Tensor] = {}
    kept: dict[str, Tensor] = {}
    begun = False
    for part in phase.passes:
        share = part.samples / phase.batch
        for start in range(0, phase.batch, part.samples):
            rows, whole = slice(start, start + part.samples), part.samples == phase.batch
            part_reals = reals if whole else {name: images[rows] for name, images in reals.items()}
            part_draws = draws if whole else take(draws, phase.spec, rows)
            outcome, gradients = part.differentiate(
                part.loss, optimized.parameters, part_reals, part_draws, share
            )
            optimized.collect(gradients, add=begun)
            begun = True
            add_shares(observed, {**outcome.observed, "loss": outcome.loss}, share)
            if phase.update_every_pass:
                phase.keep(outcome.kept)
            else:
                add_shares(kept, outcome.kept, share)
    with torch.no_grad():
        observed["gradient_norm"] = optimized.step()
        if isinstance(optimized.network, KeepsState):
            optimized.network.update_state()
        if not phase.update_every_pass:
            phase.keep(kept)
        names = tuple(f"{phase.name}/{name}" for name in observed)
        sums = statistics.group(names, optimized.weights.device)
        sums.add_(torch.stack([value.float() for value in observed.values()]))
    return names


@torch.no_grad()
def add_shares(sums: dict[str, Tensor], values: dict[str, Tensor], share: float) -> None:
    """Add `share` times each value, without its graph, to the sum of its name."""
    for name, value in values.items():
        part = value.detach() if share == 1 else value.detach() * share
        sums[name] = sums[name] + part if name in sums else part
