"""Losses compiled whole, gradient penalties included.

`torch.compile` cannot differentiate a compiled function twice. So what is compiled is not D but the loss of a
stage, with the `torch.func.grad` of its penalties inside: all that is left outside is one plain `backward`.
A loss sees nothing but tensors (images, draws, buffers), hence one graph serves the whole run, and one more
once the attention window is switched off.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from gantx.compiling import compile_whole
from gantx.config import RunConfig
from gantx.training.stage import Loss, Pass, Stage

WORTHWHILE = 2000  # D steps: about as long as compiling takes what they save


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


def compiled(stages: list[Stage], settings: RunConfig) -> list[Stage]:
    """The same stages with compiled losses; unchanged unless `training.compile` is true.

    Nothing is compiled before the first step of each stage. What was compiled earlier in this process is
    forgotten.
    """
    if settings.training.compile is not True:
        return stages
    torch.compiler.reset()
    device = stages[0].moves.gradient.device
    graphs = settings.training.cuda_graphs and device.type == "cuda"
    return [
        dataclasses.replace(
            stage,
            passes=tuple(
                Pass(compile_loss(part.loss, device, graphs), part.samples) for part in stage.passes
            ),
        )
        for stage in stages
    ]


def compile_loss(loss: Loss, device: torch.device, graphs: bool = False) -> Loss:
    """A compiled loss: one graph, fixed shapes, settings that suit the device.

    Args:
        loss: of one pass.
        device: where it will run.
        graphs: replay CUDA graphs.

    Raises:
        MissingError: when it is first called and something that compiling needs is not installed.
    """
    # A lookup of all that could have changed since the graph was made takes up to a millisecond a step.
    options: dict[str, Any] = {"guard_filter_fn": what_a_run_changes}
    if device.type == "cpu":
        # Shuffled tokens would otherwise be gathered anew by each of their readers, without vectors.
        options["realize_reads_threshold"] = 2
    return compile_whole(
        loss, name="the training step", instead="train with --compile off", graphs=graphs, options=options
    )


def what_a_run_changes(guards: Sequence[Any]) -> list[bool]:
    """Which of the compiler's conditions for using a graph again are looked at in each step.

    There are thousands on the networks, and of all that a network holds beside tensors a run changes the
    attention window alone: from a number to none. Each run compiles anew.

    Args:
        guards: with the `name` of what each looks at, as a Python expression.
    """
    elsewhere = torch.compiler.skip_guard_on_all_nn_modules_unsafe(guards)
    return [keep or "attention_window" in guard.name for guard, keep in zip(guards, elsewhere, strict=True)]
