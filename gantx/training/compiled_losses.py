"""Compiled losses, gradient penalties included.

`torch.compile` cannot differentiate a compiled function twice. So the compiled function is not D but the loss
of a phase, with the `torch.func.grad` of its penalties inside; outside there is one plain `backward`. A loss
reads only tensors (images, draws, buffers), so the whole run uses one graph, and a second one after the
attention window is switched off.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gantx.config.schema import RunConfig
from gantx.errors import GantxError, MissingError, first_line
from gantx.runtime import memory
from gantx.runtime.activity import Working, unnoticed
from gantx.runtime.compile import compile_whole
from gantx.runtime.random import Draws
from gantx.training.phase import Gradients, Loss, LossOutput, Pass, Phase, Reals, differentiate

WORTHWHILE = 2000  # D steps after which the time saved is about the time that compiling takes

Log = Callable[[str], None]


def pick_compile(wanted: bool | str, device: torch.device, steps: int) -> bool:
    """Whether a run compiles its losses.

    Args:
        wanted: `training.compile`; `auto` compiles on CUDA if that saves time.
        device: where the run trains.
        steps: remaining D steps.
    """
    if isinstance(wanted, bool):
        return wanted
    return device.type == "cuda" and steps >= WORTHWHILE


def compiled(
    phases: list[Phase],
    settings: RunConfig,
    *,
    log: Log = lambda line: None,
    required: bool = True,
    working: Working = unnoticed,
) -> list[Phase]:
    """The same phases with compiled losses; unchanged unless `training.compile` is true.

    Each loss is compiled in the first step of its phase. Graphs compiled earlier in this process are
    discarded.

    Args:
        phases: of an iteration.
        settings: resolved.
        log: receives a sentence if a loss cannot be compiled.
        required: raise an error instead.
        working: shows that a loss is being compiled.
    """
    if settings.training.compile is not True:
        return phases
    torch.compiler.reset()
    device = phases[0].trained.gradient.device

    def with_compiled_loss(phase: Phase, each: Pass) -> Pass:
        name = f"the loss of {phase.name}"
        compiled = CompiledDifferentiation(compile_loss(each.loss, device), name, log, required, working)
        return each._replace(differentiate=compiled)

    return [
        dataclasses.replace(phase, passes=tuple(with_compiled_loss(phase, each) for each in phase.passes))
        for phase in phases
    ]


class CompiledDifferentiation:
    """Computes a loss and its gradients with compiled code, or without it once that has failed.

    Args:
        compiled: the compiled loss.
        name: of the loss, for messages.
        log: receives a sentence if compiling fails.
        required: raise an error instead.
        working: shows that the loss is being compiled.

    Raises:
        MissingError: when called, if compiling fails and is `required`.
    """

    def __init__(
        self, compiled: Loss, name: str, log: Log, required: bool, working: Working = unnoticed
    ) -> None:
        self._compiled: Loss | None = compiled
        self._name = name
        self._log = log
        self._required = required
        self._working = working
        self._ready = False

    def forget(self) -> None:
        """The loss has changed and will be compiled again when it is called."""
        self._ready = False

    def __call__(
        self, loss: Loss, parameters: Sequence[Tensor], reals: Reals, draws: Draws, share: float
    ) -> tuple[LossOutput, Gradients]:
        """See `differentiate`."""
        if self._compiled is not None:
            try:
                if self._ready:
                    return differentiate(self._compiled, parameters, reals, draws, share)
                with self._working(f"compiling {self._name}"):
                    result = differentiate(self._compiled, parameters, reals, draws, share)
                self._ready = True
                return result
            except Exception as problem:  # of Dynamo, Inductor, Triton or a C++ compiler, in either direction
                if memory.ran_out(problem):
                    raise
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
            f"{self._name} is not compiled: {first_line(problem)}. It runs uncompiled, slower; please report "
            f"this line with torch {torch.__version__}"
        )


def compile_loss(loss: Loss, device: torch.device) -> Loss:
    """A compiled loss: one graph, fixed shapes, options for the device.

    Args:
        loss: of one pass.
        device: where it will run.

    Raises:
        MissingError: at the first call, if something that compiling needs is not installed.
    """
    # Guard evaluation costs up to 1 ms per step.
    options: dict[str, Any] = {"guard_filter_fn": guards_to_evaluate}
    if device.type == "cpu":
        # Otherwise each reader of shuffled tokens gathers them again, without vector instructions.
        options["realize_reads_threshold"] = 2
    return compile_whole(loss, name="the training step", instead="train with --compile off", options=options)


def guards_to_evaluate(guards: Sequence[Any]) -> list[bool]:
    """Which of the compiler's guards are evaluated in each step.

    There are thousands of guards on the networks, but the only attribute other than a tensor that a run
    changes is the attention window, from a number to None. Each run compiles its own graphs.

    Args:
        guards: each with a `name`, the Python expression that it guards.
    """
    outside = torch.compiler.skip_guard_on_all_nn_modules_unsafe(guards)
    return [
        evaluate or "attention_window" in guard.name for guard, evaluate in zip(guards, outside, strict=True)
    ]
