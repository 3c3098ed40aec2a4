"""Affine maps of rows, for NumPy arrays and torch tensors alike."""

from __future__ import annotations

from typing import Any

import numpy as np

from whiten.utils.arrays import Array, require_finite

_PART = 4096  # rows mapped at once, which bounds memory beyond the result


def map_rows(vectors: Any, mean: Array, matrix: Array, *, forward: bool) -> Any:
    """`(vectors - mean) @ matrix.T` forward, `vectors @ matrix + mean` backward.

    Args:
        vectors: (n, D) forward, (n, dim) backward; array or tensor. Not written to.
        mean: (D,) float64.
        matrix: (dim, D) float64.

    Returns:
        Same kind, dtype (integers become float32) and device as the input. Computed in float64 if
        the input is, also for NumPy integers, otherwise in float32.

    Raises:
        NonFiniteInputError: a row of an array holds NaN or infinity.
    """
    if isinstance(vectors, np.ndarray):
        return _map_array(vectors, mean, matrix, forward=forward)
    import torch

    is_double = vectors.dtype == torch.float64
    compute = torch.float64 if is_double else torch.float32
    centre, weight, rest = (
        torch.as_tensor(each, device=vectors.device)
        for each in _parts(mean, matrix, np.float64 if is_double else np.float32, forward=forward)
    )
    work = vectors.to(compute)
    out = ((work - centre) @ weight.T if forward else work @ weight) + rest
    return out.to(vectors.dtype if vectors.is_floating_point() else compute)


def _parts(
    mean: Array, matrix: Array, compute: type, *, forward: bool
) -> tuple[Array, Array, Array]:
    """Return the mean and the matrix in a precision, and what is added to their product.

    Forward, that is a correction of the mean's rounding error.
    """
    centre: Array = mean.astype(compute)
    rest: Array = ((centre - mean) @ matrix.T).astype(compute) if forward else centre
    return centre, matrix.astype(compute), rest


def _map_array(vectors: Array, mean: Array, matrix: Array, *, forward: bool) -> Array:
    kind = vectors.dtype if vectors.dtype.kind == "f" else np.dtype(np.float32)
    compute = np.float32 if vectors.dtype in (np.float16, np.float32) else np.float64
    centre, weight, rest = _parts(mean, matrix, compute, forward=forward)
    out = np.empty((len(vectors), matrix.shape[0 if forward else 1]), kind)
    for start in range(0, len(vectors), _PART):
        rows: Array = vectors[start : start + _PART]
        with np.errstate(all="ignore"):  # non-finite rows are reported below
            if forward:
                result = np.subtract(rows, centre, dtype=compute) @ weight.T
            else:
                result = rows.astype(compute) @ weight
            result += rest
            out[start : start + _PART] = result
        if not np.isfinite(result).all():
            require_finite(rows, start)
    return out
