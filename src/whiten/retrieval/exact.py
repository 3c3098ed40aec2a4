"""Exact search: one pass over the vectors, of which only a block is looked at at a time.

For each query the k-th best similarity so far is a bar that few later ones pass, so that a pass
costs little more than the product itself: no similarity is sorted that cannot be an answer.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from whiten.utils.arrays import Vectors

QUERIES = 256  # of one pass
BLOCK_BYTES = 4 << 20  # of similarities: small enough for the CPU's caches
BLOCK_ROWS = 65536  # where few queries would allow for more
_SLACK = 8  # candidates that are kept, in multiples of the answers, before they are cut back
_SAMPLE = 4096  # rows that set the first bar
_LONG = 4096  # similarities that are compared at once
_SHARED_BYTES = 4 << 20  # of vectors, that are worth a second thread
_FEW = 8  # queries, for which BLAS's product is slower than rows one by one
_ROWS = 1024  # of vectors that stay in a core's cache while these pass over them
_DECODED = 2048  # rows of codes that are decoded at once, and stay in a core's cache
_SPARSE = 0.1  # below this part of the rows the others are left out before the product

_LOWEST: dict[type, float] = {np.float32: -np.inf, np.int32: np.iinfo(np.int32).min}

Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Values = npt.NDArray[Any]  # similarities: float32, or int32 where they are of codes


class Nearest:
    """The k best of what has been shown, for each query.

    Args:
        queries: how many.
        k: answers to keep.
        margin: (queries,) what lies at most this far below the k-th best is kept too; for int32.
        kind: of the similarities, float32 or int32; the lowest value passes never.
    """

    def __init__(
        self, queries: int, k: int, margin: Values | None = None, kind: type = np.float32
    ) -> None:
        self.queries = queries
        self.k = k
        self._margin = margin
        self._bar: Values = np.full(queries, _LOWEST[kind], kind)
        self._kept: list[tuple[Rows, Rows, Values]] = []  # queries, rows, similarities
        self._count = self._least = 0

    def show(self, similarities: Values, first: int = 0, rows: Rows | None = None) -> None:
        """Look at a block.

        Args:
            similarities: (queries, b), of rows `first`, `first + 1`, … that none shown before
                came after; may be the transpose of a contiguous matrix.
            rows: (b,) where they have other numbers.
        """
        if not self._count:
            self._raise_bar(similarities[:, : max(_SAMPLE, 2 * self.k)])
        passing = _above(similarities, self._bar)
        if len(passing) > _SLACK * self.queries * self.k:
            self._raise_bar(similarities)  # for sorting so many would take longer
            passing = _above(similarities, self._bar)
        if not len(passing):
            return
        if similarities.flags.c_contiguous:
            query, at = np.divmod(passing, similarities.shape[1])
        else:
            at, query = np.divmod(passing, self.queries)
        self.offer(query, first + at if rows is None else rows[at], similarities[query, at])

    def _raise_bar(self, some: Values) -> None:
        """Let nothing pass that is below the k-th best of some."""
        if self.k < some.shape[1]:
            best = np.partition(some, -self.k, axis=1)[:, -self.k]
            # Equal ones must pass: of those the first rows count.
            self._bar = np.maximum(self._bar, _just_below(best, self._margin))

    def offer(self, query: Rows, row: Rows, value: Values) -> None:
        """Look at single rows, each of one query; none that were shown came after them."""
        self._kept.append((query, row, value))
        self._count += len(query)
        if self._count > self._least + _SLACK * self.queries * self.k:
            self._cut()

    def _cut(self) -> None:
        """Let go of what cannot be an answer any more; of equal ones the first rows stay."""
        query, row, value = self._gathered()
        ends = np.searchsorted(query, np.arange(self.queries + 1))
        keep = np.ones(len(query), bool)
        for number, (start, end) in enumerate(pairwise(ends)):
            if end - start < self.k:
                continue
            own = value[start:end]
            last = np.partition(own, -self.k)[-self.k]
            if self._margin is None:
                better = own > last
                equal = np.flatnonzero(own == last)[: self.k - np.count_nonzero(better)]
                better[equal] = True
                self._bar[number] = last
            else:
                self._bar[number] = _just_below(last, self._margin[number])
                better = own > self._bar[number]
            keep[start:end] = better
        self._kept = [(query[keep], row[keep], value[keep])]
        self._count = self._least = int(keep.sum())

    def _gathered(self) -> tuple[Rows, Rows, Values]:
        """All that is kept, by query, and of each in the order in which it was shown."""
        query, row, value = (np.concatenate(parts) for parts in zip(*self._kept, strict=True))
        order = np.argsort(query.astype(np.uint16), kind="stable")
        return query[order], row[order], value[order]

    def best(self) -> list[tuple[Rows, Values]]:
        """For each query the rows and similarities, best first; fewer than k where there are.

        With a margin all that is kept.
        """
        if not self._kept:
            return [(np.zeros(0, np.int64), np.zeros(0, self._bar.dtype))] * self.queries
        self._cut()
        query, row, value = self._kept[0]
        ends = np.searchsorted(query, np.arange(1, self.queries))
        found = []
        for rows, values in zip(np.split(row, ends), np.split(value, ends), strict=True):
            order = np.lexsort((rows, -values))
            found.append((rows[order], values[order]))
        return found

    def __len__(self) -> int:
        """How many are kept now."""
        return self._count


def _above(similarities: Values, bar: Values) -> Rows:
    """Where they are above their query's bar: places in the order in which they lie in memory."""
    if similarities.flags.c_contiguous:
        return np.flatnonzero(similarities > bar[:, None])
    return np.flatnonzero(_above_in_rows(similarities.T, bar))


def _above_in_rows(similarities: Values, bar: Values) -> npt.NDArray[np.bool_]:
    """(b · queries,) of (b, queries): many short rows are compared as few long ones."""
    many = max(1, _LONG // len(bar))
    flat = similarities.reshape(-1)
    hits = np.empty(len(flat), bool)
    cut = len(similarities) // many * many * len(bar)
    for part, row in ((slice(0, cut), np.tile(bar, many)), (slice(cut, None), bar)):
        shape = (-1, len(row))
        np.greater(flat[part].reshape(shape), row, out=hits[part].reshape(shape))
    return hits


def _just_below(values: Values, margin: Values | None) -> Values:
    if margin is None:
        return np.nextafter(values, np.float32(-np.inf))
    below: Values = np.maximum(np.int64(values) - margin - 1, _LOWEST[np.int32])
    return below.astype(np.int32)


def scan(
    queries: Vectors,
    vectors: Values,
    nearest: Nearest,
    allowed: Mask | None,
    first: int = 0,
    decode: Callable[[Values], Vectors] | None = None,
) -> None:
    """Show all rows of a matrix, or those that are allowed.

    Args:
        queries: (q, d) float32.
        vectors: (n, d) float32, perhaps a mapped file.
        nearest: of q queries.
        allowed: (n,) rows that may be answers; None is all.
        first: number of the first row.
        decode: makes (b, d) float32 of some rows of `vectors`, which are codes then.
    """
    size = min(BLOCK_ROWS, max(1, BLOCK_BYTES // (4 * max(1, len(queries)))))
    if allowed is not None and allowed.mean() < _SPARSE:
        wanted = np.flatnonzero(allowed)
        for start in range(0, len(wanted), size):
            rows = wanted[start : start + size]
            part = vectors[rows] if decode is None else decode(vectors[rows])
            nearest.show((part @ queries.T).T, rows=first + rows)
        return
    out = np.empty(min(size, len(vectors)) * len(queries), np.float32)
    for start in range(0, len(vectors), size):
        part = vectors[start : start + size]
        block = out[: len(part) * len(queries)]
        if decode is not None:
            tall = block.reshape(-1, len(queries))
            _decoded_products(part, decode, queries, tall)
            similarities = tall.T
        elif len(queries) <= _FEW:
            similarities = block.reshape(len(queries), -1)
            _few_products(part, queries, similarities)
        else:  # a tall product is 1.3 times as fast as a wide one
            tall = block.reshape(-1, len(queries))
            np.matmul(part, queries.T, out=tall)
            similarities = tall.T
        if allowed is not None:
            similarities[:, ~allowed[start : start + size]] = -np.inf
        nearest.show(similarities, first + start)


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count() or 1, "whiten-scan")


if hasattr(os, "register_at_fork"):  # threads do not live on in a child
    os.register_at_fork(after_in_child=_pool.cache_clear)


def _few_products(vectors: Vectors, queries: Vectors, out: Vectors) -> None:
    """Row by row, at the speed of memory; BLAS's product takes two to three times as long for two.

    Args:
        out: (q, n).
    """

    def some(rows: range) -> None:
        for start in range(rows.start, rows.stop, _ROWS):
            part = slice(start, min(start + _ROWS, rows.stop))
            np.vecdot(vectors[part], queries[:, None], out=out[:, part])

    every = range(len(vectors))
    if vectors.nbytes < _SHARED_BYTES:
        some(every)
    else:
        share = -(-len(vectors) // (os.cpu_count() or 1))
        list(_pool().map(some, [every[at : at + share] for at in range(0, len(vectors), share)]))


def _decoded_products(
    codes: Values, decode: Callable[[Values], Vectors], queries: Vectors, out: Vectors
) -> None:
    """Decode some rows at a time; on all cores for few queries, for many BLAS uses them.

    Args:
        out: (n, q).
    """

    starts = range(0, len(codes), _DECODED)

    def few(start: int) -> None:
        rows, own = decode(codes[start : start + _DECODED]), out[start : start + _DECODED]
        np.vecdot(rows[:, None], queries, out=own)

    if len(queries) <= _FEW:
        list(_pool().map(few, starts) if len(starts) > 1 else map(few, starts))
        return
    for start in starts:
        rows = decode(codes[start : start + _DECODED])
        np.matmul(rows, queries.T, out=out[start : start + _DECODED])


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
