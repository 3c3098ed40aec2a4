"""Retrieval metrics: numpy in, numbers out.

Two definitions of average precision are in use, and both are here. `average_precision` is
the mean of the precision at each relevant rank (information retrieval, SVD, scikit-learn).
The revisited Oxford and Paris benchmark (Radenović et al., CVPR 2018) integrates the
precision-recall curve by trapezoids, `trapezoid_ap`. All ranks here start at 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from whiten.errors import ConfigError

Ranks = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float64]

# The revisited protocols: which index lists count as positives, and which are ignored.
REVISITED = {
    "easy": (("easy",), ("junk", "hard")),
    "medium": (("easy", "hard"), ("junk",)),
    "hard": (("hard",), ("junk", "easy")),
}


def average_precision(labels: Sequence[int] | npt.NDArray[Any]) -> float:
    """Mean of the precision at each relevant rank.

    Normalised by the relevant items in the list, as the SVD protocol does; cut the list for
    AP at k.

    Args:
        labels: (n,) of 0 or 1, the relevance of the ranked items, best first.

    Returns:
        0 to 1; 0 for a list without relevant items.
    """
    relevant = np.flatnonzero(np.asarray(labels))
    return ap_from_ranks(relevant)


def ap_from_ranks(ranks: Ranks, n_positives: int | None = None) -> float:
    """`average_precision` from the sorted ranks of the positives.

    Args:
        ranks: (p,) ascending, from 0.
        n_positives: what to divide by, if positives were left out; by default p.
    """
    if len(ranks) == 0:
        return 0.0
    precision = np.arange(1, len(ranks) + 1) / (ranks + 1)
    return float(precision.sum() / (len(ranks) if n_positives is None else n_positives))


def trapezoid_ap(ranks: Ranks) -> float:
    """AP of the revisited benchmark: trapezoids under the precision-recall curve.

    Args:
        ranks: (p,) ascending ranks of the positives from 0, junk already removed; p >= 1.
    """
    found = np.arange(len(ranks))
    before = np.divide(found, ranks, out=np.ones(len(ranks)), where=ranks > 0)
    after = (found + 1) / (ranks + 1)
    return float((before + after).sum() / (2 * len(ranks)))


def revisited(
    similarity: npt.NDArray[Any], ground_truth: Sequence[Mapping[str, Sequence[int]]]
) -> dict[str, dict[str, Any]]:
    """Scores of the revisited Oxford and Paris benchmark.

    Args:
        similarity: (database, queries), larger is more similar.
        ground_truth: per query the database indices that are `easy`, `hard` and `junk`;
            a missing list is empty.

    Returns:
        For `easy`, `medium` and `hard`: `map`; `aps`, one per query, None where a query has no
        positive (it is left out of the means); `mp_at`, the mean precision at 1, 5 and 10,
        where k shrinks to the rank of the last positive if that comes earlier.
    """
    similarity = np.asarray(similarity)
    if similarity.ndim != 2 or similarity.shape[1] != len(ground_truth):
        raise ConfigError(
            f"similarity of shape {similarity.shape} does not fit {len(ground_truth)} queries: "
            "pass (database, queries)"
        )
    return {
        name: _revisited_protocol(similarity, ground_truth, *lists)
        for name, lists in REVISITED.items()
    }


def _revisited_protocol(
    similarity: npt.NDArray[Any],
    ground_truth: Sequence[Mapping[str, Sequence[int]]],
    positive_lists: tuple[str, ...],
    junk_lists: tuple[str, ...],
) -> dict[str, Any]:
    aps: list[float | None] = []
    precisions: list[list[float]] = []
    for query, truth in enumerate(ground_truth):
        positives = _indices(truth, positive_lists)
        if len(positives) == 0:
            aps.append(None)
            continue
        ranks = positive_ranks(similarity[:, query], positives, _indices(truth, junk_lists))
        aps.append(trapezoid_ap(ranks))
        last = ranks[-1] + 1
        precisions.append([float((ranks < min(k, last)).sum()) / min(k, last) for k in (1, 5, 10)])
    known = [ap for ap in aps if ap is not None]
    means = np.mean(precisions, axis=0) if precisions else np.full(3, np.nan)
    return {
        "map": float(np.mean(known)) if known else float("nan"),
        "aps": aps,
        "mp_at": dict(zip((1, 5, 10), map(float, means), strict=True)),
    }


def _indices(truth: Mapping[str, Sequence[int]], names: Iterable[str]) -> Ranks:
    return np.concatenate([np.asarray(truth.get(name, ()), np.int64) for name in names])


def positive_ranks(
    similarity: npt.NDArray[Any], positives: Ranks, junk: Ranks | None = None
) -> Ranks:
    """Ranks of the positives in a gallery sorted by falling similarity, without sorting it.

    Counts, for each positive, the items above it: O(n log p) instead of O(n log n). Equal
    similarities rank by index, as a stable sort would.

    Args:
        similarity: (n,) of one query to the gallery.
        positives: (p,) indices into it, p >= 1.
        junk: indices that are treated as absent.

    Returns:
        (p,) ascending.
    """
    if np.isnan(similarity).any():
        raise ConfigError("similarities hold NaN: embed those items again")
    falling = -similarity
    levels = np.unique(falling[positives])
    level = np.searchsorted(levels, falling)
    tied = levels[np.minimum(level, len(levels) - 1)] == falling
    # An integer key sorts as (similarity, index) does wherever a positive is involved; items
    # between two levels need no order among themselves.
    key = level * (len(similarity) + 1)
    key[tied] += 1 + np.flatnonzero(tied)
    positive_keys = np.sort(key[positives])
    if junk is not None and len(junk):
        key = np.delete(key, junk)
    # How many items stand before the first positive, between it and the second, and so on.
    between = np.bincount(
        np.searchsorted(positive_keys, key, side="right"), minlength=len(positives) + 1
    )
    ranks: Ranks = np.cumsum(between)[: len(positives)]
    return ranks


def precision_at(ranks: Ranks, k: int) -> float:
    """Share of positives among the first k."""
    return float((ranks < k).sum()) / k


def recall_at(ranks: Ranks, k: int) -> float:
    """1 if a positive is among the first k, else 0 (the field's recall@k)."""
    return float(len(ranks) > 0 and ranks[0] < k)


def average_precision_at(ranks: Ranks, k: int) -> float:
    """AP of the first k, divided by the positives that could be there, min(p, k)."""
    return ap_from_ranks(ranks[ranks < k], min(len(ranks), k))


def bootstrap_interval(
    values: npt.NDArray[Any], *, level: float = 0.95, resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean over queries (Efron & Tibshirani 1993).

    Args:
        values: (n,) one number per query.
    """
    values = np.asarray(values, np.float64)
    generator = np.random.default_rng(seed)
    # Resampling is drawing how often each query appears: memory O(n) per resample.
    means = np.empty(resamples)
    for i in range(resamples):
        means[i] = values[generator.integers(0, len(values), len(values))].mean()
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
