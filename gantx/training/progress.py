"""Progress of a run: a live line in a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from gantx.io.escaping import printable
from gantx.io.streams import unfailing_stderr

PLAIN_SECONDS = 30.0


class ProgressDisplay:
    """Shows progress on stderr.

    Args:
        total: images of the whole run.
        console: destination; defaults to stderr, which may go away or be full without effect on training.
    """

    def __init__(self, total: int, console: Console | None = None) -> None:
        self.total = total
        self.console = console or Console(file=unfailing_stderr(), highlight=False)
        self.figures = ""
        self._calls = 0
        self._started = (0.0, 0)
        self._printed = time.monotonic()
        self._live: Progress | None = None
        if self.console.is_terminal and not os.environ.get("CI"):
            bar = (BarColumn(bar_width=24),) if self.console.width >= 120 else ()
            self._live = Progress(
                TextColumn("kimg {task.fields[kimg]}"),
                *bar,
                TextColumn("{task.percentage:.0f}% {task.fields[rest]}"),
                console=self.console,
            )
            self._task = self._live.add_task("train", total=total, kimg="0", rest="")
            self._live.start()

    def log(self, text: str) -> None:
        """Print one line, above the live line if there is one."""
        self.console.print(printable(text, lines=True), markup=False, soft_wrap=True)

    def advance(self, images: int) -> None:
        """Record progress, without waiting for the device.

        Speed is measured from the second call on: the time before may include compilation.
        """
        now = time.monotonic()
        if self._calls < 2:
            self._calls += 1
            self._started = (now, images)
        if self._live is not None:
            kimg, rest = self._texts(images, now)
            self._live.update(self._task, completed=images, kimg=kimg, rest=rest)
        elif now - self._printed >= PLAIN_SECONDS or images >= self.total:
            self._printed = now
            kimg, rest = self._texts(images, now)
            self.log(f"kimg {kimg} {rest}")

    def figure(self, line: Mapping[str, float]) -> None:
        """Show these metrics from now on."""
        parts = []
        for network in ("discriminator", "generator"):
            if f"{network}/loss" in line:
                parts.append(f"loss_{network[0]} {line[f'{network}/loss']:.3g}")
        norms = [line[key] for key in line if key in _NORMS]
        if norms:
            parts.append("gnorm " + "/".join(f"{norm:.2g}" for norm in norms))
        parts.append(f"mem {line['memory_gb']:.1f}G")
        self.figures = " ".join(parts)

    def close(self) -> None:
        """Stop the live line."""
        if self._live is not None:
            self._live.stop()

    def _texts(self, images: int, now: float) -> tuple[str, str]:
        started, first = self._started
        speed = (images - first) / (now - started) if images > first else 0.0
        left = self.total - images
        eta = duration(left / speed if left else 0) if speed or not left else "?"
        kimg = f"{images / 1000:.6g}/{self.total / 1000:.6g}"
        return kimg, f"eta {eta} img/s {speed:.3g} {self.figures}".rstrip()


_NORMS = ("discriminator/gradient_norm", "generator/gradient_norm")


def duration(seconds: float) -> str:
    """A length of time in at most two units: 45s, 12m05, 1h02, 3d04h."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"
