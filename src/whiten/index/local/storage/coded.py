"""Read codes from a file, and decode rows as they are accessed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from whiten.index.local.storage.codec import Codec
from whiten.retrieval.exact import Mask, Nearest, scan
from whiten.utils.arrays import Array, Vectors, normalize_rows
from whiten.utils.files import written_out
from whiten.utils.memory import forget, is_large, take_rows

SAMPLE_ROWS = 50_000  # most rows that a codec is fitted on
_SAMPLE_BYTES = 128 << 20
_BLOCK = 8192  # rows encoded at once


@dataclass(frozen=True)
class Coding:
    """A fitted codec, and the file in each segment that holds its codes.

    Attributes:
        file: name of a segment's file of codes.
        keeps_vectors: whether the float32 vectors are stored in addition to the codes.
    """

    codec: Codec
    file: str
    keeps_vectors: bool


class _View:
    """Mapped codes that look like an array of float32 rows, decoded on access."""

    def __init__(self, codes: Array, decode: Callable[[Array], Vectors]) -> None:
        self._codes, self._decode = codes, decode
        self.shape = (len(codes), decode(codes[:0]).shape[1])

    def __len__(self) -> int:
        return len(self._codes)

    def __getitem__(self, rows: Any) -> Vectors:
        if is_large(self._codes):
            forget(self._codes)  # what was read before
        return self._decode(self._codes[rows])


def stored(codec: Codec, codes: Array) -> Vectors:
    """Return (n, dim) decoded vectors: encoding them gives the same codes."""
    return cast(Vectors, _View(codes, codec.decode))


def unit(codec: Codec, codes: Array) -> Vectors:
    """Return (n, dim) decoded vectors, L2-normalised."""
    return cast(Vectors, _View(codes, lambda some: normalize_rows(codec.decode(some))))


def searchable(codec: Codec, codes: Array) -> Vectors:
    """Return (n, w) rows to multiply with `codec.queries`."""
    return cast(Vectors, _View(codes, codec.rows))


def scan_codes(
    codec: Codec,
    codes: Array,
    queries: Vectors,
    nearest: Nearest,
    allowed: Mask | None,
    first: int = 0,
) -> None:
    """Pass the codes to (q, dim) queries; see `whiten.retrieval.exact.scan`."""
    scan(codec.queries(queries), codes, nearest, allowed, first, codec.rows)


def map_codes(path: Path, codec: Codec, count: int) -> Array:
    """Map a file of codes.

    Raises:
        OSError, ValueError: the file is missing, or does not hold this number of codes.
    """
    if path.stat().st_size != count * codec.width * codec.dtype.itemsize:
        raise ValueError(f"{path.name} does not hold {count} codes")
    if not count:
        return np.zeros((0, codec.width), codec.dtype)
    return np.memmap(path, codec.dtype, "r", shape=(count, codec.width))


def write_codes(path: Path, codec: Codec, vectors: Vectors) -> None:
    """Encode (n, dim) float32, may be a memory map, one block at a time."""
    with written_out(path) as file:
        for start in range(0, len(vectors), _BLOCK):
            part = vectors[start : start + _BLOCK]
            file.write(np.ascontiguousarray(codec.encode(part)).tobytes())
            forget(part)


def sample_rows(vectors: Vectors) -> Vectors:
    """Return rows to fit a codec on: all, or a random sample that fits into memory."""
    most = min(SAMPLE_ROWS, _SAMPLE_BYTES // (4 * vectors.shape[1]))
    rows: Any = slice(None)
    if len(vectors) > most:
        rows = np.sort(np.random.default_rng(0).permutation(len(vectors))[:most])
    return take_rows(vectors, rows)
