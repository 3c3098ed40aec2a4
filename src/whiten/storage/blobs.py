"""Bytes that are read in ranges: a file on disk, or an object of a storage service."""

from __future__ import annotations

import io
import os
from typing import IO, NamedTuple, Protocol

from whiten.errors import ChangedError
from whiten.utils.urls import as_url


class Stamp(NamedTuple):
    """Size and times of a file; while they are the same, so is the content.

    `ctime_ns`, the time of the last change of content or status, cannot be set by programs, unlike
    `mtime_ns`, which copies and archives preserve. Of an object of a storage service it is a number
    made of its ETag. The size is -1 where it is not known without reading.
    """

    size: int
    mtime_ns: int
    ctime_ns: int


class Blob(Protocol):
    """Bytes of one version.

    Attributes:
        place: path or URL.
        stamp: stamp of this version.
    """

    place: str
    stamp: Stamp

    def read(self, start: int, stop: int) -> bytes:
        """Return bytes from `start` up to `stop`; fewer only beyond the end.

        Raises:
            OSError: a file cannot be read.
            StorageError: a service does not give it.
            ChangedError: it is of another version by now.
        """


class LocalFile:
    """A file on disk."""

    def __init__(self, path: str) -> None:
        self.place = path
        self.stamp = stamp_from(os.stat(path))

    def read(self, start: int, stop: int) -> bytes:
        with open(self.place, "rb", buffering=0) as file:
            if stamp_from(os.fstat(file.fileno())) != self.stamp:
                raise ChangedError(f"{self.place} changes while it is read: run again")
            file.seek(start)
            parts = []
            while start < stop and (part := file.read(stop - start)):
                parts.append(part)
                start += len(part)
        return b"".join(parts)


def stamp_from(status: os.stat_result) -> Stamp:
    return Stamp(status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def open_blob(place: str) -> Blob:
    """Open a file or an object as it is now, or as it was when it was listed.

    Raises:
        OSError: there is no such file.
        StorageError: a service does not give it.
    """
    if (url := as_url(place)) is None:
        return LocalFile(place)
    from whiten.storage.objects import RemoteObject

    return RemoteObject(url)


def as_file(blob: Blob) -> IO[bytes]:
    """Open a blob as a file that is read and sought."""
    if isinstance(blob, LocalFile):
        return open(blob.place, "rb")
    return io.BufferedReader(BlobFile(blob), 1 << 16)


class BlobFile(io.RawIOBase):
    """A blob as a file that is read and sought."""

    def __init__(self, blob: Blob) -> None:
        self._blob, self._at = blob, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._blob.stamp.size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        end = self._blob.stamp.size
        stop = end if size is None or size < 0 else min(end, self._at + size)
        data = self._blob.read(self._at, stop) if self._at < stop else b""
        self._at += len(data)
        return data

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)
