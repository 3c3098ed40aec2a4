"""Retrieval metrics against published values and against sorting."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from whiten import metrics
from whiten.errors import ConfigError
from whiten.evaluation.evaluate import score_revisited

GOLDEN = Path(__file__).parent / "golden"


def test_reproduces_the_revisited_benchmark() -> None:
    truth = json.loads((GOLDEN / "revisited.json").read_text())
    similarity = np.load(GOLDEN / "revisited_scores.npz")["similarity"]
    scores = metrics.revisited(similarity, truth["gnd"])
    for protocol, expected in truth["expected"].items():
        ours = scores[protocol]
        assert ours["map"] == pytest.approx(expected["map"], abs=1e-9)
        assert [ap is None for ap in ours["aps"]] == [ap is None for ap in expected["aps"]]
        for ap, theirs in zip(ours["aps"], expected["aps"], strict=True):
            assert ap is None or ap == pytest.approx(theirs, abs=1e-9)
        assert list(ours["mp_at"]) == [1, 5, 10]
        assert list(ours["mp_at"].values()) == pytest.approx(expected["mp_at_1_5_10"], abs=1e-9)


def test_reproduces_the_svd_average_precision() -> None:
    golden = json.loads((GOLDEN / "svd_ap.json").read_text())
    for labels, ap, ap_top10 in zip(
        golden["labels"], golden["ap"], golden["ap_top10"], strict=True
    ):
        assert metrics.average_precision(labels) == pytest.approx(ap, abs=1e-12)
        assert metrics.average_precision(labels[:10]) == pytest.approx(ap_top10, abs=1e-12)


def test_revisited_refuses_the_transposed_matrix() -> None:
    with pytest.raises(ConfigError, match=r"\(database, queries\)"):
        metrics.revisited(np.zeros((3, 500)), [{}, {}])


@pytest.mark.parametrize("index", [-1, 3])
def test_an_index_outside_of_the_gallery_is_refused(index: int) -> None:
    message = f"index {index} is none of 3 items"
    with pytest.raises(ConfigError, match=message):
        metrics.revisited(np.zeros((3, 1)), [{"easy": [0], "junk": [index]}])
    with pytest.raises(ConfigError, match=message):
        score_revisited(np.ones((1, 2)), np.ones((3, 2)), [{"easy": [index]}])
    with pytest.raises(ConfigError, match=message):
        metrics.positive_ranks(np.zeros(3), np.array([index]))


def test_a_positive_that_is_junk_is_refused() -> None:
    truth = [{"easy": [0]}, {"hard": [1, 2], "junk": [0, 2]}]
    with pytest.raises(ConfigError, match="query 1: index 2 is junk and easy or hard"):
        metrics.revisited(np.eye(3)[:, :2], truth)


def test_ranks_of_lists() -> None:
    assert metrics.positive_ranks([0.5, 0.9, 0.1], [0, 2], [1]).tolist() == [0, 1]


@pytest.mark.parametrize("n_positives", [6, 150])  # few and many: they are counted differently
@pytest.mark.parametrize("block", [7, 500, 4000])
@pytest.mark.parametrize("levels", ["few", "all", "high"])
def test_ranks_equal_those_of_a_stable_sort(
    monkeypatch: pytest.MonkeyPatch, n_positives: int, block: int, levels: str
) -> None:
    monkeypatch.setattr(metrics, "BLOCK_ROWS", block)
    rng = np.random.default_rng(block + n_positives)
    n = 1200
    similarity = rng.standard_normal(n).astype(np.float32)
    if levels == "few":  # most similarities tie with others
        similarity = rng.integers(0, 7, n).astype(np.float32)
    positives = rng.choice(n, n_positives, replace=False)
    junk = np.setdiff1d(rng.choice(n, 90), positives)
    if levels == "high":
        similarity[positives] += 2
    order = np.argsort(-similarity, kind="stable")
    order = order[~np.isin(order, junk)]
    expected = np.flatnonzero(np.isin(order, positives))
    np.testing.assert_array_equal(metrics.positive_ranks(similarity, positives, junk), expected)


@pytest.mark.parametrize("similarity", [[0.1, np.nan], [np.nan, 0.1], [np.nan, np.nan]])
def test_nan_similarities_are_refused(similarity: list[float]) -> None:
    with pytest.raises(ConfigError, match="NaN"):
        metrics.positive_ranks(np.array(similarity), np.array([0]))


def test_infinite_similarities_rank_by_index_too() -> None:
    similarity = np.array([-np.inf, 1, -np.inf, np.inf, -np.inf])
    ranks = metrics.positive_ranks(similarity, np.array([1, 4]), np.array([2]))
    assert list(ranks) == [1, 3]


def test_the_users_matrix_is_left_alone() -> None:
    similarity = np.random.default_rng(0).standard_normal((50, 2)).astype(np.float32)
    before = similarity.copy()
    truth = [{"easy": [3], "hard": [7], "junk": [9]}, {"easy": [1], "hard": []}]
    for order in ("C", "F"):
        metrics.revisited(np.array(similarity, order=order), truth)
    np.testing.assert_array_equal(similarity, before)
    assert metrics.revisited(similarity, truth)["hard"]["aps"][1] is None


def test_one_score_an_item() -> None:
    """A labelled item's score in a block may be rounded differently: the first one counts."""
    scores = np.array([0.5, 0.25], np.float32)
    counter = metrics.RankCounter([np.array([1, 3])], [scores], [np.array([1, 3])])
    block = np.array([[0.5, np.nextafter(np.float32(0.5), np.float32(1)), 0.5, 0.2]], np.float32)
    counter.pin(0, block)
    counter.add(0, block)
    assert block[0, 1] == 0.5
    assert block[0, 3] == 0.25
    assert list(counter.ranks(0, np.array([1, 3]), np.array([], np.int64))) == [1, 3]


def test_figures_at_k() -> None:
    ranks = np.array([0, 3, 12])
    assert metrics.ap_from_ranks(ranks) == pytest.approx((1 + 2 / 4 + 3 / 13) / 3)
    assert metrics.precision_at(ranks, 5) == pytest.approx(2 / 5)
    # Divided by the positives that exist, not by those that were found.
    assert metrics.average_precision_at(ranks, 5) == pytest.approx((1 + 2 / 4) / 3)
    assert metrics.average_precision_at(ranks, 1) == 1
    assert (metrics.recall_at(ranks, 1), metrics.recall_at(ranks + 1, 1)) == (1, 0)
    assert metrics.average_precision([0, 0, 0]) == 0


def test_trapezoid_ap_by_hand() -> None:
    # One positive at rank 1: precision 0 before it and 1/2 with it.
    assert metrics.trapezoid_ap(np.array([1])) == pytest.approx((0 + 1 / 2) / 2)
    assert metrics.trapezoid_ap(np.array([0, 1, 2])) == 1


def test_bootstrap_interval_covers_and_repeats() -> None:
    values = np.random.default_rng(0).random(400)
    low, high = metrics.bootstrap_interval(values)
    assert (low, high) == metrics.bootstrap_interval(values)
    assert low < values.mean() < high
    # The normal approximation of a mean of 400 uniforms: ±1.96·0.289/20.
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.15)


@pytest.mark.parametrize(("values", "level"), [([], 0.95), ([0.5, 1.0], 1.0), ([0.5], -1.0)])
def test_intervals_of_nothing_are_refused(values: list[float], level: float) -> None:
    with pytest.raises(ConfigError, match=f"level {level} for the mean of {len(values)} queries"):
        metrics.bootstrap_interval(np.array(values), level=level)


def test_metrics_of_the_same_queries_share_their_resamples() -> None:
    scores = {name: np.random.default_rng(seed).random(50) for seed, name in enumerate("ab")}
    for name, figure in metrics.figures(scores).items():
        expected = (scores[name].mean(), *metrics.bootstrap_interval(scores[name]))
        assert (figure.value, figure.low, figure.high) == pytest.approx(expected)


def test_an_interval_over_groups_draws_whole_groups() -> None:
    values = np.repeat([0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 1.0, 1.0], 5)
    groups = np.repeat(np.arange(8), 5)
    # Equal values within a group tell no more than one of them.
    once = metrics.bootstrap_interval(values[::5])
    assert metrics.bootstrap_interval(values, groups=groups) == pytest.approx(once)
    alone = metrics.bootstrap_interval(values, groups=np.arange(len(values)))
    assert alone == pytest.approx(metrics.bootstrap_interval(values))
    with pytest.raises(ConfigError, match="7 groups for 40 queries"):
        metrics.bootstrap_interval(values, groups=np.arange(7))


def test_a_query_without_a_group_is_drawn_alone() -> None:
    values = np.array([0.0, 1.0, 1.0, 0.5])
    drawn = metrics.bootstrap_interval(values, groups=np.array(["a", None, "a", None], object))
    assert drawn == metrics.bootstrap_interval(values, groups=np.array(["a", "b", "a", "c"]))


@pytest.mark.parametrize("labels", [[1, -1], [1.0, np.nan], [2, 0]])
def test_labels_that_are_no_relevance_are_refused(labels: list[float]) -> None:
    """All but 0 would count as relevant, such as the -1 of other libraries."""
    with pytest.raises(ConfigError, match="is neither 0 nor 1"):
        metrics.average_precision(labels)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="is neither 0 nor 1"):
        metrics.micro_average_precision(np.array([0.5, 0.2]), np.array(labels))


def test_ranks_of_a_positive_that_is_junk_are_refused() -> None:
    """Both positives would have rank 0, and an average precision above 1."""
    with pytest.raises(ConfigError, match="index 0 is junk and positive"):
        metrics.positive_ranks(np.array([0.9, 0.8]), [0, 1], junk=[0])


AT_K = [metrics.precision_at, metrics.average_precision_at, metrics.recall_at]


@pytest.mark.parametrize("metric", AT_K)
@pytest.mark.parametrize("k", [0, 1.5, float("nan")])
def test_no_metric_of_the_first_0(metric: Callable[[Any, Any], float], k: float) -> None:
    with pytest.raises(ConfigError, match=f"k must be a whole number of at least 1, not {k}"):
        metric(np.array([0]), k)


OF_RANKS: list[Callable[[Any], float]] = [
    metrics.ap_from_ranks,
    metrics.trapezoid_ap,
    *(functools.partial(metric, k=2) for metric in AT_K),
]


@pytest.mark.parametrize("metric", OF_RANKS)
def test_ranks_may_be_a_list(metric: Callable[[Any], float]) -> None:
    assert metric([1, 4]) == metric(np.array([1, 4]))


@pytest.mark.parametrize("metric", OF_RANKS)
@pytest.mark.parametrize(
    ("ranks", "message"),
    [
        ([2, 0], "ascend"),
        ([0, 0], "ascend"),
        ([-1, 0], "count from 0"),
        ([0.0, np.nan], "not float64"),
        ([True, False], "not bool"),
        ([[0, 1]], "the shape"),
    ],
)
def test_ranks_that_are_none_are_refused(
    metric: Callable[[Any], float], ranks: list[Any], message: str
) -> None:
    """An average precision was above 1, or infinite."""
    with pytest.raises(ConfigError, match=message):
        metric(np.array(ranks))


def test_a_query_without_positives_has_no_trapezoid_ap() -> None:
    with pytest.raises(ConfigError, match="leave it out"):
        metrics.trapezoid_ap(np.array([], np.int64))


def test_more_ranks_than_positives_are_refused() -> None:
    with pytest.raises(ConfigError, match="n_positives=1 cannot be all"):
        metrics.ap_from_ranks(np.array([0, 1]), 1)


def test_a_mask_is_no_list_of_indices() -> None:
    """It was read as the indices 0 and 1."""
    mask = np.array([False, False, True])
    for junk in (None, mask):
        with pytest.raises(ConfigError, match="not bool: take"):
            metrics.positive_ranks(np.zeros(3), mask if junk is None else [0], junk)
    with pytest.raises(ConfigError, match="indices of 'easy' must be whole numbers"):
        metrics.revisited(np.zeros((3, 1)), [{"easy": [0.7]}])  # type: ignore[list-item]
    with pytest.raises(ConfigError, match="those of one query"):
        metrics.positive_ranks(np.zeros((2, 3)), [0])


@pytest.mark.parametrize(
    "scores",
    [
        np.array([-128, 5, 4], np.int8),
        np.array([0, 5, 4], np.uint8),
        np.array([-np.inf, np.inf, 0.0]),
    ],
)
def test_micro_average_precision_of_any_numbers(scores: np.ndarray) -> None:
    """Negated, the first score of each would be the highest, or would be no number."""
    assert metrics.micro_average_precision(scores, np.array([0, 1, 1])) == 1
    tied = np.array([scores[1], scores[1], scores[0], scores[0]])
    assert metrics.micro_average_precision(tied, np.array([1, 0, 1, 0])) == pytest.approx(0.5)
