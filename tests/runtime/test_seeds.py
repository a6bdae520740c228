"""Seeds as ranges."""

import random
import sys
import tracemalloc

import pytest

from gantx.errors import UsageError
from gantx.runtime.seeds import Seeds, seeds_of


def test_it_is_the_sequence_of_its_numbers():
    numbers = [0, 1, 2, 3, 9, 5, 6, 6, 7]
    seeds = seeds_of(numbers)
    assert list(seeds) == numbers
    assert [seeds[index] for index in range(-9, 9)] == numbers * 2
    assert str(seeds) == "0-3,9,5-6,6-7"
    assert 9 in seeds
    assert 4 not in seeds
    rng = random.Random(0)
    for _ in range(200):
        part = slice(*(rng.choice([None, rng.randint(-12, 12)]) for _ in range(2)), rng.choice([None, 2, -1]))
        assert list(seeds[part]) == numbers[part]
    with pytest.raises(IndexError):
        seeds[9]
    assert not seeds_of([])
    assert str(seeds_of(range(3, 3))) == ""
    assert list(seeds_of(range(8, 0, -3))) == [8, 5, 2]


def test_a_seed_that_is_named_twice_is_found():
    assert seeds_of(range(10**12)).repeated() is None
    assert seeds_of([4, 2, 3, 1]).repeated() is None
    assert seeds_of([5, 5, 7]).repeated() == 5
    assert Seeds([range(0, 10**12), range(10**11, 10**11 + 1)]).repeated() == 10**11


def test_many_seeds_take_no_memory():
    tracemalloc.start()
    seeds = Seeds([range(10**12), range(2 * 10**12, 3 * 10**12)])
    assert len(seeds) == 2 * 10**12
    assert list(seeds[10**12 - 1 : 10**12 + 1]) == [10**12 - 1, 2 * 10**12]
    assert seeds[-1] == 3 * 10**12 - 1
    assert tracemalloc.get_traced_memory()[1] < 1e5
    tracemalloc.stop()
    with pytest.raises(UsageError, match="seeds are too many: ask for fewer images"):
        Seeds([range(sys.maxsize + 2)])
