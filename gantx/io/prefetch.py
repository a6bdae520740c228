"""Work that threads do ahead of whoever needs it: in order, within bounds, over when nobody asks any more.

Threads help where the work lets go of Python's lock: drawing numbers, compressing, writing files.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def ahead(
    work: Callable[[Item], Result], items: Iterable[Item], *, threads: int, waiting: int
) -> Iterator[Result]:
    """Like `map`, but threads work while the caller does something else.

    Args:
        work: called in one of the threads, once for each item.
        items: taken from their iterable in the thread of the caller, as results are asked for.
        threads: that work at once.
        waiting: most results that are begun or done before they are asked for: what memory is needed for.

    Yields:
        One result for each item, in the order of the items.

    Raises:
        Exception: whatever `work` or `items` raise, in its turn. Then, and when the caller stops asking, work
            that has not begun is dropped and what has begun is waited for.
    """
    pending: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(threads, "ahead") as pool:
        try:
            for item in items:
                pending.append(pool.submit(work, item))
                if len(pending) > waiting:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
