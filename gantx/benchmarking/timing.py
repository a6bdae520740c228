"""How long work takes on a device, without holding it up."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import torch


class Stopwatch:
    """Marks moments in the work of a device.

    On a CUDA device a mark is an event in its queue: the host does not wait, so it runs ahead as it does
    without a stopwatch. Elsewhere a mark waits for the device and reads the clock.

    Args:
        device: whose work is measured; a CUDA device must be the current one.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._events: list[torch.cuda.Event] = []
        self._moments: list[float] = []

    def mark(self) -> None:
        """Mark the moment at which the device is done with all that it was given so far."""
        if self._device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._events.append(event)
            return
        if self._device.type == "mps":
            torch.mps.synchronize()
        self._moments.append(time.perf_counter())

    def spans(self) -> list[float]:
        """Seconds between each mark and the next; waits for the device."""
        if self._events:
            self._events[-1].synchronize()
            return [first.elapsed_time(then) / 1000 for first, then in itertools.pairwise(self._events)]
        return [then - first for first, then in itertools.pairwise(self._moments)]


def durations(work: Callable[[], object], device: torch.device, times: int) -> list[float]:
    """Seconds of each of `times` calls of `work`, one after the other.

    Args:
        work: what is measured.
        device: where it computes.
        times: how often it is called; the first calls are slower, since caches, memory and compilers wake up.
    """
    watch = Stopwatch(device)
    watch.mark()
    for _ in range(times):
        work()
        watch.mark()
    return watch.spans()
