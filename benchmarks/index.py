"""Search a million vectors by 1 and 70 queries, exact or not, compared with argsort and FAISS.

    python benchmarks/index.py --out benchmarks/results/index.json

Vectors are clustered; queries are vectors of the index, moved a little. The argsort way makes all
similarities and sorts them for every query. FAISS's flat index is measured as pip installs it, and
with the threshold raised below which it does without its BLAS. The floor is a read of all vectors
on all cores. The index is stored in a temporary folder, or in `--scratch FOLDER`; it is built
through `synchronise`, as images are, from a source that makes its vectors. It takes about 6 bytes
of disk and 5 of memory for each coordinate.
"""

from __future__ import annotations

import gc
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from side_by_side import Comparison, Report, arguments, peak_bytes, take_turns

from whiten.datasets.collection import Items
from whiten.index import Changes, Index
from whiten.index.local.folder import FolderIndex
from whiten.index.local.manifest import Manifest
from whiten.index.local.snapshot import Snapshot
from whiten.index.local.tuning import open_fast
from whiten.index.rows import Facts
from whiten.index.sources import Embedded, Source
from whiten.index.synchronise import synchronise
from whiten.media.reading import Skipped
from whiten.retrieval.exact import exact_search

Array = npt.NDArray[np.float32]

K, QUERIES = 100, 70
EACH = 100  # vectors of a cluster
SPREAD, MOVED = 0.8, 0.3  # lengths of what they, and the queries, are moved by; 1 is a centre's
TURNED = 1000  # images that are added and removed
ARGSORT, FAISS, RAISED = "product + argsort", "FAISS flat", "FAISS flat, BLAS threshold raised"
FLOOR = "floor: one read of all vectors"
AIMS = {ARGSORT: 15.0, FAISS: 1.0}
FLOOR_AIM = 1 / 1.7
APPROXIMATE_AIM = 10.0


def directions(random: np.random.Generator, count: int, dim: int) -> Array:
    """(count, dim) of length 1 or so."""
    found = random.standard_normal((count, dim), dtype=np.float32)
    found /= np.float32(dim**0.5)
    return found


def unit(vectors: Array) -> Array:
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


class Clusters(Source):
    """A source of clustered vectors: a pure function of the number in an image's id."""

    uri = ""
    model = name = "clusters"

    def __init__(self, first: int, rows: int, dim: int, centres: Array) -> None:
        self.dim, self._centres = dim, centres
        numbers = pa.array(np.arange(first, first + rows)).cast(pa.large_string())
        ids = pc.utf8_lpad(numbers, 8, "0")
        self.items = Items(ids, ids, pa.nulls(rows, pa.large_string()))

    def stamps(self) -> pa.Array:
        return self.items.ids

    def hashes(self, items: Items) -> list[str | Skipped]:
        found: list[str | Skipped] = items.ids.to_pylist()
        return found

    def embed(self, items: Items) -> Embedded:
        random = np.random.default_rng(int(items.ids[0].as_py()))
        vectors = self._centres[random.integers(0, len(self._centres), len(items))]
        vectors += SPREAD * directions(random, len(items), self.dim)
        return Embedded(np.arange(len(items)), unit(vectors), [])


def timed(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return round(time.perf_counter() - began, 4)


def disk(folder: Path) -> float:
    return round(sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) / 1e6, 1)


def read_all(vectors: Array) -> Callable[[], object]:
    parts = np.array_split(vectors, os.cpu_count() or 1)
    pool = ThreadPoolExecutor(len(parts))
    return lambda: list(pool.map(np.max, parts))


def argsort(queries: Array, vectors: Array) -> list[npt.NDArray[np.int64]]:
    return [np.argsort(-similarities)[:K] for similarities in queries @ vectors.T]


@contextmanager
def flat(vectors: Array) -> Iterator[dict[str, Callable[[Array], object]]]:
    """FAISS's flat index as it comes, and with its threshold raised; nothing without FAISS."""
    try:
        import faiss
    except ImportError as error:
        print(f"without FAISS ({error})", file=sys.stderr)
        yield {}
        return
    index = faiss.IndexFlatIP(vectors.shape[1])
    for start in range(0, len(vectors), 65536):
        index.add(np.array(vectors[start : start + 65536]))
    normal = faiss.cvar.distance_compute_blas_threshold

    def search(threshold: int) -> Callable[[Array], object]:
        def ask(queries: Array) -> object:
            faiss.cvar.distance_compute_blas_threshold = threshold
            try:
                return index.search(queries, K)
            finally:
                faiss.cvar.distance_compute_blas_threshold = normal

        return ask

    yield {FAISS: search(normal), RAISED: search(1 << 30)}


def build(report: Report, root: Path, rows: int, dim: int, centres: Array) -> FolderIndex:
    """Make the index, and measure what happens to it before it is asked."""
    source = Clusters(0, rows, dim, centres)
    index = FolderIndex(root)
    facts = Facts(source.model, source.uri, source.name, dim)

    def change(of: Clusters, keep: bool) -> Changes:
        with index.writing():
            now = Facts(source.model, source.uri, source.name, dim)
            return synchronise(index, of, now, keep=keep)

    seconds: dict[str, float] = {}
    peak = peak_bytes(lambda: seconds.update(build=timed(lambda: change(source, False))))
    size = disk(root)
    assert index.facts == facts
    opened = [timed(lambda: Index.open(root)) for _ in range(5)]
    more = Clusters(rows, TURNED, dim, centres)
    added = timed(lambda: change(more, True))
    gone = more.items.ids.to_pylist()

    def remove() -> None:
        with index.writing():
            index.write(facts, gone, ())

    removed = timed(remove)
    assert len(index) == rows
    comparison = Comparison(
        f"{rows:,} × {dim}: build",
        "build",
        {
            "build": [seconds["build"]],
            "open": opened,
            f"add {TURNED:,}": [added],
            f"remove {TURNED:,}": [removed],
        },
        facts={"disk_mb": size, "peak_mb": round(peak / 1e6, 1)},
    )
    report.add(comparison)
    return index


def tune(index: FolderIndex, kind: str, recall: float) -> tuple[Any, dict[str, Any]]:
    """Return what searches as that kind, and its facts; None if exact search is better."""
    seconds: dict[str, float] = {}

    def choose() -> None:
        with index.writing():
            seconds["tune"] = timed(lambda: index.tune(kind, recall))

    peak = peak_bytes(choose)
    tuning = index.tuning
    assert tuning is not None
    for line in tuning.lines():
        print(f"  {line}", file=sys.stderr)
    facts = {
        "choose_s": seconds["tune"],
        "peak_mb": round(peak / 1e6, 1),
        "disk_mb": disk(index.root),
        "chosen": tuning.kind,
        **tuning.settings,
        **{f"recall@{k}": value for k, value in tuning.recall.items()},
    }
    if tuning.remark:
        facts["remark"] = tuning.remark
    manifest = Manifest.read(index.root)
    assert manifest is not None
    for part in manifest.parts:
        if part.fast:
            folder = index.root / part.fast
            return open_fast(tuning, folder, part.count, manifest.facts.dim), facts
    return None, facts


def compare(
    report: Report, root: Path, rows: int, dim: int, kinds: list[str], recall: float
) -> None:
    random = np.random.default_rng(1)
    centres = directions(random, max(1, rows // EACH), dim)
    index = build(report, root, rows, dim, centres)
    manifest = Manifest.read(root)
    assert manifest is not None
    vectors = Snapshot(root, manifest).segments[0].vectors
    picked = np.sort(random.choice(len(vectors), QUERIES, replace=False))
    queries = unit(vectors[picked] + MOVED * directions(random, QUERIES, dim))
    fast, known = {}, {}
    for kind in kinds:
        made, known[kind] = tune(index, kind, recall)
        if made is not None:
            fast[kind] = made
            opened = [timed(lambda: FolderIndex(root).search(queries[:1], K)) for _ in range(3)]
            known[kind]["open_and_first_search_s"] = sorted(opened)[1]

    def asks(some: Array) -> dict[str, Callable[[], object]]:
        ways = {"exact": lambda: exact_search(some, vectors, K)}
        for kind, one in fast.items():
            if kind != "int8" or len(some) > 1:  # which is for many
                ways[kind] = lambda one=one: one.search(some, K, vectors.__getitem__, None)
        return ways

    rounds = report.facts["rounds"]
    with flat(vectors) as rivals:
        for count in (1, QUERIES):
            some = np.ascontiguousarray(queries[:count])
            ways = asks(some) | {
                ARGSORT: lambda some=some: argsort(some, vectors),
                **{name: lambda ask=ask, some=some: ask(some) for name, ask in rivals.items()},
                FLOOR: read_all(vectors),
            }
            label = f"{count} quer{'y' if count == 1 else 'ies'} × {rows:,} × {dim}, top {K}"
            # Both answer exactly: many questions go by codes where that is faster.
            ours = "int8" if count > 1 and "int8" in ways else "exact"
            comparison = take_turns(label, ways, ours=ours, rounds=rounds)
            aims = AIMS if count > 1 else {FAISS: 1.0, FLOOR: FLOOR_AIM}
            comparison.targets = {name: aim for name, aim in aims.items() if name in ways}
            comparison.facts = {
                "same_as_argsort": same(some, vectors, asks(some)),
                "whole_way_peak_mb": round(peak_bytes(ways["exact"]) / 1e6, 1),
            }
            if "int8" in ways:
                comparison.facts["int8_is"] = known["int8"]
            report.add(comparison)
    single = asks(queries[:1].copy())
    for kind in single.keys() - {"exact"}:
        aim = {"exact": APPROXIMATE_AIM} if kind in ("ivf", "hnsw") else {}
        one = take_turns(
            f"1 query × {rows:,} × {dim}, {kind}", single, ours=kind, rounds=5 * rounds
        )
        one.targets = aim
        one.facts = known[kind] | under_filters(queries, vectors, fast[kind])
        report.add(one)
    for kind in known.keys() - fast.keys():
        print(f"  {kind}: {known[kind]}", file=sys.stderr)


def same(queries: Array, vectors: Array, ways: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Part of the argsort way's answers that each gives."""
    expected = argsort(queries, vectors)
    found = {}
    for name, ask in ways.items():
        pairs = zip(ask(), expected, strict=True)
        found[name] = float(np.mean([np.isin(rows, own).mean() for (rows, _), own in pairs]))
    return found


def under_filters(queries: Array, vectors: Array, one: Any) -> dict[str, float]:
    """Recall@10 where one in so many of all vectors, at random, may be an answer."""
    found = {}
    for among in (2, 10, 100):
        allowed = np.random.default_rng(among).random(len(vectors)) < 1 / among
        truth = exact_search(queries, vectors, 10, allowed)
        answers = one.search(queries, 10, vectors.__getitem__, allowed)
        if answers is None:  # exact search is the better one
            answers = truth
        pairs = zip(answers, truth, strict=True)
        hits = [np.isin(rows, own).mean() for (rows, _), (own, _) in pairs]
        found[f"recall@10_of_1_in_{among}"] = round(float(np.mean(hits)), 4)
    return found


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dims", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--kinds", nargs="+", default=["int8", "ivf"], help="hnsw takes long")
    parser.add_argument("--recall", type=float, default=0.95)
    parser.add_argument("--scratch", type=Path, help="folder for the index")
    options = parser.parse_args()
    rows, dims, rounds = options.rows, options.dims, 5
    if options.quick:
        rows, dims, rounds = 5_000, [32], 1
    report = Report("index", rounds=rounds, threads=os.environ.get("OMP_NUM_THREADS", "all"))
    for dim in dims:
        with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
            compare(report, Path(folder) / "index", rows, dim, options.kinds, options.recall)
        gc.collect()
    report.finish(options.out)


if __name__ == "__main__":
    main()
