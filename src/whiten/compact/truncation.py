"""The first k principal axes, normalised again, as float16."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from whiten.compact.codec import require_state
from whiten.utils.arrays import Array, Vectors, normalize_rows
from whiten.whitening.whitener import Whitener


class Truncation:
    """Centred, turned to the k strongest principal axes, and L2-normalised again.

    Args:
        mean: (dim,) float32.
        axes: (k, dim) float32, orthonormal rows.
        lengths: (1,) float32, the mean length before normalising; only for `decode`.
    """

    family: ClassVar[str] = "pca"

    def __init__(self, mean: Vectors, axes: Vectors, lengths: Vectors) -> None:
        self.kind = f"pca:{len(axes)}"
        self.mean, self.axes, self.lengths = mean, axes, lengths
        self.width, self.dim = axes.shape
        self.dtype: np.dtype[Any] = np.dtype(np.float16)

    @classmethod
    def fit(cls, sample: Vectors, k: int) -> Truncation:
        """Raises WhiteningError where the sample spans fewer than k axes."""
        whitener = Whitener(k, shrinkage=math.inf).fit(sample)
        lengths = np.linalg.norm(whitener.transform(sample), axis=1).mean(keepdims=True)
        assert whitener.mean_ is not None
        arrays = (whitener.mean_, whitener.projection_, lengths)
        return cls(*(array.astype(np.float32) for array in arrays))

    @classmethod
    def from_state(cls, state: Mapping[str, Array], dim: int, k: int) -> Truncation:
        shapes = {"mean": (dim,), "axes": (k, dim), "lengths": (1,)}
        return cls(*require_state(state, shapes))

    def encode(self, vectors: Vectors) -> Array:
        return self.queries(vectors).astype(np.float16)

    def rows(self, codes: Array) -> Vectors:
        return codes.astype(np.float32)

    def queries(self, vectors: Vectors) -> Vectors:
        turned = normalize_rows((vectors - self.mean) @ self.axes.T)
        return np.asarray(turned, np.float32)

    def decode(self, codes: Array) -> Vectors:
        return np.asarray((self.rows(codes) * self.lengths) @ self.axes + self.mean, np.float32)

    def state(self) -> dict[str, Array]:
        return {"mean": self.mean, "axes": self.axes, "lengths": self.lengths}
