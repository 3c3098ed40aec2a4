"""Ranks of the positives, counted while the similarities of a gallery stream by."""

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

_GATHERED = 256  # labelled items whose embeddings are read at once, from wherever they lie
_STRIDE = 64  # of the sample that tells which scores are rare
_RARE = 16  # the first of so many scores count as rare
_MOST_COMPARED = 100  # scores that are cheaper to compare with everything than to sort for


class RankCounter:
    """Ranks of the positives, counted while the similarities of a gallery stream by.

    Only the positives of a query need a rank. It is the number of items before one, and counts of
    blocks add up, so that nothing is sorted but the few scores above the positives that stand high.
    What is junk is subtracted at the end: one pass serves several protocols.

    Args:
        labelled: per query the gallery indices of its positives and its junk, each once.
        scores: per query the similarities of these.
        positives: per query the labelled indices that `ranks` will be asked for.
    """

    def __init__(
        self,
        labelled: Sequence[Indices],
        scores: Sequence[npt.NDArray[Any]],
        positives: Sequence[Indices],
    ) -> None:
        # Per query, worst first; of equals, the last first.
        self._labelled: list[Indices] = []
        self._is_counted: list[npt.NDArray[np.bool_]] = []
        self._places: list[Indices] = []  # of those that are counted
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
        """Queries."""
        return len(self._places)

    def pin(self, start: int, block: npt.NDArray[Any]) -> None:
        """Write the labelled items' scores into a block that was computed apart from them.

        Two matrix products need not round alike; an item must have one score.
        """
        places, queries, scores = self._pins
        part = slice(*np.searchsorted(places, (start, start + block.shape[1])))
        block[queries[part], places[part] - start] = scores[part]

    def add(self, start: int, block: npt.NDArray[Any]) -> None:
        """Count a block of the gallery.

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
        """Add what stands before each positive in this row.

        The first `common` levels have many scores above them. Each is compared with the whole row,
        which vector units do at the speed of the cache; for the others the few scores above are
        picked out and sorted.
        """
        levels, places, before = self._levels[query], self._places[query], self._before[query]
        stop = start + len(row)
        is_later = places >= stop  # equals in this row come first
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
        """Ranks of a query's positives once the whole gallery was added.

        Args:
            positives: all that were announced, or some.
            junk: labelled indices that are treated as absent.

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
    """(gallery index, query, score) of all labelled items, by rising index."""
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
    """Similarities of each query to its labelled items, by matrix products as for all others.

    They must be known before the pass that counts what is above them.
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
