"""Open the collection of an index, check it against the index, and describe it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa

from whiten.datasets.collection import Items
from whiten.datasets.finding import find_items
from whiten.datasets.given import frame_table, given_items, is_frame
from whiten.datasets.patterns import Patterns
from whiten.embedding.encoder import Encoder
from whiten.embedding.opening import load
from whiten.errors import ConfigError, StoreError
from whiten.index.colours import converted
from whiten.index.membership import Membership, join, named
from whiten.index.metadata import has_metadata, read_metadata
from whiten.index.rows import TYPES, Facts
from whiten.index.sources import ImageSource, Source, StoreSource
from whiten.store.store import Store

Place: TypeAlias = str | os.PathLike[str]
Images: TypeAlias = Any
"""A folder, a table, a store; or items, paths or a data frame, see `given_items`."""


def open_source(
    encoder: Encoder | str | None,
    images: Images,
    cache: Place | None = None,
    exclude: Patterns = (),
    include: Patterns = (),
) -> Source:
    """Open a folder, a table, items, or a store of embeddings, which needs no encoder.

    Args:
        cache: folder that keeps embeddings between calls; none by default.
        exclude, include: patterns that choose among the images of a folder or table.

    Raises:
        ConfigError: there are images and no encoder, or patterns and a store or items.
    """
    place = images if isinstance(images, str | os.PathLike) else None
    if (exclude or include) and (place is None or is_store(place)):
        raise ConfigError("--exclude and --include choose among the images of a folder or a table")
    if place is not None and is_store(place):
        store = Store.open(place)
        store.say_colours()
        return StoreSource(store)
    if encoder is None:
        raise ConfigError("images need a model that embeds them: name it with --model")
    model = encoder if isinstance(encoder, Encoder) else load(encoder)
    if isinstance(images, str | os.PathLike):
        found = find_items(images, None, exclude, include)
    else:
        found = given_items(images)
    return ImageSource(model, found, None if cache is None else Path(cache))


def is_store(images: Place) -> bool:
    """Return whether a folder holds embeddings rather than images."""
    return any(Path(images).glob("part-*.parquet"))


def describe(
    source: Source,
    images: Images,
    metadata: Any,
    before: Facts | None,
    place: str,
    keep: bool,
    name: str | None = None,
) -> tuple[Facts, pa.Table | None, Membership]:
    """Return the facts of the index once the collection is indexed.

    The ids of the source get the name of its collection, if it has one.

    Args:
        images: where the source comes from.
        metadata: table of the user's columns; by default the source's own.
        before: the facts of the existing index; None for a new one.
        place: the place of the index, for messages.
        keep: whether images that the collection lacks stay in the index.
        name: name that the collection's ids shall begin with; None keeps the earlier one.

    Returns:
        The facts, the user's columns, (n,) in the order of the source's items, and the collections.

    Raises:
        StoreError: the index was made with another model, or of other images.
        ConfigError: the metadata cannot be read.
    """
    if before is not None and not source.made(before):
        raise StoreError(
            f"{place} was made with another model, {before.name} ({before.model[:8]}), than "
            f"{source.name} ({source.model[:8]}): name another place, or delete this index"
        )
    origin = str(Path(images).resolve()) if isinstance(images, str | os.PathLike) else None
    joined = join(origin, name, before, place, keep)
    keeps_columns = keep or joined.divided > 0
    columns = dict(before.columns) if before is not None and keeps_columns else {}
    if metadata is None and _has_metadata(images):
        metadata = images
    held: dict[str, pa.ChunkedArray] = {}
    if metadata is not None:
        table, own = _read_metadata(metadata, source.items)
        columns |= own
        held = {name: table[name] for name in own}
    for column, kind in columns.items():  # columns of earlier additions, empty here
        held.setdefault(column, pa.nulls(len(source.items), TYPES[kind]))
    source.items = named(source.items, joined.prefix)
    # An index of an earlier version keeps the fingerprint that its segments have.
    model = source.model if before is None else before.model
    facts = Facts(
        model,
        source.uri,
        source.name,
        source.dim,
        joined.sources,
        columns,
        prefixes=joined.prefixes,
        divided=joined.divided,
        converted=converted(joined.sources, joined.number, before),
    )
    return facts, pa.table(held) if held else None, joined


def _has_metadata(images: Any) -> bool:
    return is_frame(images) or (isinstance(images, str | os.PathLike) and has_metadata(images))


def _read_metadata(metadata: Any, items: Items) -> tuple[pa.Table, dict[str, str]]:
    if not is_frame(metadata):
        return read_metadata(metadata, items)
    import pyarrow.parquet as pq

    with tempfile.TemporaryDirectory(prefix="whiten-") as folder:
        path = Path(folder) / "the data frame.parquet"
        pq.write_table(frame_table(metadata), path)
        return read_metadata(path, items)
