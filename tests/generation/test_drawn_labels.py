"""Labels of seeds."""

import pytest

from gantx.config.schema import ConditioningConfig
from gantx.generation.labels import DrawnLabels, drawn_labels


@pytest.mark.parametrize("counts", [(), (5, 1, 0, 30)])
def test_labels_that_are_drawn_in_blocks_are_those_of_the_seeds(counts):
    conditioning = ConditioningConfig(classes=4, counts=counts)
    seeds = [*range(1000, 1700), *range(10)]
    expected = drawn_labels(conditioning, seeds)
    labels = DrawnLabels(conditioning, seeds)
    assert list(labels) == expected
    assert set(labels) == ({0, 1, 3} if counts else {0, 1, 2, 3})
    assert [labels[-1], labels[255], labels[256]] == [expected[-1], expected[255], expected[256]]
    assert list(labels[250:600]) == expected[250:600]
    assert list(labels[600:100:-7]) == expected[600:100:-7]
    with pytest.raises(IndexError):
        labels[len(seeds)]


def test_labels_of_a_billion_seeds_take_no_time():
    conditioning = ConditioningConfig(classes=4)
    labels = DrawnLabels(conditioning, range(1_000_000_000))
    assert [labels[999_999_999]] == drawn_labels(conditioning, [999_999_999])
