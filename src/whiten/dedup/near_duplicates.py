"""Groups of near-duplicates: range search a block at a time, and union-find.

Pairs are visited once, block by block of the upper triangle, and what lies above the threshold goes
into a union-find at once: neither an n × n matrix nor a list of all pairs ever exists, even where
everything is a duplicate of everything.

A group is a connected component: its members are linked by pairs above the threshold, and two of
them may be less alike than that (chaining). So `lowest_similarity` says how far a group has spread,
and `choose_kept` takes no item for a copy that is not itself as alike as the threshold to an item
that is kept.
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

TOLERANCE = 1e-9  # identical vectors are as alike as 1, less the rounding of float64
_PAIRS = 1 << 18  # that exist at once
_GATHERED = 1024  # members of a group that are compared at once

Progress = Callable[[int, int], None]
"""Called with (blocks of pairs done, blocks in all)."""


def near_duplicates(
    vectors: npt.NDArray[Any],
    threshold: float,
    *,
    block_rows: int = BLOCK_ROWS,
    progress: Progress | None = None,
) -> list[Rows]:
    """Groups of rows that are linked by a cosine similarity of at least `threshold`.

    Equal to the connected components of the n × n matrix of float64 similarities, whatever the
    blocks: pairs so near the threshold that float32 cannot tell are computed again in float64.
    Beside the vectors, memory is some 30 MB and 8 bytes a row.

    Args:
        vectors: (n, d) float; may be a memory map. Rows need not be normalised.
        threshold: above -1, at most 1.
        block_rows: rows that are compared with as many others at once.
        progress: told after every block of pairs.

    Returns:
        Groups of two rows or more, each (m,) ascending, in the order of their first rows.

    Raises:
        ConfigError: a threshold that is out of range, or vectors that are not (n, d), zero or not
            finite.
    """
    check_threshold(threshold)
    return linked(VectorSimilarity(vectors, block_rows), threshold, progress)


def check_threshold(threshold: float) -> None:
    """Raise ConfigError for what can be no threshold on similarities."""
    if not -1 < threshold <= 1:
        raise ConfigError(
            f"threshold must be a similarity above -1 and at most 1, not {threshold:g}"
        )


def linked(
    similarity: PairSimilarity, threshold: float, progress: Progress | None = None
) -> list[Rows]:
    """`near_duplicates` by any symmetric similarity."""
    forest = Forest(len(similarity))
    for one, other, values in _candidates(similarity, threshold, forest, progress):
        is_sure = values >= threshold + similarity.rounding
        forest.join(one[is_sure], other[is_sure])
        left = ~is_sure
        _join_the_close(similarity, threshold, forest, one[left], other[left])
    return forest.groups()


def range_search(
    similarity: PairSimilarity, threshold: float, progress: Progress | None = None
) -> Iterator[tuple[Rows, Rows, Doubles]]:
    """All pairs (i < j) that are at least as alike as `threshold`, with their similarities.

    Yields:
        (p,) first rows, second rows and similarities, as many at once as fit into little memory.
    """
    for one, other, values in _candidates(similarity, threshold, None, progress):
        found: Doubles = values.astype(np.float64)
        close = np.flatnonzero(np.abs(found - threshold) <= similarity.rounding)
        found[close] = similarity.exact(one[close], other[close])
        keep = found >= threshold - TOLERANCE
        if keep.any():
            yield one[keep], other[keep], found[keep]


def _candidates(
    similarity: PairSimilarity,
    threshold: float,
    forest: Forest | None,
    progress: Progress | None,
) -> Iterator[tuple[Rows, Rows, npt.NDArray[np.float32]]]:
    """Pairs (i < j) that may be above the threshold, those that a forest has joined left out."""
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
    """Join pairs whose similarity in float64 is at least the threshold.

    A few at a time: where everything is a copy of everything, the first ones join all the others.
    """
    step = 1024
    while len(one):
        keep = forest.roots(one) != forest.roots(other)
        one, other = one[keep], other[keep]
        is_one = similarity.exact(one[:step], other[:step]) >= threshold - TOLERANCE
        forest.join(one[:step][is_one], other[:step][is_one])
        one, other, step = one[step:], other[step:], 2 * step


class Forest:
    """Union-find over n items, for arrays of pairs; a root is the first item of its group."""

    def __init__(self, n: int) -> None:
        self._parent: Rows = np.arange(n)

    def roots(self, items: Rows) -> Rows:
        """(p,) the root of each item; the paths to them are shortened."""
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
            # A root that many pairs hang up takes the least; the next round joins the others.
            np.minimum.at(self._parent, np.maximum(a, b), np.minimum(a, b))

    def is_one(self, rows: slice, columns: slice) -> bool:
        """Whether the items of both slices are in one group already."""
        first = self.roots(np.arange(rows.start, rows.start + 1))
        return all(
            bool((self.roots(np.arange(part.start, part.stop)) == first).all())
            for part in (columns, rows)
        )

    def groups(self) -> list[Rows]:
        """Groups of two items or more, each ascending, by their first items."""
        roots = self.roots(np.arange(len(self._parent)))
        order = np.argsort(roots, kind="stable")
        starts = np.flatnonzero(np.diff(roots[order], prepend=-1))
        parts = np.split(order, starts[1:]) if len(order) else []
        return [part for part in parts if len(part) > 1]


def lowest_similarity(similarity: PairSimilarity, members: Rows) -> float:
    """The similarity of the two members that are least alike, blockwise; 1 of a single one."""
    lowest = 1.0
    parts = [members[s : s + _GATHERED] for s in range(0, len(members), _GATHERED)]
    for number, part in enumerate(parts):
        loaded = similarity.load(part)
        for other in parts[number:]:
            others = loaded if other is part else similarity.load(other)
            lowest = min(lowest, float(similarity.product(loaded, others).min(initial=1.0)))
    return lowest


def choose_kept(
    similarity: PairSimilarity, members: Rows, threshold: float
) -> tuple[Rows, Doubles]:
    """Which member each member is a copy of, so that nothing is lost that has no like.

    The first is kept, and what is as alike to it as the threshold is its copy; of the rest the
    first is kept, and so on. A chain of many steps thus keeps several members.

    Args:
        members: (m,) of one group, those that should rather be kept first.

    Returns:
        (m,) positions in `members` of the kept one, their own for those that are kept; and (m,)
        the similarity to it, 1 for those that are kept.
    """
    kept = np.full(len(members), -1, np.int64)
    alike = np.ones(len(members))
    left = np.arange(len(members))
    while len(left):
        first, left = left[0], left[1:]
        kept[first] = first
        values = similarity.exact(np.full(len(left), members[first]), members[left])
        is_copy = values >= threshold - TOLERANCE
        kept[left[is_copy]], alike[left[is_copy]] = first, values[is_copy]
        left = left[~is_copy]
    return kept, np.minimum(alike, 1.0)
