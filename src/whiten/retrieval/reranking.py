"""What can be done on the query's side of a search; pure functions, numpy in and out.

Query expansion searches again, with what the first search found. Score normalisation makes the
scores of different queries comparable, so that one threshold serves all.
"""

from __future__ import annotations

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
    """α-weighted query expansion: `q + Σ_i max(0, s_i)^α · x_i`, L2-normalised.

    Sum of the query and its first results, each weighed by its similarity to the query raised to
    α (Radenović, Tolias and Chum, TPAMI 2019, "α-weighted query expansion"; theirs is α = 3 and
    n = 50). α = 0 is the plain average query expansion.

    Args:
        queries: (q, d), rows L2-normalised.
        neighbours: (q, n, d) embeddings of the first n results of each query, L2-normalised. Leave
            out the query itself, where it is in the gallery.
        similarities: (q, n) of these to the query. One that is not above 0 counts as 0: what is
            opposite to the query must not turn it round. Pad a short list with -inf.
        alpha: at least 0.

    Returns:
        (q, d) float32, rows L2-normalised: queries for a second search.

    Raises:
        ConfigError: shapes that do not fit, alpha below 0.
    """
    if alpha < 0:
        raise ConfigError(f"alpha must be at least 0, not {alpha}")
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
    """Score normalisation: `s(q, r) - β · mean of the top similarities of q to a background`.

    A query that is like everything has high scores with what is wrong, too. How like, a background
    set tells: images of the same kind, none of which is right (Pizzi et al., "A Self-Supervised
    Descriptor for Image Copy Detection", CVPR 2022, similarity normalisation; Douze et al., "The
    2021 Image Similarity Dataset and Challenge", 2021). Each query's scores move together: its
    ranking stays, and what is compared across queries changes, such as one threshold for all.

    Args:
        scores: (q, k) similarities of queries to their results.
        query_to_background: (q, m) similarities of the same queries to the background.
        top: the mean is taken over so many of the highest; of a smaller background over all.
        beta: 0 leaves the scores as they are.

    Returns:
        (q, k) float32, no longer bounded by -1 and 1.

    Raises:
        ConfigError: shapes that do not fit, an empty background, top below 1.
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
