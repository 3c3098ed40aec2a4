"""Names for array types, and the conversions that every package needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from whiten.errors import ConfigError, NonFiniteInputError, one_line

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


def has_direction(rows: Array) -> npt.NDArray[np.bool_]:
    """Return which rows, (n,), are finite and not zero: others have no cosine to anything."""
    largest = np.abs(rows).max(axis=1, initial=0.0)
    usable: npt.NDArray[np.bool_] = (largest > 0) & np.isfinite(largest)
    return usable


def require_unmasked(values: Any) -> None:
    """Refuse a NumPy array, or a list with one, of which values are masked.

    Conversions to plain arrays take what is below the mask, without a word.

    Raises:
        ConfigError: see above.
    """
    parts = values if isinstance(values, list | tuple) else [values]
    if any(np.ma.is_masked(part) for part in parts):
        raise ConfigError("some values are masked: fill them (`filled`), or leave their rows out")


def require_values(tensor: Any) -> None:
    """Refuse a torch tensor of the device meta, which has a shape only.

    Raises:
        ConfigError: see above.
    """
    if tensor.is_meta:
        raise ConfigError("a tensor on the device meta has no values: give one on cpu or cuda")


def as_numpy(embeddings: Any) -> Array:
    """Convert a tensor, a data frame or a list of rows to an array; arrays are returned unchanged.

    Raises:
        ConfigError: the values are not numbers, some are masked, the rows differ in length, or a
            tensor has no values.
    """
    require_unmasked(embeddings)
    if not hasattr(embeddings, "detach"):  # not a torch tensor
        try:
            values: Array = np.asarray(embeddings)
        except (ValueError, TypeError, RuntimeError) as error:  # the latter of torch
            raise ConfigError(f"the rows are no array of numbers: {one_line(error)}") from error
        if values.dtype.kind not in "fiub":
            raise ConfigError(f"expected rows of numbers, not of {values.dtype}")
        return values
    require_values(embeddings)
    is_half = embeddings.element_size() < 4  # bfloat16 has no NumPy type
    tensor = embeddings.detach().cpu()
    array: Array = (tensor.float() if is_half else tensor).numpy()
    return array


def is_block(embeddings: Any) -> bool:
    """Return whether this is one block of rows rather than a stream of blocks."""
    if hasattr(embeddings, "shape"):
        return True
    is_list = isinstance(embeddings, list | tuple)
    return is_list and all(isinstance(row, list | tuple) or np.ndim(row) < 2 for row in embeddings)


def indices(numbers: Sequence[int]) -> Indices:
    """Convert numbers to an int64 array, even if there are none."""
    return np.asarray(numbers, np.int64)


def normalize_rows(vectors: Array, norms: Array | None = None) -> Array:
    """L2-normalise the rows of an (n, d) array; all-zero rows stay zero.

    Args:
        vectors: (n, d).
        norms: (n,) norms of the rows by their squares, where they are known.
    """
    if norms is None:
        with np.errstate(over="ignore"):  # such norms are computed again
            norms = np.linalg.norm(vectors, axis=1)
    norms = mended_norms(norms, vectors)
    with np.errstate(invalid="ignore"):  # infinity has no direction: it becomes NaN
        unit: Array = vectors / np.where(norms == 0, 1, norms)[:, None]
    return unit


def mended_norms(norms: Array, rows: Array) -> Array:
    """Return (n,) norms, computed again where squares of a row's entries vanished or overflowed.

    Args:
        norms: (n,) norms of the rows by their squares, in the precision of the rows.
        rows: (n, d).
    """
    info = np.finfo(norms.dtype)
    # Below this, squares are rounded as denormal numbers, or to 0. Not a number stays what it is.
    lost = np.flatnonzero((norms < np.sqrt(info.tiny / info.eps)) | np.isinf(norms))
    if not len(lost):
        return norms
    largest = np.abs(rows[lost]).max(axis=1, initial=0)
    is_there = (largest > 0) & np.isfinite(largest)
    lost, largest = lost[is_there], largest[is_there]
    mended = norms.copy()
    mended[lost] = largest * np.linalg.norm(rows[lost] / largest[:, None], axis=1)
    return mended
