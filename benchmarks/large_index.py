"""Indexes of 100,000 to ten million vectors and FAISS's: build, memory, recall and speed.

    python benchmarks/large_index.py --out benchmarks/results/large_index.json

`--rows 10000000 --scratch FOLDER` takes about 15 GB of disk for each storage. Vectors are
clustered; queries are vectors of the index, moved a little. whiten's indexes are built through
`synchronise`, as images are, and their hits are whole rows; the rivals store and return numbers
only. Every way runs in processes of its own, one after another: one builds, one opens and searches,
so that the resident memory of each is its own. Recall is that of the ten nearest of exact search.
FAISS is given the centroids and codebooks that whiten fitted, visits as many lists, and does not
re-rank. hnswlib, where installed, keeps all vectors in memory: `--graph-rows` is the largest size
that it gets.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from side_by_side import Comparison, Report, arguments

from index import EACH, MOVED, Clusters, directions, disk, timed, unit
from whiten.index import Index
from whiten.index.local.folder import FolderIndex
from whiten.index.rows import Facts
from whiten.index.synchronise import synchronise
from whiten.retrieval.exact import exact_search

Array = npt.NDArray[np.float32]
Search = Callable[[Array], Any]  # rows of the 10 nearest per query, (q, 10)

K, QUERIES, SINGLE = 10, 200, 100
TURNED = 10_000  # images that are added and removed
PQ = 64  # bytes per code
BLOCK = 65536
STORAGES = ("float32", f"pq:{PQ}+float32")
EXACT, LISTS, ON_DISK = "whiten exact", "FAISS IVF-PQ", "FAISS IVF-PQ, lists on disk"
GRAPH = "hnswlib, in memory"


def name_of(storage: str) -> str:
    return f"whiten ivf, {storage}"


def resident_mb() -> float:
    """Largest resident memory of this process so far, mapped files included."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3, 1)


def vectors_of(folder: Path) -> Array:
    """The mapped vectors of whiten's first index, which the rivals are built of."""
    [path] = (folder / "index").glob("segment-*/vectors.f32")
    dim = int((folder / "dim").read_text())
    found: Array = np.memmap(path, "<f4", "r").reshape(-1, dim)
    return found


def centres(rows: int, dim: int) -> Array:
    return directions(np.random.default_rng(1), max(1, rows // EACH), dim)


# --- whiten -----------------------------------------------------------------------------


def facts(dim: int) -> Facts:
    return Facts(Clusters.model, Clusters.uri, Clusters.name, dim)


def build_whiten(folder: Path, storage: str, rows: int, dim: int, recall: float) -> dict[str, Any]:
    index = FolderIndex(folder / "index")
    seconds = {}
    with index.writing():
        if index.facts is None:
            source = Clusters(0, rows, dim, centres(rows, dim))
            seconds["write_s"] = timed(lambda: synchronise(index, source, facts(dim)))
        seconds["store_s"] = timed(lambda: index.store_as(storage))
        seconds["choose_s"] = timed(lambda: index.tune("ivf", recall))
    tuning = index.tuning
    assert tuning is not None
    return {
        **seconds,
        "chosen": tuning.kind,
        **tuning.settings,
        **({"remark": tuning.remark} if tuning.remark else {}),
        "disk_mb": disk(folder / "index"),
    }


def open_whiten(folder: Path) -> tuple[Search, dict[str, Any]]:
    opened: list[Index] = []
    seconds = timed(lambda: opened.append(Index.open(folder / "index")))
    [index] = opened

    def search(queries: Array) -> Any:
        hits = index.search_vectors(queries, K)
        return [[int(hit.id) for hit in found] for found in hits]

    return search, {"open_s": seconds}


def turn_over(folder: Path, rows: int, dim: int) -> dict[str, Any]:
    """Add and remove images."""
    index = FolderIndex(folder / "index")
    more = Clusters(rows, TURNED, dim, centres(rows, dim))

    def add() -> None:
        with index.writing():
            synchronise(index, more, facts(dim), keep=True)

    def remove() -> None:
        with index.writing():
            index.write(facts(dim), more.items.ids.to_pylist(), ())

    found = {f"add_{TURNED}_s": timed(add), f"remove_{TURNED}_s": timed(remove)}
    assert len(index) == rows
    return found


def open_exact(folder: Path) -> tuple[Search, dict[str, Any]]:
    vectors = vectors_of(folder)
    return lambda queries: [rows for rows, _ in exact_search(queries, vectors, K)], {}


# --- rivals -----------------------------------------------------------------------------


def build_lists(folder: Path) -> dict[str, Any]:
    import faiss

    vectors = vectors_of(folder)
    [path] = (folder / "index").glob("fast-*/index.faiss")
    fitted = faiss.read_index(os.fspath(path))
    index = faiss.IndexIVFPQ(
        fitted.quantizer, fitted.d, fitted.nlist, PQ, 8, faiss.METRIC_INNER_PRODUCT
    )
    index.by_residual = False
    faiss.copy_array_to_vector(faiss.vector_to_array(fitted.pq.centroids), index.pq.centroids)
    index.is_trained = True

    def add() -> None:
        for start in range(0, len(vectors), BLOCK):
            index.add(np.array(vectors[start : start + BLOCK]))

    seconds = timed(add)
    faiss.write_index(index, os.fspath(folder / "lists.faiss"))
    size = (folder / "lists.faiss").stat().st_size
    return {"add_s": seconds, "disk_mb": round(size / 1e6, 1)}


def open_lists(folder: Path, effort: int, on_disk: bool) -> tuple[Search, dict[str, Any]]:
    import faiss

    opened: list[Any] = []
    path = os.fspath(folder / "lists.faiss")
    flags = faiss.IO_FLAG_MMAP if on_disk else 0
    seconds = timed(lambda: opened.append(faiss.read_index(path, flags)))
    opened[0].nprobe = effort
    return lambda queries: opened[0].search(queries, K)[1], {"open_s": seconds}


def build_graph(folder: Path) -> dict[str, Any]:
    import hnswlib

    vectors = vectors_of(folder)
    graph = hnswlib.Index("ip", vectors.shape[1])
    graph.init_index(len(vectors), ef_construction=100, M=16)
    seconds = timed(lambda: graph.add_items(np.array(vectors)))
    path = folder / "graph"
    graph.save_index(os.fspath(path))
    return {"add_s": seconds, "disk_mb": round(path.stat().st_size / 1e6, 1)}


def open_graph(folder: Path) -> tuple[Search, dict[str, Any]]:
    import hnswlib

    graph = hnswlib.Index("ip", int((folder / "dim").read_text()))
    seconds = timed(lambda: graph.load_index(os.fspath(folder / "graph")))
    graph.set_ef(64)
    return lambda queries: graph.knn_query(queries, K)[0], {"open_s": seconds}


# --- measuring --------------------------------------------------------------------------


def asked(folder: Path, opened: tuple[Search, dict[str, Any]]) -> dict[str, Any]:
    """Ask one query at a time and all together, and compare with the truth."""
    search, found = opened
    queries, truth = np.load(folder / "queries.npy"), np.load(folder / "truth.npy")
    search(queries[:1])
    times = [timed_exactly(lambda row=row: search(queries[row : row + 1])) for row in range(SINGLE)]
    answers: list[Any] = []
    together = timed_exactly(lambda: answers.append(search(queries)))
    hits = [np.isin(own, rows).mean() for own, rows in zip(truth, answers[0], strict=True)]
    return found | {
        "recall@10": round(float(np.mean(hits)), 4),
        "p50_ms": round(1000 * float(np.percentile(times, 50)), 3),
        "p95_ms": round(1000 * float(np.percentile(times, 95)), 3),
        "queries_per_s": round(len(queries) / together, 1),
        "times": times,
    }


def timed_exactly(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def answer(folder: Path, rows: int, dim: int) -> dict[str, Any]:
    """Make the queries, and find their ten nearest exactly."""
    vectors, random = vectors_of(folder), np.random.default_rng(2)
    picked = np.sort(random.choice(rows, QUERIES, replace=False))
    queries = unit(vectors[picked] + MOVED * directions(random, QUERIES, dim))
    queries = queries[random.permutation(QUERIES)]
    np.save(folder / "queries.npy", queries)
    found = exact_search(queries, vectors, K)
    np.save(folder / "truth.npy", np.array([rows for rows, _ in found]))
    return {}


def ask_whiten(folder: Path) -> dict[str, Any]:
    return asked(folder, open_whiten(folder))


def ask_exact(folder: Path) -> dict[str, Any]:
    return asked(folder, open_exact(folder))


def ask_lists(folder: Path, effort: int, on_disk: bool) -> dict[str, Any]:
    return asked(folder, open_lists(folder, effort, on_disk))


def ask_graph(folder: Path) -> dict[str, Any]:
    return asked(folder, open_graph(folder))


def _child(pipe: Any, action: Callable[..., dict[str, Any]], arguments: tuple[Any, ...]) -> None:
    before = resident_mb()
    pipe.send(action(*arguments) | {"resident_mb": round(resident_mb() - before, 1)})


def apart(action: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """Run in a process of its own; adds the resident memory beyond that of its imports."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(theirs, action, arguments))
    process.start()
    theirs.close()
    found: dict[str, Any] = ours.recv()
    process.join()
    print(f"  {action.__name__}{arguments[1:]}: {_without_times(found)}", file=sys.stderr)
    return found


def _without_times(found: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in found.items() if name != "times"}


def _by_measure(found: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    names = dict.fromkeys(name for known in found.values() for name in known)
    return {
        name: {way: known[name] for way, known in found.items() if name in known} for name in names
    }


def compare(report: Report, folder: Path, rows: int, dim: int, options: Any) -> None:
    (folder / "dim").write_text(str(dim))
    built: dict[str, dict[str, Any]] = {}
    found: dict[str, dict[str, Any]] = {}
    for storage in STORAGES:
        own = name_of(storage)
        built[own] = apart(build_whiten, folder, storage, rows, dim, options.recall)
        if not found:
            apart(answer, folder, rows, dim)
            found[EXACT] = apart(ask_exact, folder)
        found[own] = apart(ask_whiten, folder)
        built[own] = apart(turn_over, folder, rows, dim) | built[own]
    ours = name_of(STORAGES[-1])
    effort = built[ours].get("effort", 1)
    built[LISTS] = apart(build_lists, folder)
    for name in (LISTS, ON_DISK):
        found[name] = apart(ask_lists, folder, effort, name == ON_DISK)
    if rows <= options.graph_rows and find_spec("hnswlib") is not None:
        built[GRAPH] = apart(build_graph, folder)
        found[GRAPH] = apart(ask_graph, folder)
    times = {name: known.pop("times") for name, known in found.items()}
    report.add(
        Comparison(
            f"{rows:,} × {dim}: one query at a time, top {K}",
            ours,
            times,
            facts=_by_measure(found) | {"built": built},
        )
    )


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--recall", type=float, default=0.95)
    parser.add_argument("--graph-rows", type=int, default=100_000)
    parser.add_argument("--scratch", type=Path, help="folder for the indexes")
    options = parser.parse_args()
    if options.quick:
        options.rows, options.dim = [20_000], 64
    report = Report("large index", threads=os.environ.get("OMP_NUM_THREADS", "all"))
    for rows in options.rows:
        with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
            compare(report, Path(folder), rows, options.dim, options)
    report.finish(options.out)


if __name__ == "__main__":
    main()
