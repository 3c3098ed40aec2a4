"""Affine maps of rows, for NumPy arrays and torch tensors alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from whiten.errors import NonFiniteInputError

if TYPE_CHECKING:
    from torch import Tensor

Array = npt.NDArray[Any]

_PART = 4096  # rows mapped at once: memory beyond the result stays bounded


def map_rows(vectors: Any, mean: Array, matrix: Array, *, forward: bool) -> Any:
    """`(vectors - mean) @ matrix.T` forward, `vectors @ matrix + mean` backward.

    Args:
        vectors: (n, D) forward, (n, dim) backward; array or tensor. Not written to.
        mean: (D,) float64.
        matrix: (dim, D) float64.

    Returns:
        The kind, dtype (integers become float32) and device of the input. Computed in float64 if
        the input is, for NumPy integers too, otherwise in float32.

    Raises:
        NonFiniteInputError: a row of an array holds NaN or infinity.
    """
    if isinstance(vectors, np.ndarray):
        return _map_array(vectors, mean, matrix, forward=forward)
    import torch

    compute = torch.float64 if vectors.dtype == torch.float64 else torch.float32
    centre = torch.as_tensor(mean, dtype=compute, device=vectors.device)
    weight = torch.as_tensor(matrix, dtype=compute, device=vectors.device)
    work = vectors.to(compute)
    out = (work - centre) @ weight.T if forward else work @ weight + centre
    return out.to(vectors.dtype)


def _map_array(vectors: Array, mean: Array, matrix: Array, *, forward: bool) -> Array:
    kind = vectors.dtype if vectors.dtype.kind == "f" else np.dtype(np.float32)
    compute = np.float32 if vectors.dtype in (np.float16, np.float32) else np.float64
    weight: Array = matrix.astype(compute)
    centre: Array = mean.astype(compute)
    # What rounding took from the mean is taken from the result.
    rest: Array = ((centre - mean) @ matrix.T).astype(compute) if forward else centre
    out = np.empty((len(vectors), matrix.shape[0 if forward else 1]), kind)
    for start in range(0, len(vectors), _PART):
        rows: Array = vectors[start : start + _PART]
        with np.errstate(all="ignore"):  # what is not finite is named below
            if forward:
                result = np.subtract(rows, centre, dtype=compute) @ weight.T
            else:
                result = rows.astype(compute) @ weight
            result += rest
            out[start : start + _PART] = result
        if not np.isfinite(result).all():
            require_finite(rows, start)
    return out


def require_finite(rows: Array, offset: int) -> None:
    """Raise NonFiniteInputError naming the first bad row, counted from `offset`."""
    if not np.isfinite(rows).all():
        row = int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0])
        raise NonFiniteInputError(
            f"sample {offset + row} holds NaN or infinity: embed that image again or leave it out"
        )


def as_numpy(embeddings: Array | Tensor) -> Array:
    """The array itself, or the tensor's values in a dtype that NumPy has."""
    if isinstance(embeddings, np.ndarray):
        return embeddings
    is_half = embeddings.element_size() < 4  # bfloat16 has no NumPy type
    tensor = embeddings.detach().cpu()
    array: Array = (tensor.float() if is_half else tensor).numpy()
    return array
