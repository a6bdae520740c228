"""The steps of a run: every phase bound to input tensors that live as long as the run; on CUDA, replayed.

Before a step the host writes random numbers and real images into its inputs. From there to the updated
weights the step is one function of tensors: on CUDA, one launch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gantx.config.schema import RunConfig
from gantx.data.batches import Batches
from gantx.runtime.activity import Working, unnoticed
from gantx.runtime.random import RandomInputs
from gantx.runtime.replay import Capture, CudaGraphs, Replay
from gantx.training.compiled_losses import CompiledDifferentiation, compiled
from gantx.training.ema import Average
from gantx.training.phase import Phase, Statistics, labels_of, run_phase
from gantx.training.phases import phases
from gantx.training.state import TrainingState

Log = Callable[[str], None]
Replayed = Callable[[Callable[[], None], dict[str, Tensor], str], Replay]


class Required(NamedTuple):
    """Optimisations whose failure is an error, because the user asked for them explicitly.

    Attributes:
        compile: losses are compiled.
        cuda_graphs: steps are replayed.
    """

    compile: bool = False
    cuda_graphs: bool = False


NOTHING_REQUIRED = Required()


class RealInputs:
    """Tensors with the real images of an iteration and their labels; phases that read the same share them.

    Args:
        image_shape: (C, H, W).
        device: where they are.
    """

    def __init__(self, image_shape: tuple[int, ...], device: torch.device) -> None:
        self._shape = image_shape
        self._device = device
        self._tensors: dict[tuple[str, int], Tensor] = {}
        self._filled: dict[tuple[str, int], int] = {}

    def tensor(self, stream: str, batch: int) -> Tensor:
        """The tensor for images of a stream, [batch, C, H, W]."""
        if (stream, batch) not in self._tensors:
            self._tensors[stream, batch] = torch.zeros(batch, *self._shape, device=self._device)
        return self._tensors[stream, batch]

    def labels(self, stream: str, batch: int) -> Tensor:
        """The tensor for the labels of images of a stream, int64 [batch]."""
        key = labels_of(stream), batch
        if key not in self._tensors:
            self._tensors[key] = torch.zeros(batch, dtype=torch.int64, device=self._device)
        return self._tensors[key]

    def fill(self, batches: Batches, stream: str, batch: int, start: int) -> None:
        """Write images start, start + 1, ... of a stream to its tensor, unless they are there already."""
        if self._filled.get((stream, batch)) != start:
            batches.fill(self._tensors[stream, batch], stream, start)
            if (key := (labels_of(stream), batch)) in self._tensors:
                batches.fill_labels(self._tensors[key], stream, start)
            self._filled[stream, batch] = start


class Step:
    """A phase with its inputs.

    Args:
        phase: the phase.
        reals: the tensors of its real images.
        statistics: receives the observed values.
        replayed: makes a `Replay` from a function, the tensors that it changes, and its name.
        changes: tensors that it changes besides the network that it trains, by name.

    Attributes:
        phase: the phase.
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
        for stream in phase.labelled:
            self._reals[labels_of(stream)] = reals.labels(stream, phase.batch)
        self.inputs = [*self._reals.values(), *self._random.tensors]
        self._statistics = statistics
        self._names: tuple[str, ...] = ()
        trained = phase.trained
        self._changes = {
            "weights": trained.weights,
            "gradient": trained.gradient,
            "buffers": trained.buffers,
            "optimiser steps": trained.steps,
            **trained.moments,
            **changes,
        }
        self._replay = replayed(self._run, self._changes, f"the step of {phase.name}")

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
        """Capture the step again, because something other than the values of tensors has changed."""
        self._replay.forget()
        for each in self.phase.passes:
            if isinstance(each.differentiate, CompiledDifferentiation):
                each.differentiate.forget()

    def _run(self) -> None:
        self._names = run_phase(self.phase, self._reals, self._random.draws, self._statistics)
        # The sums of a phase exist after its first step.
        self._changes["statistics"] = self._statistics.group(self._names, self.phase.trained.weights.device)


class Steps:
    """All steps of an iteration, and the update of the average.

    Args:
        phases: in their order.
        average: of the generator.
        image_shape: (C, H, W).
        statistics: receives the observed values.
        changes: tensors that steps change besides the network that they train, by name.
        capture: how steps are captured; None to run them as they are.
        required: raise an error if a step cannot be replayed.
        log: receives a sentence if a step is not replayed.

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

        self._capture = capture
        reals = RealInputs(image_shape, average.weights.device)
        self.steps = [Step(phase, reals, statistics, replayed, changes) for phase in phases]
        averaged = {"average": average.weights, "its buffers": average.buffers}
        self.average = replayed(average.update, averaged, "the update of the average")

    def forget(self) -> None:
        """Capture all steps again, because something other than the values of tensors has changed."""
        for step in self.steps:
            step.forget()
        # Its graph would keep the memory of all others: they share a pool.
        self.average.forget()

    def release(self) -> bool:
        """Discard what was captured, for its memory, and run without replay; return whether there was any."""
        return self._capture is not None and self._capture.release()


def capture_for(settings: RunConfig, device: torch.device) -> Capture | None:
    """How steps are captured on a device; None if they are not."""
    if device.type != "cuda" or settings.training.cuda_graphs is not True:
        return None
    return CudaGraphs(device)


def build_steps(
    settings: RunConfig,
    state: TrainingState,
    *,
    log: Log,
    required: Required = NOTHING_REQUIRED,
    working: Working = unnoticed,
) -> Steps:
    """The steps of a run, compiled and replayed according to its resolved settings.

    Args:
        settings: resolved.
        state: what is trained.
        log: receives a sentence if an optimisation fails and the run continues without it.
        required: the optimisations whose failure is an error.
        working: shows that a loss is being compiled.
    """
    plain = phases(settings, state.generator, state.discriminator, state.path_length)
    return Steps(
        compiled(plain, settings, log=log, required=required.compile, working=working),
        state.average,
        settings.data.image_shape,
        state.statistics,
        changes={"buffers of G": state.generator.buffers, "path length": state.path_length},
        capture=capture_for(settings, state.device),
        required=required.cuda_graphs,
        log=log,
    )
