"""How a process keeps memory, glibc's allocator and mapped files, and how it runs out of it."""

from __future__ import annotations

import ctypes
import mmap
import sys
from typing import TYPE_CHECKING, Any

from whiten.errors import causes

if TYPE_CHECKING:
    import numpy.typing as npt

_TAKEN = 4096  # rows read at once
KEPT_BYTES = 4 << 30  # of a mapped file; of a larger one, what was read is not kept resident

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8  # from glibc's malloc.h


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error, or what it was raised from, says that memory ran out.

    Torch and ONNX Runtime raise a RuntimeError, each in words of its own.
    """
    return any(
        isinstance(cause, MemoryError) or "alloc" in str(cause).lower() for cause in causes(error)
    )


def keep_freed_memory() -> None:
    """Make glibc keep freed memory instead of returning it to the system.

    Process-wide; only the command line calls this.

    Otherwise every large tensor is mapped, faulted in page by page, and unmapped again, in each
    forward pass.
    """
    _mallopt(_M_MMAP_MAX, 0)
    _mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def share_pools(count: int) -> None:
    """Let threads that start later allocate from only `count` of glibc's pools.

    Process-wide; only the command line calls this.

    Each pool keeps its peak memory. Many threads that decode images now and then would each fill
    their own pool, up to eight per core.
    """
    _mallopt(_M_ARENA_MAX, count)


def return_freed_memory() -> None:
    """Return memory that is freed to the system, in spite of `keep_freed_memory`; once."""
    _call("malloc_trim", 0)


def _mallopt(option: int, value: int) -> None:
    _call("mallopt", option, value)


def _call(name: str, *arguments: int) -> None:
    """Call a function of glibc; on other systems, and with musl, there is none."""
    if not sys.platform.startswith("linux"):
        return
    function = getattr(ctypes.CDLL(None), name, None)
    if function is not None:
        function(*arguments)


def is_large(mapped: npt.NDArray[Any]) -> bool:
    """Return whether pages of a mapped file should be released once they were read."""
    return getattr(mapped, "nbytes", 0) > KEPT_BYTES


def gather_rows(mapped: npt.NDArray[Any], rows: Any) -> npt.NDArray[Any]:
    """Copy some rows of an array for a search; only a small file's pages stay mapped.

    Args:
        rows: an array of numbers.
    """
    found: npt.NDArray[Any] = mapped[rows]
    if is_large(mapped):
        forget(mapped)
    return found


def take_rows(mapped: npt.NDArray[Any], rows: Any) -> npt.NDArray[Any]:
    """Copy some rows of an array, and release its pages if it is mapped.

    The system maps the 15 neighbours of a page that is read, too: a row in fifty would map the
    file, so few are read at once.

    Args:
        rows: an array of numbers, or a slice.
    """
    import numpy as np

    numbers = np.arange(*rows.indices(len(mapped))) if isinstance(rows, slice) else rows
    one = mapped[numbers[:0]]
    found = np.empty((len(numbers), *one.shape[1:]), one.dtype)
    for start in range(0, len(numbers), _TAKEN):
        found[start : start + _TAKEN] = mapped[numbers[start : start + _TAKEN]]
        forget(mapped)
    return found


def forget(part: npt.NDArray[Any]) -> None:
    """Release the pages of a mapped file; the system may still cache them.

    Nothing is lost: the system writes the contents of a shared map to its file. Anything but a
    contiguous part of a shared map is left alone, including private maps (`mode="c"`).
    """
    import numpy as np  # imported late: the command line starts without it

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
