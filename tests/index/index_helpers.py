"""Vectors in clusters, and indexes of them without images or models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from whiten.index.local import tuning
from whiten.index.local.folder import FolderIndex
from whiten.index.rows import Block, Facts
from whiten.utils.arrays import Vectors

DIM = 32


def facts(dim: int = DIM) -> Facts:
    return Facts("model", "", "a model", dim, columns={"price": "int"})


def clustered(count: int, dim: int = DIM, *, each: int = 40, seed: int = 0) -> Vectors:
    """(count, dim) unit vectors around random centres."""
    random = np.random.default_rng(seed)
    centres = random.standard_normal((-(-count // each), dim))
    vectors = centres[random.integers(0, len(centres), count)]
    vectors = vectors + 0.7 * random.standard_normal((count, dim))
    found: Vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return found


def block(vectors: Vectors, prefix: str = "") -> Block:
    """Rows `0`, `1`, … with prices 0 to 9 in turn."""
    ids = [f"{prefix}{number}" for number in range(len(vectors))]
    table = pa.table(
        {
            "id": pa.array(ids, pa.large_string()),
            "path": pa.array([name.encode() for name in ids], pa.large_binary()),
            "content_hash": pa.array(ids, pa.large_string()),
            "stamp": pa.array(ids, pa.large_string()),
            "group": pa.nulls(len(ids), pa.large_string()),
            "frame_ms": pa.nulls(len(ids), pa.int64()),
            "price": pa.array([number % 10 for number in range(len(ids))], pa.int64()),
        }
    )
    return Block(table, vectors)


def write(index: FolderIndex, new: Sequence[Block] = (), gone: Sequence[str] = ()) -> None:
    with index.writing():
        index.write(index.facts or facts(), gone, new)


def make(
    folder: Path, vectors: Vectors, kind: str | None = None, recall: float = 0.95
) -> FolderIndex:
    index = FolderIndex(folder)
    with index.writing():
        index.write(facts(vectors.shape[1]), (), [block(vectors)])
        if kind is not None:
            index.tune(kind, recall)
    return index


@contextmanager
def timed_as(exact: float, fast: float) -> Iterator[None]:
    """Pretend that searches take so long: true times are another machine's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning._Trial, "seconds", lambda *_: (exact, fast))
        yield


def found_ids(
    index: FolderIndex, queries: Vectors, k: int, where: object = None
) -> list[list[str]]:
    return [[match.id for match in found] for found in index.search(queries, k, where)]  # type: ignore[arg-type]
