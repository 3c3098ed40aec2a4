"""Read a whole file, and tell whether it has changed since."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from whiten.errors import ImageError, UnreadableError
from whiten.storage.blobs import Stamp, stamp_from
from whiten.storage.places import is_plain, member_stamp, read_member, split_member
from whiten.utils.urls import as_url, named_place

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


@contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Name the file in the errors of reading and decoding it; they keep their kind."""
    try:
        yield
    except ImageError as error:
        raise type(error)(f"cannot read {named_place(path)}: {error}") from error


def stamp_of(path: str) -> Stamp | None:
    """Return the stamp of a file; None if it is missing or cannot be reached."""
    try:
        if as_url(path) is not None:
            return member_stamp(path)
        return stamp_from(os.stat(path))
    except NotADirectoryError:  # its folder is a file, whose member it is
        return member_stamp(path)
    except (OSError, ValueError):
        return None


def is_there_now(path: str) -> bool:
    """Return whether a path names anything: a file, a link that leads nowhere, a member, a URL."""
    return os.path.lexists(path) or (not is_plain(path) and stamp_of(path) is not None)


def read_bytes(path: str) -> bytes:
    """Read the whole file, or the member of a tar or Parquet file, or the object of a URL.

    Never waits for another program, as reading a pipe would.

    Raises:
        ImageError: the file is empty, larger than MAX_BYTES, or not a file.
        UnreadableError: it is missing or cannot be read, or memory ran out.
        StorageError: a storage service refuses or does not answer, or the object has changed since
            it was listed.
    """
    try:
        if as_url(path) is not None:
            return _not_empty(read_member(path, MAX_BYTES))
        with open(path, "rb", opener=_open_at_once) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ImageError("not a file but a pipe or a device")
            if status.st_size > MAX_BYTES:
                raise ImageError(f"{status.st_size:,} bytes, above the limit of {MAX_BYTES:,}")
            data = file.read()
    except IsADirectoryError as error:
        raise UnreadableError(_reason(_listing_error(path) or error)) from error
    except NotADirectoryError as error:  # its folder is a file, whose member it is
        if split_member(path) is None:
            raise UnreadableError(_reason(error)) from error
        return _not_empty(_of_member(path))
    except OSError as error:
        raise UnreadableError(_reason(error)) from error
    except MemoryError as error:
        raise UnreadableError("out of memory") from error
    except ValueError as error:  # a table may name a path with a null byte
        raise ImageError(_reason(error)) from error
    return _not_empty(data)


def _of_member(path: str) -> bytes:
    try:
        return read_member(path, MAX_BYTES)
    except OSError as error:
        raise UnreadableError(_reason(error)) from error
    except MemoryError as error:
        raise UnreadableError("out of memory") from error


def _not_empty(data: bytes) -> bytes:
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
