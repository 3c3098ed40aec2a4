"""Principal axes: the leading eigenpairs of a covariance, or of few samples' Gram matrix."""

from __future__ import annotations

import math

import numpy as np

from whiten.errors import WhiteningError
from whiten.utils.arrays import Array
from whiten.whitening.moments import Moments

_LARGE = 1024  # axes from which float32 saves time
_RESIDUAL = 0.01  # relative to the smallest eigenvalue; above this, float64 is used
_WEAKEST = 1e-6  # of the largest eigenvalue; axes of weaker ones need the covariance


def principal_axes(moments: Moments, dim: int | None) -> tuple[Array, float, Array, Array]:
    """Return the mean, the mean eigenvalue, and the leading eigenpairs of the covariance.

    Args:
        dim: number of pairs; None is as many as there are axes, or at least all that fewer samples
            span.

    Returns:
        (D,) mean, the mean of all D eigenvalues, (dim,) eigenvalues, descending, and (dim, D) axes.

    Raises:
        WhiteningError: squares of the samples overflow.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # reported by `_require_finite`
        if few := moments.few():
            mean, rows = few
            spectrum_mean = _require_finite(float(np.square(rows).sum()) / rows.size)
            pairs = _of_few(rows, len(rows) - 1 if dim is None else dim)
            if pairs is not None:
                return mean, spectrum_mean, *pairs
        covariance = moments.covariance()
        spectrum_mean = _require_finite(float(np.trace(covariance)) / moments.dim)
    pairs = leading_eigenpairs(covariance, moments.dim if dim is None else dim)
    return moments.mean, spectrum_mean, *pairs


def _require_finite(spectrum_mean: float) -> float:
    if not math.isfinite(spectrum_mean):
        raise WhiteningError(
            "the squares of the fitting samples overflow: divide all embeddings by a number near "
            "their largest value"
        )
    return spectrum_mean


def _of_few(rows: Array, count: int) -> tuple[Array, Array] | None:
    """Return eigenpairs of the covariance of n < D centred samples, from their Gram matrix.

    Both have the same eigenvalues (Turk & Pentland 1991, eq. 6), and n × n is solved in (n/D)³ of
    the time. None if the samples span too few axes, or some by too little to find them this way.
    """
    from scipy.linalg import blas

    if not 0 < count < len(rows):
        return None
    gram = blas.dsyrk(1.0 / len(rows), rows.T, trans=1, lower=1)
    values, weights = leading_eigenpairs(gram, count)
    if values[-1] <= _WEAKEST * values[0]:
        return None
    axes = weights @ rows
    return values, axes / np.linalg.norm(axes, axis=1, keepdims=True)


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
    if scale == 0:  # equal samples have no axes to scale
        return None
    single = np.asfortranarray(covariance / scale, np.float32)
    span = np.asfortranarray(_solve(single, count)[1], np.float64)
    image = blas.dsymm(1.0, covariance, span, lower=1)
    values, inside = eigh(span.T @ image, span.T @ span, check_finite=False)
    vectors = span @ inside
    residual = np.linalg.norm(image @ inside - vectors * values, axis=0).max()
    return (values, vectors) if residual <= _RESIDUAL * values[0] else None
