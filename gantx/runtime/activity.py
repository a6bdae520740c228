"""Operations that take long: how they are announced, and how a length of time is written."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

Working = Callable[[str], AbstractContextManager[None]]  # given what is done, for as long as it takes
NOTED = 2.0  # seconds from which on an operation is noted with the time that it took


@contextlib.contextmanager
def unnoticed(what: str) -> Iterator[None]:
    """A `Working` that shows nothing."""
    yield


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
