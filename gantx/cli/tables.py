"""Tables on stdout or stderr: fitted to the width of a terminal, one line a row in a pipe."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Container, Iterable, Sequence
from typing import TextIO

_GAP = 2  # spaces between columns
_LEAST = 20  # columns for a text that is wrapped, however narrow the terminal is


def terminal_width(stream: TextIO | None = None) -> int | None:
    """Columns of the terminal that a stream (stdout) writes to; None for a pipe or a file."""
    stream = stream or sys.stdout
    return shutil.get_terminal_size().columns if stream.isatty() else None


def table_lines(
    headings: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    width: int | None,
    right: Container[str] = frozenset(),
    whole: bool = False,
) -> list[str]:
    """The lines of a table without trailing spaces.

    Args:
        headings: one for each column.
        rows: the cells.
        width: of the terminal. Only the last column may be too wide for it; None for any width.
        right: headings of the columns that are aligned on the right.
        whole: the last column has texts that are copied, such as paths: where one is too long for its line,
            each has a line of its own, without a heading, instead of being wrapped.
    """
    from rich.cells import cell_len

    cells = [tuple(headings), *map(tuple, rows)]
    widths = [max(cell_len(row[column]) for row in cells) for column in range(len(headings))]

    def aligned(column: int, text: str) -> str:
        padding = " " * (widths[column] - cell_len(text))
        return padding + text if headings[column] in right else text + padding

    start = sum(widths[:-1]) + _GAP * (len(widths) - 1)
    fits = width is None or start + widths[-1] <= width
    room = None if fits or width is None else max(_LEAST, width - start)
    lines = []
    for number, row in enumerate(cells):
        first = (" " * _GAP).join(aligned(column, text) for column, text in enumerate(row[:-1]))
        last = aligned(len(row) - 1, row[-1]) if fits else row[-1]
        if whole and not fits:
            lines += [first, " " * _GAP + last] if number else [first]
            continue
        parts = [last] if room is None else textwrap.wrap(last, room, break_on_hyphens=False) or [""]
        first += " " * _GAP if len(row) > 1 else ""
        lines += [first + parts[0], *(" " * start + part for part in parts[1:])]
    return [line.rstrip() for line in lines]


def print_table(
    headings: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    right: Container[str] = frozenset(),
    whole: bool = False,
) -> None:
    """Print a table on stdout; see `table_lines`."""
    for line in table_lines(headings, rows, width=terminal_width(), right=right, whole=whole):
        print(line)
