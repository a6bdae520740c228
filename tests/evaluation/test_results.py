"""What a result promises: comparisons within a protocol, and a file that can be read again."""

import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.evaluation_results import PROTOCOL, result_of

from gantx.errors import DataError, MissingError, UsageError
from gantx.evaluation import reports
from gantx.evaluation.gates import Gate, parse_regression
from gantx.evaluation.results import (
    ClassRecord,
    ClassResult,
    ClassScore,
    Document,
    GateRecord,
    MetricRecord,
    compare,
    read_result,
)
from gantx.evaluation.scores import Score

ROOT = Path(__file__).parents[2]

# --- the protocol -----------------------------------------------------------------------------------------


def test_numbers_of_different_protocols_are_not_compared():
    other = {**PROTOCOL, "n_gen": 5000, "mirror": True, "neighbours": {"k": 5, "images": (10000, 10000)}}
    del other["seed"]
    old, new = result_of(Score("fid", 1.0)), result_of(Score("fid", 1.0), protocol=other)
    with pytest.raises(UsageError) as caught:
        compare(old.protocol, new.protocol)
    listed = str(caught.value).split("(", 1)[1].rsplit(")", 1)[0]
    assert listed.split("; ") == [
        "n_gen: 10000 -> 5000",
        "seed: 0 -> (absent)",
        "neighbours.k: 3 -> 5",
        "mirror: (absent) -> true",
    ]
    with pytest.raises(UsageError, match="n_gen: 10000 -> 5000"):
        new.with_verdicts([], [parse_regression("fid=5%")], old)
    with pytest.raises(UsageError, match="n_gen"):  # a baseline is checked even where nothing needs it
        new.with_verdicts([], baseline=old)


def test_another_checkpoint_is_what_a_comparison_is_for():
    old = result_of(Score("fid", 1.0))
    new = replace(old, checkpoint={"path": "elsewhere"}, versions={"gantx": "9"}, warnings=())
    assert new.protocol_hash == old.protocol_hash
    compare(old.protocol, new.protocol)


def test_the_hash_knows_the_values_and_not_how_they_are_written():
    same = dict(reversed(PROTOCOL.items())) | {"truncation": 1, "n_gen": 10000.0}
    assert result_of(protocol=same).protocol_hash == result_of().protocol_hash
    other = PROTOCOL | {"truncation": 0.9}
    assert result_of(protocol=other).protocol_hash != result_of().protocol_hash
    # sha256sum of {"a":[1,2.5,null],"b":"\u00e9"}
    written = result_of(protocol={"b": "é", "a": (1.0, 2.5, math.nan)}).protocol_hash
    assert written == "45584828a616e524"


# --- the file ---------------------------------------------------------------------------------------------


@pytest.fixture
def checked():
    """A result with a verdict of every kind."""
    result = result_of(
        Score("fid", 21.0, 20.5, 21.5, details={"n_ref": 49999}),
        Score("kid", -0.0001, None, None, "of 100 subsets", {"subsets": 100, "std": math.nan}),
        Score("recall", None, note="too few images"),
        Score("modes", 18),
    )
    gates = [Gate("fid", "above", 30.0), Gate("fid", "above", 20.0), Gate("recall", "below", 0.3)]
    allowed = [parse_regression(text) for text in ("fid=5%", "fid=2", "kid=5%", "is=1%")]
    return result.with_verdicts([*gates, Gate("density", "below", 1)], allowed, result)


def test_a_document_says_what_ci_reads(checked):
    document = checked.to_document()
    assert list(document)[:3] == ["schema", "status", "metrics"]
    assert (document["schema"], document["status"]) == ("gantx.eval/1", "failed")
    assert document["metrics"]["fid"] == {
        "value": 21.0,
        "ci95": [20.5, 21.5],
        "n_gen": 10000,
        "n_ref": 49999,
        "threshold": 20.0,
        "op": "above",
        "verdict": "failed",
        "note": "",
        "details": {"n_ref": 49999},
    }
    modes = document["metrics"]["modes"]
    assert (modes["value"], modes["ci95"], modes["verdict"], modes["threshold"]) == (18.0, None, None, None)
    assert document["metrics"]["kid"]["details"] == {"subsets": 100, "std": None}
    gates = [(gate["metric"], gate["kind"], gate["threshold"], gate["verdict"]) for gate in document["gates"]]
    assert gates == [
        ("fid", "threshold", 30.0, "passed"),
        ("fid", "threshold", 20.0, "failed"),
        ("recall", "threshold", 0.3, "inconclusive"),
        ("density", "threshold", 1.0, "inconclusive"),
        ("fid", "regression", 22.05, "passed"),
        ("fid", "regression", 23.0, "passed"),
        ("kid", "regression", None, "inconclusive"),
        ("is", "regression", None, "inconclusive"),
    ]
    assert document["protocol_hash"] == checked.protocol_hash
    assert document["checkpoint"]["kimg"] == 25


def test_a_document_is_strict_json(checked):
    text = json.dumps(replace(checked, protocol={"x": math.inf}).to_document(), allow_nan=False)
    assert json.loads(text)["protocol"] == {"x": None}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_result_comes_back_from_its_file(checked, tmp_path, encoding):
    path = tmp_path / "eval.json"
    path.write_text(json.dumps(checked.to_document()), encoding=encoding)
    read = read_result(path)
    assert read.to_document() == checked.to_document()
    assert read.verdicts == checked.verdicts
    assert read.protocol_hash == checked.protocol_hash
    assert [score.value for score in read.scores] == [21.0, -0.0001, None, 18.0]
    compare(read.protocol, checked.protocol)


def test_scores_of_classes_come_back_too(checked, tmp_path):
    scores = (Score("fid", 20.5, details={"k": 3}), Score("kid", None, note="1 image"))
    result = replace(checked, classes=(ClassResult("cat", 5, 7, scores, "0123456789abcdef"),))
    reports.write_json(result, tmp_path / "eval.json")
    assert read_result(tmp_path / "eval.json").classes == result.classes
    assert "classes" not in checked.to_document()
    assert result.protocol_hash == checked.protocol_hash


def test_a_result_survives_a_tool_that_rewrites_its_numbers(checked, tmp_path):
    path = tmp_path / "eval.json"
    reports.write_json(checked, path)
    path.write_text(path.read_text().replace("10000,", "1.0e4,"))
    assert read_result(path).protocol_hash == checked.protocol_hash


def test_a_missing_result_is_missing(tmp_path):
    with pytest.raises(MissingError, match="no result at"):
        read_result(tmp_path / "eval.json")
    with pytest.raises(MissingError, match="cannot read"):
        read_result(tmp_path)


def changed(document, path, value):
    """The document with the value at a path replaced, or removed where `value` is Ellipsis."""
    document = json.loads(json.dumps(document))
    *parents, last = path
    inner = document
    for key in parents:
        inner = inner[key]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return document


BROKEN = [
    (["metrics", "fid", "value"], "21"),
    (["metrics", "fid", "value"], ...),
    (["metrics", "fid", "ci95"], [1.0]),
    (["metrics", "fid", "n_gen"], 1.5),
    (["metrics", "fid", "op"], "over"),
    (["metrics", "fid", "verdict"], "ok"),
    (["metrics"], []),
    (["gates"], ...),
    (["gates", 0, "kind"], "limit"),
    (["gates", 0, "reason"], None),
    (["status"], "green"),
    (["protocol"], None),
    (["protocol_hash"], "123"),
    (["versions", "gantx"], 1),
    (["timing", "measure_seconds"], "1 s"),
    (["warnings"], "none"),
    (["checkpoint"], "x.safetensors"),
]


@pytest.mark.parametrize(("path", "value"), BROKEN)
def test_a_broken_result_names_the_broken_field(checked, tmp_path, path, value):
    file = tmp_path / "eval.json"
    file.write_text(json.dumps(changed(checked.to_document(), path, value)))
    with pytest.raises(DataError) as caught:
        read_result(file)
    assert ".".join(map(str, path)) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("", "no JSON"),
        ('{"schema": "gantx.eval/1"', "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("[]", "schema is None"),
        ('{"schema": "gantx.eval/2"}', "schema is gantx.eval/2"),
        ('{"schema": "gantx.eval/1"}', "status: Field required"),
    ],
)
def test_a_file_that_is_no_result_is_refused(tmp_path, text, hint):
    path = tmp_path / "eval.json"
    path.write_text(text)
    with pytest.raises(DataError, match=hint):
        read_result(path)


@pytest.mark.parametrize(
    ("path", "value"), [(["gates", 0, "threshold"], None), (["gates", 4, "share"], None)]
)
def test_a_gate_that_contradicts_itself_is_refused(checked, tmp_path, path, value):
    file = tmp_path / "eval.json"
    file.write_text(json.dumps(changed(checked.to_document(), path, value)))
    with pytest.raises(DataError, match=rf"gates\.{path[1]}"):
        read_result(file)


def test_a_protocol_that_was_edited_is_noticed(checked, tmp_path):
    path = tmp_path / "eval.json"
    path.write_text(json.dumps(changed(checked.to_document(), ["protocol", "n_gen"], 50000)))
    with pytest.raises(DataError, match=f"changed after it was written.*{checked.protocol_hash}"):
        read_result(path)


# --- the schema -------------------------------------------------------------------------------------------

TYPES = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "null": type(None),
}


def violations(value, schema, root, where="$"):
    """What in `value` breaks a JSON Schema, for the keywords that docs/eval.schema.json uses."""
    if "$ref" in schema:
        return violations(value, root["$defs"][schema["$ref"].removeprefix("#/$defs/")], root, where)
    if "anyOf" in schema:
        found = [violations(value, choice, root, where) for choice in schema["anyOf"]]
        return [] if [] in found else found[0]
    if not isinstance(value, TYPES[schema["type"]]):
        return [f"{where} is no {schema['type']}"]
    broken = [f"{where}.{name} is missing" for name in schema.get("required", ()) if name not in value]
    if value not in schema.get("enum", [value]) or value != schema.get("const", value):
        broken.append(f"{where} is {value}")
    if "pattern" in schema and not re.search(schema["pattern"], value):
        broken.append(f"{where} is {value}")
    if isinstance(value, list):
        if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
            broken.append(f"{where} has {len(value)} items")
        for index, item in enumerate(value):
            broken += violations(item, schema["items"], root, f"{where}[{index}]")
    if isinstance(value, dict):
        rest = schema.get("additionalProperties", True)
        for name, inner in value.items():
            part = schema.get("properties", {}).get(name, rest)
            if part is not True:
                broken += violations(inner, part, root, f"{where}.{name}")
    return broken


@pytest.fixture(scope="module")
def schema():
    path = ROOT / "docs" / "eval.schema.json"
    if not path.is_file():
        pytest.skip("not a checkout")
    return json.loads(path.read_text(encoding="utf-8"))


def test_documents_follow_the_published_schema(checked, schema):
    classes = (ClassResult("cat", 5, 1, (Score("fid", None, note="1 images"),), "0" * 16),)
    for result in (checked, result_of(), result_of(Score("fid", 1.0), checkpoint=None, classes=classes)):
        assert violations(result.to_document(), schema, schema) == []


@pytest.mark.parametrize(("path", "value"), BROKEN)
def test_the_published_schema_refuses_what_gantx_refuses(checked, schema, path, value):
    assert violations(changed(checked.to_document(), path, value), schema, schema) != []


@pytest.mark.parametrize("model", [Document, MetricRecord, GateRecord, ClassRecord, ClassScore])
def test_the_published_schema_knows_every_field(schema, model):
    part = schema if model is Document else schema["$defs"][model.__name__]
    fields = [field.alias or name for name, field in model.model_fields.items()]
    assert list(part["properties"]) == fields
    assert part["required"] == [name for name in fields if name != "classes"]  # as of older results
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"


def test_results_and_reports_load_no_torch():
    code = "import sys, gantx.evaluation.reports; print('torch' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True, timeout=60
    )
    assert done.stdout.split() == ["False", "False"]
