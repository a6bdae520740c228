"""A score of a result: its value, its name, and its text for display.

This module imports no torch: results can be read without it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from gantx.errors import UsageError, closest

# The metrics of --metric, and the scores that each gives.
SCORES_OF: dict[str, tuple[str, ...]] = {
    "fid": ("fid",),
    "kid": ("kid",),
    "is": ("is",),
    "pr": ("precision", "recall"),
    "dc": ("density", "coverage"),
    "modes": ("modes", "confident", "whole"),
}
METRICS = tuple(SCORES_OF)
# Scores by a feature network other than Inception: other names, so that they are not mistaken for FID or KID.
_OTHER_NETWORK = re.compile(r"(fd|kd|precision|recall|density|coverage)(_rand|\[.+\])")


@dataclass(frozen=True)
class Score:
    """One number of a result.

    Attributes:
        name: one of those in `SCORES_OF`, or of another feature network: fd_rand, fd[NAME]; see `name_of`.
        value: the number; None where it could not be computed. A value that is not finite becomes None.
        low: lower end of the 95 % interval, which has both ends or none.
        high: its upper end.
        note: for the reader, such as why there is no value.
        details: how it was computed: subsets, k, standard deviation; `n_gen` and `n_ref` where they differ
            from the protocol's.
    """

    name: str
    value: float | None
    low: float | None = None
    high: float | None = None
    note: str = ""
    details: Mapping[str, float | int | str | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        low, high = _finite(self.low), _finite(self.high)
        whole = low is not None and high is not None
        object.__setattr__(self, "value", _finite(self.value))
        object.__setattr__(self, "low", low if whole else None)
        object.__setattr__(self, "high", high if whole else None)

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval, or None."""
        return None if self.low is None or self.high is None else (self.low, self.high)


def name_of(score: str, network: str) -> str:
    """What a score is called by its feature network: FID and KID only in the features of Inception.

    Args:
        score: one of the names in `SCORES_OF`.
        network: `inception`, `random`, or the name of an ONNX file.
    """
    if network == "inception":
        return score
    base = {"fid": "fd", "kid": "kd"}.get(score, score)
    return f"{base}_rand" if network == "random" else f"{base}[{network}]"


def require_metric(name: str) -> None:
    """UsageError with the closest metric if there is none of this name."""
    if name not in METRICS:
        raise UsageError(f"no metric '{name}'{closest(name, METRICS)}: there are {', '.join(METRICS)}")


def parse_metrics(texts: Iterable[str]) -> tuple[str, ...]:
    """Read the metrics in "fid" or "fid,kid", each once; UsageError if there is none of a name."""
    names = tuple(dict.fromkeys(part.strip() for text in texts for part in text.split(",")))
    for name in names:
        require_metric(name)
    return names


def is_score(name: str) -> bool:
    """Whether some evaluation gives a score of this name."""
    return any(name in names for names in SCORES_OF.values()) or bool(_OTHER_NETWORK.fullmatch(name))


def lower_is_better(metric: str) -> bool:
    """Whether a smaller value of the metric is the better one: true of distances only."""
    other = _OTHER_NETWORK.fullmatch(metric)
    return metric in ("fid", "kid") or (other is not None and other[1] in ("fd", "kd"))


def options_for(metric: str) -> str:
    """The options of `gantx eval` that give a score."""
    found = _OTHER_NETWORK.fullmatch(metric)
    base = {"fd": "fid", "kd": "kid"}.get(found[1], found[1]) if found else metric
    option = next(option for option, names in SCORES_OF.items() if base in names)
    if found:
        network = "random" if found[2] == "_rand" else f"{found[2][1:-1]}.onnx"
        return f"--metric {option} --features {network}"
    return f"--metric {option}" if option == "modes" else f"--metric {option} --features inception"


def number(value: float, digits: int = 4) -> str:
    """A number with so many significant digits, its whole part always complete: 23.4, 0.001234, 12346."""
    text = f"{value:.{digits}g}"
    return f"{value:.0f}" if "e+" in text else text


def digits_apart(*values: float) -> int:
    """The significant digits, 4 or more, at which different values also look different.

    Rounding keeps the order, so a text made with them never contradicts a comparison of the values.
    """
    different = len(set(values))
    return next(
        (digits for digits in range(4, 17) if len({number(value, digits) for value in values}) >= different),
        17,
    )


def digits_that_show(value: float) -> int:
    """The significant digits, 4 or more, at which nothing of `value` is rounded away."""
    return next((digits for digits in range(4, 17) if float(number(value, digits)) == value), 17)


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)
