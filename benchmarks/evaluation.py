"""Evaluate 70 queries against a million items, medium and hard, compared with sorting them all.

    python benchmarks/evaluation.py --out benchmarks/results/evaluation.json

The usual way sorts the whole gallery for every query, finds the positives and the junk in the
ranked list by membership tests, once for each protocol, and integrates by trapezoids. Measured are
the ranking alone, from given similarities, and the whole way from embeddings. Galleries are
simulated: distractors are random unit vectors, positives are at random angles to their query, so
that some stand first and some are lost among the distractors.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from side_by_side import Comparison, Report, arguments, peak_bytes, take_turns

from whiten import metrics
from whiten.evaluation.evaluate import score_revisited

Array = npt.NDArray[Any]
Truth = Sequence[Mapping[str, Array]]
Aps = dict[str, list[float]]

QUERIES = 70
AIM = 30.0
EASY, HARD, JUNK = 30, 40, 30  # of each query, about as many as in the revisited Oxford and Paris


def make_problem(n: int, dim: int, *, found: bool, seed: int = 0) -> tuple[Array, Array, Truth]:
    """(70, dim) queries, (n, dim) gallery, truth. Not `found`: positives are distractors too."""
    rng = np.random.default_rng(seed)
    gallery = rng.standard_normal((n, dim), dtype=np.float32)
    queries = rng.standard_normal((QUERIES, dim), dtype=np.float32)
    for block in (queries, gallery):
        for start in range(0, len(block), 8192):
            part = block[start : start + 8192]
            part /= np.linalg.norm(part, axis=1, keepdims=True)
    places = rng.permutation(n)[: QUERIES * (EASY + HARD + JUNK)].reshape(QUERIES, -1)
    truth = [
        {"easy": p[:EASY], "hard": p[EASY : EASY + HARD], "junk": p[EASY + HARD :]} for p in places
    ]
    if found:
        turn_to_queries(rng, queries, gallery, truth)
    return queries, gallery, truth


def turn_to_queries(rng: np.random.Generator, queries: Array, gallery: Array, truth: Truth) -> None:
    """Rotate the rows in the ground truth towards their queries, in place, to random cosines.

    These are in units of a distractor's standard deviation, 1/√dim: the first distractors of a
    million have about 5.
    """
    for name, mean in (("easy", 8.0), ("hard", 5.0), ("junk", 6.0)):
        for query, lists in zip(queries, truth, strict=True):
            cosine = rng.normal(mean, 2.5, len(lists[name])) / np.sqrt(len(query))
            cosine = cosine.clip(-0.95, 0.95).astype(np.float32)[:, None]
            own = gallery[lists[name]]
            own -= (own @ query)[:, None] * query
            own /= np.linalg.norm(own, axis=1, keepdims=True)
            gallery[lists[name]] = cosine * query + np.sqrt(1 - cosine**2) * own


def sorted_aps(similarity: Array, truth: Truth, *, kind: str | None = None) -> Aps:
    """The usual way: everything sorted, positives and junk found by membership.

    Args:
        similarity: (n, queries), columns contiguous.
        kind: of sort; equal similarities stand in the order of their index only if it is stable.
    """
    aps: Aps = {"medium": [], "hard": []}
    for query, lists in enumerate(truth):
        ranked = np.argsort(-similarity[:, query], kind=kind)  # type: ignore[call-overload]
        for name, own in aps.items():
            positives, junk = (
                np.concatenate([lists[key] for key in keys]) for keys in metrics.REVISITED[name]
            )
            at = np.flatnonzero(np.isin(ranked, positives))
            at -= np.searchsorted(np.flatnonzero(np.isin(ranked, junk)), at)
            own.append(trapezoids(at))
    return aps


def trapezoids(ranks: Array) -> float:
    """AP of the revisited protocol, term by term."""
    total = 0.0
    for found, rank in enumerate(ranks):
        before = 1.0 if rank == 0 else found / rank
        total += (before + (found + 1) / (rank + 1)) / (2 * len(ranks))
    return total


def largest_error(ours: Mapping[str, Mapping[str, Any]], theirs: Aps) -> float:
    return max(
        float(np.abs(np.array(ours[name]["aps"]) - np.array(aps)).max())
        for name, aps in theirs.items()
    )


def ranking(report: Report, label: str, similarity: Array, truth: Truth, aim: bool) -> None:
    sort = "argsort + isin"
    comparison = take_turns(
        f"ranking alone, {label}",
        {
            "whiten": lambda: metrics.revisited(similarity, truth),
            sort: lambda: sorted_aps(similarity, truth),
            "floor: one read of the similarities": lambda: similarity.max(),
        },
        ours="whiten",
        rounds=report.facts["rounds"],
    )
    comparison.targets = {sort: AIM} if aim else {}
    scores = metrics.revisited(similarity, truth)
    comparison.facts = {
        "error": largest_error(scores, sorted_aps(similarity, truth, kind="stable")),
        **peaks(
            similarity.nbytes,
            lambda: metrics.revisited(similarity, truth),
            lambda: sorted_aps(similarity, truth),
        ),
        **{f"map_{name}": round(scores[name]["map"], 4) for name in ("medium", "hard")},
    }
    report.add(comparison)


def whole_way(report: Report, label: str, queries: Array, gallery: Array, truth: Truth) -> Array:
    def usual() -> Aps:
        return sorted_aps((queries @ gallery.T).T, truth)

    def blocks() -> Iterator[Array]:
        for start in range(0, len(gallery), metrics.BLOCK_ROWS):
            yield queries @ gallery[start : start + metrics.BLOCK_ROWS].T

    similarity = (queries @ gallery.T).T
    comparison: Comparison = take_turns(
        f"from embeddings, {label}",
        {
            "whiten": lambda: score_revisited(queries, gallery, truth),
            "argsort + isin": usual,
            "floor: the bare GEMM": lambda: sum(len(block) for block in blocks()),
        },
        ours="whiten",
        rounds=report.facts["rounds"],
    )
    scores = score_revisited(queries, gallery, truth)
    comparison.facts = {
        "error": largest_error(scores, sorted_aps(similarity, truth, kind="stable")),
        **peaks(
            gallery.nbytes,
            lambda: score_revisited(queries, gallery, truth),
            usual,
        ),
    }
    report.add(comparison)
    return similarity


def peaks(given: int, ours: Callable[[], object], usual: Callable[[], object]) -> dict[str, float]:
    return {
        "given_mb": round(given / 1e6, 1),
        "whiten_peak_mb": round(peak_bytes(ours) / 1e6, 1),
        "usual_peak_mb": round(peak_bytes(usual) / 1e6, 1),
    }


def main() -> None:
    options = arguments(__doc__).parse_args()
    n, dims, rounds = (20_000, (64,), 1) if options.quick else (1_000_000, (256, 512), 3)
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    report = Report("evaluation", rounds=rounds, threads=threads)
    for dim in dims:
        label = f"{QUERIES} queries × {n:,} items, D={dim} float32"
        queries, gallery, truth = make_problem(n, dim, found=True)
        similarity = whole_way(report, label, queries, gallery, truth)
        del gallery
        if dim == dims[0]:
            ranking(report, label, similarity, truth, aim=True)
    # Nothing is found: every positive is where most of the gallery is, the worst case for counting.
    queries, gallery, truth = make_problem(n, dims[0], found=False)
    similarity = (queries @ gallery.T).T
    del gallery
    label = f"{QUERIES} queries × {n:,} items, positives at chance"
    ranking(report, label, similarity, truth, aim=False)
    report.finish(options.out)


if __name__ == "__main__":
    main()
