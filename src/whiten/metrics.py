"""Retrieval metrics of NumPy arrays.

Two definitions of average precision are in use; both are here. `average_precision` is the mean of
the precision at each relevant rank (information retrieval, SVD, scikit-learn). The revisited Oxford
and Paris benchmark (Radenović et al., CVPR 2018) integrates the precision-recall curve by
trapezoids, `trapezoid_ap`. All ranks here start at 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from typing import Any

import numpy as np
import numpy.typing as npt

from whiten.errors import ConfigError
from whiten.retrieval.blocks import BLOCK_ROWS
from whiten.retrieval.intervals import Figure as Figure
from whiten.retrieval.intervals import bootstrap_interval as bootstrap_interval
from whiten.retrieval.intervals import figures as figures
from whiten.retrieval.ranks import RankCounter as RankCounter
from whiten.retrieval.ranks import Ranks as Ranks
from whiten.retrieval.sets import SET_SIMILARITIES as SET_SIMILARITIES
from whiten.retrieval.sets import set_similarity as set_similarity
from whiten.utils.arrays import as_numpy

Scores = npt.NDArray[np.float64]

# The revisited protocols: lists that count as positives, and lists that are ignored.
REVISITED = {
    "easy": (("easy",), ("junk", "hard")),
    "medium": (("easy", "hard"), ("junk",)),
    "hard": (("hard",), ("junk", "easy")),
}


def average_precision(labels: Sequence[int] | npt.NDArray[Any]) -> float:
    """Compute the mean of the precision at each relevant rank.

    Normalised by the number of relevant items in the list, as in the SVD protocol; truncate the
    list for AP at k.

    Args:
        labels: (n,) of 0 or 1, the relevance of the ranked items, best first.

    Returns:
        0 to 1; 0 for a list without relevant items.

    Raises:
        ConfigError: a label is neither 0 nor 1.
    """
    return ap_from_ranks(np.flatnonzero(_relevance(labels)))


def _relevance(labels: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """Return labels as booleans; -1, NaN and grades would all count as relevant."""
    values = as_numpy(labels)
    other = np.setdiff1d(values, [0, 1])
    if len(other):
        raise ConfigError(f"label {other[0]} is neither 0 nor 1: pass the relevance of each item")
    relevant: npt.NDArray[np.bool_] = values.astype(bool)
    return relevant


def ap_from_ranks(ranks: Ranks, n_positives: int | None = None) -> float:
    """Compute `average_precision` from the sorted ranks of the positives.

    Args:
        ranks: (p,) ascending, from 0, each once.
        n_positives: divisor, if positives were left out; by default p.

    Raises:
        ConfigError: the ranks are not of this kind, or there are more of them than positives.
    """
    ranks = _ascending(ranks)
    total = len(ranks) if n_positives is None else n_positives
    if total < len(ranks):
        raise ConfigError(f"{len(ranks)} positives have ranks, n_positives={total} cannot be all")
    if len(ranks) == 0:
        return 0.0
    precision = np.arange(1, len(ranks) + 1) / (ranks + 1)
    return float(precision.sum() / total)


def _ascending(ranks: npt.ArrayLike) -> Ranks:
    """Return ranks as an array; of those in another order, an average precision may exceed 1."""
    values = _whole(ranks, "ranks")
    if (values < 0).any() or (values[1:] <= values[:-1]).any():
        raise ConfigError("ranks must count from 0 and ascend, each once: sort them")
    return values


def _whole(numbers: npt.ArrayLike, what: str) -> Ranks:
    """Return whole numbers as an array; a mask, or fractions cut off, would be other items."""
    values = as_numpy(numbers)
    if values.size and values.dtype.kind not in "iu":
        raise ConfigError(
            f"{what} must be whole numbers, not {values.dtype}: take np.flatnonzero of a mask"
        )
    if values.ndim != 1:
        raise ConfigError(f"{what} have the shape {values.shape}: pass those of one query, (n,)")
    return values.astype(np.int64, copy=False)


def trapezoid_ap(ranks: Ranks) -> float:
    """Compute the AP of the revisited benchmark: trapezoids under the precision-recall curve.

    Args:
        ranks: (p,) ascending ranks of the positives from 0, junk already removed; p >= 1.

    Raises:
        ConfigError: the ranks are not of this kind, or there are none.
    """
    ranks = _ascending(ranks)
    if not len(ranks):
        raise ConfigError("a query without positives has no AP: leave it out, as `revisited` does")
    found = np.arange(len(ranks))
    before = np.divide(found, ranks, out=np.ones(len(ranks)), where=ranks > 0)
    after = (found + 1) / (ranks + 1)
    return float((before + after).sum() / (2 * len(ranks)))


def revisited(
    similarity: npt.NDArray[Any], ground_truth: Sequence[Mapping[str, Sequence[int]]]
) -> dict[str, dict[str, Any]]:
    """Compute the metrics of revisited Oxford and Paris, all protocols in one pass.

    To compute them from embeddings, without the matrix:
    `whiten.evaluation.evaluate.score_revisited`.

    Args:
        similarity: (database, queries), larger is more similar.
        ground_truth: per query, database indices that are `easy`, `hard` and `junk`; a missing list
            is empty.

    Returns:
        For `easy`, `medium` and `hard`: `map`; `aps`, one per query, None for queries without
        positives (which are left out of the means); `mp_at`, the mean precision at 1, 5 and 10,
        where k is at most the rank of the last positive.

    Raises:
        ConfigError: shapes do not match, similarities are NaN, or an index is none of the database,
            or both junk and a positive of a query.
    """
    similarity = as_numpy(similarity)
    if similarity.ndim != 2 or similarity.shape[1] != len(ground_truth):
        raise ConfigError(
            f"similarity of shape {similarity.shape} does not fit {len(ground_truth)} queries: "
            "pass (database, queries)"
        )
    labelled, positives = revisited_labels(ground_truth, len(similarity))
    scores = [similarity[places, query] for query, places in enumerate(labelled)]
    counter = RankCounter(labelled, scores, positives)
    for start in range(0, len(similarity), BLOCK_ROWS):
        block = similarity[start : start + BLOCK_ROWS].T
        has_rows = block.strides[1] == block.itemsize
        counter.add(start, block if has_rows else np.ascontiguousarray(block))
    return revisited_scores([counter], ground_truth)


def revisited_labels(
    ground_truth: Sequence[Mapping[str, Sequence[int]]], size: int
) -> tuple[list[Ranks], list[Ranks]]:
    """Return all indices in each query's ground truth, and those that are ever positive.

    Raises:
        ConfigError: an index is none of a database of this size, or both junk and positive.
    """
    labelled = [np.unique(_indices(truth, ("easy", "hard", "junk"))) for truth in ground_truth]
    positives = [np.unique(_indices(truth, ("easy", "hard"))) for truth in ground_truth]
    for query, (own, right) in enumerate(zip(labelled, positives, strict=True)):
        _require_within(own, size)
        both = np.intersect1d(right, _indices(ground_truth[query], ("junk",)))
        if len(both):
            raise ConfigError(
                f"query {query}: index {both[0]} is junk and easy or hard: leave it in one list"
            )
    return labelled, positives


def _require_within(indices: Ranks, size: int) -> None:
    """Raise ConfigError for an index outside of a gallery; -1 would be its last item."""
    outside = indices[(indices < 0) | (indices >= size)]
    if len(outside):
        raise ConfigError(f"index {outside[0]} is none of {size} items: count from 0")


def revisited_scores(
    counters: Iterable[RankCounter], ground_truth: Sequence[Mapping[str, Sequence[int]]]
) -> dict[str, dict[str, Any]]:
    """Return the result of `revisited`, from finished counters of consecutive queries."""
    aps: dict[str, list[float | None]] = {name: [] for name in REVISITED}
    precisions: dict[str, list[list[float]]] = {name: [] for name in REVISITED}
    rows = ((counter, row) for counter in counters for row in range(len(counter)))
    for (counter, row), truth in zip(rows, ground_truth, strict=True):
        for name, (positive_lists, junk_lists) in REVISITED.items():
            positives = _indices(truth, positive_lists)
            if len(positives) == 0:
                aps[name].append(None)
                continue
            ranks = counter.ranks(row, positives, _indices(truth, junk_lists))
            aps[name].append(trapezoid_ap(ranks))
            cuts = [min(k, ranks[-1] + 1) for k in (1, 5, 10)]
            precisions[name].append([float((ranks < k).sum()) / k for k in cuts])
    return {name: _means(aps[name], precisions[name]) for name in REVISITED}


def _means(aps: list[float | None], precisions: list[list[float]]) -> dict[str, Any]:
    known = [ap for ap in aps if ap is not None]
    means = np.mean(precisions, axis=0) if precisions else np.full(3, np.nan)
    return {
        "map": float(np.mean(known)) if known else float("nan"),
        "aps": aps,
        "mp_at": dict(zip((1, 5, 10), map(float, means), strict=True)),
    }


def _indices(truth: Mapping[str, Sequence[int]], names: Iterable[str]) -> Ranks:
    return np.concatenate([_whole(truth.get(name, ()), f"indices of {name!r}") for name in names])


def positive_ranks(
    similarity: npt.ArrayLike, positives: npt.ArrayLike, junk: npt.ArrayLike | None = None
) -> Ranks:
    """Return the ranks of the positives by descending similarity, without sorting the gallery.

    Ties rank by index, as in a stable sort; see `RankCounter`.

    Args:
        similarity: (n,) similarities of one query to the gallery.
        positives: (p,) indices into it, p >= 1.
        junk: indices to treat as absent.

    Returns:
        (p,) ascending.

    Raises:
        ConfigError: similarities are not those of one query, or NaN, or an index is none of the
            gallery, or both a positive and junk.
    """
    scores, wanted = as_numpy(similarity), _whole(positives, "positives")
    if scores.ndim != 1:
        raise ConfigError(f"similarities of shape {scores.shape}: pass those of one query, (n,)")
    absent = _whole([] if junk is None else junk, "junk")
    both = np.intersect1d(wanted, absent)
    if len(both):
        raise ConfigError(f"index {both[0]} is junk and positive: leave it in one list")
    labelled = np.unique(np.concatenate([wanted, absent]))
    _require_within(labelled, len(scores))
    counter = RankCounter([labelled], [scores[labelled]], [wanted])
    for start in range(0, len(scores), BLOCK_ROWS):
        counter.add(start, scores[None, start : start + BLOCK_ROWS])
    return counter.ranks(0, wanted, absent)


def precision_at(ranks: Ranks, k: int) -> float:
    """Return the fraction of positives among the first k, at least 1.

    Raises:
        ConfigError: k is no whole number, or below 1, or the ranks do not ascend from 0.
    """
    _require_first(k)
    return float((_ascending(ranks) < k).sum()) / k


def _require_first(k: int) -> None:
    if not isinstance(k, Integral) or k < 1:
        raise ConfigError(f"k must be a whole number of at least 1, not {k}")


def recall_at(ranks: Ranks, k: int) -> float:
    """Return 1 if a positive is among the first k, else 0 (the field's recall@k).

    Raises:
        ConfigError: see `precision_at`.
    """
    _require_first(k)
    ranks = _ascending(ranks)
    return float(len(ranks) > 0 and ranks[0] < k)


def average_precision_at(ranks: Ranks, k: int) -> float:
    """Return the AP of the first k, divided by the number of positives possible, min(p, k).

    Raises:
        ConfigError: see `precision_at`.
    """
    _require_first(k)
    ranks = _ascending(ranks)
    return ap_from_ranks(ranks[ranks < k], min(len(ranks), k))


def micro_average_precision(
    scores: npt.NDArray[Any], labels: npt.NDArray[Any], *, n_positives: int | None = None
) -> float:
    """Compute µAP: average precision over all queries' pairs, ranked in one list by score.

    Unlike mAP, it requires scores to be comparable across queries: one threshold for all (Law-To et
    al., CIVR 2007; metric of the 2021 Image Similarity Challenge, Douze et al. 2021). Pairs of
    equal score form one step of the precision-recall curve, without order.

    Args:
        scores: scores of the pairs, of any shape; pairs left out count as not found.
        labels: 0 or 1, of the same shape, whether a pair is correct.
        n_positives: number of correct pairs, including those left out; by default those given.

    Returns:
        0 to 1; 0 if there is nothing to find.

    Raises:
        ConfigError: shapes do not match, scores are NaN, a label is neither 0 nor 1, or
            `n_positives` is too small.
    """
    values, right = as_numpy(scores).ravel(), _relevance(labels).ravel()
    if np.shape(scores) != np.shape(labels) or np.isnan(values).any():
        raise ConfigError(
            f"scores {np.shape(scores)} and labels {np.shape(labels)} must have one shape and no "
            "NaN in them"
        )
    total = int(right.sum()) if n_positives is None else n_positives
    if total < right.sum():
        raise ConfigError(f"{right.sum()} pairs are right, n_positives={total} cannot be all")
    if not right.any():
        return 0.0
    # Not by the negated scores: those of unsigned numbers, and the lowest of signed ones, wrap.
    order = np.argsort(values)[::-1]
    values, found = values[order], np.cumsum(right[order])
    ends = np.append(np.flatnonzero(values[1:] != values[:-1]), len(values) - 1)  # of equal scores
    steps = np.diff(found[ends], prepend=0)
    return float((steps * found[ends] / (ends + 1)).sum() / total)
