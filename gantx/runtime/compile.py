"""`torch.compile` for fixed shapes, with a helpful error if a tool that it needs is not installed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

import torch

from gantx.errors import MissingError

# Parts of the errors that torch.compile raises for missing tools, and the tools.
TOOLS = {
    "InvalidCxxCompiler": "a C++ compiler",
    "Failed to find C compiler": "a C compiler",
    "TritonMissing": "Triton",
}

Given = ParamSpec("Given")
Made = TypeVar("Made")


def compile_whole(
    work: Callable[Given, Made],
    *,
    name: str,
    instead: str,
    options: Mapping[str, Any] | None = None,
) -> Callable[Given, Made]:
    """A compiled function: one graph for each combination of shapes, compiled when it is first called.

    Args:
        work: takes and returns tensors, or dictionaries and tuples of them.
        name: of the function in the message, such as "the training step".
        instead: advice for a user without a compiler, such as "train with --compile off".
        options: of the compiler. CUDA graphs are off; see `gantx.runtime.replay` for capturing.

    Raises:
        MissingError: at the first call, if a tool that compiling needs is not installed.
    """
    settings: dict[str, Any] = {"triton.cudagraphs": False, **(options or {})}
    graph = torch.compile(work, fullgraph=True, dynamic=False, options=settings)

    def compiled(*given: Given.args, **named: Given.kwargs) -> Made:
        try:
            return graph(*given, **named)
        except RuntimeError as problem:
            message = f"{type(problem).__name__} {problem}"
            missing = next((tool for sign, tool in TOOLS.items() if sign in message), None)
            if missing is None:
                raise
            raise MissingError(
                f"{missing}, which compiling {name} needs, was not found: install it, or {instead}"
            ) from problem

    return compiled
