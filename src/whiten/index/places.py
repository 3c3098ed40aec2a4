"""Open the backend of an index from its place."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import import_module
from typing import TypeAlias

from whiten.errors import ConfigError, StoreError
from whiten.index.joined import JoinedIndex
from whiten.index.local.folder import FolderIndex
from whiten.index.rows import Backend
from whiten.storage.services import refuse_as_index, refuse_as_output

Place: TypeAlias = str | os.PathLike[str]
Places: TypeAlias = Place | Sequence[Place]

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


def open_existing(places: Places) -> Backend:
    """Open the place of an existing index, or several as one that is only searched.

    Raises:
        StoreError: there is no index, it is damaged or cannot be reached, or several are of
            different models or have the same id.
        ConfigError: no place is named, one is a URL or named twice, or a column holds values of
            different kinds.
    """
    every = [places] if isinstance(places, str | os.PathLike) else list(places)
    if not every:
        raise ConfigError("name the place of an index")
    opened: dict[str, Backend] = {}
    for place in every:
        refuse_as_index(place)
        backend = open_place(place)
        if backend.facts is None:
            raise StoreError(
                f"{backend.place} is not an index: make one with `whiten index IMAGES "
                f"--model MODEL --out {backend.place}`"
            )
        key = os.path.realpath(place) if isinstance(backend, FolderIndex) else backend.place
        if opened.setdefault(key, backend) is not backend:
            raise ConfigError(f"{backend.place} is named twice: name each index once")
    return JoinedIndex(list(opened.values())) if len(opened) > 1 else backend
