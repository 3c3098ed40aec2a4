"""Read a whole file, and tell whether it has changed since."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import NamedTuple

from whiten.errors import ImageError, UnreadableError

MAX_BYTES = 1 << 30  # an image of MAX_PIXELS takes 600 MB uncompressed


@dataclass(frozen=True, slots=True)
class Skipped:
    """An image that could not be used, with the reason."""

    id: str
    reason: str


class Unread(Skipped):
    """An image that could not be read this time, for want of memory, of access, of a dependency.

    Only verdicts on the content are remembered: this one is tried again at the next call.
    """


def skipped_for(name: str, error: Exception) -> Skipped:
    """Return the image that an error concerns, as `Skipped` or as `Unread`."""
    if isinstance(error, MemoryError):
        return Unread(name, "out of memory")
    return (Unread if isinstance(error, UnreadableError) else Skipped)(name, str(error))


class Stamp(NamedTuple):
    """Size and times of a file; while they are the same, so is the content.

    `ctime_ns`, the time of the last change of content or status, cannot be set by programs, unlike
    `mtime_ns`, which copies and archives preserve.
    """

    size: int
    mtime_ns: int
    ctime_ns: int


def stamp_of(path: str) -> Stamp | None:
    """Return the stamp of a file; None if it is missing or cannot be reached."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return Stamp(status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def read_bytes(path: str) -> bytes:
    """Read the whole file; never waits for another program, as reading a pipe would.

    Raises:
        ImageError: the file is empty, larger than MAX_BYTES, or not a file.
        UnreadableError: it is missing or cannot be read, or memory ran out.
    """
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ImageError("not a file but a pipe or a device")
            if status.st_size > MAX_BYTES:
                raise ImageError(f"{status.st_size:,} bytes, above the limit of {MAX_BYTES:,}")
            data = file.read()
    except IsADirectoryError as error:
        raise UnreadableError(_reason(_listing_error(path) or error)) from error
    except OSError as error:
        raise UnreadableError(_reason(error)) from error
    except MemoryError as error:
        raise UnreadableError("out of memory") from error
    except ValueError as error:  # a table may name a path with a null byte
        raise ImageError(_reason(error)) from error
    if not data:
        raise ImageError("empty file")
    return data


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _listing_error(folder: str) -> OSError | None:
    """Return the reason why a folder cannot be listed."""
    try:
        os.scandir(folder).close()
    except OSError as error:
        return error
    return None


def _reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error)).lower()
