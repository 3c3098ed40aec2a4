"""Indexes of random vectors with metadata, in any place, without images or models."""

from __future__ import annotations

import os

import numpy as np
import pyarrow as pa

from whiten.index import Index
from whiten.index.places import open_place
from whiten.index.rows import Block, Facts


def backend_of(place: str, total: int, dim: int = 8, **columns: list[object]) -> Index:
    """An index of random vectors, `r0`, `r1`, ..., with metadata columns."""
    kinds = {str: "string", bool: "bool", int: "int", float: "float"}
    types = {
        name: next(kinds[type(value)] for value in values if value is not None)
        for name, values in columns.items()
    }
    facts = Facts("model", "", "random", dim, ["here"], types)
    backend = open_place(place)
    with backend.writing():
        backend.write(facts, (), [block_of(facts, [f"r{n}" for n in range(total)], **columns)])
    return Index(backend)


def block_of(facts: Facts, ids: list[str], seed: int = 0, **columns: list[object]) -> Block:
    vectors = np.random.default_rng(seed).normal(size=(len(ids), facts.dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    own: dict[str, list[object]] = {
        "id": list(ids),
        "path": [os.fsencode(f"/images/{name}") for name in ids],
        "content_hash": [f"hash of {name}" for name in ids],
        "stamp": ["1:2:3"] * len(ids),
        "group": [None] * len(ids),
        "frame_ms": [None] * len(ids),
    }
    return Block(pa.table(own | columns, schema=facts.schema()), vectors)


def passing(index: Index, where: str) -> list[str]:
    query = np.ones((1, index.facts.dim), np.float32)
    [hits] = index.search_vectors(query, len(index) + 5, where=where)
    return sorted((hit.id for hit in hits), key=lambda name: (len(name), name))
