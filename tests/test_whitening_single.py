"""Whitening in single precision: many samples of many axes, as exact as in double precision."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch

from whiten import Whitener
from whiten.errors import NonFiniteInputError, RankDeficientError
from whiten.utils.arrays import normalize_rows


def many(n: int = 20_000, d: int = 160, seed: int = 0) -> np.ndarray:
    """L2-normalised float32 embeddings whose spectrum falls by a factor of 1,600."""
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(rng.standard_normal((d, d)))[0] * np.arange(1, d + 1)[:, None] ** -0.73
    return normalize_rows((rng.standard_normal((n, d)) @ axes + 0.1).astype(np.float32))


def deviation(whitener: Whitener, data: np.ndarray) -> float:
    """max|cov - I| of the fitting samples."""
    assert whitener.mean_ is not None
    whitened = (data.astype(np.float64) - whitener.mean_) @ whitener.projection_.T
    return float(np.abs(np.cov(whitened.T, ddof=0) - np.eye(whitened.shape[1])).max())


def test_single_precision_products_stay_within_the_bound() -> None:
    data = many()
    whitener = Whitener(160, shrinkage=0).fit(data)
    assert whitener.eigenvalues_[0] / whitener.eigenvalues_[-1] > 1000
    assert deviation(whitener, data) < 5e-6
    np.testing.assert_allclose(whitener.mean_, data.astype(np.float64).mean(axis=0), atol=1e-9)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("cuts", [[1], [8192], [100, 101, 8191, 8193, 16384], range(3, 20_000, 77)])
def test_the_cut_of_a_stream_changes_no_bit(dtype: type, cuts: list[int]) -> None:
    data = many().astype(dtype)
    whole = Whitener(20).fit(data)
    streamed = Whitener(20).fit(np.split(data, list(cuts)))
    np.testing.assert_array_equal(streamed.projection_, whole.projection_)
    np.testing.assert_array_equal(streamed.mean_, whole.mean_)


def test_merged_streams_equal_one() -> None:
    data = many()
    whole = Whitener(40).fit(data)
    left, right = Whitener(40).partial_fit(data[:9000]), Whitener(40).partial_fit(data[9000:])
    np.testing.assert_allclose(left.merge(right).projection_, whole.projection_, atol=1e-4)
    np.testing.assert_allclose(left.eigenvalues_, whole.eigenvalues_, rtol=1e-5)


def test_a_drifting_stream_far_from_zero_keeps_its_digits() -> None:
    data = many()
    data[:10_000] += 1000
    data[256:8192] += 2  # a block's first samples are not like the others
    ours, exact = (Whitener(20).fit(data.astype(t)) for t in (np.float32, np.float64))
    largest = exact.eigenvalues_[0]
    np.testing.assert_allclose(ours.eigenvalues_, exact.eigenvalues_, rtol=0, atol=1e-7 * largest)
    np.testing.assert_allclose(ours.mean_, exact.mean_, rtol=1e-7)


@pytest.mark.parametrize("scale", [1e-25, 1e-10, 1e10, 1e25])
def test_the_scale_of_the_samples_does_not_matter(scale: float) -> None:
    data = many()
    plain, scaled = Whitener(40).fit(data), Whitener(40).fit(data * np.float32(scale))
    np.testing.assert_allclose(scaled.projection_ * scale, plain.projection_, atol=1e-3)


def test_half_precision_samples_are_those_of_float32() -> None:
    half = many().astype(np.float16)
    np.testing.assert_array_equal(
        Whitener(9).fit(half).projection_, Whitener(9).fit(half.astype(np.float32)).projection_
    )


def test_precisions_may_be_mixed() -> None:
    data = many()
    mixed = Whitener(20).fit([data[:9000], data[9000:9100].astype(np.float64), data[9100:]])
    assert mixed.n_ == 20_000
    np.testing.assert_allclose(mixed.projection_, Whitener(20).fit(data).projection_, atol=1e-4)


def test_rounding_is_not_taken_for_axes() -> None:
    mixing = np.random.default_rng(1).standard_normal((60, 160)).astype(np.float32)
    data = many(d=60) @ mixing
    with pytest.raises(RankDeficientError, match="span 60 axes"):
        Whitener(160, shrinkage=0).fit(data)
    assert len(Whitener(shrinkage=0).fit(data).eigenvalues_) == 60


@pytest.mark.parametrize("row", [0, 200, 255, 256, 8191, 8192, 15_000, 19_999])
def test_a_bad_sample_is_named_wherever_it_is(row: int) -> None:
    data = many()
    data[row, 7] = np.nan
    whitener = Whitener(5)
    with pytest.raises(NonFiniteInputError, match=f"sample {row} holds"):
        whitener.partial_fit(data)
    # What came before stays, and the fit can go on without the bad sample.
    seen = whitener.n_
    assert row - 256 < seen <= row
    whitener.partial_fit(np.delete(data, row, axis=0)[seen:])
    without = Whitener(5).fit(np.delete(data, row, axis=0))
    np.testing.assert_array_equal(whitener.projection_, without.projection_)


def test_memory_does_not_grow_with_the_samples() -> None:
    block = many(4096)

    def peak(blocks: int) -> int:
        tracemalloc.start()
        Whitener(20).fit(block for _ in range(blocks))
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return highest

    few, lots = peak(3), peak(24)
    assert lots < few + 100_000
    assert lots < block.nbytes * 3


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_transform_in_single_precision(dtype: type) -> None:
    data = (many(10_000) + 3).astype(dtype)  # more than is transformed at once
    before = data.copy()
    whitener = Whitener(160, shrinkage=0).fit(data)
    exact = whitener.transform(data.astype(np.float64))
    ours = whitener.transform(data)
    assert (ours.dtype, exact.dtype) == (dtype, np.float64)
    np.testing.assert_allclose(ours, exact, atol=1e-4 if dtype == np.float32 else 5e-3)
    np.testing.assert_array_equal(data, before)


def test_a_mean_far_from_zero_costs_no_digits() -> None:
    """The mean's own rounding to float32 would shift each axis, here by a hundredth."""
    data = (many()[:2000, :6] * 0.01 + 1000).astype(np.float32)
    whitener = Whitener(6, shrinkage=0).fit(data)
    expected = whitener.transform(data.astype(np.float64))
    for found in (whitener.transform(data), whitener.transform(torch.from_numpy(data)).numpy()):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
