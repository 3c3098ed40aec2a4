"""Where a store is: a folder, or a prefix of a storage service.

A service has no renames and no locks: a shard is one object, which appears whole or not at all, and
is only created, never replaced, while images are appended.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from whiten.errors import ConfigError, NotThereError, StorageError, StoreError
from whiten.storage.objects import exists, find_objects, remove_object, write_object
from whiten.storage.services import scheme_of
from whiten.utils.urls import as_url

_MARK = ".whiten-store"
_WRITABLE = ("s3", "gs", "az")


def is_shard_name(name: str) -> bool:
    """Return whether a file of this name is a shard of a store."""
    return re.fullmatch(r"part-\d{6,}\.parquet", name) is not None


def is_store(source: Path) -> bool:
    """Return whether a folder or a prefix is a store of embeddings rather than of images."""
    if (url := as_url(source)) is not None:
        with _naming_the_place():
            return scheme_of(url) in _WRITABLE and not source.suffix and exists(f"{url}/{_MARK}")
    return source.is_dir() and any(is_shard_name(path.name) for path in source.iterdir())


def is_place(root: Path) -> bool:
    """Return whether there is such a folder, or anything below such a URL."""
    return bool(_names(root)) if as_url(root) is not None else root.is_dir()


def prepare(root: Path) -> None:
    """Make the place of a store, or see that it can be written to, before anything is computed.

    Raises:
        ConfigError: the service is only read.
        StorageError: it refuses or does not answer.
    """
    if (url := as_url(root)) is None:
        root.mkdir(parents=True, exist_ok=True)
        for stale in root.glob(".*part-*.partial"):
            stale.unlink()
        return
    if scheme_of(url) not in _WRITABLE:
        raise ConfigError(
            f"{url}: whiten only reads {scheme_of(url)}://: name a folder, or s3://, gs:// or az://"
        )
    with _naming_the_place():
        write_object(f"{url}/{_MARK}", b"an embedding store of whiten\n")


def shard_paths(root: Path) -> list[Path]:
    """Return the shards of a store, in order.

    Raises:
        StoreError: the place holds something else.
    """
    names = _names(root)
    for name in names:
        if not is_shard_name(name) and not name.startswith("."):
            raise StoreError(
                f"{root} is not an embedding store, it holds {name!r}: name an empty or new folder"
            )
    return [root / name for name in names if not name.startswith(".")]


def remove_shard(path: Path) -> None:
    if (url := as_url(path)) is not None:
        remove_object(url)
    else:
        path.unlink()


@contextmanager
def _naming_the_place() -> Iterator[None]:
    """Name the place in errors rather than its mark, which users did not write."""
    try:
        yield
    except StorageError as error:
        raise type(error)(str(error).replace(f"/{_MARK}", "")) from error


def _names(root: Path) -> list[str]:
    if (url := as_url(root)) is None:
        return sorted(path.name for path in root.iterdir())
    start = f"{url.rstrip('/')}/"
    try:
        return sorted(found.removeprefix(start) for found in find_objects(url))
    except NotThereError:
        return []
