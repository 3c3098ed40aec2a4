"""The interface of all codecs: embeddings as rows of a few bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from whiten.errors import StoreError
from whiten.utils.arrays import Array, Vectors


class Codec(Protocol):
    """Stores embeddings of `dim` dimensions as rows of a few bytes.

    `queries(q) @ rows(codes).T` is the cosine between a query at full precision and the embedding
    that a code decodes to. Encoding a decoded embedding gives the same code again.

    Attributes:
        kind: name as users write it, such as `pca:64`.
        dim: embedding dimension.
        width: entries per code.
        dtype: type of the entries.
    """

    kind: str
    dim: int
    width: int
    dtype: np.dtype[Any]

    def encode(self, vectors: Vectors) -> Array:
        """Encode (n, dim) float32, L2-normalised -> (n, width) codes."""

    def decode(self, codes: Array) -> Vectors:
        """Decode (n, width) codes -> (n, dim) float32 embeddings, only approximately normalised."""

    def rows(self, codes: Array) -> Vectors:
        """Convert (n, width) codes -> (n, w) float32, to multiply with `queries`."""
        decoded = self.decode(codes)
        return np.divide(decoded, _lengths(decoded)[:, None], out=decoded)

    def queries(self, vectors: Vectors) -> Vectors:
        """Convert queries (q, dim) float32, L2-normalised -> (q, w) float32."""
        return vectors

    def state(self) -> dict[str, Array]:
        """Return the fitted arrays by name."""


def bytes_per_vector(codec: Codec) -> int:
    """Return the size of a code in bytes."""
    return codec.width * codec.dtype.itemsize


def _lengths(rows: Vectors) -> Vectors:
    """Return (n,) Euclidean lengths, slightly above 0 for zero rows."""
    lengths: Vectors = np.sqrt(np.vecdot(rows, rows))
    return np.maximum(lengths, np.float32(1e-12))


def offset_rows(parts: Vectors, along: Vectors, length: float, mean: Vectors) -> Vectors:
    """Return rows for codecs that decode to `parts @ axes + mean`, with orthonormal or sign axes.

    Args:
        parts: (n, w) float32.
        along: (w,) the mean, in the coordinates of the parts.
        length: weight of a squared part in the squared length of the decoded embedding.

    Returns:
        (n, w + 1) float32: the parts and 1, divided by the length of the decoded embedding.
    """
    # Without BLAS: several threads decode at once and would contend for its threads.
    squares = length * np.vecdot(parts, parts) + 2 * np.vecdot(parts, along) + np.vecdot(mean, mean)
    lengths = np.sqrt(np.maximum(squares, np.float32(1e-24)))
    out = np.empty((len(parts), parts.shape[1] + 1), np.float32)
    np.divide(parts, lengths[:, None], out=out[:, :-1])
    np.divide(1, lengths, out=out[:, -1])
    return out


def require_state(state: Mapping[str, Array], shapes: Mapping[str, tuple[int, ...]]) -> list[Array]:
    """Return the float32 arrays of a codec's state, in the order of `shapes`.

    Raises:
        StoreError: an array is missing, not finite, or has another shape or type.
    """
    for name, shape in shapes.items():
        array = state.get(name)
        if array is None or array.shape != shape or array.dtype != np.float32:
            raise StoreError(f"its {name} is missing or is no float32 of shape {shape}")
        if not np.isfinite(array).all():
            raise StoreError(f"its {name} holds NaN or infinity")
    return [state[name] for name in shapes]
