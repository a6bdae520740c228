"""The steps of a run: every phase bound to tensors that stay as long as the run, and replayed where it pays.

Outside a step, the host draws random numbers into its inputs and gathers real images into them; from there to
the moved weights it is one function of tensors, on CUDA one launch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gantx.config.schema import RunConfig
from gantx.data.batches import Batches
from gantx.runtime.random import RandomInputs
from gantx.runtime.replay import Capture, CudaGraphs, Replay
from gantx.training.compiled_losses import compiled
from gantx.training.ema import Average
from gantx.training.phase import Phase, Statistics, run_phase
from gantx.training.phases import phases
from gantx.training.state import TrainingState

Log = Callable[[str], None]
Replayed = Callable[[Callable[[], None], dict[str, Tensor], str], Replay]


class Required(NamedTuple):
    """Optimisations whose failure is an error, because the user asked for them in so many words.

    Attributes:
        compile: losses are compiled.
        cuda_graphs: steps are replayed.
    """

    compile: bool = False
    cuda_graphs: bool = False


NOTHING_REQUIRED = Required()


class RealInputs:
    """Tensors that hold the real images of an iteration; phases that read the same images share them.

    Args:
        image_shape: (3, H, W).
        device: where they are.
    """

    def __init__(self, image_shape: tuple[int, ...], device: torch.device) -> None:
        self._shape = image_shape
        self._device = device
        self._tensors: dict[tuple[str, int], Tensor] = {}
        self._held: dict[tuple[str, int], int] = {}

    def tensor(self, stream: str, batch: int) -> Tensor:
        """Where images of a stream are put, [batch, 3, H, W]."""
        if (stream, batch) not in self._tensors:
            self._tensors[stream, batch] = torch.zeros(batch, *self._shape, device=self._device)
        return self._tensors[stream, batch]

    def fill(self, batches: Batches, stream: str, batch: int, start: int) -> None:
        """Put images start, start + 1, ... of a stream there, unless they are there already."""
        if self._held.get((stream, batch)) != start:
            batches.fill(self._tensors[stream, batch], stream, start)
            self._held[stream, batch] = start


class Step:
    """A phase with its inputs.

    Args:
        phase: what it does.
        reals: where its real images are.
        statistics: receives what it observes.
        replayed: makes a `Replay` of work, of the tensors that it changes, and of its name.
        changes: tensors that it changes beside the network that it trains, by name.

    Attributes:
        phase: what it does.
        inputs: the tensors that `load` writes into.
    """

    def __init__(
        self,
        phase: Phase,
        reals: RealInputs,
        statistics: Statistics,
        replayed: Replayed,
        changes: dict[str, Tensor],
    ) -> None:
        self.phase = phase
        self._random = RandomInputs(phase.spec, phase.trained.weights.device)
        self._inputs = reals
        self._reals = {stream: reals.tensor(stream, phase.batch) for stream in phase.reals}
        self.inputs = [*self._reals.values(), *self._random.tensors]
        self._statistics = statistics
        self._names: tuple[str, ...] = ()
        moved = phase.trained
        self._changes = {
            "weights": moved.weights,
            "gradient": moved.gradient,
            "buffers": moved.buffers,
            "optimiser steps": moved.steps,
            **moved.moments,
            **changes,
        }
        self._replay = replayed(self._work, self._changes, f"the step of {phase.name}")

    def load(self, batches: Batches, positions: dict[str, int], *, seed: int, iteration: int) -> None:
        """Fill the inputs.

        Args:
            batches: the real images.
            positions: number of the first image by stream.
            seed: seed of the run.
            iteration: of the run.
        """
        for stream in self.phase.reals:
            self._inputs.fill(batches, stream, self.phase.batch, positions[stream])
        self._random.fill(seed=seed, stream=self.phase.name, step=iteration)

    def __call__(self) -> None:
        """Run the phase on its inputs."""
        self._replay()
        self._statistics.count(self._names)

    def forget(self) -> None:
        """Capture anew, because something other than a tensor's values has changed."""
        self._replay.forget()

    def _work(self) -> None:
        self._names = run_phase(self.phase, self._reals, self._random.draws, self._statistics)
        # The sums of a phase exist once it has run.
        self._changes["statistics"] = self._statistics.group(self._names, self.phase.trained.weights.device)


class Steps:
    """All steps of an iteration, and the update of the average.

    Args:
        phases: in their order.
        average: of the generator.
        image_shape: (3, H, W).
        statistics: receives what is observed.
        changes: tensors that steps change beside the network that they train, by name.
        capture: how steps are captured; None for never.
        required: an error in place of going on without replay.
        log: receives a sentence where a step is not replayed.

    Attributes:
        steps: one for each phase.
        average: updates the average.
    """

    def __init__(
        self,
        phases: Sequence[Phase],
        average: Average,
        image_shape: tuple[int, ...],
        statistics: Statistics,
        *,
        changes: dict[str, Tensor],
        capture: Capture | None,
        required: bool,
        log: Log,
    ) -> None:
        def replayed(work: Callable[[], None], changes: dict[str, Tensor], name: str) -> Replay:
            return Replay(work, changes, capture=capture, name=name, log=log, required=required)

        reals = RealInputs(image_shape, average.weights.device)
        self.steps = [Step(phase, reals, statistics, replayed, changes) for phase in phases]
        of_average = {"average": average.weights, "its buffers": average.buffers}
        self.average = replayed(average.update, of_average, "the update of the average")

    def forget(self) -> None:
        """Capture all steps anew, because something other than a tensor's values has changed."""
        for step in self.steps:
            step.forget()


def capture_for(settings: RunConfig, device: torch.device) -> Capture | None:
    """How steps are captured on a device; None where they are not."""
    if device.type != "cuda" or settings.training.cuda_graphs is not True:
        return None
    return CudaGraphs(device)


def build_steps(
    settings: RunConfig, state: TrainingState, *, log: Log, required: Required = NOTHING_REQUIRED
) -> Steps:
    """The steps of a run, compiled and replayed as its resolved settings say.

    Args:
        settings: resolved.
        state: what is trained.
        log: receives a sentence where an optimisation fails and the run goes on without.
        required: the optimisations whose failure is an error.
    """
    plain = phases(settings, state.generator, state.discriminator, state.path_length)
    return Steps(
        compiled(plain, settings, log=log, required=required.compile),
        state.average,
        (3, settings.data.resolution, settings.data.resolution),
        state.statistics,
        changes={"buffers of G": state.generator.buffers, "path length": state.path_length},
        capture=capture_for(settings, state.device),
        required=required.cuda_graphs,
        log=log,
    )
