"""Open the collection of an index, check it against the index, and describe it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import pyarrow as pa

from whiten.datasets.collection import Items
from whiten.datasets.finding import find_items
from whiten.datasets.given import FRAME, frame_table, given_items, is_frame
from whiten.datasets.patterns import Patterns
from whiten.datasets.shards import shard_table
from whiten.datasets.tables import is_table
from whiten.embedding.encoder import Encoder
from whiten.embedding.opening import load
from whiten.embedding.rows import require_embedded_by
from whiten.errors import ConfigError, StoreError
from whiten.index.colours import converted
from whiten.index.keeping import Columns, columns_after
from whiten.index.membership import Membership, Numbers, join, named
from whiten.index.metadata import Metadata, read_metadata
from whiten.index.places import Place
from whiten.index.rows import Facts
from whiten.index.sources import ImageSource, Source, StoreSource
from whiten.store.places import is_store as _is_store
from whiten.store.store import Store
from whiten.utils.urls import as_path, named_place

if TYPE_CHECKING:
    from whiten.embedding.cluster import Cluster

Images: TypeAlias = Any
"""A folder, a table, a store; or items, paths or a data frame, see `given_items`."""


def open_source(
    encoder: Encoder | str | None,
    images: Images,
    cache: Place | None = None,
    exclude: Patterns = (),
    include: Patterns = (),
    cluster: Cluster | None = None,
) -> Source:
    """Open a folder, a table, items, or a store of embeddings, which needs no encoder.

    Args:
        cache: folder that keeps embeddings between calls; none by default.
        exclude, include: patterns that choose among the images of a folder or table.
        cluster: computes the embeddings; by default this process does.

    Raises:
        ConfigError: there are images and no encoder, patterns and a store or items, or a store of
            another encoder.
    """
    place = images if isinstance(images, str | os.PathLike) else None
    if (exclude or include) and (place is None or is_store(place)):
        raise ConfigError("--exclude and --include choose among the images of a folder or a table")
    if place is not None and is_store(place):
        store = Store.open(place)
        named = load(encoder) if isinstance(encoder, str | os.PathLike) else encoder
        require_embedded_by(store, named)
        store.say_colours()
        return StoreSource(store)
    if encoder is None:
        raise ConfigError("images need a model that embeds them: name it with --model")
    if isinstance(images, str | os.PathLike):
        found = find_items(images, None, exclude, include)
    else:
        found = given_items(images)
    model = encoder if isinstance(encoder, Encoder) else load(encoder)
    return ImageSource(model, found, None if cache is None else Path(cache), cluster)


def is_store(images: Place) -> bool:
    """Return whether a folder holds embeddings rather than images."""
    return _is_store(as_path(images))


def describe(
    source: Source,
    images: Images,
    metadata: Any,
    before: Facts | None,
    place: str,
    keep: bool,
    known: Callable[[], pa.Table],
    name: str | None = None,
    drop: Sequence[str] = (),
) -> tuple[Facts, Columns, Membership]:
    """Return the facts of the index once the collection is indexed.

    The ids of the source get the name of its collection, if it has one.

    Args:
        images: where the source comes from.
        metadata: table of the user's columns; by default the source's own.
        before: the facts of the existing index; None for a new one.
        place: the place of the index, for messages.
        keep: whether images that the collection lacks stay in the index.
        known: returns the rows of the existing index.
        name: name that the collection's ids shall begin with; None keeps the earlier one.
        drop: metadata columns to drop.

    Returns:
        The facts, the user's columns, and the collections.

    Raises:
        StoreError: the index was made with another model, or of other images.
        ConfigError: the metadata cannot be read, or do not fit those of the index.
    """
    if before is not None and not source.made(before):
        raise StoreError(
            f"{place} was made with another model, {before.name} ({before.model[:8]}), than "
            f"{source.name} ({source.model[:8]}): name another place, or delete this index"
        )
    origin = str(as_path(images).resolve()) if isinstance(images, str | os.PathLike) else None
    joined = join(origin, name, before, place, keep, known)
    given = _metadata(images, metadata, source.items)
    source.items = named(source.items, joined.prefix)

    def rows_so_far() -> tuple[pa.Table, Numbers]:
        assert before is not None  # only an index has columns
        rows = known()
        return rows, joined.find(source.items.ids, rows, before)

    columns = columns_after(
        given,
        {} if before is None else before.columns,
        rows_so_far,
        keep=keep or joined.divided > 0,
        drop=drop,
    )
    # An index of an earlier version keeps the fingerprint that its segments have.
    model = source.model if before is None else before.model
    facts = Facts(
        model,
        source.uri,
        source.name,
        source.dim,
        joined.sources,
        columns.kinds,
        prefixes=joined.prefixes,
        divided=joined.divided,
        converted=converted(joined.sources, joined.number, before),
    )
    return facts, columns, joined


def _metadata(images: Any, metadata: Any, items: Items) -> Metadata | None:
    """Read the columns of the table of metadata, or of the table of images; None without any."""
    if isinstance(metadata, Metadata):
        return metadata
    if metadata is not None:
        is_collection = _is_path(images) and _is_path(metadata) and Path(images) == Path(metadata)
        return _read(metadata, items, is_collection)
    if _is_path(images) and not is_store(images):
        table = shard_table(images, items)
        if table is not None:
            return read_metadata(named_place(images), items, is_collection=True, read=table)
    if not (is_frame(images) or (_is_path(images) and is_table(as_path(images)))):
        return None
    given = _read(images, items, True)
    return given if given.columns else None  # a mere list of images


def _is_path(value: Any) -> bool:
    return isinstance(value, str | os.PathLike)


def _read(table: Any, items: Items, is_collection: bool) -> Metadata:
    if not is_frame(table):
        return read_metadata(table, items, is_collection=is_collection)
    read = frame_table(table, ("path",) if is_collection else ("id", "path"))
    return read_metadata(FRAME, items, is_collection=is_collection, read=read)
