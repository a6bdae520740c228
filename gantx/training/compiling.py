"""Losses compiled whole, gradient penalties included.

`torch.compile` cannot differentiate a compiled function twice. So what is compiled is not D but the loss of a
stage, with the `torch.func.grad` of its penalties inside: all that is left outside is one plain `backward`.
A loss sees nothing but tensors (images, draws, buffers), hence one graph serves the whole run, and one more
once the attention window is switched off.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from gantx.config import RunConfig
from gantx.draws import Draws
from gantx.errors import MissingError
from gantx.training.stage import Loss, Outcome, Pass, Reals, Stage

WORTHWHILE = 2000  # D steps: about as long as compiling takes what they save

# How torch.compile says that something is not installed, and what it is.
TOOLS = {
    "InvalidCxxCompiler": "a C++ compiler",
    "Failed to find C compiler": "a C compiler",
    "TritonMissing": "Triton",
}


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
    options: dict[str, Any] = {"triton.cudagraphs": graphs}
    if device.type == "cpu":
        # Shuffled tokens would otherwise be gathered anew by each of their readers, without vectors.
        options["realize_reads_threshold"] = 2
    whole = torch.compile(loss, fullgraph=True, dynamic=False, options=options)

    def compiled_loss(reals: Reals, draws: Draws) -> Outcome:
        if graphs:
            torch.compiler.cudagraph_mark_step_begin()
        try:
            outcome: Outcome = whole(reals, draws)
        except RuntimeError as problem:
            said = f"{type(problem).__name__} {problem}"
            missing = next((tool for sign, tool in TOOLS.items() if sign in said), None)
            if missing is None:
                raise
            raise MissingError(
                f"{missing}, which compiling the training step needs, was not found: install it, or train "
                "with --compile off"
            ) from problem
        return outcome

    return compiled_loss
