"""Describe teachers by their embeddings alone: spectrum, effective rank, common neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from whiten.utils.arrays import Array

NEIGHBOURS = 10  # by which two teachers are compared
CHOICE = 4  # times as many images to choose a neighbour from; else chance decides

Vectors = npt.NDArray[Any]


def spectrum(embeddings: Vectors) -> Array:
    """Eigenvalues of the covariance of (n, D) embeddings, descending: (min(n, D),)."""
    centred = np.asarray(embeddings, np.float64)
    centred = centred - centred.mean(axis=0)
    n, dim = centred.shape
    # Both products have the same eigenvalues; the smaller one takes a tenth of the time of an SVD.
    product = centred.T @ centred if dim < n else centred @ centred.T
    values: Array = np.linalg.eigvalsh(product)[::-1] / max(1, n - 1)
    return np.maximum(values, 0.0)


def effective_rank(eigenvalues: Vectors) -> float:
    """Exponential of the entropy of the normalised eigenvalues (Roy & Vetterli 2007, eq. 2).

    The number of axes if all have equal variance, 1 if one holds all of it, 0 without variance.
    """
    values = np.asarray(eigenvalues, np.float64)
    values = values[values > 0]
    if not len(values):
        return 0.0
    shares = values / values.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def agreement(teachers: Sequence[Vectors], count: int = NEIGHBOURS) -> Array:
    """Mean share of its nearest neighbours that an image has in common in two teachers.

    Args:
        teachers: for each of K teachers (n, D_k) embeddings of the same images, L2-normalised.
        count: neighbours per image; lowered to a quarter of the others, since all of the others
            are common neighbours of any two teachers.

    Returns:
        (K, K) from 0 to 1, symmetric, with 1 on the diagonal.
    """
    n = len(teachers[0])
    count = max(1, min(count, (n - 1) // CHOICE))
    near = np.zeros((len(teachers), n, n), bool)
    for flags, teacher in zip(near, teachers, strict=True):
        similarity = teacher @ teacher.T
        np.fill_diagonal(similarity, -np.inf)
        rows = np.argpartition(-similarity, count - 1, axis=1)[:, :count]
        np.put_along_axis(flags, rows, values=True, axis=1)
    shared: Array = np.ones((len(teachers), len(teachers)))
    for i in range(len(teachers)):
        for j in range(i):
            shared[i, j] = shared[j, i] = (near[i] & near[j]).sum() / (n * count)
    return shared
