"""Similarities of a gallery that streams by, a block at a time.

Neither the gallery nor the matrix of similarities is ever in memory as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from whiten.utils.arrays import Vectors
from whiten.utils.memory import forget

QUERIES = 1024  # that a pass over the gallery serves
BLOCK_ROWS = 32768  # one query's similarities to so many items stay in a core's cache
BLOCK_BYTES = 32 << 20  # of similarities that exist at once, and of embeddings that are mapped


def similarity_blocks(queries: Vectors, gallery: Vectors) -> Iterator[tuple[int, Vectors]]:
    """Yield (first gallery index, (queries, b) similarities); each block replaces the last."""
    widest = max(1, *queries.shape)  # in the similarities or in what is read for them
    rows = max(1, min(BLOCK_ROWS, BLOCK_BYTES // (4 * widest)))
    out = np.empty((len(queries), min(rows, len(gallery))), np.float32)
    for start in range(0, len(gallery), rows):
        part = gallery[start : start + rows]
        yield start, np.matmul(queries, part.T, out=out[:, : len(part)])
        forget(part)
