"""Attempts at a piece of work that are killed, and made again until it is done."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from warm import CONTEXT, start_server

LONGEST = 120.0  # seconds until an attempt counts as hanging

Work = Callable[[Path], None]
"""Does, or goes on with, some work in a folder; importable, for it runs in another process."""


def attempt(work: Work, folder: Path, *, seconds: float = LONGEST, event: int = 0) -> bool:
    """One attempt; whether it came to its end.

    Args:
        seconds: when it is killed.
        event: it is killed just before this change of a file, counted from 1; 0 is never.
    """
    process = CONTEXT.Process(target=_run, args=(work, folder, event))
    process.start()
    process.join(seconds)
    if process.exitcode is None:
        process.kill()  # or it has just ended
        process.join()
    assert process.exitcode in (0, -signal.SIGKILL), "the attempt failed by itself"
    return process.exitcode == 0


def _run(work: Work, folder: Path, event: int) -> None:
    import torch

    torch.set_num_threads(1)
    # What a killed process leaves goes with the folder of the test.
    tempfile.tempdir = tempfile.mkdtemp(dir=folder.parent)
    if event:
        sys.addaudithook(_Killer(folder, event))
    work(folder)


class _Killer:
    """Kills its own process before the n-th change of a file in a folder."""

    CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")

    def __init__(self, folder: Path, event: int) -> None:
        self.folder, self.left = str(folder), event

    def __call__(self, name: str, arguments: tuple[Any, ...]) -> None:
        if name == "open":
            changes = bool(arguments[2] & (os.O_WRONLY | os.O_RDWR))
        else:
            changes = name in self.CHANGES
        changes = changes and not isinstance(arguments[0], int)  # a file that is open already
        path = os.fspath(arguments[0]) if changes else ""
        # Folders are deleted by relative names.
        if changes and (not Path(path).is_absolute() or path.startswith(self.folder)):
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class Reference:
    """What an undisturbed attempt left, and how long it took."""

    folder: Path
    seconds: float
    contents: dict[str, bytes]

    @classmethod
    def make(cls, work: Work, folder: Path, read: Callable[[Path], dict[str, bytes]]) -> Reference:
        start_server()
        attempt(work, folder.with_name(f"{folder.name}-warm"))  # fills the disk's cache
        began = time.monotonic()
        assert attempt(work, folder)
        return cls(folder, time.monotonic() - began, read(folder))


def kill_again_and_again(
    work: Work,
    folder: Path,
    reference: Reference,
    *,
    kills: int,
    at: str,
    check: Callable[[Path], None],
    read: Callable[[Path], dict[str, bytes]],
    seed: int = 0,
) -> tuple[int, int]:
    """Kill the work until it has been killed `kills` times; begin anew whenever it is done.

    Args:
        at: `time`, random moments of an undisturbed attempt's duration; or `change`, just before
            the first change of a file, then the second, and so on.
        check: looks at what is there after a kill.
        read: what the finished work must have in common with the reference.

    Returns:
        How often it was killed, and how often it was done.
    """
    draw = random.Random(seed)
    landed = finished = since = 0
    while landed < kills or not finished:
        if landed >= kills:
            done = attempt(work, folder)
        elif at == "time":
            done = attempt(work, folder, seconds=draw.uniform(0, reference.seconds))
        else:
            done = attempt(work, folder, event=1 + finished % 3 + since)
        if not done:
            landed, since = landed + 1, since + 1
            check(folder)
            continue
        finished, since = finished + 1, 0
        found = read(folder)
        differing = {name for name, _ in found.items() ^ reference.contents.items()}
        assert not differing, sorted(differing)
        shutil.rmtree(folder)
    return landed, finished
