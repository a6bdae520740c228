"""Time in which a GPU waits for its host."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch.autograd import DeviceType  # type: ignore[attr-defined]
from torch.profiler import ProfilerActivity, profile


def busy_seconds(work: Callable[[], object], device: torch.device) -> float | None:
    """Seconds in which a CUDA device computes or copies during `work`, independent of the host's time.

    A profiler slows down the host but not the kernels: only kernel time is taken from the profile, to be
    compared with the duration of `work` without a profiler.

    Args:
        work: the function to profile.
        device: where it computes.

    Returns:
        None if the device is not a CUDA device or cannot be profiled.
    """
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        work()
        torch.cuda.synchronize(device)
    spans = [
        (event.time_range.start, event.time_range.end)
        for event in profiler.events() or []
        if event.device_type == DeviceType.CUDA and not event.is_user_annotation
    ]
    return covered(spans) / 1e6 if spans else None  # the profiler counts in microseconds


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Length of the union of spans (start, end)."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total
