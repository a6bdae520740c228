"""Losses compiled whole, gradient penalties included.

`torch.compile` cannot differentiate a compiled function twice. So what is compiled is not D but the loss of a
phase, with the `torch.func.grad` of its penalties inside: all that is left outside is one plain `backward`.
A loss sees nothing but tensors (images, draws, buffers), hence one graph serves the whole run, and one more
once the attention window is switched off.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gantx.config.schema import RunConfig
from gantx.errors import GantxError, MissingError, first_line
from gantx.runtime.compile import compile_whole
from gantx.runtime.random import Draws
from gantx.training.phase import Gradients, Loss, LossOutput, Pass, Phase, Reals, differentiate

WORTHWHILE = 2000  # D steps: about as long as compiling takes what they save

Log = Callable[[str], None]


def pick_compile(wanted: bool | str, device: torch.device, steps: int) -> bool:
    """Whether a run compiles its losses.

    Args:
        wanted: `training.compile`; `auto` compiles on CUDA when that saves time.
        device: where the run trains.
        steps: D steps that are left.
    """
    if isinstance(wanted, bool):
        return wanted
    return device.type == "cuda" and steps >= WORTHWHILE


def compiled(
    phases: list[Phase], settings: RunConfig, *, log: Log = lambda line: None, required: bool = True
) -> list[Phase]:
    """The same phases with compiled losses; unchanged unless `training.compile` is true.

    Nothing is compiled before the first step of each phase. What was compiled earlier in this process is
    forgotten.

    Args:
        phases: of an iteration.
        settings: resolved.
        log: receives a sentence when a loss cannot be compiled.
        required: raise in place of going on without.
    """
    if settings.training.compile is not True:
        return phases
    torch.compiler.reset()
    device = phases[0].trained.gradient.device

    def faster(phase: Phase, part: Pass) -> Pass:
        work = CompiledDifferentiation(
            compile_loss(part.loss, device), f"the loss of {phase.name}", log, required
        )
        return part._replace(differentiate=work)

    return [
        dataclasses.replace(phase, passes=tuple(faster(phase, part) for part in phase.passes))
        for phase in phases
    ]


class CompiledDifferentiation:
    """Computes a loss and its gradients by compiled code, and without it once that fails.

    Args:
        compiled: the compiled loss.
        name: of the loss, for messages.
        log: receives a sentence when compiling fails.
        required: raise in place of going on without.

    Raises:
        MissingError: when it is called, compiling fails, and it is `required`.
    """

    def __init__(self, compiled: Loss, name: str, log: Log, required: bool) -> None:
        self._compiled: Loss | None = compiled
        self._name = name
        self._log = log
        self._required = required

    def __call__(
        self, loss: Loss, parameters: Sequence[Tensor], reals: Reals, draws: Draws, share: float
    ) -> tuple[LossOutput, Gradients]:
        """See `differentiate`."""
        if self._compiled is not None:
            try:
                return differentiate(self._compiled, parameters, reals, draws, share)
            except torch.OutOfMemoryError:
                raise
            except Exception as problem:  # of Dynamo, Inductor, Triton or a C++ compiler, in either direction
                self._give_up(problem)
        return differentiate(loss, parameters, reals, draws, share)

    def _give_up(self, problem: Exception) -> None:
        if self._required:
            if isinstance(problem, GantxError):
                raise problem
            raise MissingError(
                f"{self._name} cannot be compiled ({first_line(problem)}): train with --compile auto or off, "
                "and please report it"
            ) from problem
        self._compiled = None
        self._log(
            f"{self._name} is not compiled: {first_line(problem)}. Training goes on, slower; please report "
            f"this line with torch {torch.__version__}"
        )


def compile_loss(loss: Loss, device: torch.device) -> Loss:
    """A compiled loss: one graph, fixed shapes, settings that suit the device.

    Args:
        loss: of one pass.
        device: where it will run.

    Raises:
        MissingError: when it is first called and something that compiling needs is not installed.
    """
    # A lookup of all that could have changed since the graph was made takes up to a millisecond a step.
    options: dict[str, Any] = {"guard_filter_fn": what_a_run_changes}
    if device.type == "cpu":
        # Shuffled tokens would otherwise be gathered anew by each of their readers, without vectors.
        options["realize_reads_threshold"] = 2
    return compile_whole(loss, name="the training step", instead="train with --compile off", options=options)


def what_a_run_changes(guards: Sequence[Any]) -> list[bool]:
    """Which of the compiler's conditions for using a graph again are looked at in each step.

    There are thousands on the networks, and of all that a network holds beside tensors a run changes the
    attention window alone: from a number to none. Each run compiles anew.

    Args:
        guards: with the `name` of what each looks at, as a Python expression.
    """
    elsewhere = torch.compiler.skip_guard_on_all_nn_modules_unsafe(guards)
    return [keep or "attention_window" in guard.name for guard, keep in zip(guards, elsewhere, strict=True)]
