"""Linear maps of features in closed form: ridge regression, principal axes, whitening."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from whiten.utils.arrays import Vectors
from whiten.utils.memory import forget
from whiten.whitening.whitener import Whitener

_BLOCK = 8192  # images that are read at once

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Head:
    """A linear map of features: `features @ weight.T + bias`, (dim, f) and (dim,)."""

    weight: Floats
    bias: Floats

    def __call__(self, features: npt.NDArray[Any]) -> Floats:
        return features @ self.weight.T + self.bias

    def scaled(self, factor: float) -> Head:
        """Return the map times a factor."""
        return Head(self.weight * factor, self.bias * factor)

    def then(self, rotation: Whitener) -> Head:
        """Return the map followed by a rotation of its output."""
        axes, mean = rotation.projection_, rotation.mean_
        return Head(axes @ self.weight, axes @ self.bias - axes @ mean)

    @classmethod
    def concatenated(cls, heads: Sequence[Head]) -> Head:
        """Return one map that concatenates the outputs of several."""
        return cls(
            np.vstack([head.weight for head in heads]),
            np.concatenate([head.bias for head in heads]),
        )


class Ridge:
    """Ridge regression (Hoerl & Kennard 1970) that is fitted once for all strengths.

    Minimises `|Y - X W|² + c m |W|²` on centred X and Y, where m is the mean eigenvalue of XᵀX, so
    that a strength c means the same on any number of images. Of fewer rows than features XXᵀ is
    decomposed in the place of XᵀX: it has the same eigenvalues but for zeros.

    Args:
        features: (n, views, f), read by blocks.
        targets: for each teacher (n, views, d_k) of the same images and views.
    """

    def __init__(self, features: Vectors, targets: Sequence[Vectors]) -> None:
        self.count = features.shape[0] * features.shape[1]
        if self.count < features.shape[2]:
            self._solve_few(features, targets)
        else:
            self._solve_many(features, targets)

    def _solve_few(self, features: Vectors, targets: Sequence[Vectors]) -> None:
        x, y = (np.concatenate(parts) for parts in zip(*_blocks(features, targets), strict=True))
        self.mean_x, self.mean_y = x.mean(axis=0), y.mean(axis=0)
        x -= self.mean_x
        values, rows = np.linalg.eigh(x @ x.T)
        is_spanned = values > values[-1] * self.count * np.finfo(np.float64).eps
        self.spectrum, rows = values[is_spanned], rows[:, is_spanned]
        self.mean_eigenvalue = float(self.spectrum.sum()) / x.shape[1]
        self.axes = x.T @ rows / np.sqrt(self.spectrum)
        self.cross = np.sqrt(self.spectrum)[:, None] * (rows.T @ (y - self.mean_y))

    def _solve_many(self, features: Vectors, targets: Sequence[Vectors]) -> None:
        f, dim = features.shape[2], sum(target.shape[2] for target in targets)
        sum_x, sum_y = np.zeros(f), np.zeros(dim)
        scatter, cross = np.zeros((f, f)), np.zeros((f, dim))
        for x, y in _blocks(features, targets):
            sum_x += x.sum(axis=0)
            sum_y += y.sum(axis=0)
            scatter += x.T @ x
            cross += x.T @ y
        self.mean_x, self.mean_y = sum_x / self.count, sum_y / self.count
        scatter -= self.count * np.outer(self.mean_x, self.mean_x)
        cross -= self.count * np.outer(self.mean_x, self.mean_y)
        values, self.axes = np.linalg.eigh(scatter)
        self.spectrum = np.maximum(values, 0)
        self.mean_eigenvalue = float(self.spectrum.mean())
        self.cross = self.axes.T @ cross

    def head(self, strength: float, *, to_unit: bool) -> Head:
        """Return the regression at one strength.

        Args:
            to_unit: scale the output to a length of 1 in the root mean square: what a regression
                cannot predict shortens it.
        """
        floor = max(strength * self.mean_eigenvalue, float(np.finfo(np.float64).tiny))
        inner = self.cross / (self.spectrum + floor)[:, None]
        weight = (self.axes @ inner).T
        head = Head(weight, self.mean_y - weight @ self.mean_x)
        if not to_unit:
            return head
        square = float(
            (self.spectrum[:, None] * inner**2).sum() / self.count + (self.mean_y**2).sum()
        )
        return head.scaled(1 / np.sqrt(square)) if square else head


def _blocks(features: Vectors, targets: Sequence[Vectors]) -> Iterator[tuple[Floats, Floats]]:
    """Yield (rows, f) features and (rows, d) joined targets in float64."""
    for start in range(0, len(features), _BLOCK):
        part = slice(start, start + _BLOCK)
        x = features[part].reshape(-1, features.shape[2]).astype(np.float64)
        y = np.concatenate([target[part] for target in targets], axis=2)
        yield x, y.reshape(len(x), -1).astype(np.float64)
        for mapped in (features, *targets):
            forget(mapped[part])


def whitenings(features: Vectors, dim: int, shrinkages: Sequence[float]) -> dict[float, Head]:
    """Principal axes of (n, f) features, whitened as far as each shrinkage says; inf is centring.

    The output has length 1 in the root mean square.
    """
    rank = min(dim, features.shape[1], len(features) - 1)
    if rank < 1:
        return dict.fromkeys(shrinkages, Head(np.zeros((0, features.shape[1])), np.zeros(0)))
    fitted = Whitener(rank, shrinkage=float("inf")).fit(features)
    heads = {}
    with warnings.catch_warnings():
        # Many axes for few images are no surprise: held-out images decide.
        warnings.filterwarnings("ignore", "whitening .* dimensions on", UserWarning)
        for shrinkage in shrinkages:
            axes = fitted.with_settings(shrinkage=shrinkage)
            head = Head(axes.projection_, -axes.projection_ @ axes.mean_)
            square = float((head(features) ** 2).sum(axis=1).mean())
            heads[shrinkage] = head.scaled(1 / np.sqrt(square)) if square else head
    return heads
