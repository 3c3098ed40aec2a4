"""Sources of an index's vectors: images and an encoder, or a store of embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from whiten.datasets.collection import Item, Items
from whiten.embedding.encoder import Encoder
from whiten.embedding.rows import embed_rows
from whiten.errors import ImageError, NoImagesError
from whiten.index.rows import Facts, write_stamp
from whiten.media.decoding import decode
from whiten.media.reading import Skipped, read_bytes, skipped_for, stamp_of
from whiten.store.shards import read_columns
from whiten.store.store import Store
from whiten.utils.arrays import Vectors
from whiten.utils.hashing import content_hash, fingerprint
from whiten.utils.threads import ordered_map

if TYPE_CHECKING:
    from whiten.embedding.cluster import Cluster

_WORKERS = 4  # threads that read files
_AHEAD = 64


@dataclass(frozen=True)
class Embedded:
    """Result of embedding some images.

    Attributes:
        rows: (n,) positions of the embedded ones among the requested.
        vectors: (n, dim) float32, L2-normalised.
        skipped: the others, with the reason.
    """

    rows: npt.NDArray[np.int64]
    vectors: Vectors
    skipped: list[Skipped]


class Source(Protocol):
    """A collection that can be indexed.

    Attributes:
        items: the images, with unique ids.
        model, uri, name, dim: properties of the encoder, as in `Facts`.
    """

    items: Items
    model: str
    uri: str
    name: str
    dim: int

    @property
    def runtime(self) -> str | None:
        """Runtime of the model; None if the embeddings are stored."""

    def made(self, index: Facts) -> bool:
        """Return whether the vectors of an index were made by this source's encoder."""

    def stamps(self) -> pa.Array:
        """Return a stamp per file, a string that is equal while the file is unchanged, "" if it is
        missing."""

    def hashes(self, items: Items) -> list[str | Skipped]:
        """Return the content hash of each image, or why it cannot be read."""

    def expect(self, items: Items) -> None:
        """Prepare for `embed` of parts of these images, if many at once are faster."""

    def embed(self, items: Items) -> Embedded:
        """Embed images; fastest if they are adjacent in `items`."""


class ImageSource:
    """Images, embedded on demand, or read from a folder of stores."""

    def __init__(
        self,
        encoder: Encoder,
        items: Items,
        cache: Path | None = None,
        cluster: Cluster | None = None,
    ) -> None:
        self.encoder = encoder
        self.cache = cache
        self._cluster = cluster
        self._ahead: tuple[Items, Vectors, list[Skipped]] | None = None
        self.items = items
        self.model = encoder.fingerprint()
        self.uri = encoder.uri
        self.name = encoder.name
        self.dim = encoder.dim

    @property
    def runtime(self) -> str:
        return self.encoder.runtime

    def made(self, index: Facts) -> bool:
        return self.encoder.made(index.uri, index.model)

    def stamps(self) -> pa.Array:
        return _stamps(self.items)

    def hashes(self, items: Items) -> list[str | Skipped]:
        return list(ordered_map(_hash, items, workers=_WORKERS, ahead=_AHEAD))

    def expect(self, items: Items) -> None:
        if self._cluster is None:
            return
        try:
            self._ahead = embed_rows(self.encoder, items, cache=self.cache, cluster=self._cluster)
        except NoImagesError:  # `embed` says why
            self._ahead = None

    def embed(self, items: Items) -> Embedded:
        if self._ahead is not None:
            kept, vectors, skipped = self._ahead
            rows = kept.by_id.rows(items.ids.to_pylist())
            here = np.flatnonzero(rows >= 0)
            why = {skip.id: skip for skip in skipped}
            lost = [why[item.id] for item in items.take(rows < 0)]
            return Embedded(here, vectors[rows[here]], lost)
        try:
            kept, vectors, skipped = embed_rows(self.encoder, items, cache=self.cache)
        except NoImagesError:  # none of these; others may be readable
            none = np.zeros((0, self.dim), np.float32)
            return Embedded(np.zeros(0, np.int64), none, [_why_not(item) for item in items])
        return Embedded(items.by_id.rows(kept.ids.to_pylist()), vectors, skipped)


def _stamps(items: Items) -> pa.Array:
    """Stamp files one by one: as a list, the stamps of ten million take a gigabyte."""
    stamps = (write_stamp(stamp_of(item.path)) for item in items)
    return pa.array(stamps, pa.large_string(), size=len(items))


def _hash(item: Item) -> str | Skipped:
    try:
        return content_hash(read_bytes(item.path))
    except ImageError as error:
        return skipped_for(item.id, error)


def _why_not(item: Item) -> Skipped:
    try:
        decode(read_bytes(item.path))
    except ImageError as error:
        return skipped_for(item.id, error)
    return Skipped(item.id, "the model cannot embed it")


class _Embedded:
    """A source of images that are embedded already."""

    model: str
    runtime: None = None

    def expect(self, items: Items) -> None:
        """Do nothing: there is nothing to compute."""

    def made(self, index: Facts) -> bool:
        return index.model == self.model


class VectorSource(_Embedded):
    """Images that are embedded already, such as those that a service receives.

    Args:
        model: fingerprint of the index's model when they were embedded.
        index: facts of the index that they are added to.
        hashes: content hash per image.
        vectors: (n, dim) float32, L2-normalised.
    """

    def __init__(
        self, model: str, index: Facts, items: Items, hashes: Sequence[str], vectors: Vectors
    ) -> None:
        self.model, self.uri, self.name, self.dim = model, index.uri, index.name, index.dim
        self.items = items
        self._hashes, self._vectors = hashes, vectors

    def stamps(self) -> pa.Array:
        return _stamps(self.items)

    def hashes(self, items: Items) -> list[str | Skipped]:
        return [self._hashes[row] for row in self._rows(items)]

    def embed(self, items: Items) -> Embedded:
        return Embedded(np.arange(len(items)), self._vectors[self._rows(items)], [])

    def _rows(self, items: Items) -> npt.NDArray[np.int64]:
        return self.items.by_id.rows(items.ids.to_pylist())


class StoreSource(_Embedded):
    """The whole images (view 0) of a store; embeds nothing and opens no model."""

    def __init__(self, store: Store) -> None:
        self.store = store
        origin = store.origin
        self.model = fingerprint([[origin.fingerprint], [None]])  # as for an encoder of one part
        self.uri, self.name, self.dim = origin.uri, origin.uri, origin.dim
        tables = []
        for number, shard in enumerate(store.shards):
            seen = store.seen(shard)
            table = read_columns(shard.path).drop_columns("embedding")
            stamps = [write_stamp(seen[name].stamp) for name in table["id"].to_pylist()]
            more = {
                "stamp": pa.array(stamps, pa.string()),
                "shard": pa.array(np.full(len(table), number)),
                "row": pa.array(np.arange(len(table))),
            }
            for name, column in more.items():
                table = table.append_column(name, column)
            tables.append(table.filter(pc.equal(table["view"], 0)))
        self._rows = pa.concat_tables(tables).sort_by("id")
        self.items = Items.from_table(self._rows)

    def stamps(self) -> pa.Array:
        stamp, digest = (
            self._rows[name].cast(pa.large_string()) for name in ("stamp", "content_hash")
        )
        mark, nothing = (pa.scalar(text, pa.large_string()) for text in ("#", ""))
        content = pc.binary_join_element_wise(mark, digest, nothing)
        return pc.if_else(pc.equal(stamp, ""), content, stamp)

    def hashes(self, items: Items) -> list[str | Skipped]:
        hashes: list[str | Skipped] = self._of(items)["content_hash"].to_pylist()
        return hashes

    def embed(self, items: Items) -> Embedded:
        rows = self._of(items)
        shards, inside = rows["shard"].to_numpy(), rows["row"].to_numpy()
        vectors = np.empty((len(items), self.dim), np.float32)
        for number in np.unique(shards):
            here = shards == number
            vectors[here] = self.store.vectors(self.store.shards[number])[inside[here]]
        return Embedded(np.arange(len(items)), vectors, [])

    def _of(self, items: Items) -> pa.Table:
        return self._rows.take(pa.array(self.items.by_id.rows(items.ids.to_pylist())))
