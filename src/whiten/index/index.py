"""Build, open, change and search an index in any place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from whiten.datasets.patterns import Patterns
from whiten.embedding.encoder import Encoder
from whiten.errors import ConfigError, StoreError
from whiten.index.collections import Images, open_source
from whiten.index.columns import FILTERABLE
from whiten.index.conditions import Where
from whiten.index.local.folder import FolderIndex
from whiten.index.local.storage.kinds import BASE, check_conversion, check_storage
from whiten.index.local.storage.loss import Cost
from whiten.index.local.tuning import Tuning, check_kind
from whiten.index.metadata import Metadata
from whiten.index.model import can_query, open_model, require_model
from whiten.index.places import Place, Places, open_existing, open_place
from whiten.index.rows import Backend, Facts, Match, as_queries, facts_of
from whiten.index.sources import Source
from whiten.index.synchronise import Changes
from whiten.index.updating import update, writing
from whiten.index.where import parse_where
from whiten.media.reading import Skipped
from whiten.models.inputs import Embeddable
from whiten.utils.arrays import Vectors, normalize_rows
from whiten.utils.names import several
from whiten.utils.validation import as_whole

if TYPE_CHECKING:
    from whiten.embedding.cluster import Cluster


class Index:
    """Vectors of a collection, made and queried with one encoder.

    Attributes:
        changes: result of the last `build`, `add` or `remove`.
        runtime: what computed the embeddings of the last `build`; None if none did.
        patience: seconds that a change waits for another process that changes the index.
    """

    patience = 5.0

    def __init__(self, backend: Backend, encoder: Encoder | None = None) -> None:
        self._backend = backend
        self._encoder = encoder
        self._is_given = encoder is not None
        self._checked = ""  # the model that the encoder is known to query
        self.runtime: str | None = None
        self.changes = Changes()

    def __repr__(self) -> str:
        return f"Index({self.place!r})"

    # --- opening ------------------------------------------------------------------------

    @classmethod
    def open(cls, place: Places, encoder: Encoder | None = None) -> Index:
        """Open an index, or several that are searched as one and not changed.

        Args:
            place: a folder, `milvus:URI` or `pgvector:DSN`; or several of them.
            encoder: embeds the queries; by default the encoder of the index, opened on first use.

        Raises:
            StoreError: there is no index, it is damaged, or the encoder is another model; several
                are of different models, or have the same id.
            ConfigError: a column of several holds values of different kinds.
        """
        index = cls(open_existing(place), encoder)
        index._require_complete()
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
        metadata: Any = None,
        keep: bool = False,
        kind: str | None = None,
        recall: float | None = None,
        storage: str | None = None,
        collection: str | None = None,
        remove_missing: bool = False,
        cache: Place | None = None,
        exclude: Patterns = (),
        include: Patterns = (),
        drop_columns: Sequence[str] | str = (),
        show_progress: bool = False,
        cluster: Cluster | None = None,
    ) -> Index:
        """Index a collection, or update its index; only new content is embedded.

        If there are several collections, only this one's images are updated and removed.

        Args:
            encoder: an `Encoder`, or anything that `whiten.load` takes; for a store None, or the
                model that it was made with.
            images: a folder, a table of paths, or a store of embeddings; or, in Python, any number
                of paths or items, or a data frame with the columns of such a table.
            place: where to store the index: a folder, `milvus:URI` or `pgvector:DSN`.
            metadata: CSV, Parquet or a data frame with the column `id` or `path`, and columns to
                filter by; by default the other columns of the table of images. Without any the
                columns of the index stay. With `keep` columns are added, without it they replace
                those of the index; images that the table does not list keep their values.
            keep: add and update images, but remove none.
            kind: search kind: `exact`, `int8` (also exact, scans 8-bit codes), `ivf`, `hnsw`, or
                `auto`, the fastest measured at that recall. By default unchanged, `auto` for a new
                index. Databases choose for themselves.
            recall: minimum recall@10 against exact search, for kinds that are not exact; 0.95 for
                a new index.
            storage: how to store vectors: `float32`, `float16`, `int8`, `pca:K`, `pq:M` or
                `binary`; with `+float32`, as in `int8+float32`, full vectors are kept and re-rank
                the answers. By default unchanged, `float32` for a new index. `loss` holds the
                measured cost on these images.
            collection: name that the ids of these images begin with, so that they are not those of
                another collection's; by default unchanged, none for a new collection.
            remove_missing: remove missing images even if they are more than half of 10 or more,
                which is refused otherwise, because a disk may be missing.
            cache: folder that keeps embeddings between calls; none by default.
            exclude, include: see `whiten.datasets.patterns`; images left out now are removed.
            drop_columns: metadata columns to drop.
            cluster: computes the embeddings, see `whiten.embedding.cluster.connected`.

        Raises:
            ConfigError: the kind, recall or storage is unknown, there are too few images for the
                storage, or the metadata cannot be read or do not fit those of the index.
            MissingExtraError: FAISS is needed, and not installed.
            StoreError: the place holds something else, an index of another model or of other
                images, or another process is changing it; ids are those of another collection's
                images; more than half of the images are missing. Nothing is changed then.
            NoImagesError: no image can be read.
        """
        check_kind(kind, recall)
        if keep and remove_missing:
            raise ConfigError("images are added (--add) or removed (--remove-missing), not both")
        if storage is not None:
            check_storage(storage)
        index = cls(open_place(place), encoder if isinstance(encoder, Encoder) else None)
        wanted = kind or recall or storage not in (None, BASE)
        if wanted and index._local is None:
            raise ConfigError(
                f"{index.place} is a database, which stores {BASE} and searches in its own way: "
                "leave out the kind of search, the recall and the storage, or name a folder"
            )
        if kind is None and recall is not None and index.tuning is not None:
            check_kind(index.tuning.asked, recall)
        source = open_source(encoder, images, cache, exclude, include, cluster)
        if storage is not None:
            check_storage(storage, source.dim)
            check_conversion(index.place, index.storage, storage)
        with index._writing():
            index.changes = update(
                index._backend,
                source,
                images,
                metadata,
                keep=keep,
                collection=collection,
                remove_missing=remove_missing,
                drop=several(drop_columns),
                show_progress=show_progress,
            )
            index.runtime = source.runtime
            if index._local is not None:
                if storage is not None:
                    index._local.store_as(storage)
                index._local.tune(kind, recall)
        return index

    def add(
        self,
        images: Images,
        *,
        metadata: Any = None,
        collection: str | None = None,
        exclude: Patterns = (),
        include: Patterns = (),
        show_progress: bool = False,
    ) -> Changes:
        """Index more images, or update some; see `build`."""
        source = open_source(self.encoder, images, None, exclude, include)
        with self._writing():
            self.changes = update(
                self._backend,
                source,
                images,
                metadata,
                keep=True,
                collection=collection,
                show_progress=show_progress,
                is_opened=True,
            )
        return self.changes

    def put(self, source: Source, metadata: Metadata | None = None) -> Changes:
        """Add or update the images of a source, a collection without a name; see `build`."""
        with self._writing():
            self.changes = update(self._backend, source, (), metadata, keep=True, is_opened=True)
        return self.changes

    def remove(self, ids: Sequence[str] | str) -> Changes:
        """Remove images by id.

        Raises:
            StoreError: an id is not in the index; nothing is removed then.
        """
        gone = list(dict.fromkeys(several(ids)))
        with self._writing():
            with self._naming():
                self._backend.fetch(gone)  # refuses unknown ids
            self._backend.write(self.facts, gone, ())
        self.changes = Changes(removed=len(gone), unchanged=len(self))
        return self.changes

    def _writing(self) -> AbstractContextManager[None]:
        return writing(self._backend, self.patience)

    # --- what is there ------------------------------------------------------------------

    @property
    def facts(self) -> Facts:
        """Properties of the index: model, sources, columns, and more.

        Raises:
            StoreError: the index was deleted since it was opened.
        """
        return facts_of(self._backend)

    @property
    def exists(self) -> bool:
        """Whether there was an index at its place when it was last opened or refreshed."""
        return self._backend.facts is not None

    @property
    def place(self) -> str:
        """Place that opens the index again."""
        return self._backend.place

    @property
    def _local(self) -> FolderIndex | None:
        return self._backend if isinstance(self._backend, FolderIndex) else None

    @property
    def folder(self) -> Path | None:
        """Folder of the index; None for a database."""
        return None if self._local is None else self._local.root

    @property
    def skipped(self) -> list[Skipped]:
        """Images that could not be read, with the reason."""
        return self.facts.skips

    @property
    def encoder(self) -> Encoder:
        """Encoder that embeds the queries.

        Raises:
            ConfigError: no single URI opens it: pass it to `Index.open`.
            StoreError: its URI now opens another model, or the index was made again with another
                one than it was opened with.
        """
        if self._encoder is not None and self._checked != self.facts.model:
            self.require(self._encoder)
        if self._encoder is None:
            self._encoder = open_model(self.facts, self.place)
        self._checked = self.facts.model
        return self._encoder

    def require(self, encoder: Encoder) -> None:
        """Refuse the queries of another model.

        Raises:
            StoreError: the index was made with another model.
        """
        require_model(encoder, self.facts, self.place)

    @property
    def tuning(self) -> Tuning | None:
        """Search kind and its measurements; None for a database."""
        return None if self._local is None else self._local.tuning

    @property
    def storage(self) -> str:
        """Storage kind of the vectors, see `build`."""
        return BASE if self._local is None else self._local.storage.name

    @property
    def loss(self) -> Cost | None:
        """Cost of the storage, measured when it was chosen; None for float32."""
        return None if self._local is None else self._local.storage.loss

    def snapshot(self) -> Index:
        """Return the index of a folder as it is now, for any number of threads to read.

        A database is returned itself: it has one connection, and is always as it is now.
        """
        return self if self._local is None else Index(copy(self._local), self._encoder)

    def refresh(self) -> None:
        """Load what other processes have changed since, and check it as on opening.

        If the index was made again with another model, that model is opened on the next use,
        unless the index was opened with an encoder.

        Raises:
            StoreError: the index was deleted, is being made again, or needs another model than the
                encoder that it was opened with.
        """
        self._backend.refresh()
        self._require_complete()
        if self._encoder is not None and self._checked != self.facts.model:
            if self._is_given:
                self.require(self._encoder)
            elif not can_query(self._encoder, self.facts):
                self._encoder = None

    def _require_complete(self) -> None:
        if not self.facts.complete:
            raise StoreError(
                f"{self.place} is unfinished, because its first run was interrupted: run the same "
                "`whiten index` again to finish it"
            )

    def __len__(self) -> int:
        return len(self._backend)

    def ids(self) -> list[str]:
        """Ids of all images."""
        self._require_complete()
        return [name for page in self._backend.pages(1 << 16) for name in page["id"].to_pylist()]

    def items(self, ids: Sequence[str] | str) -> list[Match]:
        """Return images by id as matches of score 1; raises StoreError for unknown ids."""
        self._require_complete()
        with self._naming():
            return self._backend.items(several(ids))

    def vectors(self, ids: Sequence[str] | str) -> Vectors:
        """Return embeddings by id: (n, dim) float32, L2-normalised.

        Raises:
            StoreError: an id is not in the index.
        """
        self._require_complete()
        with self._naming():
            vectors = self._backend.fetch(several(ids)).vectors
        return vectors if self.storage == BASE else normalize_rows(vectors)

    @contextmanager
    def _naming(self) -> Iterator[None]:
        try:
            yield
        except UnicodeEncodeError as error:  # the bytes of a file name, which are no text
            raise StoreError(f"{self.place} has no image {error.object!r}") from None

    def as_stored(self, vector: Vectors, ids: Sequence[str]) -> Vectors:
        """Return (n, dim): a (1, dim) embedding as it would be stored next to each image."""
        return self._backend.as_stored(vector, ids)

    def pages(self, size: int = 1000) -> Iterator[pa.Table]:
        """Yield all rows in order, in tables of `size` rows and the columns of `facts.schema()`.

        Where one of several indexes holds whole numbers and another floats, a column is of floats;
        whole numbers that no float holds are missing, which is logged: `items` has them.

        Raises:
            ConfigError: size is below 1.
        """
        if as_whole("size", size) < 1:
            raise ConfigError(f"size must be at least 1, not {size}")
        self._require_complete()
        self._backend.tell_lost()
        return self._backend.pages(size)

    # --- searching ----------------------------------------------------------------------

    def search(
        self,
        queries: Iterable[Embeddable] | Embeddable,
        k: int = 10,
        *,
        where: str | Where | None = None,
    ) -> list[list[Match]]:
        """Return the k nearest images of each query, best first.

        Args:
            queries: one or several images, as `Encoder.embed` takes them.
            where: a filter such as `price < 10 and group == "shoes"`, see `whiten.index.where`.

        Raises:
            ImageError: a query cannot be read.
            ConfigError: k is below 1, or the filter cannot be read.
            StoreError: the encoder is not the model of the index.
        """
        return self.search_vectors(self.encoder.embed(queries), k, where=where)

    def search_arrays(
        self, queries: Vectors, k: int = 10, *, where: str | Where | None = None
    ) -> tuple[npt.NDArray[np.object_], Vectors]:
        """Search with embeddings and return arrays, as FAISS does.

        Args:
            queries: (q, dim) embeddings of the index's model.

        Returns:
            (q, k) ids and (q, k) float32 scores, best first. With fewer than k hits, the remaining
            ids are None and their scores -inf.
        """
        found = self.search_vectors(queries, k, where=where)
        ids = np.full((len(found), k), None, object)
        scores = np.full((len(found), k), -np.inf, np.float32)
        for row, hits in enumerate(found):
            ids[row, : len(hits)] = [hit.id for hit in hits]
            scores[row, : len(hits)] = [hit.score for hit in hits]
        return ids, scores

    def search_vectors(
        self, queries: Vectors, k: int = 10, *, where: str | Where | None = None
    ) -> list[list[Match]]:
        """Search with (n, dim) embeddings of the index's model or of a compatible one.

        Raises:
            ConfigError: k is below 1, the filter cannot be read, the dimension differs, a value is
                NaN or infinite, or a query is all zeros.
        """
        if as_whole("k", k) < 1:
            raise ConfigError(f"k must be at least 1, not {k}")
        queries = as_queries(queries, self.facts.dim)
        if isinstance(where, str):
            where = parse_where(where, FILTERABLE | self.facts.columns)
        elif where is not None and not isinstance(where, Where):
            raise ConfigError(f"where must be a text like 'price < 10', not {where!r}")
        return self._backend.search(queries, k, where)
