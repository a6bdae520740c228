"""The result of an evaluation: scores, their protocol, and the verdicts of gates; JSON in and out.

A score has no meaning without its protocol (network, resize, counts, reference): a result contains the
protocol and a hash of it, and two results are compared only when the hashes are equal.

This module imports no torch: results can be read and checked without it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from gantx.errors import DataError, MissingError, UsageError
from gantx.evaluation.gates import (
    Gate,
    Op,
    Regression,
    Status,
    Verdict,
    check_regression,
    check_threshold,
    worst,
)
from gantx.evaluation.scores import Score

SCHEMA = "gantx.eval/1"


@dataclass(frozen=True)
class ClassResult:
    """The scores of one class.

    Attributes:
        name: of the class.
        n_gen: its generated images.
        n_ref: its real images.
        scores: in the order they are shown, without intervals.
        protocol_hash: digest of the protocol with the counts and the reference of the class; scores of a
            class are comparable where it is equal.
    """

    name: str
    n_gen: int
    n_ref: int
    scores: tuple[Score, ...]
    protocol_hash: str


@dataclass(frozen=True)
class Result:
    """One evaluation of one generator.

    Attributes:
        scores: in the order they are shown.
        protocol: everything except the generator that determines the scores: network and its digest, resize,
            counts, reference and its digest, seed. JSON values.
        checkpoint: which generator: path, digest, progress, preset; None for a folder of images.
        warnings: sentences for the user.
        timing: seconds of each part (`NAME_seconds`) and speeds.
        versions: of gantx, Python and the libraries.
        verdicts: one per gate, after `with_verdicts`.
        classes: the scores of each class, where they were asked for; no gate refers to them.
    """

    scores: tuple[Score, ...]
    protocol: Mapping[str, Any]
    checkpoint: Mapping[str, Any] | None
    warnings: tuple[str, ...]
    timing: Mapping[str, float]
    versions: Mapping[str, str]
    verdicts: tuple[Verdict, ...] = ()
    classes: tuple[ClassResult, ...] = ()

    @property
    def protocol_hash(self) -> str:
        """Digest of the protocol; see `hash_of`."""
        return hash_of(self.protocol)

    @property
    def status(self) -> Status:
        """The worst verdict: failed, then inconclusive, then passed; "passed" without gates."""
        return worst(self.verdicts).status if self.verdicts else "passed"

    @property
    def exit_code(self) -> int:
        """0 passed, 1 failed, 3 inconclusive."""
        return {"passed": 0, "failed": 1, "inconclusive": 3}[self.status]

    def score(self, name: str) -> Score | None:
        """The score of that name, or None when it was not asked for."""
        return next((score for score in self.scores if score.name == name), None)

    def with_verdicts(
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
        verdicts = [check_threshold(gate, self.score(gate.metric), strict) for gate in gates]
        if baseline is not None:
            compare(baseline.protocol, self.protocol)
            verdicts += [
                check_regression(
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
                "classes": [ClassRecord.of(of_class) for of_class in self.classes],
            }
        )
        absent = None if self.classes else {"classes"}
        return document.model_dump(mode="json", by_alias=True, exclude=absent)

    def _record(self, score: Score) -> MetricRecord:
        verdicts = [verdict for verdict in self.verdicts if verdict.gate.metric == score.name]
        deciding = worst(verdicts) if verdicts else None
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


# --- the protocol -----------------------------------------------------------------------------------------


def hash_of(protocol: Mapping[str, Any]) -> str:
    """First 16 hexadecimal digits of the SHA-256 of a protocol's canonical JSON.

    Canonical: sorted keys, no spaces, ASCII; 1.0 is written as 1, so that tools which rewrite JSON do not
    change the hash.
    """
    text = json.dumps(plain(protocol), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:16]


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


def plain(value: Any) -> Any:
    """`value` as JSON values: tuples as lists, whole floats as integers, null for numbers not finite."""
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


# --- the JSON document ------------------------------------------------------------------------------------


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
    threshold: Annotated[float | None, Field(description="what the value was compared with")]
    op: Annotated[Op | None, Field(description="on which side of the threshold the gate fails")]
    verdict: Annotated[Status | None, Field(description="null: no gate on this metric")]
    note: str
    details: Annotated[dict[str, Any], Field(description="how it was computed: subsets, k, std")]

    def to_score(self, name: str) -> Score:
        """The score this was written from."""
        low, high = self.ci95 or (None, None)
        return Score(name, self.value, low, high, self.note, self.details)


class GateRecord(_Record):
    """One gate and its verdict."""

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


class ClassScore(_Record):
    """One score of a class."""

    value: Annotated[float | None, Field(description="null: could not be computed, see note")]
    note: str
    details: Annotated[dict[str, Any], Field(description="how it was computed: subsets, k")]


class ClassRecord(_Record):
    """The scores of one class: its generated images against its real ones."""

    name: str
    n_gen: Annotated[int, Field(description="generated images of the class")]
    n_ref: Annotated[int, Field(description="real images of the class")]
    metrics: dict[str, ClassScore]
    protocol_hash: Annotated[str, Field(pattern="^[0-9a-f]{16}$")]

    @classmethod
    def of(cls, result: ClassResult) -> ClassRecord:
        """The record of the scores of a class."""
        metrics = {
            score.name: ClassScore(value=score.value, note=score.note, details=plain(score.details))
            for score in result.scores
        }
        return cls(
            name=result.name,
            n_gen=result.n_gen,
            n_ref=result.n_ref,
            metrics=metrics,
            protocol_hash=result.protocol_hash,
        )

    def to_result(self) -> ClassResult:
        """The scores this was written from."""
        scores = tuple(
            Score(name, score.value, note=score.note, details=score.details)
            for name, score in self.metrics.items()
        )
        return ClassResult(self.name, self.n_gen, self.n_ref, scores, self.protocol_hash)


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
    classes: Annotated[list[ClassRecord], Field(description="of --per-class; absent without it")] = []


def read_result(path: Path) -> Result:
    """Read a result that was written from `Result.to_document`.

    Raises:
        MissingError: there is no such file, or it cannot be read.
        DataError: it is no whole result of gantx eval, or its protocol was changed after it was written.
    """
    try:
        values = plain(json.loads(path.read_bytes()))  # also decodes UTF-16, which some shells write
    except FileNotFoundError as problem:
        raise MissingError(
            f"there is no result at {path}: `gantx eval --output FILE` writes one"
        ) from problem
    except OSError as problem:
        raise MissingError(f"cannot read {path}: {problem.strerror or problem}") from problem
    except (ValueError, RecursionError) as problem:
        raise DataError(f"{path} is not a result of gantx eval: it is no JSON ({problem})") from problem
    return parse_result(values, str(path))


def parse_result(values: Any, path: str) -> Result:
    """The result that `Result.to_document` describes.

    Args:
        values: as read from JSON.
        path: where it comes from, for errors.

    Raises:
        DataError: as `read_result`.
    """
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
        classes=tuple(of_class.to_result() for of_class in document.classes),
    )
    if result.protocol_hash != document.protocol_hash:
        raise DataError(
            f"{path} was changed after it was written: its protocol_hash is {document.protocol_hash}, "
            f"but its protocol gives {result.protocol_hash}; evaluate again"
        )
    return result
