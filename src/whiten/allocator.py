"""How the process keeps its memory."""

from __future__ import annotations

import ctypes
import sys


def keep_freed_memory() -> None:
    """Make glibc keep freed memory instead of returning it to the system.

    Every large tensor is otherwise mapped, faulted in page by page, and unmapped again, in each
    forward pass. Process-wide, therefore left to programs; the command line calls it.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        m_trim_threshold, m_mmap_max = -1, -4
        mallopt(m_mmap_max, 0)
        mallopt(m_trim_threshold, 2**31 - 1)
