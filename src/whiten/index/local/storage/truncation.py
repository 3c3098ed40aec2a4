"""A codec that stores the coordinates along the k strongest principal axes, as float16."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from whiten.index.local.storage.codec import Codec, offset_rows, require_state
from whiten.utils.arrays import Array, Vectors
from whiten.whitening.whitener import Whitener


class Truncation(Codec):
    """Centres vectors and keeps the coordinates along the k strongest principal axes.

    Args:
        mean: (dim,) float32.
        axes: (k, dim) float32, orthonormal rows.
    """

    def __init__(self, mean: Vectors, axes: Vectors) -> None:
        self.kind = f"pca:{len(axes)}"
        self.mean, self.axes = mean, axes
        self.width, self.dim = axes.shape
        self.dtype: np.dtype[Any] = np.dtype(np.float16)
        self._along = axes @ mean

    @classmethod
    def fit(cls, sample: Vectors, k: int) -> Truncation:
        """Fit to a sample; raises WhiteningError if it spans fewer than k axes."""
        whitener = Whitener(k, shrinkage=math.inf).fit(sample)
        assert whitener.mean_ is not None
        return cls(*(array.astype(np.float32) for array in (whitener.mean_, whitener.projection_)))

    @classmethod
    def from_state(cls, state: Mapping[str, Array], dim: int, k: int) -> Truncation:
        return cls(*require_state(state, {"mean": (dim,), "axes": (k, dim)}))

    def encode(self, vectors: Vectors) -> Array:
        return ((vectors - self.mean) @ self.axes.T).astype(np.float16)

    def decode(self, codes: Array) -> Vectors:
        return np.asarray(codes.astype(np.float32) @ self.axes + self.mean, np.float32)

    def rows(self, codes: Array) -> Vectors:
        return offset_rows(codes.astype(np.float32), self._along, 1, self.mean)

    def queries(self, vectors: Vectors) -> Vectors:
        return np.hstack([vectors @ self.axes.T, vectors @ self.mean[:, None]])

    def state(self) -> dict[str, Array]:
        return {"mean": self.mean, "axes": self.axes}
