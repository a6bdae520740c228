"""What a result is: scores, the protocol they hold under, gates and their verdicts; JSON in and out.

A score means nothing without its protocol (network, resize, counts, reference): a result carries the protocol
and a hash of it, and two results are compared only when the hashes are equal. Every result is kept and judged
on its own; nothing here picks the best of several.

This module imports no torch: a result can be read and judged where nothing else is installed.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from gantx.errors import DataError, MissingError, UsageError, closest

SCHEMA = "gantx.eval/1"
Op: TypeAlias = Literal["above", "below"]
Status: TypeAlias = Literal["passed", "failed", "inconclusive"]

# What the user asks for with --metric, and the scores it gives.
SCORES_OF: dict[str, tuple[str, ...]] = {
    "fid": ("fid",),
    "kid": ("kid",),
    "is": ("is",),
    "pr": ("precision", "recall"),
    "dc": ("density", "coverage"),
    "modes": ("modes", "confident", "whole"),
}
# Scores by a feature network other than Inception: names of their own, never mistaken for FID or KID.
_FOREIGN = re.compile(r"(fd|kd|precision|recall|density|coverage)(_rand|\[.+\])")
_WORST_FIRST: tuple[Status, ...] = ("failed", "inconclusive", "passed")


@dataclass(frozen=True)
class Score:
    """One number of a result.

    Attributes:
        name: fid, kid, is, precision, recall, density, coverage, modes, confident, whole, fd[NAME], kd[NAME],
            fd_rand or kd_rand.
        value: the number; None where it could not be computed. A value that is not finite becomes None.
        low: lower end of the 95 % interval, which has both ends or none.
        high: its upper end.
        note: what a reader should know, such as why there is no value.
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


@dataclass(frozen=True)
class Gate:
    """A threshold that a score must keep.

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
        """What is asked for, in words: "at most 20"."""
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
        """What is asked for, in words: "at most 5% worse than the baseline"."""
        return f"at most {self.amount} worse than the baseline"

    def limit(self, baseline: float) -> float | None:
        """The worst value allowed beside a baseline; None where a share of the baseline means nothing.

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
    """What became of a gate.

    Attributes:
        gate: what was asked for.
        status: "inconclusive" where the question could not be answered; that never counts as passed.
        reason: one clause that says the same as `status`, with the numbers.
        limit: the number the score was held against; None where a regression has none.
    """

    gate: Gate | Regression
    status: Status
    reason: str
    limit: float | None = None


@dataclass(frozen=True)
class Result:
    """One evaluation of one generator.

    Attributes:
        scores: in the order they are shown.
        protocol: everything that decides what the numbers mean: network and its digest, resize, counts,
            reference and its digest, seed. JSON values. The generator is not part of it.
        checkpoint: which generator: path, digest, progress, preset; None for a folder of images.
        warnings: sentences for the user.
        timing: seconds of each part (`NAME_seconds`) and speeds.
        versions: of gantx, Python and the libraries.
        verdicts: one per gate, once judged.
    """

    scores: tuple[Score, ...]
    protocol: Mapping[str, Any]
    checkpoint: Mapping[str, Any] | None
    warnings: tuple[str, ...]
    timing: Mapping[str, float]
    versions: Mapping[str, str]
    verdicts: tuple[Verdict, ...] = ()

    @property
    def protocol_hash(self) -> str:
        """Digest of the protocol; see `hash_of`."""
        return hash_of(self.protocol)

    @property
    def status(self) -> Status:
        """The worst verdict: failed, then inconclusive, then passed; "passed" without gates."""
        return _worst(self.verdicts).status if self.verdicts else "passed"

    @property
    def exit_code(self) -> int:
        """0 passed, 1 failed, 3 inconclusive."""
        return {"passed": 0, "failed": 1, "inconclusive": 3}[self.status]

    def score(self, name: str) -> Score | None:
        """The score of that name, or None when it was not asked for."""
        return next((score for score in self.scores if score.name == name), None)

    def judged(
        self,
        gates: Iterable[Gate],
        regressions: Iterable[Regression] = (),
        baseline: Result | None = None,
        *,
        strict: bool = False,
    ) -> Result:
        """This result with one verdict per gate and per regression, in that order.

        Args:
            gates: thresholds.
            regressions: allowances beside `baseline`.
            baseline: an earlier result of the same protocol.
            strict: ask the whole 95 % interval, not the value alone, to be on one side of the limit; a score
                without an interval is then inconclusive. The baseline's own interval is not considered.

        Raises:
            UsageError: there is no baseline to compare with, or it has another protocol.
        """
        regressions = tuple(regressions)
        if regressions and baseline is None:
            raise UsageError("--max-regression compares with an earlier result: add --baseline FILE")
        verdicts = [_against_threshold(gate, self.score(gate.metric), strict) for gate in gates]
        if baseline is not None:
            compare(baseline.protocol, self.protocol)
            verdicts += [
                _against_baseline(
                    regression, self.score(regression.metric), baseline.score(regression.metric), strict
                )
                for regression in regressions
            ]
        return replace(self, verdicts=tuple(verdicts))

    def to_document(self) -> dict[str, Any]:
        """The result as JSON values (schema gantx.eval/1, docs/eval.schema.json); never NaN, but null."""
        document = Document.model_validate(
            {
                "schema": SCHEMA,
                "status": self.status,
                "metrics": {score.name: self._record(score) for score in self.scores},
                "gates": [GateRecord.of(verdict) for verdict in self.verdicts],
                "protocol": plain(self.protocol),
                "protocol_hash": self.protocol_hash,
                "checkpoint": plain(self.checkpoint),
                "timing": dict(self.timing),
                "versions": dict(self.versions),
                "warnings": list(self.warnings),
            }
        )
        return document.model_dump(mode="json", by_alias=True)

    def _record(self, score: Score) -> MetricRecord:
        verdicts = [verdict for verdict in self.verdicts if verdict.gate.metric == score.name]
        deciding = _worst(verdicts) if verdicts else None
        counted = plain({**self.protocol, **score.details})
        return MetricRecord(
            value=score.value,
            ci95=None if score.interval is None else list(score.interval),
            n_gen=counted.get("n_gen"),
            n_ref=counted.get("n_ref"),
            threshold=deciding.limit if deciding else None,
            op=deciding.gate.op if deciding else None,
            verdict=deciding.status if deciding else None,
            note=score.note,
            details=plain(score.details),
        )


# --- the command line's words -----------------------------------------------------------------------------


def lower_is_better(metric: str) -> bool:
    """Whether a smaller value of the metric is the better one: true of distances only."""
    foreign = _FOREIGN.fullmatch(metric)
    return metric in ("fid", "kid") or (foreign is not None and foreign[1] in ("fd", "kd"))


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
    known = [name for names in SCORES_OF.values() for name in names]
    if metric in known or _FOREIGN.fullmatch(metric):
        return metric, amount
    if metric in SCORES_OF:
        names = " and ".join(SCORES_OF[metric])
        raise UsageError(f"{option} {text}: {metric} is two scores, {names}; name one of them")
    similar = closest(metric.lower(), [*known, "fd_rand", "kd_rand"])
    raise UsageError(
        f"{option} {text}: there is no metric '{metric}'{similar}; there are {', '.join(known)}, "
        "and for other feature networks fd_rand, kd_rand, fd[NAME], kd[NAME]"
    )


def _parse_number(written: str, text: str, option: str, example: str) -> float:
    try:
        parsed = float(written)
    except ValueError:
        parsed = math.nan
    if not math.isfinite(parsed):
        raise UsageError(f"{option} {text}: '{written}' is not a number; write it like {option} {example}")
    return parsed


def _how_to_compute(metric: str) -> str:
    """The options that give a score."""
    found = _FOREIGN.fullmatch(metric)
    base = {"fd": "fid", "kd": "kid"}.get(found[1], found[1]) if found else metric
    option = next(option for option, names in SCORES_OF.items() if base in names)
    if found:
        network = "random" if found[2] == "_rand" else f"{found[2][1:-1]}.onnx"
        return f"--metric {option} --features {network}"
    return f"--metric {option} --features inception" if option in ("fid", "kid") else f"--metric {option}"


def hash_of(protocol: Mapping[str, Any]) -> str:
    """First 16 hexadecimal digits of the SHA-256 of a protocol's canonical JSON.

    Canonical: sorted keys, no spaces, ASCII; 1.0 is written as 1, so that tools which rewrite JSON do not
    change the hash.
    """
    text = json.dumps(plain(protocol), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:16]


# --- judging ----------------------------------------------------------------------------------------------


def compare(baseline: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Check that two protocols are the same, so that results measured by them may be compared.

    Raises:
        UsageError: they are not; the message lists each differing field as "field: old -> new".
    """
    if hash_of(baseline) == hash_of(new):
        return
    old, now = flattened(baseline), flattened(new)
    differences = "; ".join(
        f"{name}: {old.get(name, '(absent)')} -> {now.get(name, '(absent)')}"
        for name in dict.fromkeys([*old, *now])
        if old.get(name) != now.get(name)
    )
    raise UsageError(
        f"the baseline was measured by another protocol, so its numbers cannot be compared with these "
        f"({differences}): evaluate both in the same way"
    )


def _against_threshold(gate: Gate, score: Score | None, strict: bool) -> Verdict:
    return _held_against(gate.threshold, "", gate, score, strict, digits_that_show(gate.threshold))


def _against_baseline(
    regression: Regression, score: Score | None, baseline: Score | None, strict: bool
) -> Verdict:
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
    return _held_against(limit, origin, regression, score, strict)


def _held_against(
    limit: float, origin: str, gate: Gate | Regression, score: Score | None, strict: bool, digits: int = 4
) -> Verdict:
    """Hold a score against a number; `origin` says in the reason where the number comes from."""
    metric, op = gate.metric, gate.op
    if score is None:
        reason = f"{metric} was not computed: add {_how_to_compute(metric)}"
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
        reason = f"{shown} has no 95 % interval to hold against {bound}"
        return Verdict(gate, "inconclusive", reason, limit)
    # An interval corrected for bias need not contain the value, so all three are asked.
    if strict and interval is not None and len({fails(value), *map(fails, interval)}) > 1:
        low, high = (number(end, digits) for end in interval)
        reason = f"{shown} with a 95 % interval of {low} to {high} leaves open whether it is {op} {bound}"
        return Verdict(gate, "inconclusive", reason, limit)
    if fails(value):
        return Verdict(gate, "failed", f"{shown} is {op} {bound}", limit)
    return Verdict(gate, "passed", f"{shown} is not {op} {bound}", limit)


def _worst(verdicts: Iterable[Verdict]) -> Verdict:
    """The verdict that decides; the first given among equals."""
    return min(verdicts, key=lambda verdict: _WORST_FIRST.index(verdict.status))


# --- numbers and values -----------------------------------------------------------------------------------


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


def plain(value: Any) -> Any:
    """`value` as JSON knows it: tuples as lists, whole floats as integers, null for what is not finite."""
    if isinstance(value, Mapping):
        return {str(name): plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return int(value) if value.is_integer() else float(value)
    return value


def flattened(values: Mapping[str, Any]) -> dict[str, str]:
    """Nested values as dotted names and texts, in their order."""
    flat: dict[str, str] = {}
    for name, value in plain(values).items():
        if isinstance(value, dict) and value:
            flat |= {f"{name}.{inner}": text for inner, text in flattened(value).items()}
        else:
            flat[name] = value if isinstance(value, str) else json.dumps(value)
    return flat


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


# --- the file ---------------------------------------------------------------------------------------------


class _Record(BaseModel):
    """A part of the document: typed strictly, open to fields that a later gantx adds."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)


class MetricRecord(_Record):
    """One score, with the gate that decides its verdict where there are several."""

    value: Annotated[float | None, Field(description="null: could not be computed, see note")]
    ci95: Annotated[
        Annotated[list[float], Field(min_length=2, max_length=2)] | None,
        Field(description="95 % interval: lower and upper end"),
    ]
    n_gen: Annotated[int | None, Field(description="generated images")]
    n_ref: Annotated[int | None, Field(description="reference images")]
    threshold: Annotated[float | None, Field(description="what the value was held against")]
    op: Annotated[Op | None, Field(description="on which side of the threshold the gate fails")]
    verdict: Annotated[Status | None, Field(description="null: no gate on this metric")]
    note: str
    details: Annotated[dict[str, Any], Field(description="how it was computed: subsets, k, std")]

    def to_score(self, name: str) -> Score:
        """The score this was written from."""
        low, high = self.ci95 or (None, None)
        return Score(name, self.value, low, high, self.note, self.details)


class GateRecord(_Record):
    """One gate and what became of it."""

    metric: str
    kind: Literal["threshold", "regression"]
    op: Op
    threshold: Annotated[float | None, Field(description="the limit; null: a regression without one")]
    share: Annotated[float | None, Field(description="of a regression: 0.05 allows 5 % worse")]
    absolute: Annotated[float | None, Field(description="of a regression: the amount allowed")]
    verdict: Status
    reason: str

    @classmethod
    def of(cls, verdict: Verdict) -> GateRecord:
        """The record of a verdict."""
        gate = verdict.gate
        allowed = gate if isinstance(gate, Regression) else None
        return cls(
            metric=gate.metric,
            kind="regression" if allowed else "threshold",
            op=gate.op,
            threshold=verdict.limit,
            share=allowed.share if allowed else None,
            absolute=allowed.absolute if allowed else None,
            verdict=verdict.status,
            reason=verdict.reason,
        )

    @model_validator(mode="after")
    def _fields_fit(self) -> GateRecord:
        self.to_verdict()
        return self

    def to_verdict(self) -> Verdict:
        """The verdict this was written from; ValueError when the fields contradict one another."""
        gate: Gate | Regression
        if self.kind == "regression":
            gate = Regression(self.metric, self.share, self.absolute)
        elif self.threshold is None:
            raise ValueError("a threshold gate without a threshold")
        else:
            gate = Gate(self.metric, self.op, self.threshold)
        return Verdict(gate, self.verdict, self.reason, self.threshold)


class Document(_Record):
    """The result of one `gantx eval`."""

    schema_: Annotated[Literal["gantx.eval/1"], Field(alias="schema")]
    status: Annotated[Status, Field(description="the worst verdict; exit code 0, 1 or 3")]
    metrics: dict[str, MetricRecord]
    gates: list[GateRecord]
    protocol: Annotated[dict[str, Any], Field(description="everything that decides what the numbers mean")]
    protocol_hash: Annotated[str, Field(pattern="^[0-9a-f]{16}$")]
    checkpoint: Annotated[dict[str, Any] | None, Field(description="the generator; null: a folder of images")]
    timing: Annotated[dict[str, float], Field(description="seconds of each part, and speeds")]
    versions: dict[str, str]
    warnings: list[str]


def read_result(path: Path) -> Result:
    """Read a result that was written from `Result.to_document`.

    Raises:
        MissingError: there is no such file, or it cannot be read.
        DataError: it is no whole result of gantx eval, or its protocol was changed after it was written.
    """
    try:
        values = plain(json.loads(path.read_bytes()))  # knows UTF-16 too, to which some shells redirect
    except FileNotFoundError as problem:
        raise MissingError(
            f"there is no result at {path}: `gantx eval --output FILE` writes one"
        ) from problem
    except OSError as problem:
        raise MissingError(f"cannot read {path}: {problem.strerror or problem}") from problem
    except (ValueError, RecursionError) as problem:
        raise DataError(f"{path} is not a result of gantx eval: it is no JSON ({problem})") from problem
    schema = values.get("schema") if isinstance(values, dict) else None
    if schema != SCHEMA:
        raise DataError(f"{path} is not a result that this gantx reads: its schema is {schema}, not {SCHEMA}")
    try:
        document = Document.model_validate(values)
    except ValidationError as problem:
        first = problem.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DataError(f"{path} is not a whole result of gantx eval: {where}: {first['msg']}") from problem
    result = Result(
        scores=tuple(metric.to_score(name) for name, metric in document.metrics.items()),
        protocol=document.protocol,
        checkpoint=document.checkpoint,
        warnings=tuple(document.warnings),
        timing=document.timing,
        versions=document.versions,
        verdicts=tuple(gate.to_verdict() for gate in document.gates),
    )
    if result.protocol_hash != document.protocol_hash:
        raise DataError(
            f"{path} was changed after it was written: its protocol_hash is {document.protocol_hash}, "
            f"but its protocol gives {result.protocol_hash}; evaluate again"
        )
    return result
