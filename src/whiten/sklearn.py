"""The whitening as a scikit-learn transformer, for pipelines and searches over its settings.

Needs scikit-learn, `pip install "whiten[sklearn]"`; no other module does.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from whiten.errors import MissingExtraError
from whiten.utils.arrays import normalize_rows, require_unmasked
from whiten.whitening.whitener import DEFAULT_SHRINKAGE, Whitener

try:
    from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    raise MissingExtraError("whiten.sklearn", "sklearn") from error

Array = npt.NDArray[np.floating[Any]]


class WhitenerTransformer(
    ClassNamePrefixFeaturesOutMixin,  # type: ignore[misc]
    TransformerMixin,  # type: ignore[misc]
    BaseEstimator,  # type: ignore[misc]
):
    """`whiten.Whitener` with scikit-learn's interface.

    Args:
        dim: number of principal axes to keep; None keeps all that the samples span.
        shrinkage: c in √(λ + c·mean(λ)), by which axes are divided: 0 is PCA-whitening.
        normalize: L2-normalise the output, as for retrieval.

    Attributes (after fitting):
        whitener_: the `Whitener`, which can be saved.
        n_features_in_: D of the (n, D) samples.
    """

    def __init__(
        self,
        dim: int | None = None,
        *,
        shrinkage: float = DEFAULT_SHRINKAGE,
        normalize: bool = True,
    ) -> None:
        self.dim = dim
        self.shrinkage = shrinkage
        self.normalize = normalize

    # scikit-learn's own names for its arguments.
    def fit(self, X: Array, y: object = None) -> WhitenerTransformer:  # noqa: N803
        """Fit on (n, D) samples; `y` is not used."""
        require_unmasked(X)
        samples = validate_data(self, X, dtype=[np.float64, np.float32], ensure_min_samples=2)
        self.whitener_ = Whitener(self.dim, shrinkage=self.shrinkage).fit(samples)
        return self

    def transform(self, X: Array) -> Array:  # noqa: N803
        """Whiten (n, D) samples -> (n, dim), in the samples' precision."""
        check_is_fitted(self)
        require_unmasked(X)
        samples = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        whitened = self.whitener_.transform(samples)
        found: Array = normalize_rows(whitened) if self.normalize else whitened
        return found.astype(samples.dtype, copy=False)

    @property
    def _n_features_out(self) -> int:
        return len(self.whitener_.projection_)
