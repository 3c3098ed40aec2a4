"""How a process keeps its memory: glibc's allocator, and the pages of mapped files."""

from __future__ import annotations

import ctypes
import mmap
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy.typing as npt

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8  # of glibc's malloc.h


def keep_freed_memory() -> None:
    """Make glibc keep freed memory instead of returning it to the system.

    Process-wide; only the command line calls this.

    Every large tensor is otherwise mapped, faulted in page by page, and unmapped again, in each
    forward pass.
    """
    _mallopt(_M_MMAP_MAX, 0)
    _mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def share_pools(count: int) -> None:
    """Let all threads that start later allocate from `count` of glibc's pools.

    Process-wide; only the command line calls this.

    Each pool keeps the memory that it once held. Many threads that decode an image now and then
    would each fill a pool of their own, up to eight per core.
    """
    _mallopt(_M_ARENA_MAX, count)


def _mallopt(option: int, value: int) -> None:
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        mallopt(option, value)


def forget(part: npt.NDArray[Any]) -> None:
    """Release the pages of a mapped file; the system may still cache them.

    Nothing is lost: the system writes what a shared map holds. Anything but a contiguous part of
    such a map is left alone, private maps (`mode="c"`) too.
    """
    import numpy as np  # not at once: the command line starts without it

    base: Any = part
    mode = ""
    while isinstance(base, np.ndarray):
        mode = mode or getattr(base, "mode", "")
        base = base.base
    if not isinstance(base, mmap.mmap) or mode == "c" or not part.flags.c_contiguous:
        return
    if hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
        first = part.ctypes.data - np.frombuffer(base, np.uint8).ctypes.data
        aligned = first - first % mmap.PAGESIZE
        base.madvise(mmap.MADV_DONTNEED, aligned, first + part.nbytes - aligned)
