"""Measure what the demo's embeddings lose in fewer bytes, and how long their codes take to search.

    python benchmarks/compact.py --run runs/demo/drawings --out benchmarks/results/compact.json

The test drawings of a finished `whiten demo` by the student that was trained on groups; without
`--run`, by the untrained start of that student. Every image searches all others: mAP by the
emoji's groups, and the exact ten nearest. Times are of all queries against the codes in memory,
decoded block by block; with so few vectors they tell what decoding costs, and no more.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from side_by_side import Comparison, Report, arguments, take_turns

from whiten.compact import default_kinds, fit, measure_costs
from whiten.compact.running import open_embedded
from whiten.demo.drawings import FULL
from whiten.demo.images import extract_drawings
from whiten.embedding.opening import load
from whiten.errors import WhitenError
from whiten.index.local.storage.coded import searchable
from whiten.retrieval.exact import exact_search

BASE = "float32"


def searching(kind: str, vectors: npt.NDArray[np.float32]) -> Callable[[], object]:
    codec = fit(kind, vectors)
    gallery, queries = searchable(codec, codec.encode(vectors)), codec.queries(vectors)
    return lambda: exact_search(queries, gallery, 10)


def compare(images: Path, model: str, cache: Path, rounds: int) -> Comparison:
    with open_embedded(images, load(model), cache, show_progress=True) as source:
        vectors = np.array(source.vectors)
        kinds = default_kinds(vectors.shape[1])
        costs = measure_costs(source.vectors, source.items, kinds, name=source.name)
    actions: dict[str, Callable[[], object]] = {}
    for kind in kinds:
        try:
            actions[kind] = searching(kind, vectors)
        except WhitenError:
            continue  # the table says why
    setting = f"{len(vectors):,} vectors of {vectors.shape[1]} dimensions"
    result = take_turns(setting, actions, ours=BASE, rounds=rounds)
    known = [row for row in costs.rows if row.kind in actions]
    result.facts = {
        "bytes": {row.kind: row.bytes for row in known},
        "mAP": {row.kind: round(row.map, 4) for row in known},
        "mAP_lost": {row.kind: round(row.map_loss.value, 4) + 0.0 for row in known},
        "same_at_10": {row.kind: round(row.overlap.value, 4) for row in known},
    }
    print(*costs.lines(), sep="\n", file=sys.stderr)
    return result


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument(
        "--run", type=Path, help="the folder `drawings` of a finished `whiten demo`"
    )
    options = parser.parse_args()
    student = None if options.run is None else options.run / "groups" / "student"
    if student is not None and not student.is_dir():
        parser.error(f"{options.run} has no groups/student: name runs/demo/drawings")
    report = Report("compact embeddings", numpy=np.__version__)
    with tempfile.TemporaryDirectory(prefix="whiten-") as folder:
        root = Path(folder)
        extract_drawings(root / "images", 80 if options.quick else None)
        model = FULL.student if student is None else str(student)
        rounds = 1 if options.quick else 5
        report.add(compare(root / "images" / "test", model, root / "cache", rounds))
    report.finish(options.out)


if __name__ == "__main__":
    main()
