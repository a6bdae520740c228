"""Ctrl-C and SIGTERM: stop the preparation of images at once, and training after the current iteration."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from gantx.errors import GantxError, Interrupted, Stopped


class _Handlers:
    """Replaces the handlers by `_receive` inside a `with` block; has no effect outside the main thread."""

    numbers: tuple[int, ...] = ()

    def __init__(self) -> None:
        self._old: dict[int, Any] = {}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        raise Stopped("stopped while the images were prepared; the same command starts again")

    def __enter__(self) -> Any:
        for number in self.numbers:
            try:
                self._old[number] = signal.signal(number, self._receive)
            except ValueError:  # not the main thread
                break
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)


class StopWhilePreparing(_Handlers):
    """Makes SIGTERM raise Stopped, so that unfinished files are removed, as for Ctrl-C."""

    numbers = (signal.SIGTERM,)


class StopAfterIteration(_Handlers):
    """Turns Ctrl-C and SIGTERM into a request to stop, which takes effect once the state is saved.

    A second Ctrl-C stops at once.

    Args:
        log: receives a line that confirms the request.
        folder: the run, named in the message on how to resume.
    """

    numbers = (signal.SIGINT, signal.SIGTERM)

    def __init__(self, log: Callable[[str], None], folder: Path) -> None:
        super().__init__()
        self._log = log
        self._folder = folder
        self._received: int | None = None

    def reason(self) -> GantxError | None:
        """The exception to raise once the state is saved, or None."""
        if self._received is None:
            return None
        error = Interrupted if self._received == signal.SIGINT else Stopped
        return error(f"stopped; the state is saved, go on with: gantx train --resume {self._folder}")

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._received = number
        self._log("stopping: this iteration is finished and saved first (Ctrl-C again stops at once)")
