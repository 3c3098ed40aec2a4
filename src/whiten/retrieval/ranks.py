"""Count the ranks of the positives, while a gallery's similarities pass block by block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from whiten.errors import ConfigError
from whiten.retrieval.blocks import similarity_blocks
from whiten.utils.arrays import Indices, Vectors
from whiten.utils.memory import forget

Ranks = Indices

_GATHERED = 256  # labelled items whose embeddings are read at once
_STRIDE = 64  # of the sample that tells which scores are rare
_RARE = 16  # the highest this many scores count as rare
_MOST_COMPARED = 100  # scores that are cheaper to compare with everything than to sort for


class RankCounter:
    """Counts the ranks of the positives, while similarities pass block by block.

    Only the positives need a rank: the number of items before each. Counts of blocks add up, so
    that only the few scores above high-ranked positives are sorted. Junk is subtracted at the end,
    so that one pass serves several protocols.

    Args:
        labelled: per query, gallery indices of its positives and its junk, each once.
        scores: per query, similarities of these.
        positives: per query, the labelled indices that `ranks` will be called with.
    """

    def __init__(
        self,
        labelled: Sequence[Indices],
        scores: Sequence[npt.NDArray[Any]],
        positives: Sequence[Indices],
    ) -> None:
        # Per query, worst first; among ties, the last first.
        self._labelled: list[Indices] = []
        self._is_counted: list[npt.NDArray[np.bool_]] = []
        self._places: list[Indices] = []  # of those to count
        self._levels: list[npt.NDArray[Any]] = []  # their scores
        for places, own, wanted in zip(labelled, scores, positives, strict=True):
            order = np.lexsort((-places, own))
            is_counted = np.isin(places[order], wanted)
            self._labelled.append(places[order])
            self._is_counted.append(is_counted)
            self._places.append(places[order][is_counted])
            self._levels.append(own[order][is_counted])
        self._before = [np.zeros(len(places), np.int64) for places in self._places]
        self._pins = _by_place(labelled, scores)

    def __len__(self) -> int:
        """Return the number of queries."""
        return len(self._places)

    def pin(self, start: int, block: npt.NDArray[Any]) -> None:
        """Write the labelled items' scores into a block that was computed separately.

        Two matrix products may round differently, but an item must have one score.
        """
        places, queries, scores = self._pins
        part = slice(*np.searchsorted(places, (start, start + block.shape[1])))
        block[queries[part], places[part] - start] = scores[part]

    def add(self, start: int, block: npt.NDArray[Any]) -> None:
        """Count one block of the gallery.

        Args:
            start: its first gallery index.
            block: (queries, b) similarities, rows contiguous.

        Raises:
            ConfigError: a similarity is NaN.
        """
        if block.size == 0:
            return
        if np.isnan(block.max()):  # NaN if any is
            raise ConfigError("similarities hold NaN: embed those items again")
        sample = block[:, ::_STRIDE]
        cut = sample.shape[1] - 1 - sample.shape[1] // _RARE
        rare = np.partition(sample, cut, axis=1)[:, cut]
        mask = np.empty(block.shape[1], bool)
        for query, levels in enumerate(self._levels):
            if len(levels):
                common = int(np.searchsorted(levels, rare[query]))
                self._add_row(query, start, block[query], common, mask)

    def _add_row(
        self,
        query: int,
        start: int,
        row: npt.NDArray[Any],
        common: int,
        mask: npt.NDArray[np.bool_],
    ) -> None:
        """Count the items before each positive in this row.

        The first `common` levels have many scores above them. Each is compared with the whole row,
        which vector units do at cache speed; for the others, the few scores above are picked out
        and sorted.
        """
        levels, places, before = self._levels[query], self._places[query], self._before[query]
        stop = start + len(row)
        is_later = places >= stop  # ties in this row come first
        if common > _MOST_COMPARED:
            common = 0
        for i in range(common):
            above = np.greater_equal if is_later[i] else np.greater
            before[i] += int(np.count_nonzero(above(row, levels[i], out=mask)))
        if common < len(levels):
            high = row[np.flatnonzero(np.greater_equal(row, levels[common], out=mask))]
            high.sort()
            level = levels[common:]
            below = np.where(
                is_later[common:], high.searchsorted(level), high.searchsorted(level, "right")
            )
            before[common:] += len(high) - below
        for i in np.flatnonzero(~is_later & (places >= start)).tolist():
            before[i] += int(np.count_nonzero(row[: places[i] - start] == levels[i]))

    def ranks(self, query: int, positives: Indices, junk: Indices) -> Indices:
        """Return the ranks of a query's positives, once the whole gallery was added.

        Args:
            positives: all announced positives, or some of them.
            junk: labelled indices to treat as absent.

        Returns:
            (p,) ascending.
        """
        is_junk = np.isin(self._labelled[query], junk)[::-1]
        absent: Indices = np.cumsum(is_junk) - is_junk
        present = self._before[query][::-1] - absent[self._is_counted[query][::-1]]
        ranks: Indices = present[np.isin(self._places[query][::-1], positives)]
        return ranks


def _by_place(
    labelled: Sequence[Indices], scores: Sequence[npt.NDArray[Any]]
) -> tuple[Indices, Indices, npt.NDArray[Any]]:
    """Return (gallery index, query, score) of all labelled items, by ascending index."""
    if not labelled:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32)
    places = np.concatenate(labelled)
    queries = np.repeat(np.arange(len(labelled)), [len(own) for own in labelled])
    order = np.argsort(places, kind="stable")
    return places[order], queries[order], np.concatenate(scores)[order]


def count_ranks(
    queries: Vectors,
    gallery: Vectors,
    labelled: Sequence[Indices],
    positives: Sequence[Indices],
) -> RankCounter:
    scores = _labelled_scores(queries, gallery, labelled)
    counter = RankCounter(labelled, scores, positives)
    for start, block in similarity_blocks(queries, gallery):
        counter.pin(start, block)
        counter.add(start, block)
    return counter


def _labelled_scores(
    queries: Vectors, gallery: Vectors, labelled: Sequence[Indices]
) -> list[Vectors]:
    """Return similarities of each query to its labelled items, by the same matrix products.

    They must be known before the pass that counts the items above them.
    """
    items = np.concatenate(labelled)
    wanted, which = np.unique(items, return_inverse=True)
    query = np.repeat(np.arange(len(labelled)), [len(own) for own in labelled])
    order = np.argsort(which, kind="stable")
    scores = np.empty(len(items), np.float32)
    for start in range(0, len(wanted), _GATHERED):
        product = queries @ gallery[wanted[start : start + _GATHERED]].T
        forget(gallery)
        first, last = np.searchsorted(which, (start, start + _GATHERED), sorter=order)
        mine = order[first:last]
        scores[mine] = product[query[mine], which[mine] - start]
    return np.split(scores, np.cumsum([len(own) for own in labelled])[:-1])
