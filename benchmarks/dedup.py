"""Group near-duplicates among 100,000 vectors, compared with plain blocks and FAISS's range search.

    python benchmarks/dedup.py --out benchmarks/results/dedup.json

256 dimensions, memory-mapped. Clusters of 1 to 9 vectors of all widths, and exact copies. The plain
way multiplies blocks of rows with everything, takes what is above the threshold, and hands all
pairs to SciPy's connected components; FAISS searches its flat index by range in batches, and hands
its pairs over likewise. The floor is the product of the upper triangle's blocks alone. The groups
of all ways are compared, and those of a subset of 5,000 with the n × n matrix in float64. A second
collection repeats one vector: every pair is one of copies, too many for the rivals to hold.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from side_by_side import Comparison, Report, arguments, peak_bytes, take_turns

from whiten import near_duplicates
from whiten.dedup.near_duplicates import TOLERANCE
from whiten.dedup.pair_similarity import BLOCK_ROWS

OURS, PLAIN, FAISS, FLOOR = (
    "whiten",
    "plain blocks, all pairs",
    "FAISS range_search",
    "floor: bare product of the triangle",
)
DIM, THRESHOLD, SUBSET = 256, 0.9, 5_000
MOST_MEMORY = 256  # MB beyond the vectors
BATCH = 2048

Floats = npt.NDArray[np.float32]
Groups = list[list[int]]


def clustered(path: Path, n: int) -> Floats:
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 10, n)
    cluster = np.repeat(np.arange(n), sizes)[:n]
    out = np.lib.format.open_memmap(path, "w+", np.float32, (n, DIM))
    widths = rng.random(n).astype(np.float32)
    for start in range(0, n, BATCH):
        own = cluster[start : start + BATCH]
        seeds = np.unique(own)
        centres = np.stack(
            [np.random.default_rng(seed).standard_normal(DIM, np.float32) for seed in seeds]
        )
        noise = rng.standard_normal((len(own), DIM), dtype=np.float32)
        noise[rng.random(len(own)) < 0.05] = 0  # exact copies
        rows = centres[np.searchsorted(seeds, own)] + 0.5 * widths[own][:, None] * noise
        out[start : start + BATCH] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    out.flush()
    mapped: Floats = np.load(path, mmap_mode="r")
    return mapped


def grouped(labels: npt.NDArray[Any]) -> Groups:
    order = np.argsort(labels, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
    return sorted(part.tolist() for part in parts if len(part) > 1)


def of_pairs(one: npt.NDArray[Any], other: npt.NDArray[Any], n: int) -> Groups:
    graph = coo_matrix((np.ones(len(one), bool), (one, other)), shape=(n, n))
    return grouped(connected_components(graph, directed=False)[1])


def ours(vectors: Floats) -> Groups:
    return [group.tolist() for group in near_duplicates(vectors, THRESHOLD)]


def plain(vectors: Floats) -> Groups:
    every = np.asarray(vectors)
    found = []
    for start in range(0, len(every), BATCH):
        i, j = np.nonzero(every[start : start + BATCH] @ every.T >= THRESHOLD)
        found.append((i + start, j))
    one, other = (np.concatenate(side) for side in zip(*found, strict=True))
    return of_pairs(one, other, len(every))


def by_faiss(vectors: Floats) -> Groups:
    import faiss

    index = faiss.IndexFlatIP(DIM)
    index.add(np.asarray(vectors))
    found = []
    for start in range(0, len(vectors), BATCH):
        limits, _, ids = index.range_search(np.asarray(vectors[start : start + BATCH]), THRESHOLD)
        counts = np.diff(limits.astype(np.int64))
        found.append((np.repeat(np.arange(len(counts)), counts) + start, ids))
    one, other = (np.concatenate(side) for side in zip(*found, strict=True))
    return of_pairs(one, other, len(vectors))


def bare_product(vectors: Floats) -> None:
    room = np.empty((BLOCK_ROWS, BLOCK_ROWS), np.float32)
    starts = range(0, len(vectors), BLOCK_ROWS)
    for number, start in enumerate(starts):
        rows = np.asarray(vectors[start : start + BLOCK_ROWS])
        for other in starts[number:]:
            columns = np.asarray(vectors[other : other + BLOCK_ROWS])
            np.matmul(rows, columns.T, out=room[: len(rows), : len(columns)])


def by_matrix(vectors: Floats) -> Groups:
    exact = np.asarray(vectors, np.float64)
    exact /= np.linalg.norm(exact, axis=1, keepdims=True)
    above = exact @ exact.T >= THRESHOLD - TOLERANCE
    return grouped(connected_components(above, directed=False)[1])


def compare(vectors: Floats, subset: int, rounds: int) -> Comparison:
    n = len(vectors)
    ways: dict[str, Callable[[Floats], Groups]] = {OURS: ours, PLAIN: plain}
    missing = ""
    try:
        import faiss

        faiss.omp_set_num_threads(torch.get_num_threads())
        ways[FAISS] = by_faiss
    except ImportError:
        missing = "FAISS is not installed"
    peak, groups = {}, {}
    for name, way in ways.items():

        def keep(name: str = name, way: Callable[[Floats], Groups] = way) -> None:
            groups[name] = way(vectors)

        peak[name] = round(peak_bytes(keep) / 2**20, 1)
    actions: dict[str, Callable[[], object]] = {
        name: lambda way=way: way(vectors)  # type: ignore[misc]
        for name, way in ways.items()
    }
    actions[FLOOR] = lambda: bare_product(vectors)
    setting = f"n={n:,}, D={DIM}, similarity ≥ {THRESHOLD}"
    result = take_turns(setting, actions, ours=OURS, rounds=rounds, warmup=0)
    result.targets = {PLAIN: 1.5}
    pairs = n * (n - 1) / 2
    some = vectors[:subset]
    result.facts = {
        "pairs_per_second": {k: f"{pairs / v:.3g}" for k, v in result.medians().items()},
        "groups": len(groups[OURS]),
        "in_groups": sum(map(len, groups[OURS])),
        "same_groups_as": {name: groups[name] == groups[OURS] for name in ways if name != OURS},
        f"same_groups_as_the_matrix_of_{subset}": ours(some) == by_matrix(some),
        "peak_mb": peak,
        "aim_for_the_memory_mb": MOST_MEMORY,
        "memory_met": peak[OURS] <= MOST_MEMORY,
        **({"left_out": missing} if missing else {}),
    }
    return result


def all_alike(path: Path, n: int) -> Comparison:
    out = np.lib.format.open_memmap(path, "w+", np.float32, (n, DIM))
    out[:] = np.random.default_rng(1).standard_normal(DIM)
    out.flush()
    vectors: Floats = np.load(path, mmap_mode="r")
    sizes: list[int] = []
    peak = peak_bytes(lambda: sizes.extend(len(g) for g in near_duplicates(vectors, 1.0)))
    setting = f"n={n:,}, D={DIM}, one vector as often, similarity ≥ 1"
    actions: dict[str, Callable[[], object]] = {OURS: lambda: near_duplicates(vectors, 1.0)}
    result = take_turns(setting, actions, ours=OURS, rounds=1, warmup=0)
    result.facts = {
        "one_group_of_all": sizes == [n],
        "peak_mb": round(peak / 2**20, 1),
        "aim_for_the_memory_mb": MOST_MEMORY,
        "memory_met": peak <= MOST_MEMORY << 20,
    }
    return result


def main() -> None:
    options = arguments(__doc__).parse_args()
    report = Report("near-duplicates", numpy=np.__version__, threads=torch.get_num_threads())
    n, subset, rounds = (6_000, 1_000, 1) if options.quick else (100_000, SUBSET, 3)
    with tempfile.TemporaryDirectory(prefix="whiten-") as folder:
        vectors = clustered(Path(folder, "clustered.npy"), n)
        report.add(compare(vectors, subset, rounds))
        report.add(all_alike(Path(folder, "alike.npy"), n))
    report.finish(options.out)


if __name__ == "__main__":
    main()
