"""Query expansion and score normalisation against plain loops, and what they are good for."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest

from whiten.errors import ConfigError
from whiten.metrics import average_precision, micro_average_precision
from whiten.retrieval.reranking import expand_queries, normalize_scores


def unit(*shape: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    unit: np.ndarray = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    return unit


def test_the_documentation_s_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parent.parent / "docs" / "search.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    [example] = [block for block in blocks if "whiten.retrieval.reranking" in block]
    names: dict[str, np.ndarray] = {}
    exec(example, names)
    assert (names["expanded"].shape, names["comparable"].shape) == ((20, 64), (20, 10))
    assert 0 < float(capsys.readouterr().out) < 1


# --- expansion --------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.0, 1.0, 3.0])
def test_expansion_is_the_formula(alpha: float) -> None:
    queries, neighbours = unit(3, 8), unit(3, 5, 8, seed=1)
    similarities = np.einsum("qd,qnd->qn", queries, neighbours)
    assert (similarities < 0).any() and (similarities > 0).any()
    expanded = expand_queries(queries, neighbours, similarities, alpha=alpha)
    for q in range(3):
        total = queries[q].astype(np.float64)
        for n in range(5):
            if similarities[q, n] > 0:
                total = total + float(similarities[q, n]) ** alpha * neighbours[q, n]
        np.testing.assert_allclose(expanded[q], total / np.linalg.norm(total), atol=1e-6)
    assert expanded.dtype == np.float32


def test_a_great_alpha_leaves_the_query_and_copies_alone() -> None:
    queries, neighbours = unit(1, 4), unit(1, 3, 4, seed=2)
    similarities = np.array([[0.9, 0.5, 0.1]])
    np.testing.assert_allclose(
        expand_queries(queries, neighbours, similarities, alpha=500), queries, atol=1e-6
    )
    copies = np.repeat(queries[:, None], 2, axis=1)
    np.testing.assert_allclose(
        expand_queries(queries, copies, np.ones((1, 2)), alpha=2), queries, atol=1e-6
    )


def test_short_lists_are_padded_and_opposites_do_not_cancel() -> None:
    queries, neighbours = unit(2, 4), unit(2, 3, 4, seed=3)
    similarities = np.array([[0.5, -np.inf, -np.inf], [0.5, 0.4, 0.3]])
    first = expand_queries(queries[:1], neighbours[:1, :1], similarities[:1, :1])
    np.testing.assert_allclose(expand_queries(queries, neighbours, similarities)[:1], first)
    opposite = -queries[:, None]
    assert np.isfinite(expand_queries(queries, opposite, -np.ones((2, 1)), alpha=1)).all()
    nothing = expand_queries(queries, np.zeros((2, 0, 4)), np.zeros((2, 0)))
    np.testing.assert_allclose(nothing, queries, atol=1e-6)


def test_expansion_finds_what_is_like_the_results() -> None:
    """A chain: the second picture is like the query, the third like the second alone."""
    angles = np.array([0.0, 0.5, 1.0])
    query, second, third = np.stack([np.cos(angles), np.sin(angles), 0 * angles], axis=1)
    other = np.array([np.cos(0.95), 0, np.sin(0.95)])
    assert query @ other > query @ third
    [expanded] = expand_queries(query[None], second[None, None], np.array([[query @ second]]))
    assert expanded @ other < expanded @ third


@pytest.mark.parametrize(
    ("shapes", "alpha"),
    [
        (((2, 4), (2, 3, 5), (2, 3)), 1.0),
        (((2, 4), (3, 3, 4), (3, 3)), 1.0),
        (((2, 4), (2, 3, 4), (2, 2)), 1.0),
        (((2, 4), (2, 3, 4), (2, 3)), -1.0),
        (((2, 4), (2, 3, 4), (2, 3)), math.nan),
    ],
)
def test_wrong_expansions(shapes: tuple[tuple[int, ...], ...], alpha: float) -> None:
    with pytest.raises(ConfigError, match=r"do not fit|at least 0"):
        expand_queries(*(np.ones(shape) for shape in shapes), alpha=alpha)


# --- normalisation ----------------------------------------------------------------------


def test_normalisation_is_the_formula() -> None:
    rng = np.random.default_rng(0)
    scores, background = rng.random((4, 6)), rng.random((4, 9))
    normalized = normalize_scores(scores, background, top=3, beta=0.7)
    for q in range(4):
        mean = sum(sorted(background[q])[-3:]) / 3
        np.testing.assert_allclose(normalized[q], scores[q] - 0.7 * mean, atol=1e-6)
    np.testing.assert_allclose(normalize_scores(scores, background, beta=0), scores, atol=1e-6)
    of_all = scores - background.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(normalize_scores(scores, background, top=99), of_all, atol=1e-6)
    assert (np.argsort(normalized) == np.argsort(scores)).all()  # each ranking stays


def test_normalisation_mends_a_query_that_is_like_everything() -> None:
    scores = np.array([[0.8, 0.5], [0.95, 0.9]])  # of the second everything is near
    labels = np.array([[1, 0], [1, 0]])
    assert micro_average_precision(scores, labels) == pytest.approx((1 + 2 / 3) / 2)
    background = np.array([[0.4, 0.3, 0.1], [0.75, 0.71, 0.2]])
    mended = normalize_scores(scores, background, top=2)
    np.testing.assert_allclose(mended, [[0.45, 0.15], [0.22, 0.17]], atol=1e-6)
    assert micro_average_precision(mended, labels) == 1.0


@pytest.mark.parametrize(
    ("scores", "background", "top"),
    [((2, 3), (3, 4), 1), ((2,), (2, 4), 1), ((2, 3), (2, 0), 1), ((2, 3), (2, 4), 0)],
)
def test_wrong_normalisations(
    scores: tuple[int, ...], background: tuple[int, ...], top: int
) -> None:
    with pytest.raises(ConfigError, match=r"do not fit|at least 1"):
        normalize_scores(np.ones(scores), np.ones(background), top=top)


# --- µAP --------------------------------------------------------------------------------


def test_micro_average_precision_of_one_list_is_average_precision() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        scores, labels = rng.random(50), rng.integers(0, 2, 50)
        ranked = labels[np.argsort(-scores)]
        assert micro_average_precision(scores, labels) == pytest.approx(average_precision(ranked))


def test_micro_average_precision_counts_equal_scores_together() -> None:
    assert micro_average_precision(np.zeros(4), np.array([1, 0, 0, 0])) == 0.25
    assert micro_average_precision(np.zeros(4), np.array([0, 0, 0, 1])) == 0.25
    scores, labels = np.array([3.0, 2.0, 2.0, 1.0]), np.array([1, 0, 1, 1])
    by_hand = (1 * 1 + 1 * 2 / 3 + 1 * 3 / 4) / 3
    assert micro_average_precision(scores, labels) == pytest.approx(by_hand)


def test_micro_average_precision_against_scikit_learn() -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(1)
    for _ in range(20):
        scores, labels = rng.integers(0, 9, 60) / 9, rng.integers(0, 2, 60)
        expected = sklearn.average_precision_score(labels, scores)
        assert micro_average_precision(scores, labels) == pytest.approx(expected, abs=1e-12)


def test_what_was_not_ranked_counts_as_not_found() -> None:
    scores, labels = np.array([[0.9, 0.1], [0.8, 0.2]]), np.array([[1, 0], [1, 0]])
    assert micro_average_precision(scores, labels) == 1.0
    assert micro_average_precision(scores, labels, n_positives=8) == 0.25
    assert micro_average_precision(scores, np.zeros((2, 2))) == 0.0


def test_wrong_pairs() -> None:
    with pytest.raises(ConfigError, match="one shape"):
        micro_average_precision(np.ones(3), np.ones(4))
    with pytest.raises(ConfigError, match="no NaN"):
        micro_average_precision(np.array([np.nan]), np.ones(1))
    with pytest.raises(ConfigError, match="cannot be all"):
        micro_average_precision(np.ones(3), np.ones(3), n_positives=2)
