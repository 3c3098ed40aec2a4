"""Leading eigenpairs: the shortcut for many axes solves the problem that float64 does."""

from __future__ import annotations

import numpy as np
import pytest

from whiten.whitening import eigen
from whiten.whitening.eigen import leading_eigenpairs

SIZE, COUNT = 1024, 200


def covariance(spectrum: np.ndarray, seed: int = 0) -> np.ndarray:
    basis, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(spectrum),) * 2))
    return np.asfortranarray((basis * spectrum) @ basis.T)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e40])
def test_whitened_samples_are_uncorrelated(scale: float) -> None:
    matrix = scale * covariance(np.geomspace(1, 1e-5, SIZE))
    values, axes = leading_eigenpairs(matrix.copy(order="F"), COUNT)
    exact = np.linalg.eigvalsh(matrix)[::-1][:COUNT]
    np.testing.assert_allclose(values, exact, rtol=1e-8)
    whitening = axes / np.sqrt(values)[:, None]
    assert np.abs(whitening @ matrix @ whitening.T - np.eye(COUNT)).max() < 1e-11
    assert np.all(np.diff(values) <= 0)


def test_only_the_lower_triangle_is_read() -> None:
    matrix = covariance(np.geomspace(1, 1e-3, SIZE))
    lower = np.asfortranarray(np.tril(matrix))
    np.testing.assert_allclose(
        leading_eigenpairs(lower, COUNT)[0], leading_eigenpairs(matrix, COUNT)[0], rtol=1e-12
    )


@pytest.mark.slow
def test_axes_too_weak_for_float32_are_left_to_float64() -> None:
    spectrum = np.geomspace(1, 1e-12, SIZE)
    assert eigen._within_single(covariance(spectrum), SIZE // 2) is None
    values, _ = leading_eigenpairs(covariance(spectrum), SIZE // 2)
    np.testing.assert_allclose(values, spectrum[: SIZE // 2], rtol=1e-6)


def test_a_matrix_of_few_axes_is_solved_whole() -> None:
    matrix = covariance(np.geomspace(1, 1e-3, 40))
    values, axes = leading_eigenpairs(matrix.copy(order="F"), 40)
    np.testing.assert_allclose(values, np.geomspace(1, 1e-3, 40), rtol=1e-12)
    np.testing.assert_allclose(axes.T * values @ axes, matrix, atol=1e-13)


def test_no_eigenvalue_is_negative() -> None:
    flat = np.zeros(SIZE)
    flat[:3] = 1.0
    assert leading_eigenpairs(covariance(flat), 10)[0].min() >= 0
