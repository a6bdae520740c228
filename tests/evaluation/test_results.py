"""What a result promises: verdicts that agree with their numbers, comparisons within a protocol, a file."""

import json
import math
import random
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from gantx.errors import DataError, MissingError, UsageError
from gantx.evaluation import reports
from gantx.evaluation.results import (
    Document,
    Gate,
    GateRecord,
    MetricRecord,
    Regression,
    Result,
    Score,
    compare,
    digits_apart,
    lower_is_better,
    number,
    parse_gate,
    parse_regression,
    read_result,
)

ROOT = Path(__file__).parents[2]
PROTOCOL = {
    "extractor": "inception",
    "weights_sha256": "f58c" * 16,
    "resize": "clean",
    "n_gen": 10000,
    "n_ref": 50000,
    "seed": 0,
    "truncation": 1.0,
    "neighbours": {"k": 3, "images": (10000, 10000)},
}


def result_of(*scores, protocol=PROTOCOL, **changes):
    given = {
        "checkpoint": {"path": "runs/0001/x.safetensors", "kimg": 25},
        "warnings": ("fewer than 50,000 images",),
        "timing": {"measure_seconds": 1.5},
        "versions": {"gantx": "0.1.0"},
    }
    return Result(scores=scores, protocol=protocol, **given | changes)


def judge(score, gate, **options):
    """The one verdict on one score."""
    return result_of(score).judged([gate], **options).verdicts[0]


def judge_regression(old, new, text, metric="fid", **options):
    judged = result_of(Score(metric, new)).judged(
        [], [parse_regression(text)], result_of(Score(metric, old)), **options
    )
    return judged.verdicts[0]


# --- gates ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("score", "gate", "status", "reason"),
    [
        (Score("fid", 23.4), Gate("fid", "above", 20), "failed", "fid 23.4 is above 20"),
        (Score("fid", 18.25), Gate("fid", "above", 20), "passed", "fid 18.25 is not above 20"),
        (Score("fid", 20.0), Gate("fid", "above", 20), "passed", "fid 20 is not above 20"),
        (Score("recall", 0.25), Gate("recall", "below", 0.3), "failed", "recall 0.25 is below 0.3"),
        (Score("recall", 0.3), Gate("recall", "below", 0.3), "passed", "recall 0.3 is not below 0.3"),
        (Score("kid", -0.0002), Gate("kid", "above", 0.0), "passed", "kid -0.0002 is not above 0"),
        # Rounded to four digits both would be 20.
        (Score("fid", 20.00001), Gate("fid", "above", 20), "failed", "fid 20.00001 is above 20"),
        (Score("fid", 20.2), Gate("fid", "above", 20.12345), "failed", "fid 20.2 is above 20.12345"),
        (
            Score("fid", None, note="one image has no covariance"),
            Gate("fid", "above", 20),
            "inconclusive",
            "fid could not be computed: one image has no covariance",
        ),
        (Score("fid", math.nan), Gate("fid", "above", 20), "inconclusive", "fid could not be computed"),
        (Score("fid", -math.inf), Gate("fid", "above", 20), "inconclusive", "fid could not be computed"),
    ],
)
def test_a_gate_is_judged_with_its_reason(score, gate, status, reason):
    verdict = judge(score, gate)
    assert (verdict.status, verdict.reason, verdict.gate) == (status, reason, gate)


@pytest.mark.parametrize(
    ("metric", "option"),
    [
        ("recall", "--metric pr"),
        ("density", "--metric dc"),
        ("confident", "--metric modes"),
        ("is", "--metric is"),
        ("fid", "--metric fid --features inception"),
        ("kd_rand", "--metric kid --features random"),
        ("fd[dino.v2]", "--metric fid --features dino.v2.onnx"),
    ],
)
def test_a_gate_on_a_score_that_nobody_computed_names_the_metric_to_add(metric, option):
    verdict = judge(Score("modes", 18), parse_gate(f"{metric}=1", "above"))
    assert (verdict.status, verdict.reason) == ("inconclusive", f"{metric} was not computed: add {option}")


@pytest.mark.parametrize(
    ("value", "low", "high", "op", "status"),
    [
        (18.0, 16.0, 19.9, "above", "passed"),
        (18.0, 16.0, 20.0, "above", "passed"),  # the threshold itself passes
        (18.0, 16.0, 20.1, "above", "inconclusive"),
        (22.0, 19.0, 24.0, "above", "inconclusive"),
        (22.0, 20.0, 24.0, "above", "inconclusive"),
        (22.0, 20.1, 24.0, "above", "failed"),
        (22.0, 16.0, 19.0, "above", "inconclusive"),  # corrected for bias: the value lies outside
        (22.0, 20.0, 24.0, "below", "passed"),
        (22.0, 19.9, 24.0, "below", "inconclusive"),
        (18.0, 16.0, 20.0, "below", "inconclusive"),
        (18.0, 16.0, 19.9, "below", "failed"),
        (18.0, None, None, "above", "inconclusive"),
        (18.0, math.nan, 19.0, "above", "inconclusive"),
    ],
)
def test_strict_asks_the_whole_interval(value, low, high, op, status):
    score, gate = Score("fid", value, low, high), Gate("fid", op, 20)
    assert judge(score, gate, strict=True).status == status
    assert judge(score, gate).status in ("passed", "failed")


@pytest.mark.parametrize("ends", [(1.0, None), (None, 2.0), (-math.inf, 2.0), (1.0, math.nan)])
def test_an_interval_has_both_ends_or_none(ends):
    score = Score("fid", 1.5, *ends)
    assert (score.low, score.high, score.interval) == (None, None, None)


def test_an_open_question_shows_the_interval():
    verdict = judge(Score("fid", 19.0, 16.0, 22.0), Gate("fid", "above", 20), strict=True)
    assert verdict.reason == "fid 19 with a 95 % interval of 16 to 22 leaves open whether it is above 20"


def test_reasons_never_contradict_their_status():
    numbers = random.Random(0)
    for _ in range(2000):
        threshold = numbers.choice([20.0, 0.1234567, 19.999999, 123456.789, -1e-7])
        value = threshold * (1 + numbers.choice([-1, 0, 1]) * 10 ** numbers.uniform(-15, 0))
        op = numbers.choice(["above", "below"])
        verdict = judge(Score("fid", value), Gate("fid", op, threshold))
        words = verdict.reason.split()
        shown, bound = float(words[1]), float(words[-1])
        assert bound == threshold
        beyond = shown > bound if op == "above" else shown < bound
        assert beyond == (verdict.status == "failed") == ("is not" not in verdict.reason)


@pytest.mark.parametrize(
    ("texts", "status", "code"),
    [
        ([], "passed", 0),
        (["fid=30"], "passed", 0),
        (["fid=30", "kid=1"], "inconclusive", 3),
        (["kid=1", "fid=20", "fid=30"], "failed", 1),
    ],
)
def test_the_worst_verdict_decides(texts, status, code):
    judged = result_of(Score("fid", 25.0)).judged([parse_gate(text, "above") for text in texts])
    assert (judged.status, judged.exit_code) == (status, code)
    assert [f"{verdict.gate.metric}={verdict.gate.threshold:g}" for verdict in judged.verdicts] == texts


# --- regressions ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metric", "old", "new", "text", "status", "reason"),
    [
        ("fid", 20, 21.5, "fid=5%", "failed", "fid 21.5 is above 21, 5% worse than the baseline's 20"),
        ("fid", 20, 21, "fid=5%", "passed", "fid 21 is not above 21, 5% worse than the baseline's 20"),
        ("fid", 20, 20.6, "fid=0.5", "failed", "fid 20.6 is above 20.5, 0.5 worse than the baseline's 20"),
        (
            "fid",
            20,
            20.00001,
            "fid=0%",
            "failed",
            "fid 20.00001 is above 20, 0% worse than the baseline's 20",
        ),
        ("fid", 20, 3, "fid=0", "passed", "fid 3 is not above 20, 0 worse than the baseline's 20"),
        ("is", 8, 7.5, "is=5%", "failed", "is 7.5 is below 7.6, 5% worse than the baseline's 8"),
        ("is", 8, 9, "is=5%", "passed", "is 9 is not below 7.6, 5% worse than the baseline's 8"),
        ("kid", -0.001, 0.002, "kid=0.002", "failed", None),
        ("kid", -0.001, 0.0005, "kid=0.002", "passed", None),
        ("fid", None, 3, "fid=5%", "inconclusive", "the baseline has no fid to compare with"),
        ("fid", 20, None, "fid=5%", "inconclusive", "fid could not be computed"),
    ],
)
def test_a_regression_is_judged_in_the_direction_of_its_metric(metric, old, new, text, status, reason):
    verdict = judge_regression(old, new, text, metric)
    assert verdict.status == status
    assert reason is None or verdict.reason == reason


@pytest.mark.parametrize("old", [0.0, -0.0001])
def test_a_share_of_a_kid_that_is_not_positive_answers_nothing(old):
    verdict = judge_regression(old, -0.5, "kid=5%", "kid")
    assert verdict.status == "inconclusive"
    assert "means nothing" in verdict.reason
    assert "--max-regression kid=0.001" in verdict.reason


def test_a_metric_missing_on_either_side_is_inconclusive():
    allowed = [parse_regression("recall=5%")]
    with_it, without = result_of(Score("recall", 0.5)), result_of(Score("fid", 3.0))
    assert "baseline has no recall" in with_it.judged([], allowed, without).verdicts[0].reason
    judged = without.judged([], allowed, with_it)
    assert (judged.status, judged.verdicts[0].reason) == (
        "inconclusive",
        "recall was not computed: add --metric pr",
    )


def test_strict_holds_the_interval_against_a_baseline_too():
    new = result_of(Score("fid", 20.5, 19.5, 21.5))
    baseline, allowed = result_of(Score("fid", 20.0)), [parse_regression("fid=5%")]
    assert new.judged([], allowed, baseline).status == "passed"
    assert new.judged([], allowed, baseline, strict=True).status == "inconclusive"


def test_a_regression_without_a_baseline_is_a_wrong_command():
    with pytest.raises(UsageError, match="--baseline"):
        result_of(Score("fid", 1.0)).judged([], [parse_regression("fid=5%")])


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
        new.judged([], [parse_regression("fid=5%")], old)
    with pytest.raises(UsageError, match="n_gen"):  # a baseline is checked even where nothing needs it
        new.judged([], baseline=old)


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


# --- the command line's words -----------------------------------------------------------------------------


def test_gates_are_read():
    assert parse_gate("fid=20", "above") == Gate("fid", "above", 20.0)
    assert parse_gate(" kid = 1e-3 ", "above") == Gate("kid", "above", 0.001)
    assert parse_gate("fd[a=b]=7.5", "below") == Gate("fd[a=b]", "below", 7.5)
    assert parse_gate("fd_rand=-1", "above") == Gate("fd_rand", "above", -1.0)


def test_regressions_are_read():
    assert parse_regression("fid=5%") == Regression("fid", share=0.05)
    assert parse_regression("recall=2.5 %") == Regression("recall", share=0.025)
    assert parse_regression("fid=0.5") == Regression("fid", absolute=0.5)
    assert parse_regression("fid=150%").requirement == "at most 150% worse than the baseline"


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("fid", "--fail-above fid=20"),
        ("fid=", "--fail-above fid=20"),
        ("fid=low", "'low' is not a number"),
        ("fid=nan", "'nan' is not a number"),
        ("fid=inf", "'inf' is not a number"),
        ("fid=5%", "'5%' is not a number"),
        ("FID=20", "did you mean 'fid'"),
        ("recal=0.3", "did you mean 'recall'"),
        ("fd=3", "fd[NAME]"),
        ("fd[]=3", "fd[NAME]"),
        ("pr=0.3", "precision and recall"),
        ("=20", "there is no metric ''"),
    ],
)
def test_a_gate_that_makes_no_sense_says_how_it_is_meant(text, hint):
    with pytest.raises(UsageError) as caught:
        parse_gate(text, "above")
    assert hint in str(caught.value)
    assert f"--fail-above {text}" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("fid=-5%", "not negative"),
        ("fid=%", "not a number"),
        ("5%", "--max-regression fid=5%"),
        ("recall=100%", "can never fail"),
    ],
)
def test_a_regression_that_makes_no_sense_says_how_it_is_meant(text, hint):
    with pytest.raises(UsageError, match=hint):
        parse_regression(text)


def test_only_distances_are_better_when_lower():
    assert all(map(lower_is_better, ["fid", "kid", "fd_rand", "kd_rand", "fd[x]", "kd[x]"]))
    better_when_higher = ["is", "precision", "recall", "density", "coverage", "modes", "confident"]
    assert not any(map(lower_is_better, better_when_higher))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (23.4, "23.4"),
        (23.456, "23.46"),
        (0.00123456, "0.001235"),
        (12345.6, "12346"),
        (9999.7, "10000"),
        (0.0, "0"),
        (1.5e-9, "1.5e-09"),
    ],
)
def test_numbers_have_four_digits_and_a_whole_part(value, text):
    assert number(value) == text


def test_different_numbers_get_digits_enough_to_look_different():
    assert digits_apart(1.0, 2.0) == digits_apart(1.0, 1.0) == 4
    assert digits_apart(0.1, 0.1 + 2e-17) == 17
    assert digits_apart(10000.2, 10000.3) == 6


# --- the file ---------------------------------------------------------------------------------------------


@pytest.fixture
def judged():
    """A result with a verdict of every kind."""
    result = result_of(
        Score("fid", 21.0, 20.5, 21.5, details={"n_ref": 49999}),
        Score("kid", -0.0001, None, None, "of 100 subsets", {"subsets": 100, "std": math.nan}),
        Score("recall", None, note="too few images"),
        Score("modes", 18),
    )
    gates = [Gate("fid", "above", 30.0), Gate("fid", "above", 20.0), Gate("recall", "below", 0.3)]
    allowed = [parse_regression(text) for text in ("fid=5%", "fid=2", "kid=5%", "is=1%")]
    return result.judged([*gates, Gate("density", "below", 1)], allowed, result)


def test_a_document_says_what_ci_reads(judged):
    document = judged.to_document()
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
    assert document["protocol_hash"] == judged.protocol_hash
    assert document["checkpoint"]["kimg"] == 25


def test_a_document_is_strict_json(judged):
    text = json.dumps(replace(judged, protocol={"x": math.inf}).to_document(), allow_nan=False)
    assert json.loads(text)["protocol"] == {"x": None}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_result_comes_back_from_its_file(judged, tmp_path, encoding):
    path = tmp_path / "eval.json"
    path.write_text(json.dumps(judged.to_document()), encoding=encoding)
    read = read_result(path)
    assert read.to_document() == judged.to_document()
    assert read.verdicts == judged.verdicts
    assert read.protocol_hash == judged.protocol_hash
    assert [score.value for score in read.scores] == [21.0, -0.0001, None, 18.0]
    compare(read.protocol, judged.protocol)


def test_a_result_survives_a_tool_that_rewrites_its_numbers(judged, tmp_path):
    path = tmp_path / "eval.json"
    reports.write_json(judged, path)
    path.write_text(path.read_text().replace("10000,", "1.0e4,"))
    assert read_result(path).protocol_hash == judged.protocol_hash


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
def test_a_broken_result_names_the_broken_field(judged, tmp_path, path, value):
    file = tmp_path / "eval.json"
    file.write_text(json.dumps(changed(judged.to_document(), path, value)))
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
def test_a_gate_that_contradicts_itself_is_refused(judged, tmp_path, path, value):
    file = tmp_path / "eval.json"
    file.write_text(json.dumps(changed(judged.to_document(), path, value)))
    with pytest.raises(DataError, match=rf"gates\.{path[1]}"):
        read_result(file)


def test_a_protocol_that_was_edited_is_noticed(judged, tmp_path):
    path = tmp_path / "eval.json"
    path.write_text(json.dumps(changed(judged.to_document(), ["protocol", "n_gen"], 50000)))
    with pytest.raises(DataError, match=f"changed after it was written.*{judged.protocol_hash}"):
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


def test_documents_follow_the_published_schema(judged, schema):
    for result in (judged, result_of(), result_of(Score("fid", 1.0), checkpoint=None)):
        assert violations(result.to_document(), schema, schema) == []


@pytest.mark.parametrize(("path", "value"), BROKEN)
def test_the_published_schema_refuses_what_gantx_refuses(judged, schema, path, value):
    assert violations(changed(judged.to_document(), path, value), schema, schema) != []


@pytest.mark.parametrize("model", [Document, MetricRecord, GateRecord])
def test_the_published_schema_knows_every_field(schema, model):
    part = schema if model is Document else schema["$defs"][model.__name__]
    fields = [field.alias or name for name, field in model.model_fields.items()]
    assert list(part["properties"]) == part["required"] == fields
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"


def test_results_and_reports_load_no_torch():
    code = "import sys, gantx.evaluation.reports; print('torch' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True, timeout=60
    )
    assert done.stdout.split() == ["False", "False"]
