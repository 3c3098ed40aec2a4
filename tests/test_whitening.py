"""Whitening: exact, streaming, unharmed by awkward input, faithful to the paper's code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from whiten import Whitener
from whiten.errors import (
    ConfigError,
    ConstantInputError,
    NonFiniteInputError,
    RankDeficientError,
    WhitenError,
    WhiteningError,
)
from whiten.utils.arrays import normalize_rows

GOLDEN = Path(__file__).parent / "golden" / "pca_whitening.npz"


def samples(n: int = 600, d: int = 24, seed: int = 0) -> np.ndarray:
    """Correlated samples with a mean far from zero."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((n, d)) @ rng.standard_normal((d, d)) + 5).astype(np.float32)


def test_reproduces_the_published_whitening() -> None:
    golden = np.load(GOLDEN)
    whitener = Whitener(8, shrinkage=0).fit(golden["fit"])
    ours, theirs = whitener.transform(golden["query"]), golden["whitened"]
    np.testing.assert_allclose(ours @ ours.T, theirs @ theirs.T, rtol=1e-5, atol=5e-5)
    signs = np.sign((ours * theirs).sum(axis=0))
    np.testing.assert_allclose(ours * signs, theirs, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(whitener.mean_, golden["mean"][0], rtol=1e-5, atol=1e-7)


def test_output_has_identity_covariance() -> None:
    data = samples()
    whitened = Whitener(10, shrinkage=0).fit(data).transform(data.astype(np.float64))
    np.testing.assert_allclose(np.cov(whitened.T, ddof=0), np.eye(10), atol=1e-9)


def test_shrinkage_is_the_documented_gain() -> None:
    data = samples()
    whitener = Whitener(10, shrinkage=0.5).fit(data)
    spectrum = np.linalg.eigvalsh(np.cov(data.astype(np.float64).T, ddof=0))[::-1]
    np.testing.assert_allclose(whitener.eigenvalues_, spectrum[:10], rtol=1e-9)
    gains = np.linalg.norm(whitener.projection_, axis=1)
    np.testing.assert_allclose(gains, 1 / np.sqrt(spectrum[:10] + 0.5 * spectrum.mean()))


def test_infinite_shrinkage_only_centres_and_rotates() -> None:
    data = samples().astype(np.float64)
    out = Whitener(shrinkage=np.inf).fit(data).transform(data)
    centred = data - data.mean(axis=0)
    np.testing.assert_allclose(out @ out.T, centred @ centred.T, atol=1e-7)


def test_partial_fits_equal_one_fit_and_merge_exactly() -> None:
    data = samples()
    whole = Whitener(8).fit(data)
    streamed = Whitener(8).fit(iter(np.array_split(data, 7)))
    left, right = Whitener(8), Whitener(8)
    for block in np.array_split(data[:250], 3):
        left.partial_fit(block)
    right.partial_fit(data[250:])
    merged = left.merge(right)
    for other in (streamed, merged):
        assert other.n_ == len(data)
        np.testing.assert_allclose(other.projection_, whole.projection_, rtol=1e-9, atol=1e-10)


def test_a_later_partial_fit_is_not_ignored() -> None:
    data = samples()
    whitener = Whitener(4).fit(data[:300])
    before = whitener.projection_.copy()
    whitener.partial_fit(data[300:])
    np.testing.assert_allclose(whitener.projection_, Whitener(4).fit(data).projection_, rtol=1e-8)
    assert not np.allclose(before, whitener.projection_)


def test_float32_input_loses_nothing() -> None:
    # A mean a thousand times the spread: accumulating in float32 would leave two digits.
    data = (samples(5000) + 3000).astype(np.float32)
    ours = Whitener(24, shrinkage=0).fit(data)
    exact = data.astype(np.float64)
    spectrum = np.linalg.eigvalsh(np.cov(exact.T, ddof=0))[::-1]
    np.testing.assert_allclose(ours.eigenvalues_, spectrum, rtol=1e-7)
    np.testing.assert_allclose(ours.mean_, exact.mean(axis=0), rtol=1e-12)


def test_signs_are_deterministic() -> None:
    data = samples()
    forwards, backwards = Whitener(6).fit(data), Whitener(6).fit(data[::-1])
    np.testing.assert_allclose(forwards.projection_, backwards.projection_, rtol=1e-6, atol=1e-8)
    strongest = np.abs(forwards.projection_).argmax(axis=1)
    assert (forwards.projection_[np.arange(6), strongest] > 0).all()


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_never_writes_into_its_input(kind: str) -> None:
    data = samples()
    given = data.copy() if kind == "numpy" else torch.from_numpy(data.copy())
    whitener = Whitener(6).fit(given)
    out = whitener.transform(given)
    whitener.inverse_transform(out)
    np.testing.assert_array_equal(np.asarray(given), data)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_torch_equals_numpy(dtype: torch.dtype) -> None:
    data = samples()
    whitener = Whitener(6).fit(torch.from_numpy(data))
    out = whitener.transform(torch.from_numpy(data).to(dtype))
    assert out.dtype == dtype
    tolerance = 0.15 if dtype == torch.bfloat16 else 1e-4
    np.testing.assert_allclose(out.double().numpy(), whitener.transform(data), atol=tolerance)


def test_inverse_is_exact_on_the_kept_axes() -> None:
    data = samples().astype(np.float64)
    whitener = Whitener(24).fit(data)
    np.testing.assert_allclose(
        whitener.inverse_transform(whitener.transform(data)), data, rtol=1e-9, atol=1e-9
    )


def test_saves_and_loads_byte_for_byte(tmp_path: Path) -> None:
    whitener = Whitener(6, shrinkage=0.3).fit(samples())
    whitener.metadata = {"model": "demo:mobilenetv2", "fingerprint": "abc"}
    whitener.save(tmp_path / "a.safetensors")
    loaded = Whitener.load(tmp_path / "a.safetensors")
    loaded.save(tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    np.testing.assert_array_equal(loaded.projection_, whitener.projection_)
    assert (loaded.n_, loaded.shrinkage, loaded.metadata) == (600, 0.3, whitener.metadata)
    np.testing.assert_array_equal(loaded.transform(samples()), whitener.transform(samples()))


def test_a_loaded_whitener_cannot_be_fitted_further(tmp_path: Path) -> None:
    Whitener(6).fit(samples()).save(tmp_path / "a.safetensors")
    loaded = Whitener.load(tmp_path / "a.safetensors")
    with pytest.raises(WhiteningError, match="fit a new one"):
        loaded.partial_fit(samples())
    with pytest.raises(WhiteningError, match="merge before saving"):
        Whitener(6).merge(loaded)


@pytest.mark.parametrize("shrinkage", [0, 0.1, 3, np.inf])
def test_other_settings_equal_another_fit(tmp_path: Path, shrinkage: float) -> None:
    data = samples()
    fitted = Whitener(12, shrinkage=0.3).fit(data)
    fitted.metadata = {"model": "demo:mobilenetv2"}
    fitted.save(tmp_path / "a.safetensors")
    for source in (fitted, Whitener.load(tmp_path / "a.safetensors")):
        changed = source.with_settings(dim=8, shrinkage=shrinkage)
        direct = Whitener(8, shrinkage=shrinkage).fit(data)
        np.testing.assert_allclose(changed.projection_, direct.projection_, rtol=1e-9, atol=1e-10)
        np.testing.assert_allclose(changed.eigenvalues_, direct.eigenvalues_, rtol=1e-9)
        assert (changed.dim, changed.shrinkage, changed.n_) == (8, shrinkage, 600)
        assert changed.metadata == fitted.metadata
        changed.save(tmp_path / "b.safetensors")
        loaded = Whitener.load(tmp_path / "b.safetensors")
        np.testing.assert_array_equal(loaded.transform(data), changed.transform(data))


def test_other_settings_default_to_the_same_and_share_nothing() -> None:
    fitted = Whitener(12, shrinkage=0.3).fit(samples())
    same = fitted.with_settings()
    np.testing.assert_array_equal(same.projection_, fitted.projection_)
    same.projection_[:] = same.mean_[:] = 0  # type: ignore[index]
    same.metadata["model"] = "other"
    assert fitted.projection_.any() and fitted.mean_.any() and not fitted.metadata
    with pytest.raises(WhiteningError, match="fit again with dim=13"):
        fitted.with_settings(dim=13)
    with pytest.raises(ConfigError, match="shrinkage"):
        fitted.with_settings(shrinkage=-1)
    with pytest.raises(WhiteningError, match="cannot be fitted further"):
        fitted.with_settings().partial_fit(samples())


def test_exact_settings_need_the_rank() -> None:
    low = samples(600, 5).astype(np.float64) @ np.random.default_rng(1).standard_normal((5, 24))
    fitted = Whitener(12, shrinkage=0.1).fit(low)
    with pytest.raises(RankDeficientError, match="span 5 axes"):
        fitted.with_settings(shrinkage=0)
    assert fitted.with_settings(dim=5, shrinkage=0).projection_.shape == (5, 24)


@pytest.mark.parametrize("cut", [0, 10, 200, -10])
def test_damaged_files_are_refused(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "a.safetensors"
    Whitener(6).fit(samples()).save(path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(WhiteningError, match="not a readable whitener"):
        Whitener.load(path)
    with pytest.raises(WhiteningError):
        Whitener.load(tmp_path / "absent.safetensors")


def test_constant_input_is_named() -> None:
    with pytest.raises(ConstantInputError, match="same vector"):
        Whitener(2).fit(np.full((50, 8), 0.1, np.float32))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_input_is_named_with_its_row(bad: float) -> None:
    data = samples()
    data[417, 3] = bad
    with pytest.raises(NonFiniteInputError, match="sample 417"):
        Whitener(2).fit(data)
    whitener = Whitener(2).fit(samples())
    with pytest.raises(NonFiniteInputError, match="sample 417"):
        whitener.transform(data)


def test_rank_deficiency_is_named_or_avoided() -> None:
    low = samples(600, 5).astype(np.float64) @ np.random.default_rng(1).standard_normal((5, 24))
    exact = low - low.mean(axis=0)
    with pytest.raises(RankDeficientError, match="span 5 axes"):
        Whitener(12, shrinkage=0).fit(exact)
    assert Whitener(shrinkage=0).fit(exact).projection_.shape == (5, 24)
    shrunk = Whitener(12, shrinkage=0.1).fit(exact).transform(exact)
    assert np.isfinite(shrunk).all()
    assert np.abs(shrunk[:, 5:]).max() < 1e-6  # nothing is there, and nothing is amplified


def test_fewer_samples_than_axes() -> None:
    with pytest.warns(UserWarning, match="fit on more images"):
        whitener = Whitener(shrinkage=0.1).fit(samples(10))
    assert whitener.projection_.shape == (9, 24)


def test_warns_when_samples_are_few_and_says_what_follows() -> None:
    with pytest.warns(UserWarning, match="mostly noise"):
        Whitener(20, shrinkage=0).fit(samples(60))
    with pytest.warns(UserWarning, match="dampens them"):
        Whitener(20, shrinkage=0.1).fit(samples(60))


def test_wrong_shapes_and_options_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        Whitener(0)
    with pytest.raises(ConfigError, match="shrinkage"):
        Whitener(shrinkage=-1)
    with pytest.raises(ConfigError, match="shrinkage"):
        Whitener(shrinkage=float("nan"))
    with pytest.raises(WhiteningError, match="at most 24"):
        Whitener(25).fit(samples())
    with pytest.raises(WhiteningError, match="no samples"):
        Whitener(2).fit(iter([]))
    with pytest.raises(WhiteningError, match="one model"):
        Whitener(2).fit(iter([samples(), samples(d=20)]))
    with pytest.raises(WhiteningError, match="another model"):
        Whitener(2).fit(samples()).transform(samples(d=20))
    with pytest.raises(WhiteningError, match="give one as a row"):
        Whitener(2).fit(samples()).transform(samples()[0])


@pytest.mark.parametrize("n", [20, 600])  # fewer samples than axes have a way of their own
@pytest.mark.parametrize("length", [1e153, 1e200, 1e300])
def test_samples_whose_squares_overflow_are_refused(n: int, length: float) -> None:
    rows = samples(n).astype(np.float64)
    with pytest.raises(WhiteningError, match="squares of the fitting samples overflow"):
        Whitener(12).fit(length * rows)


def test_normalize_rows_leaves_zero_rows() -> None:
    rows = normalize_rows(np.array([[3.0, 4.0], [0.0, 0.0]], np.float32))
    np.testing.assert_allclose(rows, [[0.6, 0.8], [0, 0]], rtol=1e-6)


@pytest.mark.parametrize(
    ("kind", "lengths"),
    [
        (np.float32, [1e-35, 1e-25, 1e-17, 1, 1e20, 1e36]),
        (np.float64, [1e-300, 1e-200, 1e-155, 1, 1e160, 1e300]),
    ],
)
def test_rows_are_normalized_whose_squares_vanish_or_overflow(
    kind: type, lengths: list[float]
) -> None:
    unit = samples(len(lengths), 24)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    rows = (unit * np.array(lengths)[:, None]).astype(kind)
    np.testing.assert_allclose(normalize_rows(rows), unit, atol=1e-6)


class Frame:
    """What a data frame is to NumPy."""

    def __init__(self, values: np.ndarray) -> None:
        self.shape, self._values = values.shape, values

    def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
        return self._values


def test_whole_numbers_become_fractions_and_text_is_refused() -> None:
    codes = np.arange(24).reshape(8, 3) ** 2 % 11
    whitener = Whitener(2).fit(codes)
    whitened = whitener.transform(torch.from_numpy(codes))
    assert whitened.dtype == torch.float32
    np.testing.assert_allclose(whitened, whitener.transform(codes), atol=1e-5)
    for wrong in (codes.astype(str), codes.astype(object), codes + 1j):
        for use in (Whitener().fit, whitener.transform):
            with pytest.raises(ConfigError, match="expected rows of numbers"):
                use(wrong)
    with pytest.raises(WhiteningError, match=r"not shape \(8, 0\)"):
        Whitener().fit(codes[:, :0])


def test_lists_frames_and_tensors_are_embeddings() -> None:
    values = np.random.default_rng(0).standard_normal((60, 4))
    expected = Whitener(3).fit(values).transform(values)
    rows = values.tolist()
    for same in (rows, [list(row) for row in rows], Frame(values), list(values), [values]):
        np.testing.assert_allclose(Whitener(3).fit(same).transform(values), expected, atol=1e-12)
    for same in (rows, Frame(values)):
        np.testing.assert_allclose(Whitener(3).fit_transform(same), expected, atol=1e-12)
    found = Whitener(3).fit_transform(torch.from_numpy(values))
    assert isinstance(found, torch.Tensor)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)
    for wrong in ([1.0, 2.0], [["a", "b"]], [[1.0], [1.0, 2.0]]):
        with pytest.raises(WhitenError):
            Whitener(1).fit(wrong)
