"""Build, open, change and search an index, wherever it lies."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pyarrow as pa

from whiten.encoder import Embeddable, Encoder, load
from whiten.errors import ConfigError, StoreError
from whiten.index.metadata import has_metadata, read_metadata
from whiten.index.places import open_place
from whiten.index.rows import FILTERABLE, Backend, Facts, Match, matches
from whiten.index.sources import ImageSource, Source, StoreSource
from whiten.index.synchronise import Changes, synchronise
from whiten.index.where import Where, parse_where
from whiten.media import Item, Items, Skipped, find_items
from whiten.store import Store, Vectors

Place: TypeAlias = str | os.PathLike[str]
Images: TypeAlias = Place | Sequence[Item]


class Index:
    """Vectors of a collection, searched by image; made with one encoder, and asked with it.

    Attributes:
        changes: what the last `build`, `add` or `remove` did.
    """

    def __init__(self, backend: Backend, encoder: Encoder | None = None) -> None:
        self._backend = backend
        self._encoder = encoder
        self.changes = Changes()

    # --- opening ------------------------------------------------------------------------

    @classmethod
    def open(cls, place: Place, encoder: Encoder | None = None) -> Index:
        """Open an index.

        Args:
            place: a folder, `milvus:URI` or `pgvector:DSN`.
            encoder: that queries are embedded with; by default the one it was made with, opened
                when it is first needed.

        Raises:
            StoreError: none is there, it is damaged, or the encoder is another model.
        """
        backend = open_place(place)
        if backend.facts is None:
            raise StoreError(
                f"{backend.place} is not an index: make one with `whiten index IMAGES "
                f"--student STUDENT --out {backend.place}`"
            )
        index = cls(backend, encoder)
        if encoder is not None:
            index.require(encoder)
        return index

    @classmethod
    def build(
        cls,
        encoder: Encoder | str | None,
        images: Images,
        place: Place,
        *,
        metadata: str | os.PathLike[str] | None = None,
        keep: bool = False,
        show_progress: bool = False,
    ) -> Index:
        """Index a collection, or bring its index up to date; only what is new is embedded.

        Args:
            encoder: an `Encoder`, or what `whiten.load` takes; may be None for a store.
            images: a folder, a table of paths, items, or a store of embeddings.
            place: where the index lies or shall lie: a folder, `milvus:URI` or `pgvector:DSN`.
            metadata: CSV or Parquet with columns to filter by, and `id` or `path`; by default the
                other columns of the table of images.
            keep: add and update, but remove nothing.

        Raises:
            StoreError: the place holds something else, another model's index, or an index of other
                images, or another process is changing it.
            NoImagesError: no image can be read.
        """
        index = cls(open_place(place), encoder if isinstance(encoder, Encoder) else None)
        source = _open_source(encoder, images)
        with index._backend.writing():
            index._change(source, _origin(images), metadata, images, keep, show_progress)
        return index

    def add(
        self,
        images: Images,
        *,
        metadata: str | os.PathLike[str] | None = None,
        show_progress: bool = False,
    ) -> Changes:
        """Index more images, or update some; see `build`."""
        source = _open_source(self.encoder, images)
        with self._backend.writing():
            self._change(source, _origin(images), metadata, images, True, show_progress)
        return self.changes

    def remove(self, ids: Sequence[str] | str) -> Changes:
        """Take images out, by id.

        Raises:
            StoreError: an id is not there; nothing is removed then.
        """
        gone = [ids] if isinstance(ids, str) else list(dict.fromkeys(ids))
        with self._backend.writing():
            self._backend.fetch(gone)  # refuses what is not there
            self._backend.write(self.facts, gone, ())
        self.changes = Changes(removed=len(gone), unchanged=len(self))
        return self.changes

    def _change(
        self,
        source: Source,
        origin: str | None,
        metadata: str | os.PathLike[str] | None,
        images: Images,
        keep: bool,
        show_progress: bool,
    ) -> None:
        """Bring the index up to date, while no one else writes."""
        before = self._backend.facts
        if before is not None and before.model != source.model:
            raise StoreError(
                f"{self.place} was made with another model, {before.name} ({before.model[:8]}), "
                f"than {source.name} ({source.model[:8]}): name another place, or delete this index"
            )
        sources = [] if before is None else before.sources
        if origin is not None and origin not in sources:
            if sources and not keep:
                raise StoreError(
                    f"{self.place} is of {sources[0]}, not of {origin}: add these images with "
                    "--add, or name another place"
                )
            sources = [*sources, origin]
        elif len(sources) > 1 and not keep:
            raise StoreError(
                f"{self.place} is of {len(sources)} collections, so that what {origin} lacks may "
                "belong to another one: bring it up to date with --add"
            )
        columns = {} if before is None or not keep else before.columns
        if metadata is None and isinstance(images, str | os.PathLike) and has_metadata(images):
            metadata = images
        table = None
        if metadata is not None:
            table, own = read_metadata(metadata, source.items)
            columns = columns | own
        if missing := [name for name in columns if table is None or name not in table.schema.names]:
            table = _with_nulls(table, missing, columns, len(source.items))
        facts = Facts(
            source.model, source.uri, source.name, source.dim, sources, columns, skipped=[]
        )
        self.changes = synchronise(
            self._backend, source, facts, table, keep=keep, show_progress=show_progress
        )

    # --- what is there ------------------------------------------------------------------

    @property
    def facts(self) -> Facts:
        """What it was made with."""
        assert self._backend.facts is not None
        return self._backend.facts

    @property
    def place(self) -> str:
        """Where it lies."""
        return self._backend.place

    @property
    def skipped(self) -> list[Skipped]:
        """Images that could not be read, and why."""
        return self.facts.skips

    @property
    def encoder(self) -> Encoder:
        """That queries are embedded with.

        Raises:
            ConfigError: a single URI does not open it: pass it to `Index.open`.
            StoreError: what its URI opens now is another model.
        """
        if self._encoder is None:
            if not self.facts.uri:
                raise ConfigError(
                    f"{self.place} was made with {self.facts.name}, which no single URI opens: "
                    "name the model with --student"
                )
            encoder = load(self.facts.uri)
            self.require(encoder)
            self._encoder = encoder
        return self._encoder

    def require(self, encoder: Encoder) -> None:
        """Refuse the queries of another model.

        Raises:
            StoreError: the index was made with another one.
        """
        if encoder.fingerprint() != self.facts.model:
            raise StoreError(
                f"{self.place} was made with another model, {self.facts.name} "
                f"({self.facts.model[:8]}), than {encoder.name} ({encoder.fingerprint()[:8]}): ask "
                "with that one, or make another index"
            )

    def refresh(self) -> None:
        """See what other processes have changed since."""
        self._backend.refresh()

    def __len__(self) -> int:
        return len(self._backend)

    def ids(self) -> list[str]:
        """Of all images."""
        return [name for page in self._backend.pages(1 << 16) for name in page["id"].to_pylist()]

    def items(self, ids: Sequence[str]) -> list[Match]:
        """What is known of images; their score is 1.

        Raises:
            StoreError: an id is not there.
        """
        rows = self._backend.fetch(ids).rows
        return matches(rows, np.ones(len(rows)), self.facts.columns)

    def vectors(self, ids: Sequence[str]) -> Vectors:
        """(n, dim) embeddings of images, float32, L2-normalised.

        Raises:
            StoreError: an id is not there.
        """
        return self._backend.fetch(ids).vectors

    def pages(self, size: int = 1000) -> Iterator[pa.Table]:
        """All rows in order, some at a time; their columns are `facts.schema()`."""
        return self._backend.pages(size)

    # --- searching ----------------------------------------------------------------------

    def search(
        self,
        queries: Sequence[Embeddable] | Embeddable,
        k: int = 10,
        *,
        where: str | Where | None = None,
    ) -> list[list[Match]]:
        """For each query its k nearest images, best first.

        Args:
            queries: paths, PIL images, or (h, w, 3) uint8 RGB arrays.
            where: a filter such as `price < 10 and group == "shoes"`, see `whiten.index.where`.

        Raises:
            ImageError: a query cannot be read.
            ConfigError: k is below 1, or the filter cannot be read.
            StoreError: the encoder is another model than the index was made with.
        """
        return self.search_vectors(self.encoder.embed(queries), k, where=where)

    def search_vectors(
        self, queries: Vectors, k: int = 10, *, where: str | Where | None = None
    ) -> list[list[Match]]:
        """`search` with (n, dim) embeddings of the index's own model, or of one that goes with it.

        Raises:
            ConfigError: k is below 1, the filter cannot be read, or the dimension is another.
        """
        if k < 1:
            raise ConfigError(f"k must be at least 1, not {k}")
        if queries.ndim != 2 or queries.shape[1] != self.facts.dim:
            raise ConfigError(
                f"queries must be (n, {self.facts.dim}), as the index is, not {queries.shape}"
            )
        if isinstance(where, str):
            where = parse_where(where, FILTERABLE | self.facts.columns)
        return self._backend.search(queries, k, where)


def _open_source(encoder: Encoder | str | None, images: Images) -> Source:
    if isinstance(images, str | os.PathLike) and is_store(images):
        return StoreSource(Store.open(images))
    if encoder is None:
        raise ConfigError("images need a model that embeds them: name it with --student")
    model = encoder if isinstance(encoder, Encoder) else load(encoder)
    found = find_items(images) if isinstance(images, str | os.PathLike) else Items.of(images)
    return ImageSource(model, found)


def is_store(images: str | os.PathLike[str]) -> bool:
    """Whether a folder holds embeddings, not images."""
    return any(Path(images).glob("part-*.parquet"))


def _origin(images: Images) -> str | None:
    return str(Path(images).resolve()) if isinstance(images, str | os.PathLike) else None


def _with_nulls(
    table: pa.Table | None, names: Sequence[str], columns: dict[str, str], count: int
) -> pa.Table:
    """Columns that the index has and this collection does not."""
    from whiten.index.rows import TYPES

    held = {} if table is None else {name: table[name] for name in table.schema.names}
    return pa.table(held | {name: pa.nulls(count, TYPES[columns[name]]) for name in names})
