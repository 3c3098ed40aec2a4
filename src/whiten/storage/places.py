"""Read what a path names: a file, an object of a service, or a member of a tar or Parquet file.

A member is named as if its file were a folder: `photos-000.tar/000000001.jpg`, or
`train-0.parquet/image/000000012` for the column and the row.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable
from typing import Any

from whiten.errors import ImageError, NotThereError, StorageError, UnreadableError, one_line
from whiten.storage.blobs import Blob, Stamp, open_blob
from whiten.storage.caching import Cache
from whiten.utils.urls import as_url

TAR, PARQUET = ".tar", ".parquet"
_KEPT = 1024  # tar files whose members are known, 50 bytes per member

_opened: Cache[Any] = Cache(_KEPT, lambda _: 1)


def split_member(path: str) -> tuple[str, str] | None:
    """Return the tar or Parquet file that holds a member, and the member; None for a whole file.

    The first component that ends in `.tar` or `.parquet` and is no folder is the file.
    """
    url = as_url(path)
    path = url or path
    lowered, at = path.lower(), 0
    while True:
        ends = [lowered.find(f"{end}/", at) + len(end) for end in (TAR, PARQUET)]
        ends = [end for end, name in zip(ends, (TAR, PARQUET), strict=True) if end >= len(name)]
        if not ends:
            return None
        end = min(ends)
        if url is not None or not os.path.isdir(path[:end]):  # noqa: PTH112
            return path[:end], path[end + 1 :]
        at = end


def is_member(path: str) -> bool:
    """Return whether a path names a member of a tar or Parquet file, and no file of its own."""
    return split_member(path) is not None and not os.path.lexists(path)


def is_plain(path: str) -> bool:
    """Return whether a path names a file on disk, neither a member nor an object of a service."""
    return as_url(path) is None and not is_member(path)


def open_once(place: str, make: Callable[[Blob], Any], kind: str) -> tuple[Blob, Any]:
    """Return a tar or Parquet file and what `make` makes of it, once per version of the file."""
    blob = open_blob(place)
    return blob, _opened.get((kind, place, blob.stamp), lambda: make(blob))


def member_stamp(path: str) -> Stamp | None:
    """Return the stamp of a member or an object; None if it is not there."""
    try:
        found, url = split_member(path), as_url(path)
        if found is None:
            from whiten.storage.objects import stamp_of_url

            return None if url is None else stamp_of_url(url)
        place, name = found
        if place.lower().endswith(PARQUET):
            stamp = open_blob(place).stamp
            return stamp._replace(size=-1)
        blob, members = open_members(place)
        [row] = members.names.rows([name])
        return None if row < 0 else blob.stamp._replace(size=int(members.sizes[row]))
    except OSError:
        return None
    except StorageError as error:
        if isinstance(error, NotThereError):
            return None
        raise


def open_members(place: str) -> tuple[Blob, Any]:
    """Return a tar file and its members."""
    from whiten.storage.tar import scan

    return open_once(place, scan, TAR)


def open_images(place: str) -> Any:
    """Return the open table of a Parquet file."""
    from whiten.storage.parquet import ParquetImages

    return open_once(place, ParquetImages, PARQUET)[1]


def read_member(path: str, most: int) -> bytes:
    """Read a member or an object.

    Args:
        most: limit of its size in bytes.

    Raises:
        ImageError: there is no such member, or it is too large.
        UnreadableError: the tar file is damaged, or there is no such object.
        StorageError: the service refuses or does not answer, or the object has changed.
    """
    found = split_member(path)
    if found is None:
        return _read_object(as_url(path) or path, most)
    place, name = found
    if place.lower().endswith(PARQUET):
        import pyarrow as pa  # exported students embed images without it

        column, _, row = name.rpartition("/")
        try:
            images = open_images(place)
            if not row.isdecimal() or column not in images.schema.names:
                raise UnreadableError("a table, not an image")
            return bytes(images.content(column, int(row)))
        except pa.ArrowException as error:
            raise UnreadableError(f"damaged table: {one_line(error)}") from error
    blob, members = open_members(place)
    if not name:
        raise UnreadableError(members.problem or "a tar file, not an image")
    [number] = members.names.rows([posixpath.normpath(name)])
    if number < 0:
        raise UnreadableError(f"no such member{_also(members.problem)}")
    size = int(members.sizes[number])
    if size > most:
        raise ImageError(f"{size:,} bytes, above the limit of {most:,}")
    data = bytes(members.read(blob, number))
    if len(data) < size:
        raise UnreadableError(f"cut off with its tar file, {len(data):,} of {size:,} bytes")
    return data


def _also(problem: str) -> str:
    return f": the tar file is {problem}" if problem else ""


def _read_object(url: str, most: int) -> bytes:
    from whiten.storage.objects import RemoteObject

    try:
        found = RemoteObject(url)
        if found.stamp.size > most:
            raise ImageError(f"{found.stamp.size:,} bytes, above the limit of {most:,}")
        return found.read_whole()
    except NotThereError as error:
        raise UnreadableError("no such object") from error
