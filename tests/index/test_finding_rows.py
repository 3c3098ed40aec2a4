"""Positions of values in a column, and the segments that are merged."""

from __future__ import annotations

import pyarrow as pa
import pytest

from whiten.index.local.manifest import small_parts
from whiten.index.membership import index_in


@pytest.mark.parametrize("times", [1, 100])  # a long column is looked through in another way
def test_the_first_position_of_each_value(times: int) -> None:
    column = pa.chunked_array([["b", None, "a"], ["b", "c"] * times])
    values = pa.array(["a", "c", "none", None, "a", "b"], pa.string())
    assert index_in(values, column).tolist() == [2, 4, -1, -1, 2, 0]
    assert index_in(values[:0], column).tolist() == []


def test_no_value_is_in_an_empty_column() -> None:
    column = pa.chunked_array([], pa.large_string())
    assert index_in(pa.array(["a", None], pa.large_string()), column).tolist() == [-1, -1]


@pytest.mark.parametrize(
    ("counts", "merged"),
    [
        ([1000, 1, 1, 1], [1, 2, 3]),
        ([1, 1, 1000, 3, 2], [0, 1, 4, 3]),
        ([1000, 8, 1, 1, 3], [2, 3]),
        ([5, 5], [0]),
        ([900, 600, 400, 100], [2, 3]),
    ],
)
def test_small_segments_are_merged_before_larger_ones(counts: list[int], merged: list[int]) -> None:
    assert small_parts(counts) == sorted(merged)


def test_a_row_is_copied_a_logarithmic_number_of_times() -> None:
    counts, copied = [10**6], 0
    for _ in range(4096):
        counts.append(1)
        if len(counts) > 8:
            merged = small_parts(counts)
            total = sum(counts[number] for number in merged)
            counts = [c for number, c in enumerate(counts) if number not in merged] + [total]
            copied += total
        assert len(counts) <= 8
    assert counts[0] == 10**6 and sum(counts) == 10**6 + 4096
    assert copied < 4096 * 12
