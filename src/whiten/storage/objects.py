"""Objects of a storage service: list them, read them in ranges, write and remove them."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import threading
from collections.abc import Iterable, Iterator
from typing import Any

from whiten.errors import ChangedError, NotThereError, StorageError
from whiten.storage.blobs import Stamp
from whiten.storage.caching import Cache
from whiten.storage.retrying import CutError, retried, status_of
from whiten.storage.services import filesystem, refuse_credentials, scheme_of

_BLOCK = 8 << 20  # bytes of one request
_KEPT = 24  # blocks: more than two chunks of images, which an index reads twice
_ETAGS = ("ETag", "etag", "md5Hash", "md5", "content_md5", "blob_id", "uid")
_TIMES = ("LastModified", "last_modified", "updated", "mtime", "Last-Modified")

_blocks: Cache[bytes] = Cache(_KEPT * _BLOCK, len)
_listed: dict[str, tuple[Stamp, str]] = {}  # stamp and ETag by URL
_lock = threading.Lock()


def stamp_of_url(url: str) -> Stamp:
    """Return the stamp that an object had when it was listed, or else has now.

    Raises:
        NotThereError, StorageError: it is not there, or cannot be reached.
    """
    return _known(url)[0]


def find_objects(prefix: str) -> Iterator[str]:
    """Yield the URLs of the objects below a prefix, and note their versions.

    Raises:
        NotThereError: there is nothing.
        StorageError: it cannot be listed.
    """
    refuse_credentials(prefix)
    files = filesystem(scheme_of(prefix))
    start = prefix.rstrip("/")
    depth = {"maxdepth": 1} if scheme_of(prefix) in ("http", "https") else {}
    # Without a last slash, HTTP servers would redirect, and prefixes match their neighbours.
    path = f"{start}/" if depth else _path(start)
    found = retried(lambda: files.find(path, detail=True, withdirs=False, **depth), prefix)
    if not found:
        raise NotThereError(f"{prefix} holds nothing: check its name, and the bucket's")
    for name, facts in found.items():
        url = name if depth else f"{scheme_of(prefix)}://{name}"
        if url.rstrip("/") == start and len(found) > 1:
            continue  # the mark of a folder
        if not facts.get("ETag") and depth:
            forget([url])
        else:
            _note(url, facts)
        yield url


def exists(url: str) -> bool:
    """Return whether there is such an object.

    Raises:
        StorageError: the service refuses or does not answer.
    """
    forget([url])
    try:
        _known(url)
    except NotThereError:
        return False
    return True


def forget(urls: Iterable[str]) -> None:
    """Forget the versions of objects: the next reader sees them as they are then."""
    with _lock:
        for url in urls:
            _listed.pop(url, None)


class RemoteObject:
    """An object; see `Blob`. Blocks that were read most recently are kept."""

    def __init__(self, url: str) -> None:
        self.place = url
        self.stamp, self._etag = _known(url)

    def read(self, start: int, stop: int) -> bytes:
        stop = min(stop, self.stamp.size)
        if start >= stop:
            return b""
        first, last = start // _BLOCK, (stop - 1) // _BLOCK
        blocks = b"".join(self._block(number) for number in range(first, last + 1))
        return blocks[start - first * _BLOCK : stop - first * _BLOCK]

    def read_whole(self) -> bytes:
        """Read all of it at once, and keep nothing."""
        return self._range(0, self.stamp.size) if self.stamp.size else b""

    def _block(self, number: int) -> bytes:
        start = number * _BLOCK
        stop = min(start + _BLOCK, self.stamp.size)
        key = (self.place, self.stamp, number)
        return _blocks.get(key, lambda: self._range(start, stop))

    def _range(self, start: int, stop: int) -> bytes:
        try:
            return retried(lambda: self._ask(start, stop), self.place)
        except (ChangedError, NotThereError):
            forget([self.place])
            raise

    def _ask(self, start: int, stop: int) -> bytes:
        scheme = scheme_of(self.place)
        files = filesystem(scheme)
        is_checked = False
        if scheme == "s3":
            data, etag = _from_s3(files, self.place, start, stop, self._etag)
            is_checked = etag == self._etag
        else:
            more = {}
            if scheme in ("http", "https") and self._etag and not self._etag.startswith("W/"):
                more, is_checked = {"headers": {"If-Match": self._etag}}, True
            data = files.cat_file(_path(self.place), start=start, end=stop, **more)
        if len(data) > stop - start and len(data) == self.stamp.size:
            data = data[start:stop]  # the server ignores ranges
        # Other services have no condition on reading: ask what the object is now.
        if not is_checked and _facts(self.place, _fresh(self.place))[0] != self.stamp:
            raise ChangedError(
                f"{self.place} has changed since it was listed: what is done is kept, run again"
            )
        if len(data) != stop - start:
            raise CutError
        return bytes(data)


def write_object(url: str, data: bytes, *, is_new: bool = False) -> None:
    """Write an object whole or not at all; a service replaces objects at once.

    Args:
        is_new: refuse to replace an object, on services that can tell.

    Raises:
        FileExistsError: `is_new`, and there is one.
        StorageError: the service refuses or does not answer.
    """
    refuse_credentials(url)
    files = filesystem(scheme_of(url))
    if is_new and exists(url):
        raise FileExistsError(url)
    mode = {"mode": "create"} if is_new and scheme_of(url) == "s3" else {}

    def write() -> None:
        try:
            files.pipe_file(_path(url), data, **mode)
        except Exception as error:
            if not isinstance(error, FileExistsError) and status_of(error) != 412:
                raise
            forget([url])  # perhaps it is of an earlier attempt whose answer was lost
            if RemoteObject(url).read_whole() != data:
                raise FileExistsError(url) from None

    try:
        retried(write, url)
    finally:
        forget([url])


def remove_object(url: str) -> None:
    """Remove an object; it may be gone already."""
    files = filesystem(scheme_of(url))
    with contextlib.suppress(NotThereError):
        retried(lambda: files.rm_file(_path(url)), url)
    forget([url])


# --- what services answer ---------------------------------------------------------------


def _from_s3(files: Any, url: str, start: int, stop: int, etag: str) -> tuple[bytes, str]:
    """Read a range of an object of S3 only if it is still of this version."""
    from fsspec.asyn import sync

    bucket, key, _ = files.split_path(_path(url))

    async def ask() -> tuple[bytes, str]:
        # s3fs's own readers state no version.
        answer = await files._call_s3(
            "get_object",
            Bucket=bucket,
            Key=key,
            Range=f"bytes={start}-{stop - 1}",
            **({"IfMatch": etag} if etag else {}),
        )
        async with answer["Body"] as body:
            return await body.read(), answer.get("ETag", "")

    found: tuple[bytes, str] = sync(files.loop, ask)
    return found


def _known(url: str) -> tuple[Stamp, str]:
    with _lock:
        known = _listed.get(url)
    if known is None:
        refuse_credentials(url)
        known = _note(url, _fresh(url))
    return known


def _fresh(url: str) -> dict[str, Any]:
    """Ask what an object is now."""
    files = filesystem(scheme_of(url))
    facts: dict[str, Any] = retried(lambda: files.info(_path(url)), url)
    if facts.get("type") == "directory":
        raise NotThereError(f"{url} is no object: name a file, or the folder of a collection")
    return facts


def _note(url: str, facts: dict[str, Any]) -> tuple[Stamp, str]:
    known = _facts(url, facts)
    with _lock:
        _listed[url] = known
    return known


def _facts(url: str, facts: dict[str, Any]) -> tuple[Stamp, str]:
    """Return stamp and ETag from what any file system of fsspec says of an object."""
    size = facts.get("size")
    if size is None:
        raise StorageError(f"{url}: the server does not say how large it is: get the file first")
    lfs = facts.get("lfs")
    etag = next((facts[name] for name in _ETAGS if facts.get(name)), lfs or "")
    time = next((facts[name] for name in _TIMES if facts.get(name)), "")
    mark = hashlib.blake2b(f"{etag!s}".encode(), digest_size=7).digest()
    return Stamp(int(size), _nanoseconds(time), int.from_bytes(mark)), str(etag)


def _nanoseconds(time: Any) -> int:
    if isinstance(time, datetime.datetime):
        return int(time.timestamp()) * 10**9
    if isinstance(time, int | float):
        return int(time) * 10**9
    mark = hashlib.blake2b(str(time).encode(), digest_size=7).digest()
    return int.from_bytes(mark) if time else 0


def _path(url: str) -> str:
    """Return what a file system of fsspec calls an object: without scheme, but with HTTP's."""
    return url if scheme_of(url) in ("http", "https") else url.partition("://")[2]
