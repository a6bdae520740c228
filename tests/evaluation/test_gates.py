"""Verdicts that agree with their numbers, and the options that ask for them."""

import math
import random

import pytest
from helpers.evaluation_results import result_of

from gantx.errors import UsageError
from gantx.evaluation.gates import Gate, Regression, parse_gate, parse_regression
from gantx.evaluation.scores import Score


def verdict_on(score, gate, **options):
    """The one verdict on one score."""
    return result_of(score).with_verdicts([gate], **options).verdicts[0]


def verdict_on_regression(old, new, text, metric="fid", **options):
    checked = result_of(Score(metric, new)).with_verdicts(
        [], [parse_regression(text)], result_of(Score(metric, old)), **options
    )
    return checked.verdicts[0]


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
def test_a_gate_has_a_verdict_with_its_reason(score, gate, status, reason):
    verdict = verdict_on(score, gate)
    assert (verdict.status, verdict.reason, verdict.gate) == (status, reason, gate)


@pytest.mark.parametrize(
    ("metric", "option"),
    [
        ("recall", "--metric pr --features inception"),
        ("density", "--metric dc --features inception"),
        ("confident", "--metric modes"),
        ("is", "--metric is --features inception"),
        ("fid", "--metric fid --features inception"),
        ("kd_rand", "--metric kid --features random"),
        ("fd[dino.v2]", "--metric fid --features dino.v2.onnx"),
    ],
)
def test_a_gate_on_a_score_that_nobody_computed_names_the_metric_to_add(metric, option):
    verdict = verdict_on(Score("modes", 18), parse_gate(f"{metric}=1", "above"))
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
    assert verdict_on(score, gate, strict=True).status == status
    assert verdict_on(score, gate).status in ("passed", "failed")


def test_an_open_question_shows_the_interval():
    verdict = verdict_on(Score("fid", 19.0, 16.0, 22.0), Gate("fid", "above", 20), strict=True)
    assert verdict.reason == "fid 19 with a 95 % interval of 16 to 22 leaves open whether it is above 20"


def test_reasons_never_contradict_their_status():
    numbers = random.Random(0)
    for _ in range(2000):
        threshold = numbers.choice([20.0, 0.1234567, 19.999999, 123456.789, -1e-7])
        value = threshold * (1 + numbers.choice([-1, 0, 1]) * 10 ** numbers.uniform(-15, 0))
        op = numbers.choice(["above", "below"])
        verdict = verdict_on(Score("fid", value), Gate("fid", op, threshold))
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
    checked = result_of(Score("fid", 25.0)).with_verdicts([parse_gate(text, "above") for text in texts])
    assert (checked.status, checked.exit_code) == (status, code)
    assert [f"{verdict.gate.metric}={verdict.gate.threshold:g}" for verdict in checked.verdicts] == texts


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
def test_a_regression_is_checked_in_the_direction_of_its_metric(metric, old, new, text, status, reason):
    verdict = verdict_on_regression(old, new, text, metric)
    assert verdict.status == status
    assert reason is None or verdict.reason == reason


@pytest.mark.parametrize("old", [0.0, -0.0001])
def test_a_share_of_a_kid_that_is_not_positive_answers_nothing(old):
    verdict = verdict_on_regression(old, -0.5, "kid=5%", "kid")
    assert verdict.status == "inconclusive"
    assert "means nothing" in verdict.reason
    assert "--max-regression kid=0.001" in verdict.reason


def test_a_metric_missing_on_either_side_is_inconclusive():
    allowed = [parse_regression("recall=5%")]
    with_it, without = result_of(Score("recall", 0.5)), result_of(Score("fid", 3.0))
    assert "baseline has no recall" in with_it.with_verdicts([], allowed, without).verdicts[0].reason
    checked = without.with_verdicts([], allowed, with_it)
    assert (checked.status, checked.verdicts[0].reason) == (
        "inconclusive",
        "recall was not computed: add --metric pr --features inception",
    )


def test_strict_compares_the_interval_with_a_baseline_too():
    new = result_of(Score("fid", 20.5, 19.5, 21.5))
    baseline, allowed = result_of(Score("fid", 20.0)), [parse_regression("fid=5%")]
    assert new.with_verdicts([], allowed, baseline).status == "passed"
    assert new.with_verdicts([], allowed, baseline, strict=True).status == "inconclusive"


def test_a_regression_without_a_baseline_is_a_wrong_command():
    with pytest.raises(UsageError, match="--baseline"):
        result_of(Score("fid", 1.0)).with_verdicts([], [parse_regression("fid=5%")])


# --- the options of the command line ------------------------------------------------------------------------


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
