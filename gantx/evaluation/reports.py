"""Reports of a result for display and CI: rows of a table, Markdown, JUnit XML, and files of them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from gantx.errors import MissingError
from gantx.evaluation.gates import Gate, Verdict
from gantx.evaluation.results import ClassResult, Result, flattened
from gantx.evaluation.scores import Score, digits_apart, number
from gantx.io import escaping
from gantx.io.atomic import replacing

COLUMNS = ("metric", "value", "95 % interval", "threshold", "verdict")
RIGHT = frozenset({"value", "95 % interval"})  # columns of numbers, aligned on the right
_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_NO_VALUE = "not computed"
_WIDTH, _NAME = 80, 24  # of a table of classes, and of the name of a class in it
_DIGEST = re.compile(r"[0-9a-f]{40,}")


def summary_rows(result: Result) -> list[tuple[str, ...]]:
    """The rows of the table of `COLUMNS`: scores in their order, a row per gate where there are several.

    A gate on a score that was not computed has a row at the end. Texts are not escaped for anything.
    """
    rows: list[tuple[str, ...]] = []
    for score in result.scores:
        verdicts = [verdict for verdict in result.verdicts if verdict.gate.metric == score.name]
        shown = _shown(score, verdicts)
        rows += [(*shown, _threshold(verdict, score.value), verdict.status) for verdict in verdicts]
        if not verdicts:
            rows.append((*shown, "", ""))
    for verdict in result.verdicts:
        if result.score(verdict.gate.metric) is None:
            rows.append((verdict.gate.metric, _NO_VALUE, "", _threshold(verdict, None), verdict.status))
    return rows


def reasons(result: Result) -> list[str]:
    """Why gates did not pass."""
    problems = [verdict for verdict in result.verdicts if verdict.status != "passed"]
    return [f"{verdict.status}: {verdict.reason}" for verdict in problems]


def notes(result: Result) -> list[str]:
    """The lines below the table of Markdown: why gates did not pass, and the notes of the scores."""
    return [*reasons(result), *(f"{score.name}: {score.note}" for score in result.scores if score.note)]


def table(result: Result) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Headings and rows of the table for people: with the notes of scores, without empty columns."""
    notes_of = {score.name: score.note for score in result.scores}
    rows = [(*row, notes_of.get(row[0], "")) for row in summary_rows(result)]
    filled = [column for column in range(len(COLUMNS) + 1) if any(row[column] for row in rows)]
    headings = (*COLUMNS, "note")
    return tuple(headings[column] for column in filled), [
        tuple(row[column] for column in filled) for row in rows
    ]


def class_tables(result: Result) -> list[tuple[tuple[str, ...], list[tuple[str, ...]]]]:
    """Headings and rows of the scores of each class; several tables if one would be too wide.

    All columns except the first are numbers. A score without a value is shown as "-".
    """
    if not result.classes:
        return []
    fixed = [
        ("class", *(_shortened(of_class.name) for of_class in result.classes)),
        ("images", *(f"{of_class.n_gen:,}" for of_class in result.classes)),
        ("real", *(f"{of_class.n_ref:,}" for of_class in result.classes)),
    ]
    tables = [list(fixed)]
    for score in result.classes[0].scores:
        column = (score.name, *(_of_class(of_class, score.name) for of_class in result.classes))
        if _width([*tables[-1], column]) > _WIDTH and len(tables[-1]) > len(fixed):
            tables.append(list(fixed))
        tables[-1].append(column)
    transposed = [list(zip(*columns, strict=True)) for columns in tables]
    return [(headings, rows) for headings, *rows in transposed]


def summary_line(result: Result) -> str:
    """What was measured, in one short line; `protocol_line` has everything."""
    protocol = result.protocol
    images = f"{protocol['n_gen']:,} images" if isinstance(protocol.get("n_gen"), int) else "images"
    labels = protocol.get("labels")  # the usual ones go without saying
    if isinstance(labels, str) and (labels == "uniform" or labels.startswith("class ")):
        images += f" ({'uniform labels' if labels == 'uniform' else labels})"
    real = protocol.get("n_ref")
    against = f" against {real:,} real ones" if isinstance(real, int) else ""
    name = protocol.get("name", "")
    return f"{images}{against}, protocol {name} {result.protocol_hash} (--json has all of it)"


def protocol_line(result: Result) -> str:
    """The protocol in one line: its hash, then every field; digests are cut to 12 digits."""
    return f"protocol {result.protocol_hash}: {_fields(result.protocol)}"


def markdown(result: Result) -> str:
    """The result as GitHub-flavored Markdown: status, table, reasons, protocol, checkpoint, warnings."""
    title = f"gantx eval: {result.status}" if result.verdicts else "gantx eval"
    blocks = [f"## {title}", _markdown_table(summary_rows(result))]
    blocks.append(_markdown_list(notes(result)))
    blocks += [_markdown_table(rows, headings, headings[1:]) for headings, rows in class_tables(result)]
    blocks.append(escaping.markdown(protocol_line(result)))
    if result.checkpoint:
        blocks.append(escaping.markdown(f"checkpoint: {_fields(result.checkpoint)}"))
    blocks.append(_markdown_list(f"warning: {warning}" for warning in result.warnings))
    return "\n\n".join(block for block in blocks if block) + "\n"


def junit(result: Result, name: str) -> str:
    """The result as JUnit XML, as read by GitHub, GitLab, Jenkins and Azure.

    One test case per gate: a failed gate is a `<failure>`, an inconclusive one an `<error>`. Without gates
    one per score, and a score without a value is skipped, so that the report passes exactly when the exit
    code is 0.

    Args:
        result: a result, with verdicts or without.
        name: of the test suite, for example the preset.
    """
    if result.verdicts:
        cases = [_gate_case(name, verdict) for verdict in result.verdicts]
    else:
        cases = [_score_case(name, score) for score in result.scores]
    seconds = sum(value for part, value in result.timing.items() if part.endswith("_seconds"))
    suite = _element(
        "testsuite",
        name=name,
        tests=len(cases),
        failures=sum(case.find("failure") is not None for case in cases),
        errors=sum(case.find("error") is not None for case in cases),
        skipped=sum(case.find("skipped") is not None for case in cases),
        time=f"{seconds:.3f}",
    )
    suite.append(_properties(result))
    suite.extend(cases)
    if result.warnings:
        suite.append(_element("system-out", "\n".join(f"warning: {warning}" for warning in result.warnings)))
    suites = _element("testsuites")
    suites.append(suite)
    ElementTree.indent(suites)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ElementTree.tostring(suites, encoding="unicode")}\n'


def as_json(result: Result) -> str:
    """The result as one JSON document (schema gantx.eval/1), ASCII, without NaN."""
    return json.dumps(result.to_document(), indent=2, allow_nan=False) + "\n"


def write_json(result: Result, path: Path) -> None:
    """Write the JSON document; MissingError when that cannot be done."""
    _write(as_json(result), path)


def write_junit(result: Result, path: Path, name: str) -> None:
    """Write the JUnit XML of a suite called `name`; MissingError when that cannot be done."""
    _write(junit(result, name), path)


def write_markdown(result: Result, path: Path) -> None:
    """Write the Markdown; MissingError when that cannot be done."""
    _write(markdown(result), path)


def append_step_summary(text: str) -> bool:
    """Append Markdown to the summary of the GitHub Actions step that runs this.

    Returns:
        Whether GITHUB_STEP_SUMMARY names a file; elsewhere nothing happens.

    Raises:
        MissingError: the file cannot be written.
    """
    path = os.environ.get("GITHUB_STEP_SUMMARY")
    if not path:
        return False
    try:
        with Path(path).open("a", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
            file.write(f"\n{text.strip()}\n")  # a heading needs an empty line before it
    except OSError as problem:
        raise MissingError(
            f"cannot append to the step summary {path}: {problem.strerror or problem}; unset "
            "GITHUB_STEP_SUMMARY to do without it"
        ) from problem
    return True


def _write(text: str, path: Path) -> None:
    with replacing(path) as beside:
        # File names that are not UTF-8 arrive as lone surrogates.
        beside.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")


# --- the table --------------------------------------------------------------------------------------------


def _shown(score: Score, verdicts: Iterable[Verdict] = ()) -> tuple[str, str, str]:
    """Name, value and interval of a score, with enough digits to distinguish it from its limits."""
    if score.value is None:
        return score.name, _NO_VALUE, ""
    # 20.00001 must not be shown as 20 beside "at most 20".
    limits = [verdict.limit for verdict in verdicts if verdict.limit is not None]
    digits = max((digits_apart(score.value, limit) for limit in limits), default=4)
    value = number(score.value, digits)
    if score.name == "kid" or score.name.startswith("kd"):
        value += f" (x1e3: {number(1000 * score.value, digits)})"
    interval = "" if score.interval is None else " to ".join(number(end, digits) for end in score.interval)
    return score.name, value, interval


def _of_class(of_class: ClassResult, name: str) -> str:
    value = next((score.value for score in of_class.scores if score.name == name), None)
    return "-" if value is None else number(value)


def _width(columns: Iterable[tuple[str, ...]]) -> int:
    """The width of a table with two spaces between columns, as if each character took one column."""
    return sum(2 + max(map(len, column)) for column in columns) - 2


def _shortened(name: str) -> str:
    return name if len(name) <= _NAME else name[: _NAME - 1] + "…"


def _threshold(verdict: Verdict, value: float | None) -> str:
    """The gate's requirement; with a baseline, the resulting limit."""
    gate, limit = verdict.gate, verdict.limit
    if isinstance(gate, Gate) or limit is None:
        return gate.requirement
    bound = number(limit, digits_apart(limit, limit if value is None else value))
    return f"at {'most' if gate.op == 'above' else 'least'} {bound} ({gate.amount} worse than the baseline)"


def _fields(values: Mapping[str, Any]) -> str:
    known = {name: text for name, text in flattened(values).items() if text != "null"}
    texts = {name: _DIGEST.sub(lambda found: found[0][:12], text) for name, text in known.items()}
    return ", ".join(f"{name} {text}" for name, text in texts.items())


# --- Markdown ---------------------------------------------------------------------------------------------


def _markdown_table(
    rows: list[tuple[str, ...]],
    headings: tuple[str, ...] = COLUMNS,
    right: Collection[str] = RIGHT,
) -> str:
    """A table whose columns are aligned in the source too."""
    cells = [headings, *(tuple(escaping.markdown(cell) for cell in row) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headings))]
    rule = [
        "-" * (width - 1) + ":" if heading in right else "-" * width
        for heading, width in zip(headings, widths, strict=True)
    ]
    lines = [
        [
            cell.rjust(width) if heading in right else cell.ljust(width)
            for heading, cell, width in zip(headings, row, widths, strict=True)
        ]
        for row in cells
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in [lines[0], rule, *lines[1:]])


def _markdown_list(texts: Iterable[str]) -> str:
    return "\n".join(f"- {escaping.markdown(text)}" for text in texts)


# --- XML --------------------------------------------------------------------------------------------------


def _properties(result: Result) -> ElementTree.Element:
    """Scores in full precision, protocol and checkpoint as properties of the suite."""
    scores = {score.name: score.value for score in result.scores}
    values = {
        "score": scores,
        "protocol_hash": result.protocol_hash,
        "protocol": result.protocol,
        "checkpoint": result.checkpoint or {},
        "class": {
            of_class.name: {score.name: score.value for score in of_class.scores}
            for of_class in result.classes
        },
    }
    if not result.classes:
        del values["class"]
    properties = _element("properties")
    for name, text in flattened(values).items():
        properties.append(_element("property", name=name, value=text))
    return properties


def _gate_case(suite: str, verdict: Verdict) -> ElementTree.Element:
    gate, reason = verdict.gate, verdict.reason
    case = _element("testcase", classname=suite, name=f"{gate.metric} {gate.requirement}")
    if verdict.status == "passed":
        case.append(_element("system-out", reason))
    else:
        tag = "failure" if verdict.status == "failed" else "error"
        case.append(_element(tag, reason, message=reason, type=verdict.status))
    return case


def _score_case(suite: str, score: Score) -> ElementTree.Element:
    case = _element("testcase", classname=suite, name=score.name)
    if score.value is None:
        case.append(_element("skipped", message=score.note or "could not be computed"))
    else:
        case.append(_element("system-out", " ".join(_shown(score)).strip()))
    return case


def _element(tag: str, text: str | None = None, **attributes: object) -> ElementTree.Element:
    element = ElementTree.Element(tag, {name: _legal(str(value)) for name, value in attributes.items()})
    element.text = None if text is None else _legal(text)
    return element


def _legal(text: str) -> str:
    """Text without the characters that XML 1.0 cannot represent: most controls, lone surrogates."""
    return _NO_XML.sub("", text)
