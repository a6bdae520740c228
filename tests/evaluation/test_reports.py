"""Reports agree with the result they show, and are what GitHub, CI servers and JSON readers accept."""

import json
import random
import re
from xml.etree import ElementTree

import pytest

from gantx.errors import MissingError
from gantx.evaluation import reports
from gantx.evaluation.gates import Gate, Regression, parse_regression
from gantx.evaluation.results import ClassResult, Result, read_result
from gantx.evaluation.scores import Score


def result_of(*scores, **changes):
    given = {
        "protocol": {"extractor": "inception", "weights_sha256": "0123456789abcdef" * 4, "n_gen": 10000},
        "checkpoint": {"path": "runs/0001/x.safetensors", "kimg": 25},
        "warnings": (),
        "timing": {"resolve_seconds": 0.5, "measure_seconds": 2.0, "images_per_second": 40.0},
        "versions": {"gantx": "0.1.0"},
    }
    return Result(scores=scores, **given | changes)


@pytest.fixture
def plain_result():
    return result_of(
        Score("fid", 23.456, 22.0, 25.04),
        Score("kid", 0.00123456, note="of 100 subsets"),
        Score("recall", None, note="too few images"),
    )


@pytest.fixture
def checked(plain_result):
    """Gates of every outcome, two of them on one metric, one on a metric that was not computed."""
    gates = [
        Gate("fid", "above", 30.0),
        Gate("fid", "above", 20.0),
        Gate("recall", "below", 0.3),
        Gate("density", "below", 0.5),
    ]
    return plain_result.with_verdicts(gates, [parse_regression("kid=5%")], plain_result)


# --- rows and Markdown ------------------------------------------------------------------------------------


def test_rows_of_a_result_without_gates(plain_result):
    assert reports.summary_rows(plain_result) == [
        ("fid", "23.46", "22 to 25.04", "", ""),
        ("kid", "0.001235 (x1e3: 1.235)", "", "", ""),
        ("recall", "not computed", "", "", ""),
    ]


def test_tables_of_classes_fit_80_columns():
    names = ["fd_rand", "kd_rand", "precision_rand", "recall_rand", "density_rand", "coverage_rand"]
    scores = tuple(Score(name, None if name == "fd_rand" else 1234.5678) for name in names)
    long = "a class with a name that is longer than others"
    result = result_of(classes=(ClassResult("cat", 1000, 7, scores, ""), ClassResult(long, 3, 7, scores, "")))
    first, second = reports.class_tables(result)
    assert first[0] == ("class", "images", "real", "fd_rand", "kd_rand", "precision_rand")
    assert second[0][3:] == ("recall_rand", "density_rand", "coverage_rand")
    assert first[1][1] == ("a class with a name tha…", "3", "7", "-", "1235", "1235")
    for headings, rows in (first, second):
        widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
        assert sum(widths) + 2 * (len(widths) - 1) <= 80
    assert "| cat " in reports.markdown(result)
    assert 'name="class.cat.kd_rand" value="1234.5678"' in reports.junit(result, "x")
    assert reports.class_tables(result_of()) == []


def test_rows_of_a_result_with_verdicts(checked):
    assert reports.summary_rows(checked) == [
        ("fid", "23.46", "22 to 25.04", "at most 30", "passed"),
        ("fid", "23.46", "22 to 25.04", "at most 20", "failed"),
        (
            "kid",
            "0.001235 (x1e3: 1.235)",
            "",
            "at most 0.001296 (5% worse than the baseline)",
            "passed",
        ),
        ("recall", "not computed", "", "at least 0.3", "inconclusive"),
        ("density", "not computed", "", "at least 0.5", "inconclusive"),
    ]


def test_a_row_shows_digits_enough_for_its_verdict():
    numbers = random.Random(0)
    for _ in range(500):
        threshold = numbers.choice([20.0, 0.1234567, 19.999999])
        value = threshold * (1 + numbers.choice([-1, 1]) * 10 ** numbers.uniform(-14, 0))
        gates = [Gate("fid", "above", threshold), Gate("fid", "above", 2 * threshold)]
        allowed = [Regression("fid", share=numbers.choice([0.0, 0.05]))]
        result = result_of(Score("fid", value))
        rows = reports.summary_rows(result.with_verdicts(gates, allowed, result_of(Score("fid", threshold))))
        assert len({row[1] for row in rows}) == 1  # one score, one text
        for _, shown, _, required, status in rows:
            limit = float(re.match(r"at most (\S+)", required)[1])
            assert (float(shown) > limit) == (status == "failed")


def test_markdown_is_an_aligned_table_with_its_context(checked):
    text = reports.markdown(checked)
    assert text.startswith("## gantx eval: failed\n\n| metric ")
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(reports.summary_rows(checked))
    assert len({len(line) for line in table}) == 1
    cells = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in table]
    assert cells[0] == reports.COLUMNS
    assert cells[2:] == reports.summary_rows(checked)
    assert "- failed: fid 23.46 is above 20\n" in text
    assert "- inconclusive: density was not computed: add --metric dc --features inception\n" in text
    assert "- recall: too few images" in text
    assert "passed:" not in text
    assert f"\n\nprotocol {checked.protocol_hash}: extractor inception, " in text
    assert "weights_sha256 0123456789ab, n_gen 10000\n" in text
    assert "\n\ncheckpoint: path runs/0001/x.safetensors, kimg 25\n" in text


def test_markdown_without_gates_claims_nothing(plain_result):
    assert reports.markdown(plain_result).startswith("## gantx eval\n\n|")


def test_markdown_means_nothing_but_its_text():
    result = result_of(
        Score("fd[a|b_c]", None, note="<img src=x>\n| not | a | row |"),
        Score("fd[_x_]", 1.0),
        warnings=("*bold* `code` [link](https://example.org) a_b & \\",),
    )
    text = reports.markdown(result)
    assert "| fd[a\\|b_c] |" in text
    assert "| fd[\\_x\\_] " in text
    assert "- fd[a\\|b_c]: \\<img src=x\\> \\| not \\| a \\| row \\|\n" in text
    assert "- warning: \\*bold\\* \\`code\\` [link\\](https://example.org) a_b \\& \\\\\n" in text


# --- JUnit ------------------------------------------------------------------------------------------------


def suite_of(text):
    root = ElementTree.fromstring(text.encode())
    assert root.tag == "testsuites"
    (suite,) = root
    return suite


def test_junit_has_a_case_per_gate(checked):
    suite = suite_of(reports.junit(checked, "transgan-s"))
    counts = {name: suite.get(name) for name in ("name", "tests", "failures", "errors", "skipped", "time")}
    assert counts == {
        "name": "transgan-s",
        "tests": "5",
        "failures": "1",
        "errors": "2",
        "skipped": "0",
        "time": "2.500",
    }
    cases = [(case.get("name"), case[0].tag) for case in suite.iter("testcase")]
    assert cases == [
        ("fid at most 30", "system-out"),
        ("fid at most 20", "failure"),
        ("recall at least 0.3", "error"),
        ("density at least 0.5", "error"),
        ("kid at most 5% worse than the baseline", "system-out"),
    ]
    for case, verdict in zip(suite.iter("testcase"), checked.verdicts, strict=True):
        assert case.get("classname") == "transgan-s"
        assert case[0].text == verdict.reason
        assert case[0].get("message", verdict.reason) == verdict.reason


def test_junit_is_as_green_as_the_exit_code(checked, plain_result):
    only_open = plain_result.with_verdicts([Gate("recall", "below", 0.3)])
    passing = plain_result.with_verdicts([Gate("fid", "above", 30)])
    for result in (checked, plain_result, only_open, passing):
        suite = suite_of(reports.junit(result, "x"))
        found = {tag: len(list(suite.iter(tag))) for tag in ("failure", "error")}
        assert [suite.get("failures"), suite.get("errors")] == [str(found["failure"]), str(found["error"])]
        code = 1 if found["failure"] else 3 if found["error"] else 0
        assert code == result.exit_code


def test_junit_without_gates_has_a_case_per_score(plain_result):
    suite = suite_of(reports.junit(plain_result, "x"))
    cases = {case.get("name"): case[0] for case in suite.iter("testcase")}
    assert list(cases) == ["fid", "kid", "recall"]
    assert cases["fid"].text == "fid 23.46 22 to 25.04"
    assert (cases["recall"].tag, cases["recall"].get("message")) == ("skipped", "too few images")
    assert (suite.get("tests"), suite.get("skipped")) == ("3", "1")


def test_junit_carries_protocol_and_scores_in_full(checked):
    suite = suite_of(reports.junit(checked, "x"))
    properties = {entry.get("name"): entry.get("value") for entry in suite.iter("property")}
    assert properties["protocol_hash"] == checked.protocol_hash
    assert properties["protocol.weights_sha256"] == "0123456789abcdef" * 4
    assert properties["protocol.n_gen"] == "10000"
    assert properties["score.kid"] == "0.00123456"
    assert properties["checkpoint.kimg"] == "25"


def test_junit_stays_xml_whatever_it_is_told():
    nasty = "\x00\x08\x0b\x1b[31m<&\">'\ud800\ufffe]]>é\U0001f600"
    kept = "[31m<&\">']]>é\U0001f600"
    result = result_of(
        Score("fid", None, note=nasty), protocol={nasty: nasty}, checkpoint=None, warnings=(nasty,)
    )
    for shown in (result, result.with_verdicts([Gate("fid", "above", 20)])):
        text = reports.junit(shown, nasty)
        suite = suite_of(text)
        assert suite.get("name") == kept
        assert f"protocol.{kept}" in {entry.get("name") for entry in suite.iter("property")}
        assert suite.find("system-out").text == f"warning: {kept}"
    assert suite.find("testcase/error").text == f"fid could not be computed: {kept}"


# --- files ------------------------------------------------------------------------------------------------


def test_files_are_written_whole(checked, tmp_path):
    folder = tmp_path / "out"
    reports.write_json(checked, folder / "eval.json")
    reports.write_junit(checked, folder / "eval.xml", "suite")
    reports.write_markdown(checked, folder / "eval.md")
    assert sorted(path.name for path in folder.iterdir()) == ["eval.json", "eval.md", "eval.xml"]
    assert json.loads((folder / "eval.json").read_text()) == checked.to_document()
    assert read_result(folder / "eval.json").verdicts == checked.verdicts
    assert (folder / "eval.xml").read_bytes() == reports.junit(checked, "suite").encode()
    assert (folder / "eval.md").read_bytes() == reports.markdown(checked).encode()


def test_a_name_that_is_not_utf8_stops_no_report(tmp_path, monkeypatch):
    result = result_of(
        Score("fid", 1.0), checkpoint={"path": b"runs/\xff".decode("utf-8", "surrogateescape")}
    )
    reports.write_json(result, tmp_path / "eval.json")
    assert read_result(tmp_path / "eval.json").checkpoint == result.checkpoint
    reports.write_junit(result, tmp_path / "eval.xml", "x")
    reports.write_markdown(result, tmp_path / "eval.md")
    assert r"runs/\udcff" in (tmp_path / "eval.md").read_text()
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    assert reports.append_step_summary(reports.markdown(result))


def test_a_report_that_cannot_be_written_says_where(checked, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MissingError, match=re.escape(str(tmp_path / "file" / "eval.json"))):
        reports.write_json(checked, tmp_path / "file" / "eval.json")


def test_the_step_summary_grows(checked, tmp_path, monkeypatch):
    path = tmp_path / "summary.md"
    path.write_text("an earlier step wrote this\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(path))
    assert reports.append_step_summary(reports.markdown(checked))
    assert reports.append_step_summary("second\n")
    expected = f"an earlier step wrote this\n\n{reports.markdown(checked)}\nsecond\n"
    assert path.read_text(encoding="utf-8") == expected


@pytest.mark.parametrize("value", [None, ""])
def test_without_a_step_summary_nothing_happens(monkeypatch, tmp_path, value):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    if value is not None:
        monkeypatch.setenv("GITHUB_STEP_SUMMARY", value)
    assert not reports.append_step_summary("text")
    assert list(tmp_path.iterdir()) == []


def test_a_step_summary_that_cannot_be_written_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path))
    with pytest.raises(MissingError, match="unset GITHUB_STEP_SUMMARY"):
        reports.append_step_summary("text")
