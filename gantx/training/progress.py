"""Progress of a run: a live line in a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from collections.abc import Iterator, Mapping

from rich.console import Console
from rich.live import Live
from rich.text import Text

from gantx.io.escaping import printable
from gantx.io.streams import unfailing_stderr
from gantx.runtime.activity import duration

PLAIN_SECONDS = 30.0
FIRST_SECONDS = 5.0  # of measured speed before the first line
WINDOW_SECONDS = 60.0  # over which speed is measured, so that it follows the load of the machine
_BAR = 20  # columns of the bar, in terminals of at least `_WIDE`
_WIDE = 120


class ProgressDisplay:
    """Shows progress on stderr: kimg, time left and speed first, then losses, memory and gradients.

    A live line has as many of these as the terminal is wide, and disappears at the end.

    Args:
        total: images of the whole run.
        console: destination; defaults to stderr, which may go away or be full without effect on training.
    """

    def __init__(self, total: int, console: Console | None = None) -> None:
        self.total = total
        self.console = console or Console(file=unfailing_stderr(), highlight=False)
        self._figures: list[str] = []
        self._activity: tuple[str, float] | None = None  # what is done, since when
        self._images = 0
        self._calls = 0
        self._marks: deque[tuple[float, int]] = deque([(0.0, 0)])  # times, and images by then
        self._first = True
        self._latest = time.monotonic()
        self._noted = self._latest
        self._live: Live | None = None
        if self.console.is_terminal and not os.environ.get("CI"):
            self._live = Live(
                get_renderable=self._line,
                console=self.console,
                refresh_per_second=4,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._live.start()

    def log(self, text: str) -> None:
        """Print one line, above the live line if there is one."""
        self.console.print(printable(text, lines=True), markup=False, soft_wrap=True)

    def advance(self, images: int) -> str | None:
        """Record progress, without waiting for the device.

        Speed is measured over the last minute, and from the second call on: the time before may include
        compilation.

        Returns:
            Now and then, and at the end, the progress as a line for a log; where there is no live line it is
            printed too.
        """
        now = time.monotonic()
        if self._calls < 2:
            self._calls += 1
            self._marks[0] = (now, images)
        elif now - self._marks[-1][0] >= 1:
            self._marks.append((now, images))
            while now - self._marks[1][0] >= WINDOW_SECONDS:
                self._marks.popleft()
        self._images, self._latest = images, now
        since, waits = (self._marks[0][0], FIRST_SECONDS) if self._first else (self._noted, PLAIN_SECONDS)
        if now - since < waits and images < self.total:
            return None
        self._first = False
        self._noted = now
        line = " ".join(self._parts())
        if self._live is None:
            self.log(line)
        return line

    def figure(self, line: Mapping[str, float]) -> None:
        """Show these metrics from now on."""
        parts = [
            f"loss_{network[0]} {line[f'{network}/loss']:.3g}"
            for network in ("discriminator", "generator")
            if f"{network}/loss" in line
        ]
        parts.append(f"mem {line['memory_gb']:.1f}G")
        norms = [line[key] for key in line if key in _NORMS]
        if norms:
            parts.append("gnorm " + "/".join(f"{norm:.2g}" for norm in norms))
        self._figures = parts

    def show(self, what: str, done: int, total: int) -> None:
        """Show that the operation `what`, which interrupts training, is done for `done` of `total` images."""
        text, now = f"{what}: {done:,} of {total:,}", time.monotonic()
        if self._live is not None:
            since = now if self._activity is None else self._activity[1]
            self._activity = (text, since) if done < total else None
        elif done < total and now - self._noted >= PLAIN_SECONDS:
            self._noted = now
            self.log(text)

    @contextlib.contextmanager
    def working(self, what: str) -> Iterator[None]:
        """Show in the live line what is done, and for how long already."""
        self._activity = (what, time.monotonic())
        try:
            yield
        finally:
            self._activity = None

    def close(self) -> None:
        """Remove the live line."""
        if self._live is not None:
            self._live.stop()

    def _parts(self) -> list[str]:
        """The progress in parts, the most important first."""
        started, first = self._marks[0]
        passed, images = self._latest - started, self._images
        speed = (images - first) / passed if images > first and passed > 0 else 0.0
        left = self.total - images
        eta = duration(left / speed if left else 0) if speed or not left else "?"
        done = f"kimg {images / 1000:.6g} of {self.total / 1000:.6g}"
        rate = f"{speed:,.0f}" if speed >= 100 else f"{speed:.3g}"
        return [done, f"eta {eta}", f"img/s {rate}", *self._figures]

    def _line(self) -> Text:
        """The live line: all parts that fit into the terminal."""
        width = self.console.width
        done, eta, *others = self._parts()
        share = self._images / self.total
        line = Text(done, no_wrap=True, overflow="crop", end="")
        if width >= _WIDE:
            full = round(share * _BAR)
            line.append(" ").append("━" * full, "cyan").append("━" * (_BAR - full), "bright_black")
        activity = self._activity
        if activity is not None:
            others = [f"{activity[0]} ({duration(time.monotonic() - activity[1])})"]
        for part in (f"{100 * share:.0f}%", eta, *others):
            if line.cell_len + 1 + len(part) > width:
                break
            line.append(f" {part}")
        return line


_NORMS = ("discriminator/gradient_norm", "generator/gradient_norm")
