"""Search exactly, in one pass over the vectors, block by block.

The k-th best similarity so far of each query is a bar that few later ones pass, so that a pass
costs little more than the product itself: only candidates above the bar are sorted.
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
from whiten.utils.memory import forget, gather_rows, is_large
from whiten.utils.threads import cores

QUERIES = 256  # per pass
BLOCK_BYTES = 4 << 20  # of similarities: small enough for the CPU's caches
BLOCK_ROWS = 65536  # limit for few queries
_SLACK = 8  # candidates kept, in multiples of the answers, before pruning
_FLOOD = 32  # candidates of one block, likewise, before a look at the whole block
_SAMPLE = 4096  # rows that set the first bar
_LONG = 4096  # similarities compared at once
_SHARED_BYTES = 4 << 20  # of vectors, above which a second thread pays
_FEW = 4  # queries, for which BLAS's product is slower than row by row
_SOME = 24  # queries, up to which blocks of rows are faster than the whole product,
_SOME_CACHED = 8  # and where the vectors fit into the processor's cache, so that copies cost less:
_CACHED_BYTES = 16 << 20
_ROWS = 1024  # rows that fit into a core's cache while few queries pass over them
_SMALL = 750_000  # multiplications, up to which OpenBLAS with AVX-512 copies no matrix
_FEW_DECODED = 8  # queries, likewise, where the rows are decoded first
_DECODED = 2048  # rows of codes decoded at once, which fit into a core's cache
_SPARSE = 0.1  # below this fraction of allowed rows, the others are dropped before the product

_LOWEST: dict[type, float] = {np.float32: -np.inf, np.int32: np.iinfo(np.int32).min}

Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Values = npt.NDArray[Any]  # similarities: float32, or int32 for codes


class Nearest:
    """Keeps the k best rows shown so far for each query.

    Args:
        queries: number of queries.
        k: number of answers.
        margin: (queries,) keep also rows at most this far below the k-th best; for int32.
        kind: dtype of the similarities, float32 or int32; the lowest value never passes.
    """

    def __init__(
        self, queries: int, k: int, margin: Values | None = None, kind: type = np.float32
    ) -> None:
        self.queries = queries
        self.k = k
        self._margin = margin
        self._lowest = _LOWEST[kind]
        self._bar: Values = np.full(queries, self._lowest, kind)
        self._kept: list[tuple[Rows, Rows, Values]] = []  # queries, rows, similarities
        self._count = self._least = 0

    def show(self, similarities: Values, first: int = 0, rows: Rows | None = None) -> None:
        """Process a block.

        Args:
            similarities: (queries, b), for rows `first`, `first + 1`, …, which must come after all
                rows shown before; may be the transpose of a contiguous matrix.
            rows: (b,) row numbers, if not consecutive.
        """
        if (self._bar == self._lowest).any():
            self._raise_bar(similarities[:, : max(_SAMPLE, 2 * self.k)])
        passing = _above(similarities, self._bar)
        if len(passing) > _FLOOD * self.queries * self.k:
            self._raise_bar(similarities)  # sorting so many would take longer
            passing = _above(similarities, self._bar)
        if not len(passing):
            return
        if similarities.flags.c_contiguous:
            query, at = np.divmod(passing, similarities.shape[1])
        else:
            at, query = np.divmod(passing, self.queries)
        self.offer(query, first + at if rows is None else rows[at], similarities[query, at])

    def _raise_bar(self, some: Values) -> None:
        """Raise the bar to the k-th best of some similarities."""
        if self.k < some.shape[1]:
            best = np.partition(some, -self.k, axis=1)[:, -self.k]
            # Equal ones must pass: among ties the first rows win.
            self._bar = np.maximum(self._bar, _just_below(best, self._margin))

    def offer(self, query: Rows, row: Rows, value: Values) -> None:
        """Process single rows, each for one query. Rows must arrive in ascending order."""
        self._kept.append((query, row, value))
        self._count += len(query)
        if self._count > self._least + _SLACK * self.queries * self.k:
            self._cut()

    def _cut(self) -> None:
        """Drop candidates that can no longer be an answer; among ties the first rows stay."""
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
        """Return all candidates by query, each query's in ascending order of rows."""
        query, row, value = (np.concatenate(parts) for parts in zip(*self._kept, strict=True))
        order = np.argsort(query.astype(np.uint16), kind="stable")
        return query[order], row[order], value[order]

    def best(self) -> list[tuple[Rows, Values]]:
        """Return rows and similarities per query, best first; fewer than k if there are fewer.

        With a margin, return all candidates.
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
        """Return the number of candidates kept."""
        return self._count


def _above(similarities: Values, bar: Values) -> Rows:
    """Return the flat positions above their query's bar, in memory order."""
    if similarities.flags.c_contiguous:
        return np.flatnonzero(similarities > bar[:, None])
    return np.flatnonzero(_above_in_rows(similarities.T, bar))


def _above_in_rows(similarities: Values, bar: Values) -> npt.NDArray[np.bool_]:
    """Return a (b · queries,) mask for (b, queries); many short rows compare as few long ones."""
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
    """Process all or the allowed rows of a matrix.

    Args:
        queries: (q, d) float32.
        vectors: (n, d) float32, may be a mapped file.
        nearest: collector for q queries.
        allowed: (n,) mask of rows that may be answers; None allows all.
        first: number of the first row.
        decode: decodes rows of `vectors`, which are then codes, to (b, d) float32.
    """
    size = min(BLOCK_ROWS, max(1, BLOCK_BYTES // (4 * max(1, len(queries)))))
    if allowed is not None and allowed.mean() < _SPARSE:
        wanted = np.flatnonzero(allowed)
        for start in range(0, len(wanted), size):
            rows = wanted[start : start + size]
            part = gather_rows(vectors, rows)
            part = part if decode is None else decode(part)
            nearest.show((part @ queries.T).T, rows=first + rows)
        return
    out = np.empty(min(size, len(vectors)) * len(queries), np.float32)
    releases = is_large(vectors)
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
            some = _SOME if part.nbytes > _CACHED_BYTES else _SOME_CACHED
            if len(queries) <= some:
                _some_products(part, queries, tall)
            else:
                np.matmul(part, queries.T, out=tall)
            similarities = tall.T
        if allowed is not None:
            similarities[:, ~allowed[start : start + size]] = -np.inf
        nearest.show(similarities, first + start)
        if releases:
            forget(part)


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(cores(), "whiten-scan")


if hasattr(os, "register_at_fork"):  # threads do not survive in a forked child
    os.register_at_fork(after_in_child=_pool.cache_clear)


def _few_products(vectors: Vectors, queries: Vectors, out: Vectors) -> None:
    """Compute products row by row at memory speed; BLAS takes 2 to 3 times as long for two queries.

    Args:
        out: (q, n).
    """

    def some(rows: slice) -> None:
        np.vecdot(vectors[rows], queries[:, None], out=out[:, rows])

    _on_all_cores(some, vectors, _ROWS)


def _some_products(vectors: Vectors, queries: Vectors, out: Vectors) -> None:
    """Compute products block by block: BLAS would copy all vectors, which takes longer.

    Args:
        out: (n, q).
    """
    turned = np.ascontiguousarray(queries.T)

    def some(rows: slice) -> None:
        np.matmul(vectors[rows], turned, out=out[rows])

    _on_all_cores(some, vectors, max(1, _SMALL // turned.size) if _has_small_kernels() else _ROWS)


@cache
def _has_small_kernels() -> bool:
    """Return whether NumPy's BLAS has kernels for small products, which copy no matrix."""
    built: Any = np.show_config(mode="dicts")
    simd = {"AVX512F", "X86_V4"} & {*built["SIMD Extensions"]["found"]}  # NumPy's old and new name
    return bool(simd) and "openblas" in built["Build Dependencies"]["blas"]["name"]


def _on_all_cores(work: Callable[[slice], None], vectors: Vectors, step: int) -> None:
    """Call `work` with slices of `step` rows; a second thread pays for many vectors only."""

    def some(rows: range) -> None:
        for start in range(rows.start, rows.stop, step):
            work(slice(start, min(start + step, rows.stop)))

    every = range(len(vectors))
    if vectors.nbytes < _SHARED_BYTES:
        some(every)
    else:
        share = -(-len(vectors) // cores())
        list(_pool().map(some, [every[at : at + share] for at in range(0, len(vectors), share)]))


def _decoded_products(
    codes: Values, decode: Callable[[Values], Vectors], queries: Vectors, out: Vectors
) -> None:
    """Decode and multiply blocks of rows: on all cores for few queries; for many, BLAS uses them.

    Args:
        out: (n, q).
    """

    starts = range(0, len(codes), _DECODED)

    def few(start: int) -> None:
        rows, own = decode(codes[start : start + _DECODED]), out[start : start + _DECODED]
        np.vecdot(rows[:, None], queries, out=own)

    if len(queries) <= _FEW_DECODED:
        list(_pool().map(few, starts) if len(starts) > 1 else map(few, starts))
        return
    for start in starts:
        rows = decode(codes[start : start + _DECODED])
        np.matmul(rows, queries.T, out=out[start : start + _DECODED])


def exact_search(
    queries: Vectors, vectors: Vectors, k: int, allowed: Mask | None = None
) -> list[tuple[Rows, Vectors]]:
    """Return rows and similarities of the k nearest per query, best first; ties by row.

    Args:
        queries: (q, d) float32.
        vectors: (n, d) float32, L2-normalised for cosine similarity.
        k: number of answers; fewer if there are fewer rows.
        allowed: (n,) mask of rows that may be answers; None allows all.
    """
    found: list[tuple[Rows, Vectors]] = []
    for start in range(0, len(queries), QUERIES):
        some = np.ascontiguousarray(queries[start : start + QUERIES], np.float32)
        nearest = Nearest(len(some), k)
        scan(some, vectors, nearest, allowed)
        found += nearest.best()
    return found
