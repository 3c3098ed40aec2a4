"""Each entry by itself: float32 as it is, float16, and int8 with a scale for each dimension."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from whiten.compact.codec import require_state
from whiten.utils.arrays import Array, Vectors

_LEVELS = 127


class Float:
    """float32 or float16 entries."""

    family: ClassVar[str] = "float"

    def __init__(self, dim: int, bits: int) -> None:
        self.kind = f"float{bits}"
        self.dim = self.width = dim
        self.dtype: np.dtype[Any] = np.dtype(self.kind)

    def encode(self, vectors: Vectors) -> Array:
        return vectors.astype(self.dtype)

    def rows(self, codes: Array) -> Vectors:
        return codes.astype(np.float32)

    def queries(self, vectors: Vectors) -> Vectors:
        return vectors

    def decode(self, codes: Array) -> Vectors:
        return codes.astype(np.float32)

    def state(self) -> dict[str, Array]:
        return {}


class Int8:
    """int8 entries, -127 to 127 times a scale for each dimension.

    What lies beyond the largest entry of the vectors that the scales were fitted on is clipped.

    Args:
        scale: (dim,) float32.
    """

    family: ClassVar[str] = "int8"

    def __init__(self, scale: Vectors) -> None:
        self.kind = self.family
        self.scale = scale
        self.dim = self.width = len(scale)
        self.dtype: np.dtype[Any] = np.dtype(np.int8)

    @classmethod
    def fit(cls, sample: Vectors) -> Int8:
        largest = np.abs(sample).max(axis=0)
        return cls(np.maximum(largest / _LEVELS, np.finfo(np.float32).tiny).astype(np.float32))

    @classmethod
    def from_state(cls, state: Mapping[str, Array], dim: int) -> Int8:
        return cls(*require_state(state, {"scale": (dim,)}))

    def encode(self, vectors: Vectors) -> Array:
        steps = np.rint(vectors / self.scale)
        codes: Array = np.clip(steps, -_LEVELS, _LEVELS).astype(np.int8)
        return codes

    def rows(self, codes: Array) -> Vectors:
        return codes.astype(np.float32)

    def queries(self, vectors: Vectors) -> Vectors:
        return vectors * self.scale  # so that codes need no scaling

    def decode(self, codes: Array) -> Vectors:
        return codes * self.scale

    def state(self) -> dict[str, Array]:
        return {"scale": self.scale}
