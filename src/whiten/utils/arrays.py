"""Names for kinds of arrays, and the conversions that every package needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from whiten.errors import NonFiniteInputError

if TYPE_CHECKING:
    from torch import Tensor

Array = npt.NDArray[Any]
Indices = npt.NDArray[np.int64]
Vectors = npt.NDArray[np.float32]


def require_finite(rows: Array, offset: int) -> None:
    """Raise NonFiniteInputError naming the first bad row, counted from `offset`."""
    if not np.isfinite(rows).all():
        row = int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0])
        raise NonFiniteInputError(
            f"sample {offset + row} holds NaN or infinity: embed that image again or leave it out"
        )


def as_numpy(embeddings: Array | Tensor) -> Array:
    """Return the array itself, or the tensor's values in a dtype that NumPy has."""
    if isinstance(embeddings, np.ndarray):
        return embeddings
    is_half = embeddings.element_size() < 4  # bfloat16 has no NumPy type
    tensor = embeddings.detach().cpu()
    array: Array = (tensor.float() if is_half else tensor).numpy()
    return array


def indices(numbers: Sequence[int]) -> Indices:
    """Numbers as an int64 array, also where there are none."""
    return np.asarray(numbers, np.int64)


def normalize_rows(vectors: Array) -> Array:
    """L2-normalise the rows of an (n, d) array; all-zero rows stay zero."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: Array = vectors / np.maximum(norms, np.finfo(vectors.dtype).tiny)
    return unit
