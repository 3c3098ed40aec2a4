"""Cost per image in indexes of a thousand to ten million: build, add, remove, search, memory.

    python benchmarks/growth.py --out benchmarks/results/growth.json

The vectors have 256 dimensions, are clustered and are stored as int8 codes. Each size is built,
changed and searched in processes of its own, so that resident memory, mapped files included, is
that of one action. The ways are sizes, compared with 10,000 images. `--plot FILE` draws the plot
there, not in docs/growth.png. Ten million images take 10 GB of disk in `--scratch FOLDER`.
"""

from __future__ import annotations

import statistics
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from large_index import K, apart, centres, facts
from side_by_side import Comparison, Report, arguments, logarithmic

from index import MOVED, Clusters, directions, timed, unit
from whiten.index import Index
from whiten.index.local.folder import FolderIndex
from whiten.index.synchronise import synchronise

PLOT = Path(__file__).parent.parent / "docs" / "growth.png"
SIZES = (1_000, 10_000, 100_000, 1_000_000, 10_000_000)
STORAGE = "int8"
COMPARED = 10_000  # the size that others are compared with
MORE = 1_000  # images that are added and removed at once
SEARCHES = 20
BUILD, ADD, ONE, REMOVE = (
    "build, an image",
    "add 1,000, an image",
    "add one",
    "remove 1,000, an image",
)
SCAN, CHOSEN = "one search, all codes scanned", "one search, lists from 100,000 images on"
LISTED = 100_000


def build(folder: Path, rows: int, dim: int) -> dict[str, Any]:
    index = FolderIndex(folder)
    source = Clusters(0, rows, dim, centres(rows, dim))

    def run() -> None:
        with index.writing():
            synchronise(index, source, facts(dim))
            index.store_as(STORAGE)
            index.tune("exact")

    return {"times": [timed(run) / rows]}


def add(folder: Path, rows: int, dim: int, count: int, rounds: int) -> dict[str, Any]:
    index = FolderIndex(folder)
    more = [
        Clusters(rows + number * count, count, dim, centres(rows, dim)) for number in range(rounds)
    ]

    def run(source: Clusters) -> None:
        with index.writing():
            synchronise(index, source, facts(dim), keep=True)

    return {"times": [timed(lambda one=one: run(one)) / count for one in more]}


def remove(folder: Path, rows: int, dim: int, count: int) -> dict[str, Any]:
    index = FolderIndex(folder)
    last = [name for page in index.pages(1 << 16) for name in page["id"].to_pylist()][rows:]

    def run(names: list[str]) -> None:
        with index.writing():
            index.write(facts(dim), names, ())

    parts = [last[start : start + count] for start in range(0, len(last), count)]
    return {"times": [timed(lambda part=part: run(part)) / len(part) for part in parts]}


def choose(folder: Path, recall: float) -> dict[str, Any]:
    index = FolderIndex(folder)
    with index.writing():
        return {"times": [timed(lambda: index.tune("ivf", recall))]}


def search(folder: Path, rows: int, dim: int) -> dict[str, Any]:
    index = Index.open(folder)
    random = np.random.default_rng(2)
    near = centres(rows, dim)[random.integers(0, max(1, rows // 100), SEARCHES)]
    queries = unit(near + MOVED * directions(random, SEARCHES, dim))
    index.search_vectors(queries[:1], K)
    return {"times": [timed(lambda q=q: index.search_vectors(q[None], K)) for q in queries]}


def measure(report: Report, sizes: tuple[int, ...], dim: int, scratch: Path | None) -> None:
    found: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    for rows in sizes:
        way = f"{rows:,} images"
        with tempfile.TemporaryDirectory(dir=scratch) as place:
            folder = Path(place) / "index"

            def note(name: str, action: Callable[..., dict[str, Any]], *more: Any) -> None:
                found[name][way] = apart(action, folder, *more)  # noqa: B023 - called at once

            note(BUILD, build, rows, dim)
            note(SCAN, search, rows, dim)
            note(ADD, add, rows, dim, MORE, 3)
            note(REMOVE, remove, rows, dim, MORE)
            note(ONE, add, rows, dim, 1, 5)
            if rows >= LISTED:
                apart(choose, folder, 0.95)
                note(CHOSEN, search, rows, dim)
    for name, ways in found.items():
        ours = f"{COMPARED:,} images"
        times = {way: known["times"] for way, known in ways.items()}
        resident = {way: known["resident_mb"] for way, known in ways.items()}
        first = ours if ours in times else next(iter(times))
        report.add(Comparison(name, first, times, facts={"resident_mb": resident}))


def draw(comparisons: list[Comparison]) -> bytes | None:
    from matplotlib.figure import Figure

    from whiten.report.style import RUNS, styled

    @styled
    def figure() -> Figure:
        made = Figure(figsize=(9.6, 4.4))
        times, space = made.subplots(1, 2)
        for one, colour, marker in zip(comparisons, RUNS, "osD^vP", strict=False):
            sizes = [int(way.split()[0].replace(",", "")) for way in one.seconds]
            medians = [1000 * statistics.median(own) for own in one.seconds.values()]
            resident = list(one.facts["resident_mb"].values())
            look = {"color": colour, "marker": marker, "markersize": 5, "label": one.setting}
            times.plot(sizes, medians, **look)
            space.plot(sizes, resident, **look)
        times.set(title="Time", ylabel="milliseconds")
        space.set(title="Memory, mapped files included", ylabel="resident beyond the imports, MB")
        for axes in (times, space):
            axes.set(xlabel="images in the index")
            logarithmic(axes)
        made.legend(*times.get_legend_handles_labels(), loc="outside lower center", ncols=3)
        return made

    return figure()


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--scratch", type=Path, help="folder for the indexes")
    parser.add_argument("--plot", type=Path, help="draw the plot here, not in docs/growth.png")
    options = parser.parse_args()
    if options.quick:
        options.rows = list(SIZES[:2])
    report = Report("growth", storage=STORAGE, dim=options.dim)
    measure(report, tuple(options.rows), options.dim, options.scratch)
    report.finish(options.out)
    plot = options.plot or (None if options.quick else PLOT)
    if plot is not None:
        plot.write_bytes(draw(report.comparisons) or b"")


if __name__ == "__main__":
    main()
