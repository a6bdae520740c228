"""The folder of a run: claimed by one process before anything is written, and still there when it writes."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from gantx.errors import MissingError, UsageError, system_reason
from gantx.io import lock
from gantx.io.temporary import sweep

_LOCK = ".lock"


class RunExistsError(UsageError):
    """The folder of a new run has the files of a run."""


class ClaimedFolder:
    """A run's folder while this process has its lock.

    Attributes:
        path: the folder.
    """

    def __init__(self, path: Path, claim: lock.Claim) -> None:
        self.path = path
        self._claim = claim

    def require(self) -> None:
        """MissingError if the folder was renamed, removed or replaced since it was claimed."""
        if not self._claim.holds():
            raise MissingError(
                f"{self.path} was renamed or removed while this command used it, so nothing more is written: "
                "put it back, or go on with --resume and its new name"
            )


def create_folder(parent: Path, name: str) -> Path:
    """Make `parent/NNNN-name` with the next free number; MissingError when it cannot be made."""
    try:
        parent.mkdir(parents=True, exist_ok=True)
        while True:
            matches = [re.match(r"(\d{4,})-", path.name) for path in parent.iterdir()]
            taken = [int(match[1]) for match in matches if match]
            folder = parent / f"{max(taken, default=0) + 1:04d}-{name}"
            try:
                folder.mkdir()
            except FileExistsError:  # another run started at the same moment
                continue
            return folder
    except OSError as problem:
        raise MissingError(f"cannot make a run folder in {parent}: {system_reason(problem)}") from problem


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[ClaimedFolder]:
    """Lock a run's folder for this process; the system releases the lock however the process ends.

    Raises:
        UsageError: another process trains this run.
        MissingError: the folder cannot be written.
    """
    try:
        claim = lock.claim(folder / _LOCK)
    except lock.LockedError as problem:
        raise UsageError(
            f"{folder} is being trained by process {problem.owner}: wait for it or stop it"
        ) from None
    except OSError as problem:
        raise MissingError(f"cannot write into {folder}: {system_reason(problem)}") from problem
    with claim:
        yield ClaimedFolder(folder, claim)


@contextlib.contextmanager
def claimed_for_new_run(folder: Path, *, made: bool = False) -> Iterator[ClaimedFolder]:
    """Make a folder, unless there is an empty one, and lock it; without a configuration it is removed again.

    Of several processes that do this at once, one gets the folder.

    Args:
        folder: of the run.
        made: this process has just made it.

    Raises:
        RunExistsError: there is a run in the folder.
        UsageError: another process has the folder, or there is something else in it.
        MissingError: the folder cannot be made or written.
    """
    made = made or _make(folder)
    with claimed(folder) as ours:
        try:
            _require_empty(folder)
            yield ours
        finally:
            with contextlib.suppress(MissingError, OSError):
                ours.require()
                if not (folder / "config.yaml").is_file():
                    (folder / _LOCK).unlink()
                    if made:
                        folder.rmdir()


def _make(folder: Path) -> bool:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir()
    except FileExistsError:
        return False
    except OSError as problem:
        raise MissingError(f"cannot make {folder}: {system_reason(problem)}") from problem
    return True


def _require_empty(folder: Path) -> None:
    if (folder / "config.yaml").is_file():
        raise RunExistsError(f"{folder} has a run already: name another, or go on with --resume {folder}")
    sweep(folder)
    if is_used(folder):
        raise UsageError(f"{folder} already exists and is not empty: name another folder for the run")


def is_used(folder: Path) -> bool:
    """Whether there is more in an existing folder than a process leaves that prepares a run in it."""
    return any(path.name != _LOCK for path in folder.iterdir())
