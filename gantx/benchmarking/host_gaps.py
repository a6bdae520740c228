"""How long a GPU waits for its host."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch.autograd import DeviceType  # type: ignore[attr-defined]
from torch.profiler import ProfilerActivity, profile


def busy_seconds(work: Callable[[], object], device: torch.device) -> float | None:
    """Seconds in which a CUDA device computes or copies during `work`, however long the host takes.

    A profiler slows the host down, not the kernels: so only their own time is taken from it, to be compared
    with the time that `work` takes without one.

    Args:
        work: what is looked at.
        device: where it computes.

    Returns:
        None where there is no CUDA device, or none that lets itself be profiled.
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
    """Length of what spans (start, end) cover together; what several cover counts once."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total
