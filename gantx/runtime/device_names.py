"""The names of devices. Imports no torch: a wrong name is reported before that takes its seconds."""

from __future__ import annotations

import re

from gantx.errors import UsageError

_NAME = re.compile(r"auto|cpu|mps|cuda(:\d{1,3})?")


def require_device_name(name: str) -> str:
    """The name, if it is `auto`, `cpu`, `cuda`, `cuda:N` or `mps`; UsageError otherwise."""
    if not _NAME.fullmatch(name):
        raise UsageError(f"unknown device '{name}': use auto, cpu, cuda, cuda:N or mps")
    return name
