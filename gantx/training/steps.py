"""The steps of a run: every stage bound to tensors that stay as long as the run, and replayed where it pays.

Outside a step, the host draws random numbers into its inputs and gathers real images into them; from there to
the moved weights it is one function of tensors, on CUDA one launch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gantx.config import RunConfig
from gantx.data.batches import Batches
from gantx.draws import RandomInputs
from gantx.runtime.replay import Capture, CudaGraphs, Replay
from gantx.training.compiling import compiled
from gantx.training.ema import Average
from gantx.training.recipes import stages
from gantx.training.stage import Stage, Statistics, run_stage
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
    """Tensors that hold the real images of an iteration; stages that read the same images share them.

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
    """A stage with its inputs.

    Args:
        stage: what it does.
        reals: where its real images are.
        statistics: receives what it observes.
        replayed: makes a `Replay` of work, of the tensors that it changes, and of its name.
        changes: tensors that it changes beside the network that it trains, by name.

    Attributes:
        stage: what it does.
        inputs: the tensors that `load` writes into.
    """

    def __init__(
        self,
        stage: Stage,
        reals: RealInputs,
        statistics: Statistics,
        replayed: Replayed,
        changes: dict[str, Tensor],
    ) -> None:
        self.stage = stage
        self._random = RandomInputs(stage.spec, stage.moves.weights.device)
        self._inputs = reals
        self._reals = {stream: reals.tensor(stream, stage.batch) for stream in stage.reals}
        self.inputs = [*self._reals.values(), *self._random.tensors]
        self._statistics = statistics
        self._names: tuple[str, ...] = ()
        moved = stage.moves
        self._changes = {
            "weights": moved.weights,
            "gradient": moved.gradient,
            "buffers": moved.buffers,
            "optimiser steps": moved.steps,
            **moved.moments,
            **changes,
        }
        self._replay = replayed(self._work, self._changes, f"the step of {stage.name}")

    def load(self, batches: Batches, positions: dict[str, int], *, seed: int, iteration: int) -> None:
        """Fill the inputs.

        Args:
            batches: the real images.
            positions: number of the first image by stream.
            seed: seed of the run.
            iteration: of the run.
        """
        for stream in self.stage.reals:
            self._inputs.fill(batches, stream, self.stage.batch, positions[stream])
        self._random.fill(seed=seed, stream=self.stage.name, step=iteration)

    def __call__(self) -> None:
        """Run the stage on its inputs."""
        self._replay()
        self._statistics.count(self._names)

    def forget(self) -> None:
        """Capture anew, because something other than a tensor's values has changed."""
        self._replay.forget()

    def _work(self) -> None:
        self._names = run_stage(self.stage, self._reals, self._random.draws, self._statistics)
        # The sums of a stage exist once it has run.
        self._changes["statistics"] = self._statistics.group(self._names, self.stage.moves.weights.device)


class Steps:
    """All steps of an iteration, and the update of the average.

    Args:
        stages: in their order.
        average: of the generator.
        image_shape: (3, H, W).
        statistics: receives what is observed.
        changes: tensors that steps change beside the network that they train, by name.
        capture: how steps are captured; None for never.
        required: an error in place of going on without replay.
        log: receives a sentence where a step is not replayed.

    Attributes:
        steps: one for each stage.
        average: updates the average.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
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
        self.steps = [Step(stage, reals, statistics, replayed, changes) for stage in stages]
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
    """The steps of a run, compiled and replayed as its settled settings say.

    Args:
        settings: settled.
        state: what is trained.
        log: receives a sentence where an optimisation fails and the run goes on without.
        required: the optimisations whose failure is an error.
    """
    plain = stages(settings, state.generator, state.discriminator, state.path_length)
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
