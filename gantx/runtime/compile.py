"""`torch.compile` for fixed shapes, and a sentence where something that it needs is not installed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

import torch

from gantx.errors import MissingError

# How torch.compile says that something is not installed, and what it is.
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
        name: what it is, for the message: "the training step".
        instead: what a user without a compiler can do, for the message: "train with --compile off".
        options: of the compiler. It captures nothing itself; see `gantx.runtime.replay`.

    Raises:
        MissingError: when it is first called and something that compiling needs is not installed.
    """
    settings: dict[str, Any] = {"triton.cudagraphs": False, **(options or {})}
    whole = torch.compile(work, fullgraph=True, dynamic=False, options=settings)

    def compiled(*given: Given.args, **named: Given.kwargs) -> Made:
        try:
            return whole(*given, **named)
        except RuntimeError as problem:
            said = f"{type(problem).__name__} {problem}"
            missing = next((tool for sign, tool in TOOLS.items() if sign in said), None)
            if missing is None:
                raise
            raise MissingError(
                f"{missing}, which compiling {name} needs, was not found: install it, or {instead}"
            ) from problem

    return compiled
