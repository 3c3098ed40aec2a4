"""PCA-whitening, fitted in one streaming pass (Whiten-MTD, section "Whitening").

Whitening centres a teacher's embeddings, rotates them to their principal axes and divides each axis
by its standard deviation, so that similarities of different teachers become comparable. They depend
only on centring and the spectrum: a rotation afterwards does not change them.
"""

from __future__ import annotations

import math
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, overload

import numpy as np

from whiten.errors import (
    ConfigError,
    ConstantInputError,
    RankDeficientError,
    WhiteningError,
    one_line,
)
from whiten.utils.arrays import Array, as_numpy, is_block, require_values
from whiten.utils.files import load_sealed, save_sealed
from whiten.utils.hashing import content_hash
from whiten.utils.validation import as_number, as_whole
from whiten.whitening.affine import map_rows
from whiten.whitening.eigen import principal_axes
from whiten.whitening.moments import Moments

if TYPE_CHECKING:
    from torch import Tensor

ArrayLike = TypeVar("ArrayLike", "Array", "Tensor")

DEFAULT_SHRINKAGE = 0.1
SAMPLES_PER_DIM = 4
_EPSILON = float(np.finfo(np.float64).eps)


class Whitener:
    """Regularised PCA-whitening: `(x - mean) @ projection.T`.

    Axis j of the output is the j-th principal axis divided by `sqrt(λ_j + c·mean(λ))`, where the
    mean runs over the whole spectrum and c is `shrinkage`: 0 is exact PCA-whitening, `inf` only
    centres and rotates. Covariances are divided by n.

    Args:
        dim: number of principal axes to keep; None keeps all that the data spans.
        shrinkage: c above, at least 0.

    Attributes (after fitting):
        mean_: (D,) float64.
        projection_: (dim, D) float64, scaled principal axes; the entry of largest magnitude in
            each row is positive, which makes signs deterministic.
        eigenvalues_: (dim,) float64, descending, of the unregularised covariance.
        spectrum_mean_: mean eigenvalue over all D axes.
        n_: number of samples; 0 if unknown.
    """

    def __init__(self, dim: int | None = None, *, shrinkage: float = DEFAULT_SHRINKAGE) -> None:
        if dim is not None and (dim := as_whole("whitening dim", dim)) < 1:
            raise ConfigError(f"whitening dim must be at least 1, not {dim}")
        if not as_number("shrinkage", shrinkage) >= 0:
            raise ConfigError(f"shrinkage must be 0 (exact PCA-whitening) or more, not {shrinkage}")
        self.dim = dim
        self.shrinkage = float(shrinkage)
        self.n_ = 0
        self.metadata: dict[str, str] = {}
        self._moments: Moments | None = None
        self._mean: Array | None = None
        self._projection: Array | None = None
        self._eigenvalues: Array | None = None
        self.spectrum_mean_ = math.nan
        self._resolution = 0.0  # eigenvalues below this fraction of the largest are rounding errors

    def __repr__(self) -> str:
        return f"Whitener(dim={self.dim}, shrinkage={self.shrinkage:g})"

    # --- accumulation -------------------------------------------------------------------

    def fit(self, embeddings: Any) -> Whitener:
        """Fit on (n, D) embeddings, or on a stream of blocks; forgets earlier data.

        Args:
            embeddings: an array, a torch tensor, a data frame, a list of rows, or an iterable of
                blocks of these kinds.

        Raises:
            NonFiniteInputError: a sample holds NaN or infinity.
            ConstantInputError: all samples are equal.
            RankDeficientError: `shrinkage=0` and the data spans fewer than `dim` axes.
            WhiteningError: no sample, wrong shapes, or `dim` above D.
        """
        self.n_, self._moments, self._projection = 0, None, None
        for block in [embeddings] if is_block(embeddings) else embeddings:
            self.partial_fit(block)
        self._solve()
        return self

    def fit_transform(self, embeddings: Any) -> Any:
        """Fit on (n, D) embeddings and whiten them; see `fit` and `transform`."""
        return self.fit(embeddings).transform(embeddings)

    def partial_fit(self, embeddings: Any) -> Whitener:
        """Add an (n, D) block of samples; memory is O(D²) for any number of blocks.

        The result is bit-identical however a stream is split into blocks.
        """
        samples = as_numpy(embeddings)
        if samples.ndim != 2 or not samples.shape[1]:
            raise WhiteningError(f"whitening takes (n, D) embeddings, not shape {samples.shape}")
        if self._moments is None:
            if self._projection is not None:
                raise WhiteningError(
                    "a whitener from load or with_settings cannot be fitted further: fit a new one"
                )
            self._moments = Moments(samples.shape[1])
        if samples.shape[1] != self._moments.dim:
            raise WhiteningError(
                f"embeddings have {samples.shape[1]} dimensions, the fit began with "
                f"{self._moments.dim}: one whitener serves one model"
            )
        self._projection = None
        try:
            self._moments.add(samples)
        finally:
            self.n_ = self._moments.n
        return self

    def merge(self, other: Whitener) -> Whitener:
        """Add the samples of another partial fit, as if both streams had been seen here.

        Equal to 1e-9 for float64 samples, and to 1e-5 for float32 samples on axes with at least a
        thousandth of the largest variance.
        """
        is_closed = self._moments is None and self._projection is not None
        if is_closed or (other._moments is None and other._projection is not None):
            raise WhiteningError(
                "a whitener from load or with_settings holds no scatter to merge: "
                "merge before saving"
            )
        if other._moments is None:
            return self
        if self._moments is None:
            self._moments = Moments(other._moments.dim)
        if other._moments.dim != self._moments.dim:
            raise WhiteningError(
                f"cannot merge whiteners of {self._moments.dim} and {other._moments.dim} dimensions"
            )
        self._projection = None
        self._moments.merge(other._moments)
        self.n_ = self._moments.n
        return self

    # --- solution -----------------------------------------------------------------------

    def _solve(self) -> None:
        if self._moments is None or self._moments.n == 0:
            raise WhiteningError("no samples to fit a whitening on: fit on at least two embeddings")
        source_dim = self._moments.dim
        dim = source_dim if self.dim is None else self.dim
        if dim > source_dim:
            raise WhiteningError(
                f"whitening to {dim} dimensions is impossible from {source_dim}: "
                f"choose a dim of at most {source_dim}"
            )
        self._mean, self.spectrum_mean_, values, axes = principal_axes(self._moments, self.dim)
        self._resolution = max(source_dim * _EPSILON, self._moments.epsilon)
        scale = float(np.abs(self._mean).max(initial=0.0)) ** 2
        if not self.spectrum_mean_ > 1e-14 * scale or self.spectrum_mean_ == 0:
            raise ConstantInputError(
                f"all {self.n_} fitting samples are the same vector, so there is nothing to "
                "whiten: fit on more varied images"
            )
        rank = self._rank(values)
        if rank < dim and self.dim is None:
            values, axes = values[:rank], axes[:rank]
        elif rank < dim and self.shrinkage == 0:
            raise RankDeficientError(self._rank_message(rank, dim))
        self._warn_if_few(len(values))
        strongest = np.abs(axes).argmax(axis=1)
        signs = np.sign(axes[np.arange(len(axes)), strongest])
        self._eigenvalues = values
        self._projection = axes * (signs * self._gains(values))[:, None]

    def _rank(self, eigenvalues: Array) -> int:
        """Return the number of leading axes that the samples span, within rounding errors."""
        rank = int((eigenvalues > eigenvalues[0] * self._resolution).sum())
        return min(rank, self.n_ - 1) if self.n_ else rank

    def _rank_message(self, rank: int, dim: int) -> str:
        return (
            f"{self.n_} samples span {rank} axes, fewer than dim={dim}: lower dim to {rank}, "
            "fit on more images, or set shrinkage above 0"
        )

    def _gains(self, eigenvalues: Array) -> Array:
        if math.isinf(self.shrinkage):
            return np.ones_like(eigenvalues)
        return 1.0 / np.sqrt(eigenvalues + self.shrinkage * self.spectrum_mean_)

    def _warn_if_few(self, dim: int) -> None:
        # Infinite shrinkage does not divide by the spectrum, so amplifies nothing.
        if self.n_ < SAMPLES_PER_DIM * dim and not math.isinf(self.shrinkage):
            consequence = (
                "the weak axes are mostly noise and exact whitening amplifies them; "
                "set shrinkage above 0, lower dim"
                if self.shrinkage < DEFAULT_SHRINKAGE
                else f"the weak axes are uncertain (shrinkage {self.shrinkage:g} dampens them); "
                "lower dim"
            )
            warnings.warn(
                f"whitening {dim} dimensions on {self.n_} samples "
                f"({self.n_ / dim:.1f} a dimension, {SAMPLES_PER_DIM} advised): "
                f"{consequence} or fit on more images",
                UserWarning,
                stacklevel=4,
            )

    @property
    def is_fitted(self) -> bool:
        """True if `transform` can be called."""
        return self._projection is not None or self._moments is not None

    @property
    def mean_(self) -> Array | None:
        """Mean, (D,) float64; None before the fit; completes a pending partial fit."""
        if self._projection is None and self._moments is not None:
            self._solve()
        return self._mean

    @property
    def projection_(self) -> Array:
        """Scaled principal axes, (dim, D) float64; completes a pending partial fit."""
        if self._projection is None:
            self._solve()
        assert self._projection is not None
        return self._projection

    @property
    def eigenvalues_(self) -> Array:
        """Eigenvalues, (dim,) float64, descending; completes a pending partial fit."""
        if self._projection is None:
            self._solve()
        assert self._eigenvalues is not None
        return self._eigenvalues

    def fingerprint(self) -> str:
        """Fingerprint of the transform, 32 hexadecimal digits."""
        projection = self.projection_
        assert self.mean_ is not None
        return content_hash(self.mean_.tobytes() + projection.tobytes())

    def with_settings(self, *, dim: int | None = None, shrinkage: float | None = None) -> Whitener:
        """Return the same fit with other settings: O(dim·D), without samples, also after `load`.

        Equals a new fit with these settings up to rounding (1e-9). The result shares no state with
        this whitener, carries its metadata, and cannot be fitted further.

        Args:
            dim: number of principal axes to keep, at most this whitener's; None keeps all.
            shrinkage: see the class; None keeps this whitener's.

        Raises:
            WhiteningError: more axes are requested than were fitted.
            RankDeficientError: `shrinkage=0` and the fitted data spans fewer than `dim` axes.
        """
        projection, eigenvalues = self.projection_, self.eigenvalues_
        assert self.mean_ is not None
        kept = len(eigenvalues) if dim is None else dim
        if kept > len(eigenvalues):
            raise WhiteningError(
                f"{kept} dimensions were asked of a whitening that was fitted with "
                f"{len(eigenvalues)}: fit again with dim={kept}"
            )
        other = Whitener(kept, shrinkage=self.shrinkage if shrinkage is None else shrinkage)
        other.n_, other._mean, other._resolution = self.n_, self.mean_.copy(), self._resolution
        other.spectrum_mean_, other.metadata = self.spectrum_mean_, dict(self.metadata)
        rank = self._rank(eigenvalues)
        if other.shrinkage == 0 and rank < kept:
            raise RankDeficientError(self._rank_message(rank, kept))
        other._eigenvalues = eigenvalues[:kept].copy()
        change = other._gains(other._eigenvalues) / self._gains(other._eigenvalues)
        other._projection = projection[:kept] * change[:, None]
        return other

    # --- application --------------------------------------------------------------------

    @overload
    def transform(self, embeddings: Tensor) -> Tensor: ...
    @overload
    def transform(self, embeddings: Any) -> Array: ...
    def transform(self, embeddings: Any) -> Any:
        """Whiten (n, D) embeddings to (n, dim), on the same device and in the same dtype.

        NumPy arrays and torch tensors keep their type; data frames and lists become arrays.

        Rows are not normalised afterwards. float32 and float16 input is computed in float32, to
        1e-5 of an axis of unit variance, however far the mean is from zero; float64 in float64; on
        torch, bfloat16 in float32.

        Raises:
            NonFiniteInputError: a row holds NaN or infinity (checked for NumPy arrays only).
        """
        return self._apply(embeddings, self.projection_, forward=True)

    @overload
    def inverse_transform(self, whitened: Array) -> Array: ...
    @overload
    def inverse_transform(self, whitened: Tensor) -> Tensor: ...
    def inverse_transform(self, whitened: Any) -> Any:
        """Map (n, dim) whitened vectors back to (n, D); exact within the kept axes."""
        squared_gains = (self.projection_**2).sum(axis=1)
        return self._apply(whitened, self.projection_ / squared_gains[:, None], forward=False)

    def _apply(self, vectors: Any, matrix: Array, *, forward: bool) -> Any:
        assert self.mean_ is not None
        if hasattr(vectors, "detach"):
            require_values(vectors)
        else:
            vectors = as_numpy(vectors)
        width = matrix.shape[1] if forward else matrix.shape[0]
        if vectors.ndim != 2 or vectors.shape[1] != width:
            is_one = tuple(vectors.shape) == (width,)
            why = "give one as a row" if is_one else "this whitener was fitted on another model"
            raise WhiteningError(
                f"expected (n, {width}) vectors, not shape {tuple(vectors.shape)}: {why}"
            )
        return map_rows(vectors, self.mean_, matrix, forward=forward)

    @classmethod
    def from_arrays(
        cls,
        mean: Array,
        projection: Array,
        eigenvalues: Array,
        *,
        spectrum_mean: float,
        shrinkage: float = 0.0,
    ) -> Whitener:
        """Build a whitener from a fit made elsewhere; the arguments are the fitted attributes.

        It cannot be fitted further.
        """
        whitener = cls(len(projection), shrinkage=shrinkage)
        whitener._mean, whitener._projection, whitener._eigenvalues = (
            np.asarray(array, np.float64) for array in (mean, projection, eigenvalues)
        )
        whitener.spectrum_mean_ = spectrum_mean
        whitener._resolution = projection.shape[1] * _EPSILON
        return whitener

    # --- persistence --------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `mean`, `projection`, `eigenvalues` as safetensors, atomically, in any folder."""
        projection, eigenvalues = self.projection_, self.eigenvalues_
        assert self.mean_ is not None
        tensors = {"mean": self.mean_, "projection": projection, "eigenvalues": eigenvalues}
        facts = {
            "n": self.n_,
            "source_dim": projection.shape[1],
            "dim": projection.shape[0],
            "shrinkage": self.shrinkage,
            "spectrum_mean": self.spectrum_mean_,
            "resolution": self._resolution,
        }
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        save_sealed(Path(path), tensors, {**self.metadata, **facts})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Whitener:
        """Read a whitener written by `save`.

        Raises:
            WhiteningError: the file is missing, damaged, or not a whitener.
        """
        try:
            facts, tensors = load_sealed(Path(path))
            arrays = tuple(tensors[name] for name in ("mean", "projection", "eigenvalues"))
            shape = (int(facts.pop("dim")), int(facts.pop("source_dim")))
            whitener = cls(shape[0], shrinkage=float(facts.pop("shrinkage")))
            whitener.n_ = int(facts.pop("n"))
            whitener.spectrum_mean_ = float(facts.pop("spectrum_mean"))
            whitener._resolution = float(facts.pop("resolution", shape[1] * _EPSILON))
            if [a.shape for a in arrays] != [shape[1:], shape, shape[:1]]:
                raise ValueError("its arrays do not fit together")
            if not all(a.dtype == np.float64 and np.isfinite(a).all() for a in arrays):
                raise ValueError("its arrays hold no finite float64 numbers")
        except (OSError, LookupError, ValueError, TypeError, OverflowError, ConfigError) as error:
            raise WhiteningError(
                f"{os.fspath(path)} is not a readable whitener ({one_line(error)}): fit and save "
                "it again"
            ) from error
        whitener._mean, whitener._projection, whitener._eigenvalues = arrays
        whitener.metadata = {str(k): str(v) for k, v in facts.items()}
        return whitener
