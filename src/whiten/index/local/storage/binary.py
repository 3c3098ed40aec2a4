"""A codec that stores one bit per dimension: the side of the mean that an entry is on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from whiten.index.local.storage.codec import Codec, offset_rows, require_state
from whiten.utils.arrays import Array, Vectors

_SIGNS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).astype(np.float32) * 2 - 1


class Binary(Codec):
    """Stores signs after centring, eight per byte, the first dimension in the highest bit.

    Args:
        mean: (dim,) float32.
        step: (1,) float32, magnitude of a sign, chosen so that decoded embeddings are on average as
            far from the mean as those of the sample.
    """

    def __init__(self, mean: Vectors, step: Vectors) -> None:
        self.kind = "binary"
        self.mean, self.step = mean, step
        self.dim = len(mean)
        self.width = -(-self.dim // 8)
        self.dtype: np.dtype[Any] = np.dtype(np.uint8)

    @classmethod
    def fit(cls, sample: Vectors) -> Binary:
        mean = sample.mean(axis=0, dtype=np.float64).astype(np.float32)
        length = np.linalg.norm(sample - mean, axis=1).mean(keepdims=True)
        # Large enough not to vanish by rounding when added to the mean.
        step = np.maximum(length / np.sqrt(sample.shape[1]), 1e-6)
        return cls(mean, step.astype(np.float32))

    @classmethod
    def from_state(cls, state: Mapping[str, Array], dim: int) -> Binary:
        return cls(*require_state(state, {"mean": (dim,), "step": (1,)}))

    def encode(self, vectors: Vectors) -> Array:
        return np.packbits(vectors > self.mean, axis=1)

    def decode(self, codes: Array) -> Vectors:
        return self._signs(codes) * self.step + self.mean

    def rows(self, codes: Array) -> Vectors:
        step = float(self.step[0])
        return offset_rows(self._signs(codes), step * self.mean, step**2, self.mean)

    def queries(self, vectors: Vectors) -> Vectors:
        return np.hstack([vectors * self.step, vectors @ self.mean[:, None]])

    def _signs(self, codes: Array) -> Vectors:
        signs: Vectors = np.take(_SIGNS, codes, axis=0).reshape(len(codes), 8 * self.width)
        return signs[:, : self.dim]

    def state(self) -> dict[str, Array]:
        return {"mean": self.mean, "step": self.step}
