"""A `map` on threads that looks ahead a bounded way."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

In = TypeVar("In")
Out = TypeVar("Out")


def ordered_map(
    function: Callable[[In], Out], inputs: Iterable[In], *, workers: int, ahead: int
) -> Iterator[Out]:
    """`map` on threads: results in order, at most `ahead` of them computed in advance.

    Memory stays bounded however many inputs there are. Decoding releases the GIL, so threads
    run on all cores beside the caller.
    """
    pending: deque[Future[Out]] = deque()
    pool = ThreadPoolExecutor(max_workers=workers, thread_name_prefix="whiten-media")
    try:
        for item in inputs:
            pending.append(pool.submit(function, item))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
