"""Groups of near-duplicates, by blockwise range search and union-find.

Pairs are visited once, block by block of the upper triangle, and those above the threshold are
joined at once: neither an n × n matrix nor a list of all pairs is ever in memory, even if
everything is a duplicate of everything.

A group is a connected component: its members are linked by pairs above the threshold, and two of
them may be less similar than that (chaining). So `lowest_similarity` measures the spread of a
group, and `choose_kept` treats an item as a copy only if its own similarity to a kept item reaches
the threshold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from whiten.dedup.pair_similarity import (
    BLOCK_ROWS,
    Doubles,
    PairSimilarity,
    Rows,
    VectorSimilarity,
)
from whiten.errors import ConfigError
from whiten.utils.arrays import as_numpy
from whiten.utils.validation import as_number

TOLERANCE = 1e-9  # identical vectors have similarity 1, minus float64 rounding
_PAIRS = 1 << 18  # pairs held at once
_GATHERED = 1024  # members of a group compared at once

Progress = Callable[[int, int], None]
"""Called with (blocks of pairs done, total blocks)."""


def near_duplicates(
    vectors: npt.NDArray[Any],
    threshold: float,
    *,
    block_rows: int = BLOCK_ROWS,
    progress: Progress | None = None,
) -> list[Rows]:
    """Return groups of rows linked by a cosine similarity of at least `threshold`.

    Equals the connected components of the n × n matrix of float64 similarities, for any block size:
    pairs too close to the threshold for float32 are recomputed in float64. Besides the vectors,
    this takes about 30 MB and 8 bytes per row.

    Args:
        vectors: (n, d) float; may be a memory map. Rows need not be normalised.
        threshold: above -1, at most 1.
        block_rows: rows per block.
        progress: called after each block of pairs.

    Returns:
        Groups of at least two rows, each (m,) ascending, ordered by first row.

    Raises:
        ConfigError: the threshold is out of range, or vectors are not (n, d), zero or not finite.
    """
    check_threshold(threshold)
    return linked(VectorSimilarity(as_numpy(vectors), block_rows), threshold, progress)


def check_threshold(threshold: float) -> None:
    """Raise ConfigError if a number is no threshold on similarities."""
    if not -1 < as_number("threshold", threshold) <= 1:
        raise ConfigError(
            f"threshold must be a similarity above -1 and at most 1, not {threshold:g}"
        )


def linked(
    similarity: PairSimilarity, threshold: float, progress: Progress | None = None
) -> list[Rows]:
    """Return the groups of `near_duplicates` for any symmetric similarity."""
    forest = Forest(len(similarity))
    for one, other, values in _candidates(similarity, threshold, forest, progress):
        is_sure = values >= threshold + similarity.rounding
        forest.join(one[is_sure], other[is_sure])
        left = ~is_sure
        _join_the_close(similarity, threshold, forest, one[left], other[left])
    return forest.groups()


def range_search(
    similarity: PairSimilarity, threshold: float
) -> Iterator[tuple[Rows, Rows, Doubles]]:
    """Yield all pairs (i < j) with a similarity of at least `threshold`.

    Yields:
        (p,) first rows, second rows and similarities, as many at once as fit into little memory.
    """
    for one, other, values in _candidates(similarity, threshold):
        found: Doubles = values.astype(np.float64)
        close = np.flatnonzero(np.abs(found - threshold) <= similarity.rounding)
        found[close] = similarity.exact(one[close], other[close])
        keep = found >= threshold - TOLERANCE
        if keep.any():
            yield one[keep], other[keep], found[keep]


def _candidates(
    similarity: PairSimilarity,
    threshold: float,
    forest: Forest | None = None,
    progress: Progress | None = None,
) -> Iterator[tuple[Rows, Rows, npt.NDArray[np.float32]]]:
    """Yield pairs (i < j) that may reach the threshold, except those already joined in a forest."""
    least = np.float32(threshold - similarity.rounding)
    blocks, done = similarity.blocks, 0
    total = len(blocks) * (len(blocks) + 1) // 2
    for number, rows in enumerate(blocks):
        loaded = similarity.load(rows)
        for columns in blocks[number:]:
            if forest is None or not forest.is_one(rows, columns):
                others = loaded if columns is rows else similarity.load(columns)
                product = similarity.product(loaded, others)
                if product.size and product.max() >= least:
                    yield from _above(product, least, rows.start, columns.start, forest)
            done += 1
            if progress is not None:
                progress(done, total)


def _above(
    product: npt.NDArray[np.float32],
    least: np.float32,
    row: int,
    column: int,
    forest: Forest | None,
) -> Iterator[tuple[Rows, Rows, npt.NDArray[np.float32]]]:
    step = max(1, _PAIRS // product.shape[1])
    for start in range(0, len(product), step):
        part = product[start : start + step]
        i, j = np.nonzero(part >= least)
        one, other = i + (row + start), j + column
        keep = one < other
        if forest is not None:
            keep &= forest.roots(one) != forest.roots(other)
        if keep.any():
            yield one[keep], other[keep], part[i[keep], j[keep]]


def _join_the_close(
    similarity: PairSimilarity, threshold: float, forest: Forest, one: Rows, other: Rows
) -> None:
    """Join pairs whose float64 similarity is at least the threshold.

    A few at a time: if everything is a copy of everything, the first pairs join all the others.
    """
    step = 1024
    while len(one):
        keep = forest.roots(one) != forest.roots(other)
        one, other = one[keep], other[keep]
        is_one = similarity.exact(one[:step], other[:step]) >= threshold - TOLERANCE
        forest.join(one[:step][is_one], other[:step][is_one])
        one, other, step = one[step:], other[step:], 2 * step


class Forest:
    """Union-find over n items, for arrays of pairs; the root is the first item of a group."""

    def __init__(self, n: int) -> None:
        self._parent: Rows = np.arange(n)

    def roots(self, items: Rows) -> Rows:
        """Return the root of each item, (p,), shortening the paths to them."""
        found: Rows = self._parent[items]
        while True:
            further = self._parent[found]
            if np.array_equal(further, found):
                break
            found = further
        self._parent[items] = found
        return found

    def join(self, one: Rows, other: Rows) -> None:
        """Join the groups of one[i] and other[i], for all i."""
        while len(one):
            a, b = self.roots(one), self.roots(other)
            apart = a != b
            one, other, a, b = one[apart], other[apart], a[apart], b[apart]
            # A root with several new parents takes the smallest; the next round joins the others.
            np.minimum.at(self._parent, np.maximum(a, b), np.minimum(a, b))

    def is_one(self, rows: slice, columns: slice) -> bool:
        """Return whether all items of both slices are already in one group."""
        first = self.roots(np.arange(rows.start, rows.start + 1))
        return all(
            bool((self.roots(np.arange(part.start, part.stop)) == first).all())
            for part in (columns, rows)
        )

    def groups(self) -> list[Rows]:
        """Return groups of at least two items, each ascending, ordered by first item."""
        roots = self.roots(np.arange(len(self._parent)))
        order = np.argsort(roots, kind="stable")
        starts = np.flatnonzero(np.diff(roots[order], prepend=-1))
        parts = np.split(order, starts[1:]) if len(order) else []
        return [part for part in parts if len(part) > 1]


def lowest_similarity(similarity: PairSimilarity, members: Rows) -> float:
    """Return the similarity of the two least similar members, blockwise; 1 for a single one."""
    lowest = 1.0
    parts = [members[s : s + _GATHERED] for s in range(0, len(members), _GATHERED)]
    for number, part in enumerate(parts):
        loaded = similarity.load(part)
        for other in parts[number:]:
            others = loaded if other is part else similarity.load(other)
            lowest = min(lowest, float(similarity.product(loaded, others).min(initial=1.0)))
    return lowest


def choose_kept(
    similarity: PairSimilarity,
    members: Rows,
    threshold: float,
    always: npt.NDArray[np.bool_] | None = None,
) -> tuple[Rows, Doubles]:
    """Choose the kept member that each member is a copy of, so that no distinct item is lost.

    The first is kept, and members within the threshold of it are its copies; then the same for the
    rest. A long chain thus keeps several members.

    Args:
        members: (m,) members of one group, in order of preference to keep.
        always: (m,) members that are kept whatever they resemble; none by default.

    Returns:
        (m,) positions in `members` of the kept one, their own for kept ones; and (m,) similarities
        to it, 1 for kept ones.
    """
    kept = np.full(len(members), -1, np.int64)
    alike = np.ones(len(members))
    left = np.arange(len(members))
    while len(left):
        first, left = left[0], left[1:]
        kept[first] = first
        values = similarity.exact(np.full(len(left), members[first]), members[left])
        is_copy = values >= threshold - TOLERANCE
        if always is not None:
            is_copy &= ~always[left]
        kept[left[is_copy]], alike[left[is_copy]] = first, values[is_copy]
        left = left[~is_copy]
    return kept, np.minimum(alike, 1.0)
