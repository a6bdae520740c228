"""Observations of a run: summed on the device, read once per report."""

import math

import pytest
import torch

from gantx.training.phase import Statistics, add_shares

CPU = torch.device("cpu")


def observe(statistics, **values):
    statistics.group(tuple(values), CPU).add_(torch.tensor(list(values.values())))
    statistics.count(values)


def test_statistics_average_and_keep_what_is_not_finite():
    statistics = Statistics()
    assert statistics.means() == {}
    observe(statistics, a=2.5, c=1.0)
    observe(statistics, a=4.5, c=1.0)
    observe(statistics, b=math.inf)
    assert statistics.means() == {"a": pytest.approx(3.5), "c": 1.0, "b": math.inf}
    statistics.clear()
    assert statistics.means() == {}
    observe(statistics, a=1.0, c=0.0)
    assert statistics.means() == {"a": 1.0, "c": 0.0}


def test_sums_stay_where_they_are():
    statistics = Statistics()
    observe(statistics, a=2.5)
    place = statistics.sums["a"].data_ptr()
    statistics.clear()
    observe(statistics, a=1.0)
    assert statistics.sums["a"].data_ptr() == place


def test_a_run_that_goes_on_adds_to_what_was_stored():
    statistics = Statistics()
    statistics.restore({"a": torch.tensor(3.0)}, {"a": 2.0})
    assert statistics.means() == {"a": 1.5}
    observe(statistics, a=3.0)
    assert statistics.means() == {"a": 2.0}


def test_shares_of_micro_batches_add_up():
    sums = {}
    add_shares(sums, {"a": torch.tensor(1.0)}, 0.25)
    add_shares(sums, {"a": torch.tensor(3.0, requires_grad=True)}, 0.75)
    assert sums["a"] == 2.5
    assert not sums["a"].requires_grad


def test_restored_sums_end_with_the_report_even_if_nothing_was_added_to_them():
    statistics = Statistics()
    statistics.restore({"a": torch.tensor(3.0)}, {"a": 1.0})
    assert statistics.means() == {"a": 3.0}
    statistics.clear()  # a report, before the phase that observes it has run again
    observe(statistics, a=2.0)
    assert statistics.means() == {"a": 2.0}
