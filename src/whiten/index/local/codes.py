"""Scan int8 codes, with exactly the results of a scan of the vectors.

Each vector is centred, rotated at random, so that no coordinate dominates, and rounded to 8 bits.
With v - m = u, its code c, step s and the rotated query w ≈ t·g, where g has 8 bits too,

    |u·w - s·t·(c·g)| ≤ ‖u - s·c‖·‖w‖ + ‖s·c‖·‖w - t·g‖,

so that a vector whose approximate score is more than this below the k-th best cannot be an answer.
The others, a few in a thousand, are rescored by their vectors. Torch multiplies the int8 matrices:
NumPy cannot. Loading torch takes seconds, so that a process does it only once it searches often.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from whiten.errors import StoreError
from whiten.retrieval.exact import Mask, Nearest, Rows
from whiten.utils.arrays import Vectors
from whiten.utils.files import written_out
from whiten.utils.memory import forget

Codes = npt.NDArray[np.int8]

_CODES, _FRAME = "codes.i8", "frame.npy"
_TOP = 127
_ROWS, _PRODUCTS = 16384, 1 << 17  # least rows of a block, and inner products
_SAMPLE = 65536  # rows that the centre is estimated from
_ROUNDING = 1e-5  # of float32 products, relative to the norms: ten times the largest error observed
_LOADING = 32 << 30  # bytes of codes whose scan saves about as much time as loading torch takes
_MOST = 64  # candidates per answer; with more, a scan of the vectors is faster

Gather = Callable[[Rows], Vectors]
Found = list[tuple[Rows, Vectors]]  # rows and similarities per query, best first


@cache
def can_multiply() -> bool:
    """Return whether torch multiplies int8 matrices correctly here; on some CPUs it overflows."""
    try:
        import torch
    except ImportError:
        return False
    random = np.random.default_rng(0).integers(-_TOP, _TOP + 1, (80, 512)).astype(np.int8)
    random[:8], random[40:48] = _TOP, _TOP
    random[8:16], random[32:40] = -_TOP, -_TOP
    left, right = random[:40], random[40:]
    try:
        found = torch._int_mm(torch.from_numpy(left), torch.from_numpy(right).T).numpy()
    except (AttributeError, RuntimeError):
        return False
    return bool((found == left.astype(np.int32) @ right.T.astype(np.int32)).all())


def multiply(queries: Codes, codes: Codes) -> npt.NDArray[np.int32]:
    """Multiply (q, d) and (n, d) int8 -> (q, n) int32."""
    import torch

    product = torch._int_mm(torch.from_numpy(queries), torch.from_numpy(codes).T)
    found: npt.NDArray[np.int32] = product.numpy()
    return found


def write_codes(folder: Path, vectors: Vectors) -> None:
    """Write the codes of a segment's vectors into a new folder.

    Args:
        vectors: (n, d) float32.
    """
    dim = vectors.shape[1]
    some = vectors[:: -(-len(vectors) // _SAMPLE)]
    centre = some.mean(0, dtype=np.float64).astype(np.float32)
    drawn = np.random.default_rng(0).standard_normal((dim, dim))
    rotation = np.ascontiguousarray(np.linalg.qr(drawn)[0], np.float32)
    starts = range(0, len(vectors), _ROWS)

    def turned(start: int) -> Vectors:
        part = vectors[start : start + _ROWS]
        found: Vectors = (part - centre) @ rotation
        forget(part)
        return found

    step = np.float32(max(float(np.abs(turned(start)).max()) for start in starts) / _TOP or 1)
    error = longest = 0.0
    folder.mkdir()
    with written_out(folder / _CODES) as file:
        for start in starts:
            block = turned(start)
            codes = np.rint(block / step).clip(-_TOP, _TOP).astype(np.int8)
            file.write(codes.tobytes())
            rounded = codes * step
            error = max(error, float(np.linalg.norm(block - rounded, axis=1).max()))
            longest = max(longest, float(np.linalg.norm(rounded, axis=1).max()))
    facts = np.zeros((1, dim), np.float32)
    facts[0, :3] = step, np.nextafter(np.float32(error), 9), np.nextafter(np.float32(longest), 9)
    with written_out(folder / _FRAME) as file:
        np.save(file, np.concatenate([facts, centre[None], rotation]))


class CodedSegment:
    """The mapped codes of a segment.

    Raises:
        StoreError: the codes are damaged, or belong to another segment.
    """

    def __init__(self, folder: Path, count: int, dim: int) -> None:
        try:
            frame = np.load(folder / _FRAME)
            if frame.shape != (dim + 2, dim) or frame.dtype != np.float32:
                raise ValueError("its parts do not fit")
            if (folder / _CODES).stat().st_size != count * dim or not np.isfinite(frame).all():
                raise ValueError("its parts do not fit")
            self._codes: Codes = np.memmap(folder / _CODES, np.int8, "c", shape=(count, dim))
        except (OSError, ValueError, EOFError) as error:
            raise StoreError(
                f"{folder} is damaged ({error}): index again with --kind exact, which does without "
                "it"
            ) from error
        self._step, self._error, self._longest = map(float, frame[0, :3])
        self._centre, self._rotation = frame[1], frame[2:]
        self._asked = 0.0  # bytes of codes that searches would have read

    def search(
        self, queries: Vectors, k: int, gather: Gather, allowed: Mask | None
    ) -> list[tuple[Rows, Vectors]] | None:
        """Return the result of `exact_search`; None if that is faster, or not worth loading torch.

        Args:
            queries: (q, d) float32.
            gather: returns the vectors of rows.
            allowed: (n,) mask of rows that may be answers; None allows all.
        """
        self._asked += self._codes.nbytes * (1 + len(queries) / 8)
        if not ("torch" in sys.modules or self._asked > _LOADING) or not can_multiply():
            return None
        turned = self._turned(queries)
        steps = np.abs(turned).max(1) / _TOP
        steps[steps == 0] = 1
        coded = np.rint(turned / steps[:, None]).astype(np.int8)
        lost = np.linalg.norm(turned - coded * steps[:, None], axis=1)
        length = np.linalg.norm(queries, axis=1)
        # The centre is at most as long as a vector.
        rounding = _ROUNDING * length * (1 + self._longest + np.linalg.norm(self._centre))
        bound = self._error * length + self._longest * lost + rounding
        unit = self._step * steps
        margin = np.ceil(2 * bound / unit).clip(0, 1 << 30).astype(np.int32)

        nearest = Nearest(len(queries), k, margin, np.int32)
        size = max(_ROWS, _PRODUCTS // len(queries))
        for start in range(0, len(self._codes), size):
            products = multiply(coded, self._codes[start : start + size])
            if allowed is not None:
                products[:, ~allowed[start : start + size]] = np.iinfo(np.int32).min
            nearest.show(products, start)
            if len(nearest) > _MOST * k * len(queries) + _ROWS:
                return None
        candidates = nearest.best()
        offset = np.vecdot(queries, self._centre)
        return [
            self._compare(query, k, rows, values * u + o, b, gather)
            for query, (rows, values), u, o, b in zip(
                queries, candidates, unit, offset, bound, strict=True
            )
        ]

    def _turned(self, queries: Vectors) -> Vectors:
        """Rotate by torch: threads of NumPy's BLAS would spin on beside those of torch."""
        import torch

        copied = torch.tensor(queries)  # which may be read-only: torch would warn
        found: Vectors = (copied @ torch.from_numpy(self._rotation)).numpy()
        return found

    def _compare(
        self, query: Any, k: int, rows: Rows, about: Vectors, bound: float, gather: Gather
    ) -> tuple[Rows, Vectors]:
        """Return the k best of a query's candidates, which are given best first."""
        scores = similarities(gather(rows[:k]), query)
        if len(rows) > k:
            # The k-th best is at least this good, which rules out most of the rest.
            likely = np.flatnonzero(about[k:] >= scores.min() - bound) + k
            rows = np.concatenate([rows[:k], rows[likely]])
            scores = np.concatenate([scores, similarities(gather(rows[k:]), query)])
        order = np.lexsort((rows, -scores))[:k]
        return rows[order], scores[order]


def similarities(vectors: Vectors, query: Any) -> Vectors:
    """Return (n,) inner products; equal for equal vectors, which BLAS does not guarantee."""
    found: Vectors = np.einsum("nd,d->n", vectors, query)
    return found


def compare(query: Any, rows: Rows, k: int, gather: Gather) -> tuple[Rows, Vectors]:
    """Return the k best of a query's candidates by their vectors, best first; ties by row."""
    scores = similarities(gather(rows), query)
    order = np.lexsort((rows, -scores))[:k]
    return rows[order], scores[order]
