"""How the process keeps its memory. It is for all of it, and so left to programs."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8  # of glibc's malloc.h


def keep_freed_memory() -> None:
    """Make glibc keep freed memory instead of returning it to the system.

    Every large tensor is otherwise mapped, faulted in page by page, and unmapped again, in each
    forward pass.
    """
    _mallopt(_M_MMAP_MAX, 0)
    _mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def share_pools(count: int) -> None:
    """Let all threads allocate from so few pools of glibc's, before they are started.

    Each pool keeps what it once held. Many threads that decode an image now and then would each
    fill one of their own, up to eight for each core.
    """
    _mallopt(_M_ARENA_MAX, count)


def _mallopt(option: int, value: int) -> None:
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        mallopt(option, value)
