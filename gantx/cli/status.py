"""Progress of a command on stderr: a bar in a terminal, lines elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from rich.console import Console

from gantx.io.escaping import printable
from gantx.io.streams import unfailing_stderr
from gantx.runtime.activity import NOTED, duration

_EVERY = 30.0  # seconds between lines where there is no terminal to draw a bar in


def load_torch() -> None:
    """Import torch, which takes seconds, and say so in a terminal meanwhile."""
    with StatusDisplay() as status, status.working("loading PyTorch", noted=False):
        import torch  # noqa: F401


class StatusDisplay:
    """Prints lines, and the progress of one operation after another.

    In a terminal, progress is a transient bar, or a spinner where nothing can be counted. In a pipe or in CI
    it is one line every 30 s, which keeps logs short and shows watchdogs that the command is alive.

    Args:
        console: destination; defaults to stderr.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(file=unfailing_stderr(), highlight=False)
        self._bar: Any = None
        self._what = ""
        self._last_log = time.monotonic()

    def __enter__(self) -> StatusDisplay:
        return self

    def __exit__(self, *raised: object) -> None:
        self._close()

    def log(self, text: str) -> None:
        """Show a line."""
        self._close()
        self._console.print(printable(text, lines=True), markup=False, soft_wrap=True)
        self._last_log = time.monotonic()

    def show(self, what: str, done: int, total: int) -> None:
        """Show that the operation `what` is done for `done` of `total` images."""
        if not self._console.is_terminal:
            if done < total and time.monotonic() - self._last_log >= _EVERY:
                self.log(f"{what}: {done:,} of {total:,}")
            return
        if self._bar is None or what != self._what:
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            self._close()
            self._what = what
            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=20),
                TextColumn("{task.completed:,.0f} of {task.total:,.0f}"),
                TimeRemainingColumn(),
                console=self._console,
                transient=True,
            )
            self._bar.add_task(what, total=total)
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], completed=done, total=total)
        if done >= total:
            self._close()

    @contextlib.contextmanager
    def working(self, what: str, *, noted: bool = True) -> Iterator[None]:
        """Show that `what` is being done: a spinner and the seconds so far; afterwards how long it took.

        Args:
            what: is done.
            noted: print a line for it too; otherwise it is shown in terminals only, while it goes on.
        """
        started = time.monotonic()
        self._close()
        if self._console.is_terminal:
            from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

            columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
            self._bar = Progress(*columns, console=self._console, transient=True)
            self._bar.add_task(what, total=None)
            self._bar.start()
        elif noted:
            self.log(what)
        try:
            yield
        finally:
            self._close()
        if noted and (seconds := time.monotonic() - started) >= NOTED:
            self.log(f"{what} took {duration(seconds)}")

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
