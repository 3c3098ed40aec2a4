"""The work of `whiten compact`: embed or open, measure, and write an index."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from whiten.compact.table import Costs, measure_costs
from whiten.datasets.collection import Items
from whiten.datasets.finding import find_items
from whiten.embedding.encoder import Encoder
from whiten.embedding.rows import embed_rows, require_embedded_by
from whiten.errors import ConfigError
from whiten.index import Index
from whiten.index.local.storage.kinds import default_kinds
from whiten.media.reading import Skipped
from whiten.store.rows import is_store, stored_items, stored_rows
from whiten.store.store import Store
from whiten.utils.arrays import Vectors


@dataclass(frozen=True)
class Embedded:
    """A collection's embeddings, for as long as they are needed.

    Attributes:
        items, vectors: rows of the same order; (n, dim) float32, memory-mapped.
        name: of the model that made them.
        encoder: None for a store that was opened without.
        folder: for what else is embedded.
        skipped: what could not be used, and why.
    """

    items: Items
    vectors: Vectors
    name: str
    encoder: Encoder | None
    folder: Path
    skipped: list[Skipped]


@contextmanager
def open_embedded(
    source: Path, encoder: Encoder | None, cache: Path | None, *, show_progress: bool = False
) -> Iterator[Embedded]:
    """Embed what is missing, or open a store, and write the vectors into a file.

    Raises:
        ConfigError: images without an encoder, or a store of another model.
    """
    with tempfile.TemporaryDirectory(prefix="whiten-") as temporary:
        folder = cache or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if is_store(source):
            store = Store.open(source)
            require_embedded_by(store, encoder)
            items = stored_items(store)
            vectors = stored_rows(store, items, folder)
            name = store.origin.uri if encoder is None else encoder.name
            yield Embedded(items, vectors, name, encoder, folder, store.skipped)
            return
        if encoder is None:
            raise ConfigError(f"{source} has no embeddings yet: add --model MODEL")
        kept, vectors, skipped = embed_rows(
            encoder, find_items(source), cache=folder, show_progress=show_progress
        )
        yield Embedded(kept, vectors, encoder.name, encoder, folder, skipped)


def costs_of(
    source: Embedded,
    kinds: Sequence[str],
    queries: Path | None = None,
    *,
    show_progress: bool = False,
) -> Costs:
    """The table of kinds; by default of a spread of them.

    Raises:
        ConfigError: queries without an encoder, or an unknown kind.
    """
    searching = None
    if queries is not None:
        if source.encoder is None:
            raise ConfigError("queries must be embedded: add --model MODEL")
        who, vectors, _ = embed_rows(
            source.encoder,
            find_items(queries),
            # Ids are unique within a folder only, so that each collection has stores of its own.
            cache=source.folder / "queries",
            show_progress=show_progress,
        )
        searching = (who, vectors)
    return measure_costs(
        source.vectors,
        source.items,
        kinds or default_kinds(int(source.vectors.shape[1])),
        queries=searching,
        name=source.name,
        show_progress=show_progress,
    )


def write_index(
    source: Embedded, images: Path, kind: str, out: Path, *, show_progress: bool = False
) -> Index:
    """Write an index of what was measured; see `Index.build`.

    Args:
        images: where `source` comes from.
    """
    return Index.build(
        None if is_store(images) else source.encoder,
        images,
        out,
        storage=kind,
        cache=source.folder,
        show_progress=show_progress,
    )
