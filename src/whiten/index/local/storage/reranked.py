"""Search codes and re-rank the hits by their full vectors."""

from __future__ import annotations

from whiten.index.local.codes import Found, Gather, compare
from whiten.index.local.storage.codec import Codec
from whiten.index.local.storage.coded import scan_codes
from whiten.retrieval.exact import QUERIES, Mask, Nearest
from whiten.utils.arrays import Array, Vectors

REFINE = 10  # candidates per answer to rescore by their vectors


class Reranked:
    """Scans the codes of a segment for candidates, and rescores these by their vectors.

    Scores are exact; only recall is approximate.
    """

    def __init__(self, codec: Codec, codes: Array) -> None:
        self._codec, self._codes = codec, codes

    def search(self, queries: Vectors, k: int, gather: Gather, allowed: Mask | None) -> Found:
        """Return k rows and similarities per (d,) query, best first; see `Fast`."""
        found: Found = []
        for start in range(0, len(queries), QUERIES):
            some = queries[start : start + QUERIES]
            nearest = Nearest(len(some), REFINE * k)
            scan_codes(self._codec, self._codes, some, nearest, allowed)
            for query, (rows, _) in zip(some, nearest.best(), strict=True):
                found.append(compare(query, rows, k, gather))
        return found
