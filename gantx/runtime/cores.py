"""Processor cores: which of them this process may use, and how many are busy. Imports no torch."""

from __future__ import annotations

import os
from pathlib import Path

import psutil


def allowed() -> set[int]:
    """Numbers of the processor cores that this process may use."""
    process = psutil.Process()
    if hasattr(process, "cpu_affinity"):  # not on macOS
        return set(process.cpu_affinity())
    return set(range(os.cpu_count() or 1))


def quota() -> int:
    """CPU quota of a container in cores (cgroup v2), rounded up; a large number without a quota."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return max(1, -(-int(quota) // int(period)))
    except (OSError, ValueError):
        return 1 << 16


def busy(cores: set[int], seconds: float = 0.25) -> float:
    """How many of `cores` are busy while this process sleeps; 0 if that is unknown."""
    try:
        percents = psutil.cpu_percent(seconds, percpu=True)
    except OSError:
        return 0.0
    return sum(percents[core] for core in cores if core < len(percents)) / 100
