"""Compute similarities to a gallery block by block.

Neither the gallery nor the matrix of similarities is ever fully in memory.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from whiten.utils.arrays import Vectors
from whiten.utils.memory import forget

QUERIES = 1024  # per pass over the gallery
BLOCK_ROWS = 32768  # one query's similarities to these fit into a core's cache
BLOCK_BYTES = 32 << 20  # of similarities held at once, and of embeddings mapped at once


def similarity_blocks(queries: Vectors, gallery: Vectors) -> Iterator[tuple[int, Vectors]]:
    """Yield (first gallery index, (queries, b) similarities); each block replaces the last."""
    widest = max(1, *queries.shape)  # of the similarities or of the embeddings
    rows = max(1, min(BLOCK_ROWS, BLOCK_BYTES // (4 * widest)))
    out = np.empty((len(queries), min(rows, len(gallery))), np.float32)
    for start in range(0, len(gallery), rows):
        part = gallery[start : start + rows]
        yield start, np.matmul(queries, part.T, out=out[:, : len(part)])
        forget(part)
