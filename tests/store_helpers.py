"""A small store of made-up embeddings, one for each letter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from whiten.media.reading import Skipped
from whiten.store.shards import Origin, Row
from whiten.store.store import Store
from whiten.utils.names import NameIndex

ORIGIN = Origin(
    uri="timm:resnet18",
    fingerprint="f" * 32,
    dim=6,
    plan="p" * 32,
    plan_seed=3,
    version="0.1",
)


def make_rows(names: str, view: int = 0, dim: int = 6) -> list[Row]:
    """A row for every letter, with a vector of its own."""
    rows = []
    for name in names:
        vector = np.random.default_rng([ord(name), view]).normal(size=dim).astype(np.float32)
        vector /= np.linalg.norm(vector)
        rows.append(
            Row(
                id=name,
                path=f"/photos/{name}.jpg",
                group="vowel" if name in "aeiou" else None,
                view=view,
                content_hash=name * 32,
                embedding=vector,
            )
        )
    return rows


def vectors(names: str, view: int = 0) -> np.ndarray:
    return np.stack([row.embedding for row in make_rows(names, view)])


def make_store(folder: Path, origin: Origin = ORIGIN) -> Store:
    store = Store.create_or_resume(folder, origin)
    store.append(make_rows("abc"), [Skipped("bad", "empty file")])
    store.append(make_rows("de") + make_rows("ab", view=1))
    return store


def rewrite(path: Path, **changed: Any) -> None:
    """Change facts in a shard's metadata."""
    table = pq.read_table(path)
    facts = json.loads(table.schema.metadata[b"whiten"]) | changed
    pq.write_table(table.replace_schema_metadata({b"whiten": json.dumps(facts)}), path)


def content_hashes(store: Store) -> dict[str, str]:
    """Of every stored image, by id."""
    ids = sorted({name for shard in store.shards for name in shard.ids})
    return dict(zip(ids, store.content_hashes(NameIndex(pa.array(ids))).to_pylist(), strict=True))
