"""Keep the speed while other programs run: threads that sleep while they wait, one per core.

Threads of OpenMP and BLAS spin while they wait for each other. If another program is busy, they
burn the time of the very thread that they wait for.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping

from whiten.utils.threads import cores

# The first one that the user has set decides; libraries look at them in another order each.
_COUNTS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")

# Variable -> its value, and what it does.
_WAITING = {
    "OMP_WAIT_POLICY": ("PASSIVE", "threads of torch sleep while they wait"),
    "KMP_BLOCKTIME": ("0", "the same, of Intel's OpenMP: at once, in ms"),
    "OPENBLAS_THREAD_TIMEOUT": ("16", "threads of NumPy's BLAS sleep after 2^16 cycles"),
}

_set: dict[str, str] = {}
"""Variables that `be_steady` has set in this process."""


def be_steady(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set how many threads compute, and how they wait; what the user has set stays.

    Process-wide, also of processes started later; only the command line calls this, before torch,
    NumPy and ONNX Runtime are imported, which read these variables then.
    """
    wanted = {name: value for name, (value, _) in _WAITING.items()}
    if not any(environment.get(name) for name in _COUNTS):
        wanted["OMP_NUM_THREADS"] = str(cores())
    for name, value in wanted.items():
        if name not in environment:
            environment[name] = value
            _set[name] = value


def share(processes: int) -> None:
    """Divide the cores among processes that this one starts, unless the user has set threads."""
    if "OMP_NUM_THREADS" in _set:
        _set["OMP_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = str(max(1, cores() // processes))


def describe() -> dict[str, str]:
    """Return what is set for this process, by variable, and why."""
    found = {}
    whys = {name: f"one thread per core, {_why_cores()}" for name in _COUNTS}
    whys |= {name: why for name, (_, why) in _WAITING.items()}
    for name, why in whys.items():
        value = os.environ.get(name)
        if value is not None:
            is_ours = _set.get(name) == value
            found[name] = f"{value} ({why if is_ours else 'as your environment has it'})"
    return found


def _why_cores() -> str:
    total, own = os.cpu_count() or 1, cores()
    return f"{own} of {total} by affinity and quota" if own < total else f"all {total}"
