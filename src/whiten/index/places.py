"""From the place of an index to the backend that keeps it there."""

from __future__ import annotations

import os
from importlib import import_module

from whiten.errors import ConfigError
from whiten.index.local.folder import FolderIndex
from whiten.index.rows import Backend

# Vector databases, by the scheme of their place: module and class, opened by what follows.
DATABASES = {
    "milvus": ("whiten.index.databases.milvus", "MilvusIndex"),
    "pgvector": ("whiten.index.databases.pgvector", "PgvectorIndex"),
}


def open_place(place: str | os.PathLike[str]) -> Backend:
    """Open the place of an index, existing or to be.

    Args:
        place: a folder, `milvus:URI` or `pgvector:DSN`; a database's address may end in `#NAME`,
            the collection or table, and that in `?index=hnsw`; see `databases.addresses`.

    Raises:
        StoreError: something else is there, or it is damaged or cannot be reached.
        MissingExtraError: the database's client is not installed.
    """
    text = os.fspath(place)
    scheme, colon, rest = text.partition(":")
    if colon and scheme in DATABASES:
        if not rest:
            raise ConfigError(f"{text} names no database: write {scheme}:ADDRESS")
        module, name = DATABASES[scheme]
        backend: Backend = getattr(import_module(module), name)(rest)
        return backend
    return FolderIndex(text)
