"""Every exception a user may see, each with the exit code of the program.

A message is one sentence that says what is wrong, where, and what to do about it. Exit codes are part of
the interface: scripts and CI jobs depend on them.
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable


class GantxError(Exception):
    """Base class of all errors that are reported to the user. Raised itself, it means a bug in gantx (70)."""

    exit_code = 70


class CheckFailed(GantxError):
    """A gate or check failed: an evaluation threshold, a parity check (1)."""

    exit_code = 1


class UsageError(GantxError):
    """The command or its configuration is wrong (2)."""

    exit_code = 2


class MissingError(GantxError):
    """Something needed is not there: data, weights, a package, the network, a device, disk space (3)."""

    exit_code = 3


class DataError(GantxError):
    """Images or archives that cannot be used as they are (4)."""

    exit_code = 4


class CheckpointError(GantxError):
    """A checkpoint that is corrupt, foreign or of an unknown version (4)."""

    exit_code = 4


class DivergedError(GantxError):
    """Training produced a number that is not finite (5)."""

    exit_code = 5


class Stopped(GantxError):
    """The run was asked to stop and saved its state; the same command resumes it (75)."""

    exit_code = 75


class Interrupted(Stopped):
    """Ctrl-C: the state was saved (130)."""

    exit_code = 130


def closest(word: str, known: Iterable[str]) -> str:
    """Return " (did you mean 'x'?)" for the known word most similar to `word`, or "" if none is similar."""
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" (did you mean '{matches[0]}'?)" if matches else ""


def first_line(problem: BaseException) -> str:
    """An exception of another library in one line: its type and the first line of its message."""
    lines = str(problem).strip().splitlines()
    return f"{type(problem).__name__}: {lines[0][:200]}" if lines else type(problem).__name__


def system_reason(problem: OSError) -> str:
    """Why the system refused something, without the words it has for a file where a folder was expected."""
    if problem.errno in (errno.EEXIST, errno.ENOTDIR):
        return "a file is where a folder should be"
    return problem.strerror or str(problem)
