"""Run `whiten compact`: embed or open, measure, and write an index."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from whiten.compact.table import Costs, measure_costs
from whiten.datasets.collection import Items
from whiten.datasets.finding import find_items
from whiten.datasets.patterns import Patterns
from whiten.embedding.encoder import Encoder
from whiten.embedding.rows import embed_rows, open_store, require_embedded_by
from whiten.errors import ConfigError
from whiten.index import Index
from whiten.index.local.storage.kinds import default_kinds
from whiten.media.reading import Skipped
from whiten.store.places import is_store
from whiten.store.rows import stored_items, stored_rows
from whiten.utils.arrays import Vectors
from whiten.utils.files import temporary_folder
from whiten.utils.urls import as_path


@dataclass(frozen=True)
class Embedded:
    """A collection's embeddings, kept until the context ends.

    Attributes:
        items, vectors: in the same order; vectors (n, dim) float32, memory-mapped.
        name: name of their model.
        encoder: None for a store opened without one.
        folder: folder for further embeddings.
        skipped: images that could not be used, with the reason.
    """

    items: Items
    vectors: Vectors
    name: str
    encoder: Encoder | None
    folder: Path
    skipped: list[Skipped]


@contextmanager
def open_embedded(
    source: Path,
    encoder: Encoder | None,
    cache: Path | None,
    *,
    exclude: Patterns = (),
    include: Patterns = (),
    show_progress: bool = False,
) -> Iterator[Embedded]:
    """Embed missing images, or open a store, and write the vectors into a file.

    Args:
        exclude, include: patterns that choose among the images, see `whiten.datasets.patterns`.

    Raises:
        ConfigError: images are given without an encoder, patterns for a store, or the store is of
            another model.
    """
    with temporary_folder() as temporary:
        folder = cache or temporary
        folder.mkdir(parents=True, exist_ok=True)
        if (store := open_store(source, exclude, include)) is not None:
            require_embedded_by(store, encoder)
            items = stored_items(store)
            vectors = stored_rows(store, items, folder)
            name = store.origin.uri if encoder is None else encoder.name
            yield Embedded(items, vectors, name, encoder, folder, store.skipped)
            return
        if encoder is None:
            raise ConfigError(f"{source} has no embeddings yet: add --model MODEL")
        kept, vectors, skipped = embed_rows(
            encoder,
            find_items(source, None, exclude, include),
            cache=folder,
            show_progress=show_progress,
        )
        yield Embedded(kept, vectors, encoder.name, encoder, folder, skipped)


def costs_of(
    source: Embedded,
    kinds: Sequence[str],
    queries: Path | None = None,
    *,
    exclude: Patterns = (),
    include: Patterns = (),
    show_progress: bool = False,
) -> Costs:
    """Measure the table of kinds, by default a range of them.

    Queries that cannot be read join what the source skipped.

    Raises:
        ConfigError: queries are given without an encoder, or a kind is unknown.
    """
    searching = None
    if queries is not None:
        if source.encoder is None:
            raise ConfigError("queries must be embedded: add --model MODEL")
        who, vectors, skipped = embed_rows(
            source.encoder,
            find_items(queries, None, exclude, include),
            # Ids are unique only within a folder, so each collection has its own stores.
            cache=source.folder / "queries",
            show_progress=show_progress,
        )
        source.skipped.extend(skipped)
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
    source: Embedded,
    images: Path,
    kind: str,
    out: Path,
    *,
    exclude: Patterns = (),
    include: Patterns = (),
    show_progress: bool = False,
) -> Index:
    """Write an index of the measured embeddings; see `Index.build`.

    Args:
        images: origin of `source`.
        exclude, include: the patterns that chose among them.
    """
    return Index.build(
        None if is_store(as_path(images)) else source.encoder,
        images,
        out,
        storage=kind,
        cache=source.folder,
        exclude=exclude,
        include=include,
        show_progress=show_progress,
    )
