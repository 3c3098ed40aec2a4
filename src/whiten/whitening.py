"""PCA-whitening, fitted in one streaming pass (Whiten-MTD, section "Whitening").

Whitening centres the embeddings of a teacher, rotates them to their principal axes and
divides each axis by its standard deviation, so that the similarities of different
teachers become commensurable. Only centring and the spectrum matter to similarities:
any rotation afterwards leaves them alone.
"""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, overload

import numpy as np
import numpy.typing as npt

from whiten.errors import (
    ConfigError,
    ConstantInputError,
    NonFiniteInputError,
    RankDeficientError,
    WhiteningError,
)

if TYPE_CHECKING:
    from torch import Tensor

Array = npt.NDArray[Any]
ArrayLike = TypeVar("ArrayLike", "Array", "Tensor")

DEFAULT_SHRINKAGE = 0.1
SAMPLES_PER_DIM = 4
_BLOCK = 4096  # rows accumulated at once: bounds the float64 copy, large enough for BLAS


class Whitener:
    """Regularised PCA-whitening: `(x - mean) @ projection.T`.

    Axis j of the output is the j-th principal axis divided by `sqrt(λ_j + c·mean(λ))`, where
    the mean runs over the whole spectrum and c is `shrinkage`: 0 is exact PCA-whitening,
    `inf` is centring and rotation alone. Covariances are normalised by n.

    Args:
        dim: principal axes kept; None keeps all that the data spans.
        shrinkage: c above, at least 0.

    Attributes (after fitting):
        mean_: (D,) float64.
        projection_: (dim, D) float64, scaled principal axes; the entry of largest magnitude
            of each row is positive, which makes signs deterministic.
        eigenvalues_: (dim,) float64, descending, of the unregularised covariance.
        spectrum_mean_: mean eigenvalue over all D axes.
        n_: samples seen.
    """

    def __init__(self, dim: int | None = None, *, shrinkage: float = DEFAULT_SHRINKAGE) -> None:
        if dim is not None and dim < 1:
            raise ConfigError(f"whitening dim must be at least 1, not {dim}")
        if not shrinkage >= 0:
            raise ConfigError(f"shrinkage must be 0 (exact PCA-whitening) or more, not {shrinkage}")
        self.dim = dim
        self.shrinkage = float(shrinkage)
        self.n_ = 0
        self.mean_: Array | None = None
        self.metadata: dict[str, str] = {}
        self._scatter: Array | None = None
        self._projection: Array | None = None
        self._eigenvalues: Array | None = None
        self.spectrum_mean_ = math.nan

    # --- accumulation -------------------------------------------------------------------

    def fit(self, embeddings: Array | Tensor | Iterable[Array | Tensor]) -> Whitener:
        """Fit on one (n, D) array, or on a stream of such arrays; forgets earlier data.

        Raises:
            NonFiniteInputError: a sample holds NaN or infinity.
            ConstantInputError: all samples are equal.
            RankDeficientError: `shrinkage=0` and the data spans fewer than `dim` axes.
            WhiteningError: no sample, wrong shapes, or `dim` above D.
        """
        self.n_, self.mean_, self._scatter = 0, None, None
        is_single = hasattr(embeddings, "shape")
        for block in [embeddings] if is_single else embeddings:
            self.partial_fit(block)  # type: ignore[arg-type]
        self._solve()
        return self

    def partial_fit(self, embeddings: Array | Tensor) -> Whitener:
        """Add an (n, D) block of samples; O(D²) memory whatever the number of blocks."""
        samples = _as_numpy(embeddings)
        if samples.ndim != 2:
            raise WhiteningError(f"whitening takes (n, D) embeddings, not shape {samples.shape}")
        if self.mean_ is not None and samples.shape[1] != len(self.mean_):
            raise WhiteningError(
                f"embeddings have {samples.shape[1]} dimensions, the fit began with "
                f"{len(self.mean_)}: one whitener serves one model"
            )
        if self.mean_ is not None and self._scatter is None:
            raise WhiteningError("a loaded whitener cannot be fitted further: fit a new one")
        for start in range(0, len(samples), _BLOCK):
            # A float64 copy: the caller's array is never written to, and products of
            # float32 input are exact before they are summed.
            block = np.array(samples[start : start + _BLOCK], dtype=np.float64, order="C")
            _require_finite(block, self.n_)
            block_mean = block.mean(axis=0)
            block -= block_mean
            self._absorb(len(block), block_mean, block.T @ block)
        return self

    def merge(self, other: Whitener) -> Whitener:
        """Add the samples of another partial fit; equal to having seen both streams here."""
        if other.mean_ is None:
            return self
        if other._scatter is None or (self.mean_ is not None and self._scatter is None):
            raise WhiteningError("a loaded whitener holds no scatter to merge: merge before saving")
        if self.mean_ is not None and len(other.mean_) != len(self.mean_):
            raise WhiteningError(
                f"cannot merge whiteners of {len(self.mean_)} and {len(other.mean_)} dimensions"
            )
        self._absorb(other.n_, other.mean_, other._scatter)
        return self

    def _absorb(self, n: int, mean: Array, scatter: Array) -> None:
        """Pairwise update of mean and scatter (Chan, Golub & LeVeque 1983, eq. 2.1)."""
        self._projection = self._eigenvalues = None
        if self.mean_ is None or self._scatter is None:
            self.n_, self.mean_, self._scatter = n, mean.copy(), scatter.copy()
            return
        total = self.n_ + n
        shift = mean - self.mean_
        self._scatter += scatter
        self._scatter += np.outer(shift, shift * (self.n_ * n / total))
        self.mean_ += shift * (n / total)
        self.n_ = total

    # --- solution -----------------------------------------------------------------------

    def _solve(self) -> None:
        import scipy.linalg

        if self.mean_ is None or self._scatter is None:
            raise WhiteningError("no samples to fit a whitening on: pass at least two embeddings")
        source_dim = len(self.mean_)
        dim = source_dim if self.dim is None else self.dim
        if dim > source_dim:
            raise WhiteningError(
                f"whitening to {dim} dimensions is impossible from {source_dim}: "
                f"choose a dim of at most {source_dim}"
            )
        covariance = self._scatter / self.n_
        scale = float(np.abs(self.mean_).max(initial=0.0)) ** 2
        self.spectrum_mean_ = float(np.trace(covariance)) / source_dim
        if not self.spectrum_mean_ > 1e-14 * scale or self.spectrum_mean_ == 0:
            raise ConstantInputError(
                f"all {self.n_} fitting samples are the same vector, so there is nothing to "
                "whiten: fit on more varied images"
            )
        values, vectors = scipy.linalg.eigh(
            covariance, subset_by_index=(source_dim - dim, source_dim - 1), driver="evr"
        )
        values, axes = np.maximum(values[::-1], 0.0), vectors[:, ::-1].T
        rank = int((values > values[0] * source_dim * np.finfo(np.float64).eps).sum())
        rank = min(rank, self.n_ - 1)
        if rank < dim and self.dim is None:
            values, axes = values[:rank], axes[:rank]
        elif rank < dim and self.shrinkage == 0:
            raise RankDeficientError(
                f"{self.n_} samples span {rank} axes, fewer than dim={dim}: lower dim to {rank}, "
                "fit on more images, or set shrinkage above 0"
            )
        self._warn_if_few(len(values))
        strongest = np.abs(axes).argmax(axis=1)
        axes = axes * np.sign(axes[np.arange(len(axes)), strongest])[:, None]
        self._eigenvalues = values
        self._projection = axes * self._gains(values)[:, None]

    def _gains(self, eigenvalues: Array) -> Array:
        if math.isinf(self.shrinkage):
            return np.ones_like(eigenvalues)
        return 1.0 / np.sqrt(eigenvalues + self.shrinkage * self.spectrum_mean_)

    def _warn_if_few(self, dim: int) -> None:
        # Without division by the spectrum (infinite shrinkage) nothing is amplified.
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
        """Whether there is something to transform with."""
        return self._projection is not None or self._scatter is not None

    @property
    def projection_(self) -> Array:
        """(dim, D) float64: scaled principal axes; solves a pending partial fit."""
        if self._projection is None:
            self._solve()
        assert self._projection is not None
        return self._projection

    @property
    def eigenvalues_(self) -> Array:
        """(dim,) float64, descending; solves a pending partial fit."""
        if self._eigenvalues is None:
            self._solve()
        assert self._eigenvalues is not None
        return self._eigenvalues

    # --- application --------------------------------------------------------------------

    @overload
    def transform(self, embeddings: Array) -> Array: ...
    @overload
    def transform(self, embeddings: Tensor) -> Tensor: ...
    def transform(self, embeddings: Any) -> Any:
        """Whiten (n, D) embeddings to (n, dim) of the same kind, dtype and device.

        Rows are not normalised afterwards. float32 input is centred and projected in
        float64 on numpy, and in its own precision (at least float32) on torch.
        """
        return self._apply(embeddings, self.projection_, forward=True)

    @overload
    def inverse_transform(self, whitened: Array) -> Array: ...
    @overload
    def inverse_transform(self, whitened: Tensor) -> Tensor: ...
    def inverse_transform(self, whitened: Any) -> Any:
        """Map (n, dim) whitened vectors back to (n, D); exact on the kept axes."""
        squared_gains = (self.projection_**2).sum(axis=1)
        return self._apply(whitened, self.projection_ / squared_gains[:, None], forward=False)

    def _apply(self, vectors: Any, matrix: Array, *, forward: bool) -> Any:
        assert self.mean_ is not None
        width = matrix.shape[1] if forward else matrix.shape[0]
        if vectors.ndim != 2 or vectors.shape[1] != width:
            raise WhiteningError(
                f"expected (n, {width}) vectors, not shape {tuple(vectors.shape)}: "
                "this whitener was fitted on another model"
            )
        if isinstance(vectors, np.ndarray):
            kind = vectors.dtype if vectors.dtype.kind == "f" else np.dtype(np.float32)
            _require_finite(vectors, 0)
            if forward:
                out = (vectors.astype(np.float64) - self.mean_) @ matrix.T
            else:
                out = vectors.astype(np.float64) @ matrix + self.mean_
            return out.astype(kind)
        import torch

        compute = torch.float64 if vectors.dtype == torch.float64 else torch.float32
        mean = torch.as_tensor(self.mean_, dtype=compute, device=vectors.device)
        weight = torch.as_tensor(matrix, dtype=compute, device=vectors.device)
        work = vectors.to(compute)
        out = (work - mean) @ weight.T if forward else work @ weight + mean
        return out.to(vectors.dtype)

    # --- persistence --------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `mean`, `projection`, `eigenvalues` as safetensors, atomically."""
        from safetensors.numpy import save

        assert self.mean_ is not None or not self.is_fitted
        tensors = {
            "mean": np.ascontiguousarray(self.mean_),
            "projection": np.ascontiguousarray(self.projection_),
            "eigenvalues": np.ascontiguousarray(self.eigenvalues_),
        }
        facts = {
            "n": self.n_,
            "source_dim": self.projection_.shape[1],
            "dim": self.projection_.shape[0],
            "shrinkage": self.shrinkage,
            "spectrum_mean": self.spectrum_mean_,
        }
        # One JSON value under one key: safetensors writes several keys in a random order,
        # and equal whiteners must be equal bytes.
        header = {"whiten": json.dumps({**self.metadata, **facts}, sort_keys=True)}
        target = Path(path)
        partial = target.with_name(f".{target.name}.partial")
        partial.write_bytes(save(tensors, metadata=header))
        os.replace(partial, target)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Whitener:
        """Read a whitener that `save` wrote.

        Raises:
            WhiteningError: the file is missing, damaged, or not a whitener.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(os.fspath(path), framework="numpy") as file:
                facts = json.loads((file.metadata() or {})["whiten"])
                mean, projection, eigenvalues = (
                    file.get_tensor(name) for name in ("mean", "projection", "eigenvalues")
                )
            shape = (int(facts.pop("dim")), int(facts.pop("source_dim")))
            whitener = cls(shape[0], shrinkage=float(facts.pop("shrinkage")))
            whitener.n_ = int(facts.pop("n"))
            whitener.spectrum_mean_ = float(facts.pop("spectrum_mean"))
        except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
            raise WhiteningError(
                f"{os.fspath(path)} is not a readable whitener ({error}): fit and save it again"
            ) from error
        arrays = (mean, projection, eigenvalues)
        if [a.shape for a in arrays] != [shape[1:], shape, shape[:1]] or not all(
            np.isfinite(a).all() for a in arrays
        ):
            raise WhiteningError(f"{os.fspath(path)} is damaged: fit and save the whitener again")
        whitener.mean_, whitener._projection, whitener._eigenvalues = arrays
        whitener.metadata = {str(k): str(v) for k, v in facts.items()}
        return whitener


def normalize_rows(vectors: Array) -> Array:
    """L2-normalise the rows of an (n, d) array; all-zero rows stay zero."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: Array = vectors / np.maximum(norms, np.finfo(vectors.dtype).tiny)
    return unit


def _as_numpy(embeddings: Array | Tensor) -> Array:
    if isinstance(embeddings, np.ndarray):
        return embeddings
    return embeddings.detach().cpu().float().numpy() if _is_half(embeddings) else _plain(embeddings)


def _is_half(tensor: Tensor) -> bool:
    return tensor.element_size() < 4  # bfloat16 has no numpy type


def _plain(tensor: Tensor) -> Array:
    array: Array = tensor.detach().cpu().numpy()
    return array


def _require_finite(block: Array, offset: int) -> None:
    if not np.isfinite(block).all():
        row = int(np.flatnonzero(~np.isfinite(block).all(axis=1))[0])
        raise NonFiniteInputError(
            f"sample {offset + row} holds NaN or infinity: embed that image again or leave it out"
        )
