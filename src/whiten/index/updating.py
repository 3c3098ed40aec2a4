"""Bring an index up to date with one of its collections."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from whiten.errors import LockedError, StoreError, WhitenError
from whiten.index.collections import Images, describe
from whiten.index.rows import Backend, Facts, facts_of
from whiten.index.sources import Source
from whiten.index.synchronise import Changes, synchronise

_PAUSE = 0.01  # seconds


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
        backend: the index, locked by `writing`.
        is_opened: the index was there before. If another process has deleted it since, or is making
            it again with another model, nothing is written.
    """
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


@contextmanager
def writing(backend: Backend, patience: float) -> Iterator[None]:
    """Lock out other writers, after waiting for those that are done soon, as a service is.

    Args:
        patience: seconds to wait.

    Raises:
        LockedError: another process is still writing.
    """
    end = time.monotonic() + patience
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(backend.writing())
                break
            except LockedError:
                if time.monotonic() >= end:
                    raise
                time.sleep(_PAUSE)
        yield


def _is_bound(backend: Backend, before: Facts, source: Source, keep: bool) -> bool:
    """Return whether the collections of the index so far stay its collections.

    Those of an unfinished first run do not, nor those of an empty index, unless images are added to
    it: they would be taken for images of the next collection that is indexed, and be replaced.
    """
    return before.complete and (len(backend) > 0 or (keep and source.made(before)))
