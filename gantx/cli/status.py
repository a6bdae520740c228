"""Progress of a command on stderr: a bar in a terminal, lines elsewhere."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console

from gantx.io.escaping import printable
from gantx.io.streams import unfailing_stderr

_EVERY = 30.0  # seconds between lines where there is no terminal to draw a bar in


class StatusDisplay:
    """Prints lines, and the progress of one operation after another.

    In a terminal, progress is a transient bar. In a pipe or in CI it is one line every 30 s, which keeps logs
    short and shows watchdogs that the command is alive.
    """

    def __init__(self) -> None:
        self._console = Console(file=unfailing_stderr(), highlight=False)
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
            from rich.progress import Progress

            self._close()
            self._what = what
            self._bar = Progress(console=self._console, transient=True)
            self._bar.add_task(what, total=total)
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], completed=done, total=total)
        if done >= total:
            self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
