"""Bring an index up to date with one of its collections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from whiten.errors import StoreError, WhitenError
from whiten.index.collections import Images, describe
from whiten.index.rows import Backend, Facts, facts_of
from whiten.index.sources import Source
from whiten.index.synchronise import Changes, synchronise


def update(
    backend: Backend,
    source: Source,
    images: Images,
    metadata: Any,
    *,
    keep: bool,
    collection: str | None = None,
    remove_missing: bool = False,
    drop: Sequence[str] = (),
    show_progress: bool = False,
    is_opened: bool = False,
) -> Changes:
    """Change an index to match a collection; see `Index.build` for the arguments and errors.

    Args:
        is_opened: the index was there before. If another process has deleted it since, or is making
            it again with another model, nothing is written.
    """
    with backend.writing():
        before = facts_of(backend) if is_opened else backend.facts
        if before is not None and not _is_bound(backend, before, source, keep):
            if before.model != source.model:
                if is_opened and not before.complete:
                    raise StoreError(f"{backend.place} is being made again with another model")
                backend.discard()
            before = None  # bound to no collection
        try:
            facts, columns, joined = describe(
                source,
                images,
                metadata,
                before,
                backend.place,
                keep,
                backend.known,
                collection,
                drop,
            )
            return synchronise(
                backend,
                source,
                facts,
                columns,
                joined=joined,
                keep=keep,
                remove_missing=remove_missing,
                show_progress=show_progress,
            )
        except WhitenError:
            if before is None and not len(backend):
                backend.discard()  # a failed first run leaves nothing
            raise


def _is_bound(backend: Backend, before: Facts, source: Source, keep: bool) -> bool:
    """Return whether the collections of the index so far stay its collections.

    Those of an unfinished first run do not, nor those of an empty index, unless images are added to
    it: they would be taken for images of the next collection that is indexed, and be replaced.
    """
    return before.complete and (len(backend) > 0 or (keep and source.made(before)))
