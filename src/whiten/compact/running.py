"""The work of `whiten compact`: embed or open, measure, and write the kind that was chosen."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from whiten.compact.folder import sample_rows, write_compact
from whiten.compact.kinds import default_kinds, fit, parse_kind
from whiten.compact.table import Costs, measure_costs
from whiten.datasets.collection import Items
from whiten.datasets.finding import find_items
from whiten.embedding.encoder import Encoder, embed_cached
from whiten.embedding.rows import write_embeddings
from whiten.errors import ConfigError, StoreError
from whiten.media.reading import Skipped
from whiten.store.rows import is_store, mapped_rows, stored_items, write_stored
from whiten.store.shards import Row, read_columns
from whiten.store.store import Store
from whiten.utils.arrays import Vectors


@dataclass(frozen=True)
class Embedded:
    """A collection's embeddings, for as long as they are needed.

    Attributes:
        items, vectors: rows of the same order; (n, dim) float32, memory-mapped.
        model: fingerprint and name of what made them.
        encoder: None for a store that was opened without.
        store: where they are kept, if one model made them.
        folder: for what else is embedded.
        skipped: what could not be used, and why.
    """

    items: Items
    vectors: Vectors
    model: tuple[str, str]
    encoder: Encoder | None
    store: Store | None
    folder: Path
    skipped: list[Skipped]


@contextmanager
def open_embedded(
    source: Path, encoder: Encoder | None, cache: Path | None, *, show_progress: bool = False
) -> Iterator[Embedded]:
    """Embed what is missing, or open a store, and lay the vectors into a file.

    Raises:
        ConfigError: images without an encoder, or a store of another model.
    """
    with tempfile.TemporaryDirectory(prefix="whiten-") as temporary:
        folder = cache or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            if is_store(source):
                store = Store.open(source)
                items = stored_items(store)
                if encoder is not None:
                    _require(encoder, store)
                model = (store.origin.fingerprint, store.origin.uri)
                if encoder is not None:
                    model = (encoder.fingerprint(), encoder.name)
                write_stored(store, items, file)
                vectors = mapped_rows(file, store.dim)
                yield Embedded(items, vectors, model, encoder, store, folder, store.skipped)
                return
            if encoder is None:
                raise ConfigError(f"{source} has no embeddings yet: add --model MODEL")
            found = find_items(source)
            kept, skipped = write_embeddings(
                encoder, found, file, cache=folder, show_progress=show_progress
            )
            own = None
            if len(encoder.parts) == 1 and encoder.parts[0].whitener is None:
                own = embed_cached(encoder.parts[0].teacher, found, folder)
            vectors = mapped_rows(file, encoder.dim)
            model = (encoder.fingerprint(), encoder.name)
            yield Embedded(kept, vectors, model, encoder, own, folder, skipped)


def _require(encoder: Encoder, store: Store) -> None:
    prints = [part.teacher.fingerprint() for part in encoder.parts]
    if prints != [store.origin.fingerprint] or encoder.parts[0].whitener is not None:
        raise ConfigError(
            f"{store.folder} holds embeddings of {store.origin.uri}, not of {encoder.name}: name "
            "that model, or leave --model out"
        )


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
    asked = None
    if queries is not None:
        if source.encoder is None:
            raise ConfigError("queries must be embedded: add --model MODEL")
        who, vectors, _ = source.encoder.embed_items(
            find_items(queries),
            # Ids are unique within a folder only, so that each collection has stores of its own.
            cache=source.folder / "queries",
            show_progress=show_progress,
        )
        asked = (who, vectors)
    return measure_costs(
        source.vectors,
        source.items,
        kinds or default_kinds(int(source.vectors.shape[1])),
        queries=asked,
        name=source.model[1],
        show_progress=show_progress,
    )


def write_kind(source: Embedded, kind: str, out: Path) -> int:
    """Write one kind: float16 as a store, which every verb reads; others as a folder of codes.

    Returns:
        How many vectors were written.

    Raises:
        ConfigError: float16 of several models, which is no store; or float32.
        StoreError: the folder is not empty.
    """
    name, _ = parse_kind(kind)
    if name == "float32":
        raise ConfigError("float32 is what a store holds: there is nothing to write")
    if name == "float16":
        if source.store is None:
            raise ConfigError(
                "float16 is written as a store, which holds one model as it is: name another kind"
            )
        return _write_half(source.store, source.items, out)
    codec = fit(kind, sample_rows(source.vectors))
    return len(write_compact(out, codec, source.vectors, source.items, source.model))


def _write_half(store: Store, items: Items, out: Path) -> int:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise StoreError(f"{out} is not empty: name a new folder")
    half = Store.create_or_resume(out, replace(store.origin, dtype="float16"))
    for shard, (ids, views, vectors) in zip(store.shards, store.blocks(), strict=True):
        seen = store.seen(shard)
        columns = read_columns(shard.path, ["group", "frame_ms"])
        groups, times = columns["group"].to_pylist(), columns["frame_ms"].to_pylist()
        is_asked = items.by_id.rows(ids) >= 0
        rows = [
            Row(
                id=name,
                path=seen[name].path,
                group=groups[i],
                view=view,
                content_hash=seen[name].content_hash,
                embedding=vectors[i],
                frame_ms=times[i],
            )
            for i, (name, view) in enumerate(zip(ids, views, strict=True))
            if is_asked[i] and view == 0
        ]
        half.append(rows, shard.skipped, seen)
    return len(half)
