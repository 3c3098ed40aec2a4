"""The lock of an index in a folder: one process at a time changes it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from whiten.errors import LockedError
from whiten.utils.files import lock, remove_if_only

_log = logging.getLogger(__name__)

LOCK = ".lock"


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, which is made if it is missing; it goes if nothing is written.

    Raises:
        LockedError: another process holds it.
    """
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / LOCK).open("w") as file:
            _take(file, folder)
            if not _is_at(file.fileno(), folder / LOCK):
                continue  # a failed first run has just removed it
            try:
                yield
            finally:
                remove_if_only(folder, LOCK)  # a new index may follow a discard
            return


def _take(file: IO[str], folder: Path) -> None:
    try:
        if not lock(file):
            _log.warning(
                "%s is on a file system without locks: change it with one process at a time",
                folder,
            )
    except BlockingIOError as error:
        raise LockedError(f"another process is changing {folder}: wait until it is done") from error


def _is_at(handle: int, path: Path) -> bool:
    """Return whether an open file is the one at a path."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False
