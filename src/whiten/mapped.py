"""Arrays in mapped files: let go of what has been read or written, so that memory stays flat."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
import numpy.typing as npt


def forget(part: npt.NDArray[Any]) -> None:
    """Give the pages of a mapped file back; the system still holds them as a cache.

    Nothing is lost: what was written to a shared map is the system's to write. Anything else than a
    contiguous part of such a map is left alone, private maps (`mode="c"`) too.
    """
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
