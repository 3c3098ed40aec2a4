"""A `map` on threads that computes a bounded number of results in advance."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import TypeVar

from whiten.errors import ConfigError
from whiten.utils.validation import as_whole

In = TypeVar("In")
Out = TypeVar("Out")


def cores() -> int:
    """Count the cores available to this process, at least 1.

    `taskset` limits them by affinity, a container by the quota of its control group; a part of a
    core counts as one.
    """
    count = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        count = len(os.sched_getaffinity(0))
    limit = quota()
    return count if limit is None else max(1, min(count, math.ceil(limit)))


@cache
def quota(
    groups: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")
) -> float | None:
    """Return how many cores the control groups of this process may use; None is no limit.

    Args:
        groups: names the groups of the process, one of version 2, or several of version 1.
        root: where the file system of the groups is mounted.
    """
    try:
        lines = groups.read_text().splitlines()
    except (OSError, ValueError):  # not on Linux
        return None
    limits: list[float] = []
    for line in lines:
        _, controllers, name = [*line.split(":", 2), "", ""][:3]
        kinds = controllers.split(",")
        if controllers and "cpu" not in kinds:
            continue
        bases = [root / controllers, root / "cpu"] if controllers else [root]
        # In a container the path may be that of the host, which is not mounted there: then the
        # container's own group is the root. A limit of a parent counts, too.
        parts = Path(name.lstrip("/")).parts
        for base in bases:
            for depth in range(len(parts) + 1):
                limits += _limit(base.joinpath(*parts[:depth]))
    return min(limits, default=None)


def _limit(group: Path) -> list[float]:
    """Return the limit of one control group, if it has one."""
    try:
        if (group / "cpu.max").is_file():
            most, period = (group / "cpu.max").read_text().split()
        else:
            most = (group / "cpu.cfs_quota_us").read_text().strip()
            period = (group / "cpu.cfs_period_us").read_text().strip()
        return [int(most) / int(period)] if most not in ("max", "-1") else []
    except (OSError, ValueError, ZeroDivisionError):
        return []


def require_workers(workers: int | None) -> None:
    """Refuse a number of threads that is below 1; None is one per core.

    Raises:
        ConfigError: see there.
    """
    if workers is not None and as_whole("workers", workers) < 1:
        raise ConfigError(f"workers must be at least 1, not {workers}")


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

    Raises:
        ConfigError: workers is below 1.
    """
    require_workers(workers)
    workers = workers or cores()
    ahead = 4 * workers if ahead is None else ahead
    pending: deque[Future[Out]] = deque()
    pool = ThreadPoolExecutor(max_workers=workers, thread_name_prefix="whiten-media")
    is_abandoned = False
    try:
        for item in inputs:
            pending.append(pool.submit(function, item))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except GeneratorExit:
        # The garbage collector closes what was abandoned, perhaps in a thread that is just being
        # started and holds the lock that joining another one needs: that would wait forever.
        is_abandoned = True
        raise
    finally:
        pool.shutdown(wait=not is_abandoned, cancel_futures=True)
