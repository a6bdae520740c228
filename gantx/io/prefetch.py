"""A `map` whose results are computed ahead in threads: in order, bounded, ended when the caller stops.

Threads help with work that releases the global interpreter lock: drawing numbers, compressing, writing files.
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
    """Like `map`, but compute results in threads before they are requested.

    Args:
        work: called in one of the threads, once for each item.
        items: iterated in the thread of the caller, as results are requested.
        threads: number of threads.
        waiting: largest number of results that are started before they are requested; bounds the memory.

    Yields:
        One result for each item, in the order of the items.

    Raises:
        Exception: any exception of `work` or `items`, in the order of the items. Then, and when the caller
            stops, work that has not started is cancelled and work that has started is waited for.
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
