"""Exact search by int8 codes, compared with a scan of the vectors: 1, 8 and 64 queries at once.

    python benchmarks/codes.py --out benchmarks/results/codes.json

Vectors are random, which is the worst case: many are almost as similar as the k-th best, and are
compared in full. Both ways return the same images. Loading torch, which multiplies the codes, is
not counted: a process does so only once it has searched for about as long as that takes.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from side_by_side import Report, arguments, take_turns

from whiten.index.local.codes import CodedSegment, can_multiply, write_codes
from whiten.retrieval.exact import exact_search
from whiten.utils.memory import gather_rows

SIZES = ((100_000, 512), (1_000_000, 256))
QUERIES, K, ROUNDS = (1, 8, 64), 20, 15
CODES = "int8 codes"


def main() -> None:
    options = arguments(__doc__).parse_args()
    if not can_multiply():  # loads torch
        raise SystemExit("torch multiplies no int8 matrices on this machine")
    random = np.random.default_rng(0)
    report = Report("codes", k=K)
    for rows, dim in [(2000, 64)] if options.quick else SIZES:
        vectors = random.standard_normal((rows, dim), dtype=np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch, "codes")
            write_codes(folder, vectors)
            segment = CodedSegment(folder, rows, dim)
            for count in QUERIES:
                queries = vectors[random.choice(rows, count, replace=False)]

                def by_codes(
                    segment: CodedSegment = segment,
                    queries: np.ndarray = queries,
                    vectors: np.ndarray = vectors,
                ) -> object:
                    return segment.search(queries, K, lambda some: gather_rows(vectors, some), None)

                def by_vectors(
                    queries: np.ndarray = queries, vectors: np.ndarray = vectors
                ) -> object:
                    return exact_search(queries, vectors, K)

                setting = f"{rows:,} vectors of {dim} dimensions, queries at once: {count}"
                ways = {"vectors": by_vectors, CODES: by_codes}
                rounds = 1 if options.quick else ROUNDS
                report.add(take_turns(setting, ways, ours=CODES, rounds=rounds))
    report.finish(options.out)


if __name__ == "__main__":
    main()
