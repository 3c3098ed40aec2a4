"""The leading eigenpairs of a covariance, in float32 with a float64 correction if large."""

from __future__ import annotations

import numpy as np

from whiten.utils.arrays import Array

_LARGE = 1024  # axes from which float32 saves time
_RESIDUAL = 0.01  # relative to the smallest eigenvalue; above this, float64 is used


def leading_eigenpairs(covariance: Array, count: int) -> tuple[Array, Array]:
    """Return the largest eigenvalues and their eigenvectors.

    For at most half of many axes, their span is computed in float32, which takes half the time, and
    the problem is solved exactly within the span (Rayleigh-Ritz; Golub & Van Loan 2013, section
    8.1.3). Whitened samples are then uncorrelated to float64 precision; the span itself is off by
    angles of about 1e-7 times the ratio of the largest eigenvalue to its own.

    Args:
        covariance: (D, D) float64 in column order; only the lower triangle is read; may be
            overwritten.

    Returns:
        (count,) eigenvalues, at least 0, descending, and (count, D) axes.
    """
    found = _within_single(covariance, count)
    values, vectors = found or _solve(covariance, count)
    return np.maximum(values[::-1], 0.0), vectors.T[::-1]


def _solve(matrix: Array, count: int) -> tuple[Array, Array]:
    from scipy.linalg import eigh

    size = len(matrix)
    values, vectors = eigh(
        matrix,
        lower=True,
        overwrite_a=True,
        check_finite=False,
        subset_by_index=(size - count, size - 1),
        driver="evr",
    )
    return values, vectors


def _within_single(covariance: Array, count: int) -> tuple[Array, Array] | None:
    """Apply Rayleigh-Ritz in the span of float32 axes; None if not faster or too coarse."""
    from scipy.linalg import blas, eigh

    if len(covariance) < _LARGE or count > len(covariance) // 2:
        return None
    scale = covariance.diagonal().max()
    single = np.asfortranarray(covariance / scale, np.float32)
    span = np.asfortranarray(_solve(single, count)[1], np.float64)
    image = blas.dsymm(1.0, covariance, span, lower=1)
    values, inside = eigh(span.T @ image, span.T @ span, check_finite=False)
    vectors = span @ inside
    residual = np.linalg.norm(image @ inside - vectors * values, axis=0).max()
    return (values, vectors) if residual <= _RESIDUAL * values[0] else None
