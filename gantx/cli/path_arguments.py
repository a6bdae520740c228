"""Arguments and options that are paths: an empty one is refused by name, and `~` is expanded.

A shell makes an empty argument of a variable that is not set, and the empty path means the working folder. A
shell also leaves `~` in `--output=~/grid.png` as it is.
"""

from __future__ import annotations

from pathlib import Path

import typer

from gantx.errors import UsageError
from gantx.io.home import expanded


class PathRefused(typer.BadParameter):
    """A path that a parser of this file does not accept; typer adds the parameter it belongs to."""


def file_path(value: str | Path) -> Path:
    """Parse a path: `typer.Option(parser=file_path)`.

    Raises:
        PathRefused: it is empty, or starts with a home folder that is not known.
    """
    if not str(value):
        raise PathRefused("is empty: write a path there (is a variable of the shell unset?)")
    try:
        return expanded(value)
    except UsageError as problem:
        raise PathRefused(str(problem)) from None


def path_or_name(value: str) -> str:
    """Parse what is either a path or a known name, such as `cifar10`; as `file_path`, but returns text."""
    expanded = file_path(value)
    return str(expanded) if value.startswith("~") else value


def path_refused(problem: Exception) -> str | None:
    """What is wrong with a path, such as "--data is empty: …"; None for another error."""
    if not isinstance(problem, PathRefused):
        return None
    names = getattr(problem.param, "opts", None) or ["a path"]
    name = max(names, key=len)
    return f"{name if name.startswith('-') else name.upper()} {problem.message}"
