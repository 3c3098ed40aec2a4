"""What every codec of embeddings does, however it does it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

import numpy as np

from whiten.errors import StoreError
from whiten.utils.arrays import Array, Vectors


class Codec(Protocol):
    """Embeddings of `dim` dimensions as rows of few bytes.

    A score is `queries(q) @ rows(codes).T`: the query keeps its precision where the codes have lost
    theirs (asymmetric search), unless the codec says otherwise.

    Attributes:
        family: what `kind` begins with, and what its state is stored under.
        kind: as it is written, such as `pca:64`.
        dim: of the embeddings.
        width: entries of a code.
        dtype: of these.
    """

    family: ClassVar[str]
    kind: str
    dim: int
    width: int
    dtype: np.dtype[Any]

    def encode(self, vectors: Vectors) -> Array:
        """(n, dim) float32, L2-normalised -> (n, width) codes."""

    def rows(self, codes: Array) -> Vectors:
        """(n, width) codes -> (n, w) float32, to be multiplied with `queries`."""

    def queries(self, vectors: Vectors) -> Vectors:
        """(q, dim) float32, L2-normalised -> (q, w) float32."""

    def decode(self, codes: Array) -> Vectors:
        """(n, width) codes -> (n, dim) float32 embeddings, near those that were encoded."""

    def state(self) -> dict[str, Array]:
        """What was fitted, by name."""


def bytes_per_vector(codec: Codec) -> int:
    """Bytes that a code takes."""
    return codec.width * codec.dtype.itemsize


def require_state(
    state: Mapping[str, Array], shapes: Mapping[str, tuple[int, ...]], dtype: type = np.float32
) -> list[Array]:
    """The arrays of a codec's state, in the order of `shapes`.

    Raises:
        StoreError: one is missing, of another shape or type, or not finite.
    """
    for name, shape in shapes.items():
        array = state.get(name)
        if array is None or array.shape != shape or array.dtype != dtype:
            raise StoreError(f"its {name} is missing or is no {dtype.__name__} of shape {shape}")
        if not np.isfinite(array).all():
            raise StoreError(f"its {name} holds NaN or infinity")
    return [state[name] for name in shapes]
