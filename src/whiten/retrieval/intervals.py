"""Bootstrap intervals of means over queries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from whiten.errors import ConfigError
from whiten.utils.names import label_codes


def bootstrap_interval(
    values: npt.NDArray[Any],
    *,
    groups: npt.NDArray[Any] | None = None,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Compute the percentile bootstrap interval of a mean over queries (Efron & Tibshirani 1993).

    Args:
        values: (n,) one number per query.
        groups: (n,) the group of each query, None for none. With them whole groups are drawn:
            queries of one group succeed and fail together, so that an interval over queries is too
            narrow.
        level: share of the resampled means inside the interval, above 0 and below 1.

    Raises:
        ConfigError: there is no query, or not one group per query, or the level is out of range.
    """
    if not 0 < level < 1 or not len(values):
        raise ConfigError(f"no interval of level {level} for the mean of {len(values)} queries")
    values = np.asarray(values, np.float64)
    sizes = np.ones(len(values))
    if groups is not None:
        if len(groups) != len(values):
            raise ConfigError(f"{len(groups)} groups for {len(values)} queries: pass one for each")
        codes = label_codes(groups)
        alone = codes < 0  # queries without a group
        codes[alone] = codes.max(initial=-1) + 1 + np.arange(alone.sum())
        values, sizes = np.bincount(codes, values), np.bincount(codes).astype(np.float64)
    sums, counts = _resampled(np.stack([values, sizes], axis=1), resamples, seed).T
    low, high = np.quantile(sums / counts, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _resampled(values: npt.NDArray[Any], resamples: int, seed: int) -> npt.NDArray[Any]:
    """Return the sums of rows drawn with replacement, (n, m) -> (resamples, m)."""
    generator = np.random.default_rng(seed)
    sums = np.empty((resamples, values.shape[1]))
    for row in sums:  # how often each is drawn: memory O(n)
        drawn = generator.integers(0, len(values), len(values))
        row[:] = np.bincount(drawn, minlength=len(values)) @ values
    return sums


@dataclass(frozen=True)
class Figure:
    """A mean over queries and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, values: npt.NDArray[Any]) -> Figure:
        """Return the mean of (n,) values, one per query, with its interval."""
        return cls(float(values.mean()), *bootstrap_interval(values))


def figures(scores: Mapping[str, npt.NDArray[Any]]) -> dict[str, Figure]:
    """Compute the mean and the interval of several metrics, all from the same resamples.

    Args:
        scores: each metric, (q,) one number per query.
    """
    if not scores:
        return {}
    values = np.stack([np.asarray(score, np.float64) for score in scores.values()], axis=1)
    means = _resampled(values, 1000, 0) / len(values)
    low, high = np.quantile(means, [0.025, 0.975], axis=0)
    columns = zip(scores, values.mean(axis=0), low, high, strict=True)
    return {name: Figure(*map(float, each)) for name, *each in columns}
