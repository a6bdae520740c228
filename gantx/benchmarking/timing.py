"""Durations of work on a device, measured without synchronising CUDA devices."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import torch


class Stopwatch:
    """Records times in the work of a device.

    On a CUDA device a mark is an event in its queue: the host does not wait, so it runs ahead as
    without measurement. Elsewhere a mark waits for the device and reads the clock.

    Args:
        device: the measured device; a CUDA device must be the current one.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._events: list[torch.cuda.Event] = []
        self._moments: list[float] = []

    def mark(self) -> None:
        """Record the time at which all work queued so far is complete."""
        if self._device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._events.append(event)
            return
        if self._device.type == "mps":
            torch.mps.synchronize()
        self._moments.append(time.perf_counter())

    def spans(self) -> list[float]:
        """Seconds between successive marks; synchronises the device."""
        if self._events:
            self._events[-1].synchronize()
            return [first.elapsed_time(then) / 1000 for first, then in itertools.pairwise(self._events)]
        return [then - first for first, then in itertools.pairwise(self._moments)]


def durations(work: Callable[[], object], device: torch.device, times: int) -> list[float]:
    """Seconds of each of `times` calls of `work`, one after the other.

    Args:
        work: the measured function.
        device: where it computes.
        times: number of calls; the first are slower (caches, memory allocation, compilation).
    """
    watch = Stopwatch(device)
    watch.mark()
    for _ in range(times):
        work()
        watch.mark()
    return watch.spans()
