"""Exact search: one pass over the vectors, of which only a block is looked at at a time.

For each query the k-th best similarity so far is a bar that few later ones pass, so that a pass
costs little more than the product itself: no similarity is sorted that cannot be an answer.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from whiten.store import Vectors

QUERIES = 256  # of one pass
BLOCK_BYTES = 4 << 20  # of similarities: small enough for the CPU's caches
BLOCK_ROWS = 65536  # where few queries would allow for more
_SLACK = 8  # candidates that are kept, in multiples of the answers, before they are cut back
_SAMPLE = 4096  # rows that set the first bar
_SPARSE = 0.1  # below this part of the rows the others are left out before the product

Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


class Nearest:
    """The k best of what has been shown, for each query.

    Args:
        queries: how many.
        k: answers to keep.
    """

    def __init__(self, queries: int, k: int) -> None:
        self.queries = queries
        self.k = k
        self._bar = np.full(queries, -np.inf, np.float32)
        self._kept: list[tuple[Rows, Rows, Vectors]] = []  # queries, rows, similarities
        self._count = 0

    def show(self, similarities: Vectors, first: int = 0, rows: Rows | None = None) -> None:
        """Look at a block.

        Args:
            similarities: (b, queries), of rows `first`, `first + 1`, …
            rows: (b,) where they have other numbers.
        """
        if self.k < len(similarities) and np.isneginf(self._bar).any():
            # Equal ones must pass: of those the first rows count.
            sample = np.partition(similarities[: _SAMPLE + self.k], -self.k, axis=0)[-self.k]
            self._bar = np.maximum(self._bar, np.nextafter(sample, np.float32(-np.inf)))
        passing = np.flatnonzero((similarities > self._bar).ravel())
        if not len(passing):
            return
        at, query = np.divmod(passing, self.queries)
        number = first + at if rows is None else rows[at]
        self._kept.append((query, number, similarities.ravel()[passing]))
        self._count += len(passing)
        if self._count > _SLACK * self.queries * self.k:
            self._cut()

    def _cut(self) -> None:
        """Keep the k best of each query, best first; of equal ones those of the first rows."""
        if len(self._kept) == 0:
            return
        query, row, value = (np.concatenate(parts) for parts in zip(*self._kept, strict=True))
        order = np.lexsort((row, -value, query))
        query, row, value = query[order], row[order], value[order]
        ends = np.searchsorted(query, np.arange(self.queries + 1))
        keep = np.arange(len(query)) - ends[query] < self.k
        self._kept = [(query[keep], row[keep], value[keep])]
        self._count = int(keep.sum())
        full = np.flatnonzero(np.diff(ends) >= self.k)
        self._bar[full] = value[ends[full] + self.k - 1]

    def best(self) -> list[tuple[Rows, Vectors]]:
        """For each query the rows and similarities, best first; fewer than k where there are."""
        self._cut()
        if not self._kept:
            return [(np.zeros(0, np.int64), np.zeros(0, np.float32))] * self.queries
        query, row, value = self._kept[0]
        ends = np.searchsorted(query, np.arange(1, self.queries))
        return list(zip(np.split(row, ends), np.split(value, ends), strict=True))


def scan(
    queries: Vectors, vectors: Vectors, nearest: Nearest, allowed: Mask | None, first: int = 0
) -> None:
    """Show all rows of a matrix, or those that are allowed.

    Args:
        queries: (q, d) float32.
        vectors: (n, d) float32, perhaps a mapped file.
        nearest: of q queries.
        allowed: (n,) rows that may be answers; None is all.
        first: number of the first row.
    """
    size = min(BLOCK_ROWS, max(1, BLOCK_BYTES // (4 * max(1, len(queries)))))
    if allowed is not None and allowed.mean() < _SPARSE:
        wanted = np.flatnonzero(allowed)
        for start in range(0, len(wanted), size):
            rows = wanted[start : start + size]
            nearest.show(vectors[rows] @ queries.T, rows=first + rows)
        return
    out = np.empty((min(size, len(vectors)), len(queries)), np.float32)
    for start in range(0, len(vectors), size):
        part = vectors[start : start + size]
        # A tall product is 1.3 times as fast as a wide one.
        similarities = np.matmul(part, queries.T, out=out[: len(part)])
        if allowed is not None:
            similarities[~allowed[start : start + size]] = -np.inf
        nearest.show(similarities, first + start)


def exact_search(
    queries: Vectors, vectors: Vectors, k: int, allowed: Mask | None = None
) -> list[tuple[Rows, Vectors]]:
    """For each query the rows and similarities of its k nearest, best first; ties by row.

    Args:
        queries: (q, d) float32.
        vectors: (n, d) float32, L2-normalised for cosine similarity.
        k: answers, fewer where there are not so many.
        allowed: (n,) rows that may be answers; None is all.
    """
    found: list[tuple[Rows, Vectors]] = []
    for start in range(0, len(queries), QUERIES):
        some = np.ascontiguousarray(queries[start : start + QUERIES], np.float32)
        nearest = Nearest(len(some), k)
        scan(some, vectors, nearest, allowed)
        found += nearest.best()
    return found
