"""Embed on a Ray cluster of one and of two local nodes of one core each, and without a cluster.

    python benchmarks/cluster.py

Only what comes after the start is timed: from the first unit of work that is done to the last, so
that loading Ray and the model does not count. Each node is held on a core of its own (Linux), and
so is the process without Ray; the overhead per image is what one node takes longer. The process
that writes the stores runs on either core. The stores must be equal, byte for byte.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from photographs import write_photographs
from side_by_side import Comparison, Report, arguments

import whiten
from whiten.datasets.finding import find_items
from whiten.embedding import embed as embedding
from whiten.embedding.cluster import connected

MODEL = "demo:efficientnet-lite0"
ALONE, ONE, TWO = "no cluster, one core", "one node", "two nodes"
TARGET = 1.7


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def timed(work: Callable[[Callable[[int, int], None]], object]) -> float:
    """Return the seconds per image between the first and the last progress of some work."""
    told: list[tuple[float, int]] = []
    work(lambda done, total: told.append((time.perf_counter(), done)))
    (began, first), (ended, last) = told[0], told[-1]
    return (ended - began) / (last - first)


def embed(images: Path, out: Path, unit: int, **where: Any) -> float:
    """Embed a folder; return the seconds per image."""
    embedding.SHARD_ROWS = unit
    [part] = whiten.load(MODEL).parts
    items = find_items(images)
    return timed(lambda told: embedding.embed(items, part.teacher, out, progress=told, **where))


@contextmanager
def held_on(core: int) -> Iterator[None]:
    """Hold this thread, and the processes that it starts, on one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def on_one_core(images: Path, out: Path, unit: int) -> float:
    with held_on(min(os.sched_getaffinity(0))):
        return embed(images, out, unit, workers=1)


def main() -> None:
    options = arguments(__doc__).parse_args()
    images, rounds, unit = (64, 1, 8) if options.quick else (1536, 3, 64)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "include_dashboard": False}
    nodes = Cluster(initialize_head=True, head_node_args=head)
    os.environ["RAY_ADDRESS"] = nodes.address
    report = Report("embedding on a cluster", ray=ray.__version__)
    setting = f"seconds per image, {images} JPEGs of 1024×768, units of {unit}, {MODEL}"
    found = Comparison(setting, TWO, {ALONE: [], ONE: [], TWO: []}, {ONE: TARGET})
    with tempfile.TemporaryDirectory(prefix="whiten-cluster-") as name:
        folder = Path(name)
        write_photographs(folder / "images", images)
        stores = []
        for number in range(rounds):
            outs = {way: folder / f"{way}-{number}" for way in found.seconds}
            spawn = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(1, mp_context=spawn) as alone:
                seconds = alone.submit(on_one_core, folder / "images", outs[ALONE], unit).result()
            found.seconds[ALONE].append(seconds)
            started = []
            for way, core in zip((ONE, TWO), sorted(os.sched_getaffinity(0))[:2], strict=True):
                with held_on(core):
                    started.append(nodes.add_node(num_cpus=1))
                nodes.wait_for_nodes()
                with connected("ray") as cluster:
                    seconds = embed(folder / "images", outs[way], unit, cluster=cluster)
                found.seconds[way].append(seconds)
            for node in started:
                nodes.remove_node(node)
            stores += map(contents, outs.values())
        medians = found.medians()
        found.facts = {
            "images_per_s": {way: round(1 / seconds, 1) for way, seconds in medians.items()},
            "overhead_ms_per_image": round(1000 * (medians[ONE] - medians[ALONE]), 2),
            "equal_bytes": all(store == stores[0] for store in stores),
        }
        report.add(found)
    nodes.shutdown()
    report.finish(options.out)


if __name__ == "__main__":
    main()
