"""Recognise the copies that a collection already holds, by their pixels.

A threshold is calibrated on images that are different. A collection to deduplicate is full of
copies, so they are told apart first, by evidence that does not come from the model.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from whiten.dedup.counting import count_pairs, edge, from_above
from whiten.dedup.near_duplicates import Forest, range_search
from whiten.dedup.pair_similarity import PairSimilarity
from whiten.media.pixels import Pictures

_FIRST = 500  # pairs; the most similar are compared first, and each step has twice as many
_PATIENCE = 200  # it stops where so many more pairs differ than agree


def confirmed(similarity: PairSimilarity, pictures: Sequence[str]) -> Forest:
    """Join the items whose pixels agree, from the most similar pair on.

    Pairs that are already joined through others are not compared, so that a folder of many copies
    of each picture takes about one comparison per image. It stops where more pairs differ than
    agree; all further pairs count as different.

    Args:
        pictures: one image file per item.
    """
    forest, pixels = Forest(len(pictures)), Pictures()
    agreed = differed = 0
    above = np.inf
    for level in _levels(similarity):
        for one, other, values in range_search(similarity, level):
            is_new = (values < above) & (forest.roots(one) != forest.roots(other))
            one, other, values = one[is_new], other[is_new], values[is_new]
            for i in np.argsort(-values, kind="stable").tolist():
                pair = one[i : i + 1], other[i : i + 1]
                if forest.roots(pair[0]) == forest.roots(pair[1]):
                    continue
                if differed > _PATIENCE + agreed:
                    return forest
                if pixels.same(pictures[int(pair[0][0])], pictures[int(pair[1][0])]):
                    forest.join(*pair)
                    agreed += 1
                else:
                    differed += 1
        above = level
    return forest


def _levels(similarity: PairSimilarity) -> list[float]:
    """Return falling similarities that `_FIRST` pairs reach, twice as many, and so on."""
    every = np.arange(len(similarity))
    reached = from_above(count_pairs(similarity, every, every)[1])
    steps = _FIRST * 2 ** np.arange(int(np.log2(max(1.0, reached[0] / _FIRST))) + 1)
    bins = [int(np.flatnonzero(reached >= count)[-1]) for count in steps if count <= reached[0]]
    return [edge(number) for number in sorted({0, *bins}, reverse=True)]
