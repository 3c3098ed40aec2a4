"""Open the backend of an index from its place."""

from __future__ import annotations

import os
from importlib import import_module

from whiten.errors import ConfigError
from whiten.index.local.folder import FolderIndex
from whiten.index.rows import Backend
from whiten.storage.services import refuse_as_output

# Vector databases by scheme: module and class, which takes the rest of the place.
DATABASES = {
    "milvus": ("whiten.index.databases.milvus", "MilvusIndex"),
    "pgvector": ("whiten.index.databases.pgvector", "PgvectorIndex"),
}


def open_place(place: str | os.PathLike[str]) -> Backend:
    """Open the place of an existing or new index.

    Args:
        place: a folder, `milvus:URI` or `pgvector:DSN`; a database's address may end in `#NAME`,
            the collection or table, and then `?index=hnsw`; see `databases.addresses`.

    Raises:
        StoreError: the place holds something else, is damaged or cannot be reached.
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
    refuse_as_output(text, "an index")
    return FolderIndex(text)
