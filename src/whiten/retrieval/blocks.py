"""Similarities of a gallery that streams by: a block at a time, or the best k of each query.

Neither the gallery nor the matrix of similarities is ever in memory as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from whiten.utils.arrays import Indices, Vectors
from whiten.utils.memory import forget

QUERIES = 1024  # that a pass over the gallery serves
BLOCK_ROWS = 32768  # one query's similarities to so many items stay in a core's cache
BLOCK_BYTES = 32 << 20  # of similarities that exist at once, and of embeddings that are mapped


def top_k(queries: Vectors, gallery: Vectors, k: int) -> Iterator[tuple[Any, Any]]:
    """For each query the indices and similarities of its k nearest, best first; ties by index."""
    k = min(k, len(gallery))
    for first in range(0, len(queries), QUERIES):
        some = queries[first : first + QUERIES]
        best = [(np.zeros(0, np.int64), np.zeros(0, np.float32))] * len(some)
        for start, block in similarity_blocks(some, gallery):
            best = [_merge(*kept, start, row, k) for kept, row in zip(best, block, strict=True)]
        yield from best


def _merge(
    indices: Indices, scores: Vectors, start: int, row: Vectors, k: int
) -> tuple[Indices, Vectors]:
    """The k best of those so far, best first, and of a further row of similarities."""
    found = np.arange(len(row))
    if len(scores) == k:
        found = np.flatnonzero(row > scores[-1])  # what only equals comes later, and loses
    if len(found) > k:
        # Everything that ties with the k-th is kept, so that the index decides.
        others = row[found]
        found = found[others >= np.partition(others, len(found) - k)[len(found) - k]]
    if len(found) == 0:
        return indices, scores
    indices = np.concatenate([indices, found + start])
    scores = np.concatenate([scores, row[found]])
    order = np.argsort(-scores, kind="stable")[:k]
    return indices[order], scores[order]


def similarity_blocks(queries: Vectors, gallery: Vectors) -> Iterator[tuple[int, Vectors]]:
    """Yield (first gallery index, (queries, b) similarities); each block replaces the last."""
    widest = max(1, *queries.shape)  # in the similarities or in what is read for them
    rows = max(1, min(BLOCK_ROWS, BLOCK_BYTES // (4 * widest)))
    out = np.empty((len(queries), min(rows, len(gallery))), np.float32)
    for start in range(0, len(gallery), rows):
        part = gallery[start : start + rows]
        yield start, np.matmul(queries, part.T, out=out[:, : len(part)])
        forget(part)
