"""Re-rank on the query's side: pure functions of NumPy arrays.

Query expansion searches again with the first results added. Score normalisation makes scores of
different queries comparable, so that one threshold serves all.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from whiten.errors import ConfigError
from whiten.utils.arrays import Vectors


def expand_queries(
    queries: npt.NDArray[Any],
    neighbours: npt.NDArray[Any],
    similarities: npt.NDArray[Any],
    *,
    alpha: float = 3.0,
) -> Vectors:
    """Expand queries with their results: `q + Σ_i max(0, s_i)^α · x_i`, L2-normalised.

    The sum of the query and its first results, each weighted by its similarity to the query to the
    power α (Radenović, Tolias and Chum, TPAMI 2019, "α-weighted query expansion", with α = 3 and
    n = 50). α = 0 is plain average query expansion.

    Args:
        queries: (q, d), rows L2-normalised.
        neighbours: (q, n, d) embeddings of each query's first n results, L2-normalised. Leave out
            the query itself if it is in the gallery.
        similarities: (q, n) similarities of these to the query. Values below 0 count as 0, so that
            opposite results cannot reverse the query. Pad short lists with -inf.
        alpha: at least 0, and finite.

    Returns:
        (q, d) float32, rows L2-normalised: queries for a second search.

    Raises:
        ConfigError: shapes do not match, or alpha is out of range.
    """
    if not 0 <= alpha < math.inf:
        raise ConfigError(f"alpha must be at least 0 and finite, not {alpha}")
    q, d = queries.shape
    if similarities.shape[:1] != (q,) or neighbours.shape != (*similarities.shape, d):
        raise ConfigError(
            f"queries {queries.shape}, neighbours {neighbours.shape} and similarities "
            f"{similarities.shape} do not fit: pass (q, d), (q, n, d) and (q, n)"
        )
    weights = np.where(similarities > 0, np.maximum(similarities, 0) ** alpha, 0)
    expanded = queries + np.einsum("qn,qnd->qd", weights, neighbours)
    norms = np.linalg.norm(expanded, axis=1, keepdims=True)
    unit: Vectors = (expanded / np.maximum(norms, np.finfo(np.float32).tiny)).astype(np.float32)
    return unit


def normalize_scores(
    scores: npt.NDArray[Any],
    query_to_background: npt.NDArray[Any],
    *,
    top: int = 10,
    beta: float = 1.0,
) -> Vectors:
    """Normalise scores: `s(q, r) - β · mean of the top similarities of q to a background`.

    A query that resembles everything also has high scores with wrong results. How much it does is
    measured on a background set: images of the same kind, none of which is correct (Pizzi et al.,
    "A Self-Supervised Descriptor for Image Copy Detection", CVPR 2022, similarity normalisation;
    Douze et al., "The 2021 Image Similarity Dataset and Challenge", 2021). All scores of a query
    shift equally: its ranking stays, but comparisons across queries change, such as a common
    threshold.

    Args:
        scores: (q, k) similarities of queries to their results.
        query_to_background: (q, m) similarities of the same queries to the background.
        top: number of highest similarities to average; at most the size of the background.
        beta: β; 0 leaves the scores unchanged.

    Returns:
        (q, k) float32, not bounded by -1 and 1.

    Raises:
        ConfigError: shapes do not match, the background is empty, or top is below 1.
    """
    if not (scores.ndim == query_to_background.ndim == 2) or len(scores) != len(
        query_to_background
    ):
        raise ConfigError(
            f"scores {scores.shape} and similarities to the background "
            f"{query_to_background.shape} do not fit: pass (q, k) and (q, m)"
        )
    size = query_to_background.shape[1]
    if top < 1 or size < 1:
        raise ConfigError(
            f"the mean of the top {top} of {size} images of the background is none: top and the "
            "background must be at least 1"
        )
    cut = max(0, size - top)
    highest = np.partition(query_to_background, cut, axis=1)[:, cut:]
    normalized: Vectors = (scores - beta * highest.mean(axis=1, keepdims=True)).astype(np.float32)
    return normalized
