"""Blockwise groups are the n × n way's groups, whatever the blocks, and in bounded memory."""

from __future__ import annotations

import itertools
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy.sparse.csgraph import connected_components

from whiten import near_duplicates
from whiten.dedup.near_duplicates import (
    TOLERANCE,
    Forest,
    choose_kept,
    linked,
    lowest_similarity,
    range_search,
)
from whiten.dedup.pair_similarity import SetSimilarity, VectorSimilarity
from whiten.errors import ConfigError
from whiten.retrieval.sets import set_similarity

Array = npt.NDArray[Any]


def matrix(vectors: Array) -> Array:
    unit = vectors.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    return unit @ unit.T


def components(similarity: Array, threshold: float) -> list[list[int]]:
    """Connected components of the n × n matrix, those of one item left out."""
    count, labels = connected_components(similarity >= threshold - TOLERANCE, directed=False)
    groups = [np.flatnonzero(labels == label).tolist() for label in range(count)]
    return sorted(group for group in groups if len(group) > 1)


def lists(groups: list[Array]) -> list[list[int]]:
    return [group.tolist() for group in groups]


def clustered(seed: int, n: int = 700, dim: int = 24, centres: int = 150) -> Array:
    """Clusters of all widths, with exact copies."""
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((centres, dim))[rng.integers(0, centres, n)]
    vectors += rng.standard_normal((n, dim)) * 0.3 * rng.random((n, 1))
    vectors[rng.integers(0, n, 40)] = vectors[rng.integers(0, n, 40)]
    return vectors.astype(np.float32) * rng.uniform(0.1, 10, (n, 1)).astype(np.float32)


@pytest.mark.parametrize("block_rows", [37, 256, 2048])
@pytest.mark.parametrize("threshold", [0.8, 0.95, 1.0])
def test_groups_are_those_of_the_matrix(threshold: float, block_rows: int) -> None:
    sizes = set()
    for seed in range(4):
        vectors = clustered(seed)
        expected = components(matrix(vectors), threshold)
        assert lists(near_duplicates(vectors, threshold, block_rows=block_rows)) == expected
        sizes |= {len(group) for group in expected}
    assert max(sizes) > 2, "a test of pairs alone tells little"


@pytest.mark.parametrize("block_rows", [5, 64])
def test_similarities_that_equal_the_threshold_count(block_rows: int) -> None:
    # Vectors of -1, 0 and 1 with four entries: cosines are exact quarters.
    vectors = np.array(
        [v for v in itertools.product((-1, 0, 1), repeat=6) if np.count_nonzero(v) == 4], np.float32
    )
    for threshold in (0.25, 0.5, 0.75):
        found = near_duplicates(vectors, threshold, block_rows=block_rows)
        assert lists(found) == components(matrix(vectors), threshold)
    pairs = [
        (i, j)
        for one, other, _ in range_search(VectorSimilarity(vectors, block_rows), 0.75)
        for i, j in zip(one.tolist(), other.tolist(), strict=True)
    ]
    upper = np.argwhere(np.triu(matrix(vectors) >= 0.75 - TOLERANCE, 1)).tolist()
    assert sorted(map(list, pairs)) == upper and len(upper) > 100


@pytest.mark.parametrize("threshold", [0.5, 1.0])
def test_where_everything_is_a_copy_of_everything(threshold: float) -> None:
    vectors = np.tile(clustered(0, n=1), (20_000, 1))
    tracemalloc.start()
    try:
        [group] = near_duplicates(vectors, threshold)  # 200,000,000 pairs
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert np.array_equal(group, np.arange(20_000))
    assert peak < 64 << 20


def test_pairs_are_given_out_a_few_at_a_time() -> None:
    vectors = np.ones((1500, 4), np.float32)
    counts = [len(one) for one, _, _ in range_search(VectorSimilarity(vectors, 512), 0.9)]
    assert sum(counts) == 1500 * 1499 // 2
    assert max(counts) <= 1 << 18


def test_a_memory_map_of_float16(tmp_path: Path) -> None:
    vectors = clustered(3).astype(np.float16)
    np.save(tmp_path / "v.npy", vectors)
    mapped = np.load(tmp_path / "v.npy", mmap_mode="r")
    assert lists(near_duplicates(mapped, 0.9)) == components(matrix(vectors), 0.9)


def test_no_vectors_and_one() -> None:
    assert near_duplicates(np.zeros((0, 8), np.float32), 0.9) == []
    assert near_duplicates(np.ones((1, 8), np.float32), 0.9) == []


def test_what_cannot_be_compared_is_named() -> None:
    vectors = clustered(0)
    for threshold in (-1.0, 1.01, float("nan")):
        with pytest.raises(ConfigError, match="threshold must be"):
            near_duplicates(vectors, threshold)
    with pytest.raises(ConfigError, match=r"\(n, d\)"):
        near_duplicates(vectors[0], 0.9)
    for value in (np.nan, np.inf, 0.0):
        spoilt = vectors.copy()
        spoilt[611] = value
        with pytest.raises(ConfigError, match="vector 611 is zero or holds NaN"):
            near_duplicates(spoilt, 0.9, block_rows=100)


def test_progress_counts_blocks_of_pairs() -> None:
    told: list[tuple[int, int]] = []
    near_duplicates(clustered(0), 0.9, block_rows=200, progress=lambda *done: told.append(done))
    assert told == [(i, 10) for i in range(1, 11)]


def test_forest_joins_in_any_order() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        one, other = rng.integers(0, 60, (2, 45))
        forest = Forest(60)
        for part in np.array_split(np.arange(45), 3):
            forest.join(one[part], other[part])
        joined = np.zeros((60, 60), bool)
        joined[one, other] = joined[other, one] = True
        assert lists(forest.groups()) == components(joined.astype(float), 0.5)


# --- sets -------------------------------------------------------------------------------


def sets(seed: int) -> tuple[Array, Array]:
    """Videos of 1 to 9 frames; some are others with frames left out, or a copy."""
    rng = np.random.default_rng(seed)
    videos: list[Array] = []
    for number in range(60):
        if number % 3 == 1:
            kept = videos[-1][:: 1 + number % 2]
            videos.append(kept + 0.1 * rng.standard_normal(kept.shape))
        elif number % 15 == 2:
            videos.append(videos[-1].copy())
        else:
            videos.append(rng.standard_normal((rng.integers(1, 10), 16)))
    lengths = np.array([len(video) for video in videos])
    return np.concatenate(videos).astype(np.float32), lengths


@pytest.mark.parametrize("most", [10, 40, 5000])
def test_sets_are_grouped_by_symmetric_chamfer(most: int) -> None:
    frames, lengths = sets(0)
    there = set_similarity(frames, lengths, frames, lengths)
    full = (there + there.T) / 2
    similarity = SetSimilarity(frames, lengths, most)
    for threshold in (0.8, 0.95):
        expected = components(full, threshold)
        assert lists(linked(similarity, threshold)) == expected and len(expected) > 5
    i, j = np.triu_indices(len(lengths), 1)
    np.testing.assert_allclose(similarity.exact(i, j), full[i, j], atol=1e-6)


def test_identical_sets_are_as_alike_as_one() -> None:
    frames, lengths = sets(1)
    twice = SetSimilarity(np.concatenate([frames, frames]), np.concatenate([lengths, lengths]), 30)
    videos = np.split(frames, np.cumsum(lengths)[:-1])
    same: dict[bytes, list[int]] = {}
    for number, video in enumerate([*videos, *videos]):
        same.setdefault(video.tobytes(), []).append(number)
    assert sorted(lists(linked(twice, 1.0))) == sorted(same.values())
    assert {len(group) for group in same.values()} == {2, 4}


def test_sets_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="every set has at least one"):
        SetSimilarity(np.ones((5, 3), np.float32), [2, 2])
    with pytest.raises(ConfigError, match="every set has at least one"):
        SetSimilarity(np.ones((5, 3), np.float32), [5, 0])


# --- what is kept -----------------------------------------------------------------------


def chain(steps: int) -> Array:
    """Unit vectors a tenth of a right angle apart: each is like its neighbours."""
    angles = np.arange(steps) * np.pi / 20
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def test_a_chain_is_one_group_and_keeps_several() -> None:
    vectors = chain(11)
    threshold = float(np.cos(np.pi / 20)) - 1e-6
    [group] = near_duplicates(vectors, threshold)
    similarity = VectorSimilarity(vectors)
    assert np.array_equal(group, np.arange(11))
    assert lowest_similarity(similarity, group) == pytest.approx(0.0, abs=1e-6)
    kept, alike = choose_kept(similarity, group, threshold)
    # Each takes its neighbour along.
    assert kept.tolist() == [0, 0, 2, 2, 4, 4, 6, 6, 8, 8, 10]
    assert alike[1] == pytest.approx(np.cos(np.pi / 20)) and alike[2] == 1


def test_no_copy_is_less_alike_to_what_is_kept_than_the_threshold() -> None:
    vectors = clustered(5)
    similarity, full = VectorSimilarity(vectors), matrix(vectors)
    rng = np.random.default_rng(0)
    for group in near_duplicates(vectors, 0.8):
        ordered = rng.permutation(group)
        kept, alike = choose_kept(similarity, ordered, 0.8)
        assert kept[0] == 0
        pairs = full[ordered, ordered[kept]]
        np.testing.assert_allclose(alike, pairs, atol=1e-9)
        assert (pairs >= 0.8 - TOLERANCE).all()
        stays = ordered[kept == np.arange(len(kept))]
        between = full[np.ix_(stays, stays)]
        assert (between[np.triu_indices(len(stays), 1)] < 0.8).all()
        assert lowest_similarity(similarity, group) == pytest.approx(
            full[np.ix_(group, group)].min(), abs=1e-5
        )


def test_the_lowest_similarity_of_a_group_of_several_blocks() -> None:
    vectors = np.random.default_rng(0).standard_normal((2500, 6)).astype(np.float32)
    lowest = lowest_similarity(VectorSimilarity(vectors), np.arange(2500))
    assert lowest == pytest.approx(matrix(vectors).min(), abs=1e-5)
