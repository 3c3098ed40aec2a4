"""Keep what is finished of a shard that is not, so that a kill loses seconds of work.

It is a shard under a hidden name beside the others. It ends where a batch ends: the batches after
it, and so the bytes of the store, are those of an uninterrupted run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import chain, islice

from whiten.embedding.parts import Part
from whiten.embedding.row_makers import Computed, Read, Task, row_of
from whiten.errors import StoreError
from whiten.media.reading import Unread, stamp_of
from whiten.store.shards import Seen, Shard, read_seen, read_shard, write_shard
from whiten.store.store import Store
from whiten.utils.arrays import Vectors
from whiten.utils.names import display_path
from whiten.utils.urls import as_url

NAME = ".part-begun.parquet"
SECONDS = 5.0  # of work that a kill may lose


class Begun:
    """The part of a store's next shard that is finished.

    A store of a storage service has none: there, a shard is lost as a whole.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._path = store.folder / NAME
        self._is_local = as_url(store.folder) is None
        self._saved = time.monotonic()

    def save(self, part: Part) -> None:
        """Write the part, at the end of a batch, unless that was done seconds ago.

        Images that could not be read this time are tried again, and so are those after them.
        """
        is_soon = time.monotonic() - self._saved < SECONDS
        if not self._is_local or is_soon or any(isinstance(s, Unread) for s in part.skipped):
            return
        write_shard(self._path, self._store.origin, part.rows, part.skipped, part.seen)
        self._saved = time.monotonic()

    def resume(
        self, tasks: Iterator[Task], maker: Computed, told: Callable[[int], None]
    ) -> tuple[Part, Iterator[Task]]:
        """Return the part that an earlier run began, and the tasks that it lacks.

        It begins anew if anything differs: the model, the order of the images, a file.
        """
        part = Part()
        found = self._read() if self._is_local else None
        if found is None:
            return part, tasks
        shard, vectors, seen = found
        head = list(islice(tasks, len(seen)))
        anew = chain(head, tasks)
        rows = dict(zip(zip(shard.ids, shard.views, strict=True), vectors, strict=True))
        unusable = {skip.id for skip in shard.skipped}
        made = [task for task in head if task.item.id not in unusable]
        wanted = [(task.item.id, view) for task in made for view in task.views]
        if list(rows) != wanted or not all(_is_same(t, seen, unusable) for t in head):
            return part, anew
        part.skipped, part.seen = shard.skipped, seen
        for task in made:
            read = Read(task, seen[task.item.id])
            for number, view in enumerate(task.views):
                vector = rows[task.item.id, view]
                part.rows.append(row_of(read, view, vector))
                if maker.is_shared(task, number):
                    maker.repeats.add(read.seen.content_hash, vector)
        for task in head:
            told(len(task.views))
        return part, tasks

    def clear(self) -> None:
        """Remove the file: its rows are in a shard."""
        if self._is_local:
            self._path.unlink(missing_ok=True)

    def _read(self) -> tuple[Shard, Vectors, dict[str, Seen]] | None:
        try:
            origin, shard = read_shard(self._path)
            if origin != self._store.origin:
                return None
            return shard, self._store.vectors(shard), read_seen(shard)
        except StoreError:  # there is none, or it is damaged
            return None


def _is_same(task: Task, seen: dict[str, Seen], unusable: set[str]) -> bool:
    """Return whether a task's file is as it was, and its shard goes on after it."""
    before = seen.get(task.item.id, Seen())
    is_there = before.stamp is not None and stamp_of(task.item.path) == before.stamp
    is_here = task.item.id in unusable or display_path(task.item.path) == before.path
    return is_there and is_here and not task.ends_shard
