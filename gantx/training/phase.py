"""One phase of training: which network is trained, how often, on which images and draws, by which losses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gantx.models.interfaces import KeepsState
from gantx.runtime.random import Draws, Spec, take
from gantx.training.optimized_network import OptimizedNetwork

Reals = dict[str, Tensor]  # images by stream, and labels under `labels_of(stream)`


def labels_of(stream: str) -> str:
    """The key of the labels of a stream's images."""
    return f"{stream}/labels"


class LossOutput(NamedTuple):
    """The result of a loss.

    Attributes:
        loss: the scalar to minimise.
        observed: 0-d values to report.
        state_updates: values, without graph, that `Phase.update_state` takes.
    """

    loss: Tensor
    observed: dict[str, Tensor]
    state_updates: dict[str, Tensor] = {}  # noqa: RUF012 - never written to


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
        reals: real images [B, C, H, W] by stream.
        draws: everything random in the loss.
        share: of the samples in the whole batch.

    Returns:
        The loss's output, and a gradient for each parameter, None where the loss does not depend on it.
    """
    output = loss(reals, draws)
    value = output.loss if share == 1 else output.loss * share
    return output, torch.autograd.grad(value, parameters, allow_unused=True)


class Pass(NamedTuple):
    """A loss, and how many samples it is computed on at once.

    Attributes:
        loss: pure function of (real images by stream, draws); a mean over the samples.
        micro_batch_size: samples computed at once; gradients accumulate over the phase's batch.
        differentiate: computes the loss and its gradients; see `differentiate`.
    """

    loss: Loss
    micro_batch_size: int
    differentiate: Differentiate = differentiate


def no_update(state_updates: dict[str, Tensor]) -> None:
    """Update no state."""


@dataclass(frozen=True)
class Phase:
    """One kind of optimiser step.

    Attributes:
        name: names the phase's random stream and its metrics.
        trained: the network whose parameters are trained.
        frozen: the networks that are frozen; gradients pass through them to the images only.
        interval: the phase runs at every iteration that this number divides.
        batch: samples of one step.
        reals: the streams of real images it reads. `real` is what D sees in this iteration; any other
            stream advances with the phase's own steps.
        labelled: those of these streams whose labels it reads as well.
        spec: every random tensor its losses use.
        passes: their sum is minimised; each accumulates gradients over micro-batches of its own size.
        update_state: updates state outside of parameters and optimisers from `LossOutput.state_updates`.
        update_every_pass: call `update_state` after every loss, not once per step with the means.
    """

    name: str
    trained: OptimizedNetwork[nn.Module]
    frozen: tuple[OptimizedNetwork[nn.Module], ...]
    interval: int
    batch: int
    reals: tuple[str, ...]
    spec: Spec
    passes: tuple[Pass, ...]
    update_state: Callable[[dict[str, Tensor]], None] = no_update
    update_every_pass: bool = False
    labelled: tuple[str, ...] = ()

    def empty_reals(self, count: int, image_shape: tuple[int, ...], device: torch.device | str) -> Reals:
        """Images and labels of zeros in place of real ones, for trials."""
        reals = {stream: torch.zeros(count, *image_shape, device=device) for stream in self.reals}
        for stream in self.labelled:
            reals[labels_of(stream)] = torch.zeros(count, dtype=torch.int64, device=device)
        return reals

    def select_parameters(self) -> None:
        """Let the parameters of `trained` require gradients, and freeze those of `frozen`."""
        for other in self.frozen:
            other.train_parameters(False)
        self.trained.train_parameters(True)


class Statistics:
    """Means of 0-d tensors, summed on the device in tensors that stay in place, and read once per report.

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
            for index, name in enumerate(names):
                if name in self.sums:  # restored from a checkpoint
                    sums[index] = self.sums[name]
                self.sums[name] = sums[index]
            self._groups[names] = sums
        return self._groups[names]

    def count(self, names: Sequence[str]) -> None:
        """Count one observation of each; its value is added on the device."""
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
        # Restored sums that nothing was added to yet have no group: they would be added to later ones.
        grouped = {name for names in self._groups for name in names}
        self.sums = {name: total for name, total in self.sums.items() if name in grouped}
        self.counts = {}

    def restore(self, sums: dict[str, Tensor], counts: dict[str, float]) -> None:
        """Continue from stored sums and counts; call it before anything is observed."""
        self.sums, self.counts = dict(sums), dict(counts)


def run_phase(phase: Phase, reals: Reals, draws: Draws, statistics: Statistics) -> tuple[str, ...]:
    """Run one optimiser step of a phase.

    It reads and writes tensors that stay in place and never waits for the device, so it can be captured and
    replayed. The caller counts the observations.

    Args:
        phase: the phase.
        reals: real images [batch, C, H, W] by stream.
        draws: the phase's spec, drawn for the whole batch.
        statistics: receives the observed values.

    Returns:
        The names of the observed values: `<phase>/<value>`, `<phase>/loss` and `<phase>/gradient_norm`.
    """
    optimized = phase.trained
    phase.select_parameters()

    observed: dict[str, Tensor] = {}
    state_updates: dict[str, Tensor] = {}
    add = False
    for loss, size, differentiate in phase.passes:
        share, whole = size / phase.batch, size == phase.batch
        for start in range(0, phase.batch, size):
            rows = slice(start, start + size)
            images = reals if whole else {name: batch[rows] for name, batch in reals.items()}
            q = draws if whole else take(draws, phase.spec, rows)
            output, gradients = differentiate(loss, optimized.parameters, images, q, share)
            optimized.collect(gradients, add=add)
            del gradients  # or the next pass and the optimiser would run beside them
            add = True
            add_shares(observed, {**output.observed, "loss": output.loss}, share)
            if phase.update_every_pass:
                phase.update_state(output.state_updates)
            else:
                add_shares(state_updates, output.state_updates, share)
    with torch.no_grad():
        observed["gradient_norm"] = optimized.step()
        if isinstance(optimized.network, KeepsState):
            optimized.network.update_state()
        if not phase.update_every_pass:
            phase.update_state(state_updates)
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
