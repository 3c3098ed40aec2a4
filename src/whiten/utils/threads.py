"""A `map` on threads that computes a bounded number of results in advance."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

In = TypeVar("In")
Out = TypeVar("Out")


def cores() -> int:
    """Count the cores available to this process; a container or `taskset` may limit them."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def ordered_map(
    function: Callable[[In], Out],
    inputs: Iterable[In],
    *,
    workers: int | None = None,
    ahead: int | None = None,
) -> Iterator[Out]:
    """Apply `map` on threads: results in order, at most `ahead` of them computed in advance.

    Memory does not grow with the number of inputs. Decoding releases the GIL, so threads use all
    cores without the copies that processes would need (`benchmarks/decode.py`).

    Args:
        workers: number of threads; by default one per core.
        ahead: number of results; by default four per thread.
    """
    workers = workers or cores()
    ahead = 4 * workers if ahead is None else ahead
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
