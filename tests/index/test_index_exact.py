"""Exact search answers as a stable sort of all similarities does, by vectors and by codes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from index_helpers import clustered
from whiten.errors import StoreError
from whiten.index.local import codes
from whiten.index.local.codes import CodedSegment, can_multiply, write_codes
from whiten.retrieval import exact
from whiten.retrieval.exact import Mask, Nearest, exact_search
from whiten.utils.arrays import Vectors

Found = list[tuple[npt.NDArray[np.int64], Vectors]]
Search = Callable[[Vectors, Vectors, int, Mask | None], Found]


def sorted_search(queries: Vectors, vectors: Vectors, k: int, allowed: Mask | None) -> Found:
    found = []
    for similarities in queries @ vectors.T:
        order = np.argsort(-similarities, kind="stable")
        order = (order if allowed is None else order[allowed[order]])[:k]
        found.append((order, similarities[order]))
    return found


@pytest.fixture
def by_codes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Search:
    if not can_multiply():
        pytest.skip("torch multiplies no int8 matrices here")

    def search(queries: Vectors, vectors: Vectors, k: int, allowed: Mask | None) -> Found:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        write_codes(folder, vectors)
        segment = CodedSegment(folder, *vectors.shape)
        queries = queries.copy()
        queries.flags.writeable = False
        found = segment.search(queries, k, lambda rows: vectors[rows], allowed)
        assert found is not None
        return found

    return search


@pytest.fixture(params=["at once", "block by block", "row by row", "codes"])
def search(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Search:
    for module, name in ((exact, "BLOCK_ROWS"), (codes, "_ROWS"), (codes, "_PRODUCTS")):
        monkeypatch.setattr(module, name, 500)  # several blocks, for there are few rows
    monkeypatch.setattr(exact, "_SHARED_BYTES", 4000)
    monkeypatch.setattr(exact, "_FEW", 10**6 if request.param == "row by row" else 0)
    monkeypatch.setattr(exact, "_SOME_CACHED", 10**6 if request.param == "block by block" else 0)
    monkeypatch.setattr(exact, "_ROWS", 60)
    monkeypatch.setattr(exact, "_SMALL", 1500)
    if request.param == "codes":
        monkeypatch.setattr(codes, "_MOST", 10**6)  # never give up
        found: Search = request.getfixturevalue("by_codes")
        return found
    return exact_search


def integers(count: int, dim: int = 8, seed: int = 0) -> Vectors:
    """Vectors whose products are exact, and often equal."""
    found: Vectors = np.random.default_rng(seed).integers(-2, 3, (count, dim)).astype(np.float32)
    return found


def plain(found: Found) -> list[tuple[list[int], list[float]]]:
    """Rows and scores per query, as values that compare whole."""
    return [(rows.tolist(), scores.tolist()) for rows, scores in found]


@pytest.mark.parametrize("k", [1, 10, 100, 2999, 5000])
@pytest.mark.parametrize("count", [1, 3, 70])
def test_ties_stand_in_the_order_of_rows(search: Search, k: int, count: int) -> None:
    vectors, queries = integers(3000), integers(count, seed=1)
    expected = sorted_search(queries, vectors, k, None)
    assert plain(search(queries, vectors, k, None)) == plain(expected)
    assert k > 1500 or len(np.unique(expected[0][1])) < max(2, k)  # there are ties


@pytest.mark.parametrize("part", [0.0, 0.001, 0.05, 0.5, 1.0])
def test_masked_rows_are_no_answers(search: Search, part: float) -> None:
    vectors, queries = integers(3000), integers(5, seed=1)
    allowed = np.random.default_rng(2).random(3000) < part
    expected = sorted_search(queries, vectors, 20, allowed)
    assert plain(search(queries, vectors, 20, allowed)) == plain(expected)


@pytest.mark.parametrize("order", ["ascending", "descending", "equal", "best last"])
def test_orders_that_hurt(search: Search, order: str) -> None:
    vectors, queries = integers(4000), integers(6, seed=1)
    ascending = vectors[np.argsort(vectors @ queries[0], kind="stable")]
    vectors = {
        "ascending": ascending,  # every block beats the bar
        "descending": ascending[::-1].copy(),
        "equal": np.repeat(vectors[:1], 4000, axis=0),
        "best last": np.concatenate([-np.abs(vectors), np.abs(vectors[:50])]),
    }[order]
    expected = sorted_search(queries, vectors, 30, None)
    assert plain(search(queries, vectors, 30, None)) == plain(expected)


def test_queries_beyond_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "QUERIES", 4)
    vectors, queries = integers(1000), integers(11, seed=1)
    expected = sorted_search(queries, vectors, 7, None)
    assert plain(exact_search(queries, vectors, 7)) == plain(expected)


def test_no_rows() -> None:
    [(rows, scores)] = exact_search(integers(1), integers(0), 5)
    assert rows.shape == scores.shape == (0,)


def test_a_bar_keeps_what_is_kept_small() -> None:
    nearest = Nearest(2, 3)
    random = np.random.default_rng(0)
    for start in range(0, 100_000, 1000):
        nearest.show(random.random((1000, 2), np.float32).T, start)
        assert len(nearest) <= 2 * 8 * 2 * 3 + 2 * 1000


@pytest.mark.parametrize("count", [1, 9])
@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_codes_find_the_same_among_real_numbers(by_codes: Search, count: int, shift: float) -> None:
    """Also of vectors that all point the same way, as embeddings often do."""
    vectors = clustered(20_000, 64) + np.float32(shift)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    queries = vectors[7 : 7 + count] + 0.05 * clustered(count, 64, seed=5)
    expected = exact_search(queries, vectors, 50)
    found = by_codes(queries, vectors, 50, None)
    for (rows, scores), (own_rows, own_scores) in zip(found, expected, strict=True):
        np.testing.assert_allclose(scores, own_scores, atol=1e-6)
        assert (rows == own_rows).mean() > 0.9  # the others are equal but for rounding


def test_codes_of_outliers(by_codes: Search) -> None:
    """One large coordinate, rows of zeros: the bound is loose, the answer the same."""
    vectors = clustered(2000, 16)
    vectors[:5] = 0
    vectors[5, 3] = 50
    queries = np.eye(16, dtype=np.float32)[[3, 4]]
    expected = exact_search(queries, vectors, 3)
    for (rows, _), (own, _) in zip(by_codes(queries, vectors, 3, None), expected, strict=True):
        np.testing.assert_array_equal(rows, own)


def test_a_few_searches_do_not_wait_until_torch_is_loaded(tmp_path: Path) -> None:
    if not can_multiply():
        pytest.skip("torch multiplies no int8 matrices here")
    vectors = clustered(3000, 16)
    np.save(tmp_path / "vectors.npy", vectors)
    write_codes(tmp_path / "codes", vectors)
    program = """
import sys
from pathlib import Path
import numpy as np
from whiten.index.local import codes
from whiten.retrieval.exact import exact_search
codes._LOADING = 3000 * 16 * (1 + 5 / 8) * 3
vectors = np.load("vectors.npy")
segment = codes.CodedSegment(Path("codes"), *vectors.shape)
for number in range(5):
    found = segment.search(vectors[:5], 3, lambda rows: vectors[rows], None)
    print(found is not None, "torch" in sys.modules)
for one, true in zip(found, exact_search(vectors[:5], vectors, 3), strict=True):
    np.testing.assert_array_equal(one[0], true[0])
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["False False"] * 3 + ["True True"] * 2


def test_codes_give_up_where_all_are_alike(tmp_path: Path) -> None:
    if not can_multiply():
        pytest.skip("torch multiplies no int8 matrices here")
    vectors = np.repeat(clustered(1, 16), 50_000, axis=0)
    write_codes(tmp_path / "codes", vectors)
    segment = CodedSegment(tmp_path / "codes", *vectors.shape)
    assert segment.search(vectors[:8], 5, lambda rows: vectors[rows], None) is None


@pytest.mark.parametrize("name", ["codes.i8", "frame.npy"])
@pytest.mark.parametrize("damage", ["missing", "empty", "short", "garbage"])
def test_damaged_codes_are_refused(tmp_path: Path, name: str, damage: str) -> None:
    write_codes(tmp_path / "codes", clustered(100, 16))
    path = tmp_path / "codes" / name
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes({"empty": b"", "short": content[:-9], "garbage": b"garbage"}[damage])
    with pytest.raises(StoreError, match=r"codes is damaged \(.+\): index again with --kind exact"):
        CodedSegment(tmp_path / "codes", 100, 16)
