"""Seeds of images as ranges: a billion of them take no memory."""

from __future__ import annotations

import itertools
import sys
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

from gantx.errors import UsageError


class Seeds(Sequence[int]):
    """A sequence of seeds, stored as ranges; its text is `0-63,70`.

    Args:
        ranges: in order, of step 1; consecutive ones are joined.

    Attributes:
        ranges: the same ranges, joined.

    Raises:
        UsageError: there are more seeds than a sequence can have.
    """

    def __init__(self, ranges: Iterable[range]) -> None:
        joined: list[range] = []
        for part in ranges:
            if part.stop <= part.start:
                continue
            if joined and joined[-1].stop == part.start:
                part = range(joined.pop().start, part.stop)
            joined.append(part)
        self.ranges = tuple(joined)
        self._ends = [0, *itertools.accumulate(part.stop - part.start for part in joined)]
        if self._ends[-1] > sys.maxsize:
            raise UsageError(f"{self._ends[-1]:,} seeds are too many: ask for fewer images")

    def __len__(self) -> int:
        return self._ends[-1]

    def __iter__(self) -> Iterator[int]:
        return itertools.chain.from_iterable(self.ranges)

    def __contains__(self, seed: object) -> bool:
        return any(seed in part for part in self.ranges)

    @overload
    def __getitem__(self, where: int) -> int: ...
    @overload
    def __getitem__(self, where: slice) -> Seeds: ...
    def __getitem__(self, where: int | slice) -> int | Seeds:
        if isinstance(where, slice):
            places = range(len(self))[where]
            if places.step != 1:
                return Seeds(range(seed, seed + 1) for seed in map(self.__getitem__, places))
            parts = zip(self.ranges, self._ends, strict=False)
            return Seeds(
                kept
                for part, begin in parts
                if (kept := part[max(0, places.start - begin) : max(0, places.stop - begin)])
            )
        place = range(len(self))[where]
        index = bisect_right(self._ends, place) - 1
        return self.ranges[index].start + place - self._ends[index]

    def __str__(self) -> str:
        return ",".join(
            str(part.start) if part.stop == part.start + 1 else f"{part.start}-{part.stop - 1}"
            for part in self.ranges
        )

    def repeated(self) -> int | None:
        """The smallest seed that occurs twice, or None."""
        ordered = sorted(self.ranges, key=lambda part: (part.start, part.stop))
        again = (later.start for part, later in itertools.pairwise(ordered) if later.start < part.stop)
        return next(again, None)


def seeds_of(numbers: Iterable[int]) -> Seeds:
    """Any sequence of seeds as ranges."""
    if isinstance(numbers, Seeds):
        return numbers
    if isinstance(numbers, range) and numbers.step == 1:
        return Seeds([numbers])
    return Seeds(range(number, number + 1) for number in numbers)
