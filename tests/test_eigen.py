"""Principal axes: shortcuts for many axes and for few samples solve what float64 does."""

from __future__ import annotations

import numpy as np
import pytest

from whiten.errors import ConstantInputError
from whiten.whitening import eigen
from whiten.whitening.eigen import leading_eigenpairs, principal_axes
from whiten.whitening.moments import Moments
from whiten.whitening.whitener import Whitener

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


def of_samples(samples: np.ndarray, dim: int | None, *, by_covariance: bool) -> tuple:
    moments = Moments(samples.shape[1])
    moments.add(samples)
    if by_covariance:
        moments.settle()
    return principal_axes(moments, dim)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize(("count", "dim"), [(7, None), (7, 3), (300, None), (300, 200)])
def test_few_samples_have_the_axes_of_their_covariance(
    kind: type, count: int, dim: int | None
) -> None:
    random = np.random.default_rng(count)
    samples = (3 + random.normal(size=(count, 400)) * np.geomspace(1, 0.01, 400)).astype(kind)
    mean, total, values, axes = of_samples(samples, dim, by_covariance=False)
    whole = of_samples(samples, dim, by_covariance=True)
    found = count - 1 if dim is None else dim
    assert axes.shape == (found, 400)
    np.testing.assert_allclose(mean, whole[0], atol=1e-7)
    assert total == pytest.approx(whole[1], rel=1e-7)
    np.testing.assert_allclose(values, whole[2][:found], rtol=1e-6)
    np.testing.assert_allclose(axes @ axes.T, np.eye(found), atol=1e-8)
    span, other = (one[:3].T @ one[:3] for one in (axes, whole[3]))
    np.testing.assert_allclose(span, other, atol=1e-5)


def test_copies_among_few_samples_are_solved_by_the_covariance() -> None:
    samples = np.repeat(np.random.default_rng(0).normal(size=(10, 40)), 2, axis=0)
    for dim in (None, 15):
        found = of_samples(samples, dim, by_covariance=False)
        for one, other in zip(found, of_samples(samples, dim, by_covariance=True), strict=True):
            np.testing.assert_array_equal(one, other)


def test_equal_samples_are_refused_whatever_their_size() -> None:
    with pytest.raises(ConstantInputError, match="are the same vector"):
        Whitener(8).fit(np.full((40, SIZE), 0.5, np.float32))
