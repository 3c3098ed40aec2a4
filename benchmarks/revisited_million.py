"""Revisited Paris with a million distractors, from stores: 70 queries against 1,006,322 items.

    python benchmarks/revisited_million.py --out benchmarks/results/revisited_million.json

The usual way reads everything into one matrix, multiplies it, sorts the whole gallery for every
query and finds positives and junk in the ranked list by membership tests. Measured are the whole
way from the stores, and ranking and scoring alone from given similarities. Embeddings are
simulated: distractors are random unit vectors, positives are at random angles to their query, so
that some stand first and some are lost among the distractors. Stores have the shards that
`whiten embed` writes; with `--scratch FOLDER` they are kept and used again. Numbers are compared
under a stable order of the same similarities: two matrix products of different shape need not
round alike.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from evaluation import AIM, Aps, Array, Truth, largest_error, sorted_aps, turn_to_queries
from side_by_side import Report, arguments, peak_bytes, take_turns

from whiten import metrics
from whiten.datasets.ground_truth import GroundTruth
from whiten.embedding.embed import SHARD_ROWS
from whiten.evaluation.revisited import CROPPED, blocks_of, score_settings
from whiten.evaluation.revisited_report import Setting
from whiten.store.shards import Origin, Row
from whiten.store.store import Store

QUERIES, DATABASE, DISTRACTORS = 70, 6_322, 1_000_000
EASY, HARD, JUNK = 25, 35, 30  # of each query
PEAK_MB = 1000.0  # that the evaluation may take


def unit_rows(rng: np.random.Generator, n: int, dim: int) -> Array:
    rows = rng.standard_normal((n, dim), dtype=np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


def make_database(dim: int) -> tuple[Array, Array, Truth]:
    """(70, dim) queries, (6322, dim) database, and its truth, each image for one query at most."""
    rng = np.random.default_rng(0)
    queries, database = unit_rows(rng, QUERIES, dim), unit_rows(rng, DATABASE, dim)
    count = EASY + HARD + JUNK
    places = rng.permutation(DATABASE)[: QUERIES * count].reshape(QUERIES, count)
    cuts = np.cumsum([EASY, HARD])
    truth = [
        dict(zip(("easy", "hard", "junk"), np.split(own, cuts), strict=True)) for own in places
    ]
    turn_to_queries(rng, queries, database, truth)
    return queries, database, truth


def make_store(folder: Path, items: int, dim: int) -> Store:
    """Distractors as `whiten embed` stores them; goes on where it was."""
    store = Store.create_or_resume(folder, Origin("simulated", f"{dim}", dim, "", 0))
    for start in range(len(store), items, SHARD_ROWS):
        rng = np.random.default_rng([1, start])
        block = unit_rows(rng, min(SHARD_ROWS, items - start), dim)
        names = [f"{start + row:07d}.jpg" for row in range(len(block))]
        rows = zip(names, block, strict=True)
        store.append([Row(name, name, None, 0, name, vector) for name, vector in rows])
    if len(store) != items:
        sys.exit(f"{folder} holds {len(store):,} items, not {items:,}: name another --scratch")
    return store


def from_stores(queries: Array, database: Array, store: Store, truth: GroundTruth) -> list[Setting]:
    return list(score_settings({CROPPED: queries}, database, truth, blocks_of(store)))


def one_matrix(queries: Array, database: Array, store: Store) -> Array:
    """(n, 70) similarities from one matrix of everything."""
    gallery = np.concatenate([database, *(vectors for _, _, vectors in store.blocks(view=0))])
    return (queries @ gallery.T).T


def same_similarities(queries: Array, database: Array, store: Store) -> Array:
    """(n, 70) similarities by the products that the evaluation makes."""

    def products() -> Iterator[Array]:
        yield queries @ database.T
        for vectors in blocks_of(store):
            yield queries @ vectors.T

    return np.concatenate(list(products()), axis=1).T


def error(settings: list[Setting], theirs: Aps) -> float:
    """The largest difference of a mAP."""
    figures = settings[-1].figures
    ours = {name: figures[name] for name in theirs}
    return max(
        abs((figure.value if figure else np.nan) - float(np.mean(theirs[name])))
        for name, figure in ours.items()
    )


def measure(report: Report, scratch: Path, items: int, dim: int) -> None:
    queries, database, truth = make_database(dim)
    lists = [{name: places.tolist() for name, places in own.items()} for own in truth]
    names = [str(number) for number in range(DATABASE)]
    ground = GroundTruth(names, names[:QUERIES], lists, [(0.0, 0.0, 1.0, 1.0)] * QUERIES)
    store = make_store(scratch / f"simulated-{items}-{dim}", items, dim)
    label = f"{QUERIES} queries × {DATABASE + items:,} items, D={dim} float32"

    def ours() -> list[Setting]:
        return from_stores(queries, database, store, ground)

    def usual() -> Aps:
        return sorted_aps(one_matrix(queries, database, store), truth)

    mine = peak_bytes(ours) / 1e6  # first, before anything has grown the process
    theirs = peak_bytes(usual) / 1e6
    whole = take_turns(
        f"from stores, {label}",
        {
            "whiten": ours,
            "one matrix, argsort + isin": usual,
            "floor: reading the store": lambda: sum(len(part) for part in blocks_of(store)),
        },
        ours="whiten",
        rounds=report.facts["rounds"],
    )
    similarity = same_similarities(queries, database, store)
    stable = sorted_aps(similarity, truth, kind="stable")
    difference = error(ours(), stable)
    product = sorted_aps(one_matrix(queries, database, store), truth, kind="stable")
    whole.facts = {
        "error": difference,
        "error_is_below_1e-9": difference < 1e-9,
        "error_by_another_product": error(ours(), product),
        "whiten_peak_mb": round(mine, 1),
        "peak_is_below_1_gb": mine < PEAK_MB,
        "usual_peak_mb": round(theirs, 1),
        "store_mb": round(sum(shard.path.stat().st_size for shard in store.shards) / 1e6, 1),
    }
    report.add(whole)
    sort = "argsort + isin"
    ranking = take_turns(
        f"ranking and scoring alone, {label}",
        {
            "whiten": lambda: metrics.revisited(similarity, truth),
            sort: lambda: sorted_aps(similarity, truth),
        },
        ours="whiten",
        rounds=report.facts["rounds"],
    )
    ranking.targets = {sort: AIM}
    ranking.facts = {"error": largest_error(metrics.revisited(similarity, truth), stable)}
    report.add(ranking)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--items", type=int, help="distractors")
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--scratch", type=Path, help="keeps the simulated store, 2 GB")
    options = parser.parse_args()
    items = options.items or (20_000 if options.quick else DISTRACTORS)
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    report = Report("revisited_million", rounds=1 if options.quick else 3, threads=threads)
    if options.scratch is not None:
        measure(report, options.scratch, items, options.dim)
    else:
        with tempfile.TemporaryDirectory(prefix="whiten-") as scratch:
            measure(report, Path(scratch), items, options.dim)
    report.finish(options.out)


if __name__ == "__main__":
    main()
