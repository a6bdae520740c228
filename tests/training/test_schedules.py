"""Schedules against the released formulas and against numbers worked out by hand."""

import pytest
from helpers.golden_file import GoldenFile

from gantx.config.schema import AttentionWindowConfig, EMAConfig, OptimizerConfig
from gantx.training import schedules

BAND = AttentionWindowConfig(steps=((1100, 4), (1600, 6), (2100, 8), (3000, 10)), of_kimg=80000)


def test_due_at_every_crossing_and_only_there():
    crossings = [after for after in range(64, 6401, 64) if schedules.due(1.0, after - 64, after)]
    assert crossings == [1024, 2048, 3008, 4032, 5056, 6016]


@pytest.mark.parametrize(
    ("images", "window"),
    [(0, 4), (1_099_999, 4), (1_100_000, 6), (1_600_000, 8), (2_999_999, 10), (3_000_000, None)],
)
def test_the_window_widens_at_the_epochs_of_the_released_code(images, window):
    assert schedules.attention_window(BAND, images, 80000) == window


def test_a_shorter_run_shrinks_the_schedule_and_a_longer_one_does_not_stretch_it():
    assert schedules.attention_window(BAND, 10_999, 800) == 4
    assert schedules.attention_window(BAND, 11_000, 800) == 6
    assert schedules.attention_window(BAND, 30_000, 800) is None
    assert schedules.attention_window(BAND, 2_999_999, 160000) == 10


def test_no_schedule_means_no_window():
    assert schedules.attention_window(None, 0, 1) is None


def test_learning_rate_warms_up_stays_and_decays():
    optimizer = OptimizerConfig(warmup_kimg=10, decay_from=0.5, decay_to=0.1)
    rates = [schedules.learning_rate_factor(optimizer, images, 100) for images in (0, 5000, 10_000, 50_000)]
    assert rates == [0, 0.5, 1, 1]
    assert schedules.learning_rate_factor(optimizer, 75_000, 100) == pytest.approx(0.55)
    assert schedules.learning_rate_factor(optimizer, 100_000, 100) == pytest.approx(0.1)


def test_learning_rate_is_constant_by_default():
    assert schedules.learning_rate_factor(OptimizerConfig(), 10**9, 1) == 1


def test_ema_and_decay_tables_of_the_released_code():
    decay = OptimizerConfig(decay_from=0, decay_to=0)
    with GoldenFile("transgan/ema_lr") as g:
        # The last column is what the released code sets: like the one before, but never the final zero.
        for end, step, rate, released in g["lr.table"].tolist():
            factor = schedules.learning_rate_factor(decay, int(step), end / 1000)
            assert 1e-4 * factor == pytest.approx(rate, rel=1e-9, abs=1e-18)
            assert step >= end or released == rate
        for kimg, warmup, flat, batch, world, step, beta in g["ema.table"].tolist():
            whole = int(batch * world)
            if warmup:
                ema = EMAConfig(kind="half-life", half_life_kimg=kimg, ramp=warmup)
            else:
                ema = EMAConfig(kind="constant", beta=flat)
            assert schedules.ema_beta(ema, int(step) * whole, whole) == pytest.approx(beta, abs=1e-12)


def test_the_first_step_of_a_warm_up_does_not_stand_still():
    warm = OptimizerConfig(warmup_kimg=10)
    assert [schedules.learning_rate_factor(warm, images, 100, 1000) for images in (0, 4000, 9000)] == [
        0.1,
        0.5,
        1,
    ]
