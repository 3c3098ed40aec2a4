"""One bit for each dimension: on which side of the mean an entry lies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from whiten.compact.codec import require_state
from whiten.utils.arrays import Array, Vectors, normalize_rows


class Binary:
    """Sign bits after centring, eight in a byte, the first dimension in the highest bit.

    `binary` compares centred queries as they are with the signs. `hamming` takes the signs of the
    queries too: its score is 1 - 2/dim times the Hamming distance.

    Args:
        kind: `binary` or `hamming`.
        mean: (dim,) float32.
        lengths: (1,) float32, the mean length of a centred embedding; only for `decode`.
    """

    family: ClassVar[str] = "binary"

    def __init__(self, kind: str, mean: Vectors, lengths: Vectors) -> None:
        self.kind = kind
        self.mean = mean
        self.lengths = lengths
        self.dim = len(mean)
        self.width = -(-self.dim // 8)
        self.dtype: np.dtype[Any] = np.dtype(np.uint8)

    @classmethod
    def fit(cls, kind: str, sample: Vectors) -> Binary:
        mean = sample.mean(axis=0, dtype=np.float64).astype(np.float32)
        lengths = np.linalg.norm(sample - mean, axis=1).mean(keepdims=True)
        return cls(kind, mean, lengths.astype(np.float32))

    @classmethod
    def from_state(cls, kind: str, state: Mapping[str, Array], dim: int) -> Binary:
        return cls(kind, *require_state(state, {"mean": (dim,), "lengths": (1,)}))

    def encode(self, vectors: Vectors) -> Array:
        return np.packbits(vectors > self.mean, axis=1)

    def rows(self, codes: Array) -> Vectors:
        bits = np.unpackbits(codes, axis=1, count=self.dim)
        return bits.astype(np.float32) * 2 - 1

    def queries(self, vectors: Vectors) -> Vectors:
        if self.kind == "hamming":
            return np.where(vectors > self.mean, 1, -1).astype(np.float32) / np.float32(self.dim)
        centred = normalize_rows(vectors - self.mean) / np.sqrt(self.dim)
        return np.asarray(centred, np.float32)

    def decode(self, codes: Array) -> Vectors:
        return self.rows(codes) * (self.lengths / np.float32(np.sqrt(self.dim))) + self.mean

    def state(self) -> dict[str, Array]:
        return {"mean": self.mean, "lengths": self.lengths}
