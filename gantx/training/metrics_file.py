"""Reads metrics.jsonl back when a run is resumed; lines that a kill cut off, or that are none of ours, go."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

_MOST = 2**53  # images or seconds


def kept_lines(lines: Iterable[str], images: int) -> list[tuple[str, dict[str, Any]]]:
    """The whole lines that are not newer than `images`, each as text and as what it contains."""
    parsed = ((line, parse(line)) for line in lines)
    return [(line, found) for line, found in parsed if found is not None and found["images"] <= images]


def parse(line: str) -> dict[str, Any] | None:
    """What a line contains: an object with the number `images`; None for anything else."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or not _is_number(found.get("images")):
        return None
    return {**found, "images": int(found["images"])}


def is_score(line: dict[str, Any]) -> bool:
    """Whether a line holds the scores of an evaluation."""
    scores = line.get("scores")
    return (
        isinstance(scores, dict)
        and all(_is_number(value, signed=True) for value in scores.values())
        and isinstance(line.get("protocol_hash"), str)
    )


def is_report(line: dict[str, Any]) -> bool:
    """Whether a line holds the metrics of training, with the seconds that its speed is measured from."""
    return "scores" not in line and _is_number(line.get("seconds"))


def _is_number(value: object, *, signed: bool = False) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return (-_MOST if signed else 0) <= value < _MOST  # False for NaN
