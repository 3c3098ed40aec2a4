"""The whole images of a store, written row by row into a file that is read by blocks."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from whiten.datasets.collection import Item, Items
from whiten.errors import NoImagesError
from whiten.store.shards import read_columns
from whiten.store.store import Store
from whiten.utils.arrays import Vectors
from whiten.utils.names import real_path


def stored_items(store: Store) -> Items:
    """Return the whole images of a store, sorted by id, with the paths at embedding time.

    Raises:
        NoImagesError: the store has none.
    """

    def rows() -> Iterator[Item]:
        for shard in store.shards:
            table = read_columns(shard.path, ["id", "path", "group", "view", "frame_ms"])
            for row in table.to_pylist():
                if row["view"] == 0:
                    yield Item(row["id"], real_path(row["path"]), row["group"], row["frame_ms"])

    items = Items.of(rows()).sorted()
    if not len(items):
        raise NoImagesError(f"{store.folder} holds no whole image (view 0): embed images again")
    return items


def stored_rows(store: Store, items: Items, folder: Path) -> Vectors:
    """Return the items' embeddings, (n, dim) float32, memory-mapped from a file in `folder`.

    The file has no name, so that a kill leaves nothing behind.
    """
    with tempfile.TemporaryFile(dir=folder) as file:
        for names, _, vectors in store.blocks(view=0):
            rows = items.by_id.rows(names)
            for row, vector in zip(rows.tolist(), vectors, strict=True):
                if row >= 0:
                    file.seek(row * vector.nbytes)
                    file.write(vector.tobytes())
        file.flush()
        return np.memmap(file, np.float32, "r", shape=(len(items), store.dim))
