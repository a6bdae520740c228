import math

import pytest

from gantx.evaluation.scores import Score, digits_apart, lower_is_better, number


@pytest.mark.parametrize("ends", [(1.0, None), (None, 2.0), (-math.inf, 2.0), (1.0, math.nan)])
def test_an_interval_has_both_ends_or_none(ends):
    score = Score("fid", 1.5, *ends)
    assert (score.low, score.high, score.interval) == (None, None, None)


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
