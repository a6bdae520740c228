"""Gates: requirements on scores, and their verdicts.

A gate that cannot be decided is "inconclusive", which never counts as passed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from gantx.errors import UsageError, closest
from gantx.evaluation.scores import (
    SCORES_OF,
    Score,
    digits_apart,
    digits_that_show,
    is_score,
    lower_is_better,
    number,
    options_for,
)

Op: TypeAlias = Literal["above", "below"]
Status: TypeAlias = Literal["passed", "failed", "inconclusive"]
_WORST_FIRST: tuple[Status, ...] = ("failed", "inconclusive", "passed")


@dataclass(frozen=True)
class Gate:
    """A threshold for a score.

    Attributes:
        metric: name of the score.
        op: the gate fails when the score is "above" or "below" the threshold; equal passes.
        threshold: in the score's own unit.
    """

    metric: str
    op: Op
    threshold: float

    @property
    def requirement(self) -> str:
        """The requirement in words: "at most 20"."""
        digits = digits_that_show(self.threshold)
        return f"at {'most' if self.op == 'above' else 'least'} {number(self.threshold, digits)}"


@dataclass(frozen=True)
class Regression:
    """How much worse than the baseline a score may be; exactly one of `share` and `absolute` is given.

    Attributes:
        metric: name of the score.
        share: of the baseline's value: 0.05 allows 5 % worse.
        absolute: in the score's own unit.
    """

    metric: str
    share: float | None = None
    absolute: float | None = None

    def __post_init__(self) -> None:
        if (self.share is None) == (self.absolute is None):
            raise ValueError("a regression is a share or an absolute amount")

    @property
    def op(self) -> Op:
        """The side of the limit that is worse."""
        return "above" if lower_is_better(self.metric) else "below"

    @property
    def amount(self) -> str:
        """The allowance as the user writes it: "5%" or "0.5"."""
        return f"{100 * self.share:.10g}%" if self.share is not None else f"{self.absolute:.10g}"

    @property
    def requirement(self) -> str:
        """The requirement in words: "at most 5% worse than the baseline"."""
        return f"at most {self.amount} worse than the baseline"

    def limit(self, baseline: float) -> float | None:
        """The worst value allowed for a baseline; None where a share of the baseline means nothing.

        A share of zero or of a negative number (unbiased KID can be negative) would allow nothing, or ask
        for the opposite.
        """
        if self.absolute is not None:
            allowance = self.absolute
        elif self.share is not None and baseline > 0:
            allowance = self.share * baseline
        else:
            return None
        return baseline + allowance if self.op == "above" else baseline - allowance


@dataclass(frozen=True)
class Verdict:
    """The outcome of a gate.

    Attributes:
        gate: the requirement.
        status: "inconclusive" where the question could not be answered; that never counts as passed.
        reason: one clause that explains `status`, with the numbers.
        limit: the number the score was compared with; None where a regression has none.
    """

    gate: Gate | Regression
    status: Status
    reason: str
    limit: float | None = None


def parse_gate(text: str, op: Op) -> Gate:
    """Read "fid=20" as given to --fail-above or --fail-below.

    Raises:
        UsageError: not METRIC=NUMBER, or an unknown metric; the message shows how it is meant.
    """
    option, example = f"--fail-{op}", "fid=20" if op == "above" else "recall=0.3"
    metric, threshold = _parse(text, option, example)
    return Gate(metric, op, _parse_number(threshold, text, option, example))


def parse_regression(text: str) -> Regression:
    """Read "fid=5%" (a share of the baseline's value) or "fid=0.5" as given to --max-regression.

    Raises:
        UsageError: neither of the two, a negative amount, an unknown metric, or a share that no value could
            exceed.
    """
    option, example = "--max-regression", "fid=5%"
    metric, written = _parse(text, option, example)
    amount = _parse_number(written.removesuffix("%"), text, option, example)
    if amount < 0:
        raise UsageError(f"{option} {text}: an allowance is not negative; write it like {option} {example}")
    if not written.endswith("%"):
        return Regression(metric, absolute=amount)
    if amount >= 100 and not lower_is_better(metric):
        raise UsageError(
            f"{option} {text} can never fail, as {metric} does not fall below zero: use less than 100%"
        )
    return Regression(metric, share=amount / 100)


def _parse(text: str, option: str, example: str) -> tuple[str, str]:
    """Split METRIC=AMOUNT at the last "=" and check the metric."""
    metric, equals, amount = (part.strip() for part in text.rpartition("="))
    if not equals:
        raise UsageError(f"{option} {text} is not METRIC=NUMBER: write it like {option} {example}")
    if is_score(metric):
        return metric, amount
    if metric in SCORES_OF:
        names = " and ".join(SCORES_OF[metric])
        raise UsageError(f"{option} {text}: {metric} is two scores, {names}; name one of them")
    known = [name for names in SCORES_OF.values() for name in names]
    similar = closest(metric.lower(), [*known, "fd_rand", "kd_rand"])
    raise UsageError(
        f"{option} {text}: there is no metric '{metric}'{similar}; there are {', '.join(known)}, "
        "and for other feature networks names such as fd_rand, recall_rand, fd[NAME]"
    )


def _parse_number(written: str, text: str, option: str, example: str) -> float:
    try:
        parsed = float(written)
    except ValueError:
        parsed = math.nan
    if not math.isfinite(parsed):
        raise UsageError(f"{option} {text}: '{written}' is not a number; write it like {option} {example}")
    return parsed


def check_threshold(gate: Gate, score: Score | None, strict: bool) -> Verdict:
    """The verdict of a threshold; a score of None was not computed."""
    return _check(gate.threshold, "", gate, score, strict, digits_that_show(gate.threshold))


def check_regression(
    regression: Regression, score: Score | None, baseline: Score | None, strict: bool
) -> Verdict:
    """The verdict of a regression; a score of None was not computed."""
    if baseline is None or baseline.value is None:
        return Verdict(regression, "inconclusive", f"the baseline has no {regression.metric} to compare with")
    limit = regression.limit(baseline.value)
    if limit is None:
        reason = (
            f"{regression.amount} of the baseline's {regression.metric}, {number(baseline.value)}, means "
            f"nothing: allow an amount, like --max-regression {regression.metric}=0.001"
        )
        return Verdict(regression, "inconclusive", reason)
    origin = f", {regression.amount} worse than the baseline's {number(baseline.value)}"
    return _check(limit, origin, regression, score, strict)


def _check(
    limit: float, origin: str, gate: Gate | Regression, score: Score | None, strict: bool, digits: int = 4
) -> Verdict:
    """Compare a score with a limit; `origin` says in the reason where the limit comes from."""
    metric, op = gate.metric, gate.op
    if score is None:
        reason = f"{metric} was not computed: add {options_for(metric)}"
        return Verdict(gate, "inconclusive", reason, limit)
    value, interval = score.value, score.interval
    if value is None:
        reason = f"{metric} could not be computed" + (f": {score.note}" if score.note else "")
        return Verdict(gate, "inconclusive", reason, limit)

    def fails(candidate: float) -> bool:
        return candidate > limit if op == "above" else candidate < limit

    digits = max(digits, digits_apart(value, limit, *(interval or ())))
    shown, bound = f"{metric} {number(value, digits)}", f"{number(limit, digits)}{origin}"
    if strict and interval is None:
        reason = f"{shown} has no 95 % interval to compare with {bound}"
        return Verdict(gate, "inconclusive", reason, limit)
    # An interval corrected for bias need not contain the value, so all three are compared.
    if strict and interval is not None and len({fails(value), *map(fails, interval)}) > 1:
        low, high = (number(end, digits) for end in interval)
        reason = f"{shown} with a 95 % interval of {low} to {high} leaves open whether it is {op} {bound}"
        return Verdict(gate, "inconclusive", reason, limit)
    if fails(value):
        return Verdict(gate, "failed", f"{shown} is {op} {bound}", limit)
    return Verdict(gate, "passed", f"{shown} is not {op} {bound}", limit)


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """The verdict that decides; the first given among equals."""
    return min(verdicts, key=lambda verdict: _WORST_FIRST.index(verdict.status))
