"""Count pairs by similarity, and compute bounds from the counts."""

from __future__ import annotations

from collections import Counter

import numpy as np
import numpy.typing as npt

from whiten.dedup.near_duplicates import range_search
from whiten.dedup.pair_similarity import Doubles, PairSimilarity, Rows

BINS = 20_000  # over similarities from -1 to 1

Counts = npt.NDArray[np.int64]


def count_pairs(similarity: PairSimilarity, rows: Rows, labels: Rows) -> tuple[Counts, Counts]:
    """Count pairs with equal and with different labels, by similarity in `BINS` bins.

    Args:
        rows: (m,) rows of the similarity.
        labels: (m,) labels of these rows.
    """
    same, different = np.zeros(BINS, np.int64), np.zeros(BINS, np.int64)
    step = similarity.blocks[0].stop
    starts = range(0, len(rows), step)
    for start in starts:
        one, loaded = labels[start : start + step], similarity.load(rows[start : start + step])
        for other_start in starts[start // step :]:
            part = slice(other_start, other_start + step)
            values = similarity.product(loaded, similarity.load(rows[part]))
            bins = ((values + 1) * (BINS / 2)).astype(np.int32).clip(0, BINS - 1)
            is_same = one[:, None] == labels[None, part]
            if other_start == start:  # count each pair once
                pairs = np.triu(np.ones(bins.shape, bool), 1)
                bins, is_same = bins[pairs], is_same[pairs]
            both = np.bincount(bins.ravel(), minlength=BINS)
            own = np.bincount(bins[is_same], minlength=BINS)
            same += own
            different += both - own
    return same, different


def sample(rows: Rows, most: int) -> Rows:
    """Return at most `most` random rows, always the same ones, which leaves precision unbiased."""
    if len(rows) <= most:
        return rows
    return np.sort(np.random.default_rng(0).permutation(rows)[:most])


def from_above(counts: Counts) -> Counts:
    """Return the number of pairs in each bin or above."""
    total: Counts = np.cumsum(counts[::-1])[::-1]
    return total


def edge(number: int) -> float:
    """Return the lower edge of a bin."""
    return round(number / (BINS / 2) - 1, 4)


def first_enough(values: Doubles, least: float) -> int | None:
    """Return the first bin whose value is at least `least`; None if there is none."""
    enough = np.flatnonzero(values >= least)
    return int(enough[0]) if len(enough) else None


def lower_bound(successes: Counts, failures: Counts, level: float) -> Doubles:
    """Return Clopper and Pearson's one-sided lower bound of a proportion; 0 without successes."""
    from scipy.special import betaincinv

    some = np.maximum(successes, 1)
    bound: Doubles = np.where(successes > 0, betaincinv(some, failures + 1, level), 0.0)
    return bound


def share_of(right: Doubles, wrong: Doubles) -> Doubles:
    with np.errstate(invalid="ignore"):
        share: Doubles = np.nan_to_num(right / (right + wrong))
    return share


def first_pure_groups(
    similarity: PairSimilarity, labels: Rows, least: float, target: float
) -> float | None:
    """Return the lowest threshold from `least` whose groups have a precision of `target`.

    Groups link pairs through others, and one mistake joins two whole groups: so this counts all
    pairs of members of a group, which links at falling similarity merge one by one.

    Args:
        labels: (n,) equal for copies.

    Returns:
        A similarity; None if the groups at every threshold are worse.
    """
    found = list(range_search(similarity, least))
    if not found:
        return least
    one, other, values = (np.concatenate(part) for part in zip(*found, strict=True))
    order = np.argsort(-values, kind="stable")
    groups = {number: Counter([label]) for number, label in enumerate(labels.tolist())}
    place = list(range(len(labels)))  # group of each item
    members = {number: [number] for number in range(len(labels))}
    right = total = 0
    lowest: float | None = None
    for rank, i in enumerate(order.tolist()):
        a, b = place[int(one[i])], place[int(other[i])]
        if a != b:
            if len(members[a]) < len(members[b]):
                a, b = b, a
            total += len(members[a]) * len(members[b])
            right += sum(groups[a][label] * count for label, count in groups[b].items())
            for member in members[b]:
                place[member] = a
            members[a] += members.pop(b)
            groups[a].update(groups.pop(b))
        is_last = rank + 1 == len(order) or values[order[rank + 1]] < values[i]
        if is_last and right >= target * total:
            lowest = float(values[i])
    # Nothing lies between the last link and `least`.
    return least if right >= target * total else lowest
