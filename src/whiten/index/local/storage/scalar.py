"""Codecs that store each entry by itself: float32, float16, and int8 with a scale per dimension."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from whiten.index.local.storage.codec import Codec, require_state
from whiten.utils.arrays import Array, Vectors

_LEVELS = 127
_FEW = 256  # vectors; fewer do not tell how large the entries of one dimension become


class Float(Codec):
    """Stores float32 or float16 entries."""

    def __init__(self, dim: int, bits: int) -> None:
        self.kind = f"float{bits}"
        self.dim = self.width = dim
        self.dtype: np.dtype[Any] = np.dtype(self.kind)

    def encode(self, vectors: Vectors) -> Array:
        return vectors.astype(self.dtype)

    def decode(self, codes: Array) -> Vectors:
        return codes.astype(np.float32)

    def state(self) -> dict[str, Array]:
        return {}


class Int8(Codec):
    """Stores int8 entries, -127 to 127 times a scale per dimension.

    Entries beyond the largest one in the sample that the scales were fitted on are clipped.

    Args:
        scale: (dim,) float32.
    """

    def __init__(self, scale: Vectors) -> None:
        self.kind = "int8"
        self.scale = scale
        self.dim = self.width = len(scale)
        self.dtype: np.dtype[Any] = np.dtype(np.int8)

    @classmethod
    def fit(cls, sample: Vectors) -> Int8:
        largest = np.abs(sample).max(axis=0)
        if len(sample) < _FEW:
            largest = np.full_like(largest, largest.max())
        return cls(np.maximum(largest / _LEVELS, np.finfo(np.float32).tiny).astype(np.float32))

    @classmethod
    def from_state(cls, state: Mapping[str, Array], dim: int) -> Int8:
        return cls(*require_state(state, {"scale": (dim,)}))

    def encode(self, vectors: Vectors) -> Array:
        steps = np.rint(vectors / self.scale)
        codes: Array = np.clip(steps, -_LEVELS, _LEVELS).astype(np.int8)
        return codes

    def decode(self, codes: Array) -> Vectors:
        return codes * self.scale

    def state(self) -> dict[str, Array]:
        return {"scale": self.scale}
