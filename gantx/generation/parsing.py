"""What a user asks for in text and numbers: seeds and truncation.

This module imports no torch: wrong values are reported before that takes its seconds.
"""

from __future__ import annotations

import math
import operator
from typing import NamedTuple, SupportsIndex

from gantx.errors import UsageError
from gantx.runtime.seeds import Seeds

_DIGITS = 100  # of a seed in text


def parse_seeds(text: str) -> Seeds:
    """Read `7`, `1,5,9` or `0-63` (ends included), and mixtures of them; UsageError otherwise."""
    ranges = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise UsageError(f"seeds '{text}': write numbers and ranges, for example 0-63 or 1,5,9")
        if len(first) > _DIGITS or len(last) > _DIGITS:
            raise UsageError(f"seeds '{part[:_DIGITS]}…': a seed has {_DIGITS} digits at most")
        if dash and int(last) < int(first):
            raise UsageError(f"seeds '{part}': the range ends before it begins")
        ranges.append(range(int(first), int(last if dash else first) + 1))
    return Seeds(ranges)


def whole_number(value: SupportsIndex, what: str, least: int = 0) -> int:
    """A value of any integer type as int; UsageError naming `what` if it is no integer or below `least`."""
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if number < least:
        raise UsageError(f"{what} {value}: give a whole number, {least} or more")
    return number


class Truncation(NamedTuple):
    """How far styles are interpolated towards their average: less variety, fewer failures.

    Attributes:
        psi: 1 leaves styles unchanged, 0 replaces them by the average; values outside of [0, 1] extrapolate.
        cutoff: number of leading layers that are truncated, or None for all.
    """

    psi: float
    cutoff: int | None = None


def parse_truncation(psi: float | None, cutoff: int | None = None) -> Truncation | None:
    """Truncation from the values of a user, None without psi; UsageError when they are invalid."""
    if psi is None:
        if cutoff is not None:
            raise UsageError("a cutoff says which layers are truncated: give the truncation too")
        return None
    if not math.isfinite(psi):
        raise UsageError(f"truncation {psi}: give a number, 1 for none, 0.7 for fewer failures")
    return Truncation(psi, cutoff)
