"""Faster search: recall reached and told, filters and changes honoured, damage refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from index_helpers import DIM, block, clustered, facts, found_ids, make, timed_as, write
from whiten.errors import ConfigError, MissingExtraError, StoreError
from whiten.index import Index
from whiten.index.local import approximate, tuning
from whiten.index.local.approximate import assign, cluster
from whiten.index.local.codes import can_multiply
from whiten.index.local.folder import FolderIndex
from whiten.index.where import parse_where
from whiten.retrieval.exact import exact_search

ROWS = 4000
APPROXIMATE = ["ivf", "hnsw"]
KINDS = [
    *APPROXIMATE,
    pytest.param("int8", marks=pytest.mark.skipif(not can_multiply(), reason="no int8 products")),
]


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return clustered(ROWS)


@pytest.fixture(scope="module")
def queries() -> np.ndarray:
    noise = 0.1 * clustered(50, seed=3)
    found = clustered(ROWS)[100:150] + noise
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def tuned(folder: Path, vectors: np.ndarray, kind: str, recall: float = 0.95) -> FolderIndex:
    with timed_as(1.0, 0.1):
        return make(folder, vectors, kind, recall)


def names_exactly(queries: np.ndarray, vectors: np.ndarray, k: int) -> list[list[str]]:
    return [[str(row) for row in rows] for rows, _ in exact_search(queries, vectors, k)]


def recall_of(found: list[list[str]], expected: list[list[str]]) -> float:
    pairs = zip(found, expected, strict=True)
    return float(np.mean([len(set(one) & set(own)) / len(own) for one, own in pairs]))


@pytest.mark.parametrize("kind", KINDS)
def test_the_recall_asked_for_is_reached_and_told(
    tmp_path: Path, vectors: np.ndarray, queries: np.ndarray, kind: str
) -> None:
    index = tuned(tmp_path / "index", vectors, kind)
    chosen = index.tuning
    assert chosen is not None
    assert (chosen.asked, chosen.kind, chosen.rows) == (kind, kind, ROWS)
    assert chosen.recall["10"] >= 0.95
    assert chosen.seconds == {"exact": 1.0, kind: 0.1}
    [line] = chosen.lines()
    assert line.startswith(f"search: {kind}, recall@10 {chosen.recall['10']:.3f} (asked for 0.95)")
    found = found_ids(FolderIndex(tmp_path / "index"), queries, 10)
    reached = recall_of(found, names_exactly(queries, vectors, 10))
    assert reached == 1 if kind == "int8" else reached >= 0.9
    stored = json.loads((tmp_path / "index" / "manifest.json").read_text())["tuning"]
    assert stored["recall"] == chosen.recall


@pytest.mark.parametrize("kind", APPROXIMATE)
def test_scores_are_exact(
    tmp_path: Path, vectors: np.ndarray, queries: np.ndarray, kind: str
) -> None:
    index = tuned(tmp_path / "index", vectors, kind)
    for query, found in zip(queries, index.search(queries, 10), strict=True):
        scores = [match.score for match in found]
        own = vectors[[int(match.id) for match in found]] @ query
        np.testing.assert_allclose(scores, own, atol=1e-6)
        assert scores == sorted(scores, reverse=True)


def test_a_higher_recall_takes_more_effort(tmp_path: Path, vectors: np.ndarray) -> None:
    efforts = []
    for recall in (0.5, 0.95, 1.0):
        chosen = tuned(tmp_path / f"{recall}", vectors, "ivf", recall).tuning
        assert chosen is not None and chosen.recall["10"] >= recall
        efforts.append(chosen.settings["effort"])
    assert efforts[0] < efforts[1] < efforts[2]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", ["price == 3", "price < 8", "price > 20"])
def test_filters(
    tmp_path: Path, vectors: np.ndarray, queries: np.ndarray, kind: str, where: str
) -> None:
    index = tuned(tmp_path / "index", vectors, kind)
    prices = np.arange(ROWS) % 10
    allowed = {"price == 3": prices == 3, "price < 8": prices < 8, "price > 20": prices > 20}[where]
    found = found_ids(index, queries, 10, parse_where(where, {"price": "int"}))
    expected = [
        [str(row) for row in rows] for rows, _ in exact_search(queries, vectors, 10, allowed)
    ]
    assert all(allowed[int(name)] for names in found for name in names)
    if where == "price > 20":
        assert found == expected == [[]] * len(queries)
    else:
        assert recall_of(found, expected) >= 0.9


@pytest.mark.parametrize("kind", APPROXIMATE)
def test_as_many_are_found_as_are_asked_for(
    tmp_path: Path, vectors: np.ndarray, queries: np.ndarray, kind: str
) -> None:
    index = tuned(tmp_path / "index", vectors, kind)
    for k in (100, 400, 1000):  # more than the lists hold that are visited for ten
        found = found_ids(index, queries, k)
        assert {len(names) for names in found} == {k}
        assert found == [one for query in queries for one in found_ids(index, query[None], k)]
        assert recall_of(found, names_exactly(queries, vectors, k)) >= 0.5


@pytest.mark.parametrize("kind", APPROXIMATE)
def test_a_filter_that_nothing_near_the_query_passes(
    tmp_path: Path, vectors: np.ndarray, queries: np.ndarray, kind: str
) -> None:
    index = tuned(tmp_path / "index", vectors, kind)
    query = queries[:1]
    far = np.argsort(vectors @ query[0])[: ROWS * 6 // 10]
    where = f"id in {[str(row) for row in far]}"
    [found] = found_ids(index, query, 10, parse_where(where, {"id": "string"}))
    assert len(found) == 10
    assert set(found) <= {str(row) for row in far}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_removed_is_found_no_more_and_what_is_added_is(
    tmp_path: Path, vectors: np.ndarray, queries: np.ndarray, kind: str
) -> None:
    index = tuned(tmp_path / "index", vectors, kind)
    nearest = sorted({names[0] for names in found_ids(index, queries, 1)})
    write(index, [block(queries, "new-")], nearest)
    assert [part.count for part in index._opened.manifest.parts] == [ROWS, len(queries)]
    assert any(part.fast for part in index._opened.manifest.parts)  # not made anew
    for opened in (index, FolderIndex(tmp_path / "index")):
        found = found_ids(opened, queries, 20)
        assert [names[0] for names in found] == [f"new-{n}" for n in range(len(queries))]
        assert not {name for names in found for name in names} & set(nearest)


def test_much_that_is_new_is_taken_in(tmp_path: Path, vectors: np.ndarray) -> None:
    index = tuned(tmp_path / "index", vectors, "ivf")
    more = clustered(2000, seed=9)
    with timed_as(1.0, 0.1):
        write(index, [block(more, "new-")])
    [part] = index._opened.manifest.parts
    assert part.count == ROWS + 2000
    assert part.fast and index.tuning is not None and index.tuning.rows == ROWS + 2000
    assert found_ids(index, more[:50], 1) == [[f"new-{n}"] for n in range(50)]
    assert sorted(path.name for path in index.root.iterdir()) == sorted(
        [".lock", "manifest.json", part.name, part.fast]
    )


def test_many_small_changes_leave_the_large_segment_alone(
    tmp_path: Path, vectors: np.ndarray
) -> None:
    index = tuned(tmp_path / "index", vectors, "ivf")
    first = index._opened.manifest.parts[0]
    more = clustered(100, seed=9)
    for number in range(10):
        write(index, [block(more[10 * number :][:10], f"{number}-")])
    parts = index._opened.manifest.parts
    assert len(parts) < 8
    assert first in parts
    assert len(index) == ROWS + 100
    assert found_ids(index, more[35:36], 1) == [["3-5"]]


def test_everything_is_removed_and_something_added(tmp_path: Path, vectors: np.ndarray) -> None:
    index = tuned(tmp_path / "index", vectors[:500], "ivf")
    write(index, (), [str(row) for row in range(500)])
    assert len(index) == 0
    with timed_as(1.0, 0.1):
        write(index, [block(vectors[:300])])
    assert found_ids(index, vectors[:3], 1) == [["0"], ["1"], ["2"]]
    assert index.tuning is not None and index.tuning.kind == "ivf"


# --- choosing ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", APPROXIMATE)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_one_image_or_a_few_are_enough_for_every_kind(
    tmp_path: Path, vectors: np.ndarray, kind: str, count: int
) -> None:
    index = tuned(tmp_path / "index", vectors[:count], kind)
    found = found_ids(index, vectors[:count], 10)
    assert found == names_exactly(vectors[:count], vectors[:count], 10)


def test_few_images_are_searched_exactly(tmp_path: Path, vectors: np.ndarray) -> None:
    chosen = make(tmp_path / "index", vectors, "auto").tuning
    assert chosen is not None
    assert (chosen.asked, chosen.kind, chosen.remark) == ("auto", "exact", "")
    assert list(chosen.lines()) == []


def test_many_images_are_searched_by_lists(
    tmp_path: Path, vectors: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "FEW_BYTES", vectors.nbytes)
    chosen = tuned(tmp_path / "index", vectors, "auto").tuning
    assert chosen is not None and (chosen.asked, chosen.kind) == ("auto", "ivf")


@pytest.mark.skipif(not can_multiply(), reason="no int8 products")
def test_a_recall_of_one_is_had_by_codes(
    tmp_path: Path, vectors: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "FEW_BYTES", 0)
    chosen = tuned(tmp_path / "index", vectors, "auto", 1.0).tuning
    assert chosen is not None and chosen.kind == "int8" and chosen.recall["10"] == 1


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_slower_than_exact_search_is_not_used(
    tmp_path: Path, vectors: np.ndarray, queries: np.ndarray, kind: str
) -> None:
    with timed_as(0.001, 0.002):
        index = make(tmp_path / "index", vectors, kind)
    chosen = index.tuning
    assert chosen is not None and (chosen.asked, chosen.kind) == (kind, "exact")
    assert chosen.remark == (
        f"{kind} takes 2.00 ms a query here, exact search 1.00 ms: exact is better at this size"
    )
    assert not list(index.root.glob("fast-*"))
    assert found_ids(index, queries, 10) == names_exactly(queries, vectors, 10)


def test_auto_gives_up_exactness_for_a_good_deal_of_speed_alone(
    tmp_path: Path, vectors: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "FEW_BYTES", 0)
    monkeypatch.setattr(tuning, "can_multiply", lambda: False)
    for seconds, kind in ((0.4, "exact"), (0.3, "ivf")):
        with timed_as(1.0, seconds):
            chosen = make(tmp_path / kind, vectors, "auto").tuning
        assert chosen is not None and chosen.kind == kind
        with timed_as(1.0, 0.9):
            chosen = make(tmp_path / f"{kind}-named", vectors, "ivf").tuning
        assert chosen is not None and chosen.kind == "ivf"


def test_the_choice_can_be_changed(tmp_path: Path, vectors: np.ndarray) -> None:
    index = tuned(tmp_path / "index", vectors, "ivf")
    with index.writing():
        index.tune()  # as before: nothing to do
        assert index._opened.manifest.generation == 2
        index.tune("exact")
    assert index.tuning is not None and index.tuning.kind == "exact"
    assert not list(index.root.glob("fast-*"))


def test_without_faiss(
    tmp_path: Path, vectors: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = tuned(tmp_path / "made", vectors, "ivf")
    monkeypatch.setitem(sys.modules, "faiss", None)
    line = r"approximate search needs an optional dependency: pip install 'whiten\[faiss\]'"
    with pytest.raises(MissingExtraError, match=line):
        Index.build(None, tmp_path, tmp_path / "index", kind="ivf")
    assert not (tmp_path / "index").exists()
    with pytest.raises(MissingExtraError, match=line):
        FolderIndex(index.root).search(vectors[:1], 3)
    monkeypatch.setattr(tuning, "FEW_BYTES", 0)
    chosen = tuned(tmp_path / "auto", vectors, "auto").tuning
    assert chosen is not None and chosen.kind == ("int8" if can_multiply() else "exact")
    assert "pip install 'whiten[faiss]'" in chosen.remark


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "ifv"}, r"there is no kind of search 'ifv'; did you mean 'ivf'"),
        ({"recall": 0.0}, "recall must be above 0 and at most 1, not 0"),
        ({"recall": 1.5}, "recall must be above 0 and at most 1, not 1.5"),
    ],
)
def test_what_cannot_be_had_is_refused_at_once(
    tmp_path: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Index.build(None, tmp_path, tmp_path / "index", **options)  # type: ignore[arg-type]


def test_empty_clusters_begin_anew() -> None:
    vectors = np.repeat(clustered(3), 20, axis=0)
    centroids = cluster(vectors, 10, np.random.default_rng(0))
    assert centroids.shape == (10, DIM) and np.isfinite(centroids).all()
    assert np.allclose((vectors @ centroids.T).max(1), 1, atol=1e-5)


@pytest.mark.parametrize("can", [True, False], ids=["codes", "floats"])
def test_lists_of_the_nearest_centroid(can: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if can and not can_multiply():
        pytest.skip("no int8 products")
    monkeypatch.setattr(approximate, "can_multiply", lambda: can)
    monkeypatch.setattr(approximate, "_BLOCK", 300)
    vectors, centroids = clustered(1000), clustered(30, seed=5)
    products = vectors @ centroids.T
    found = products[np.arange(1000), assign(vectors, centroids)]
    np.testing.assert_allclose(found, products.max(1), atol=0.03 if can else 0)


def test_lists_hold_each_row_once_with_its_own_code(
    tmp_path: Path, vectors: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    import faiss

    monkeypatch.setattr(approximate, "_READ", 700)
    approximate.write_approximate("ivf", tmp_path / "lists", vectors)
    lists = faiss.read_index(str(tmp_path / "lists" / "index.faiss"))
    sizes = [lists.invlists.list_size(number) for number in range(lists.nlist)]
    assert sum(sizes) == lists.ntotal == ROWS
    np.testing.assert_allclose(lists.reconstruct_n(0, ROWS), vectors, atol=0.01)


def test_lists_of_the_codes_of_product_quantisation(
    tmp_path: Path, vectors: np.ndarray, queries: np.ndarray
) -> None:
    sizes = {}
    for storage in ("float32", "pq:8+float32"):
        index = make(tmp_path / storage, vectors)
        with index.writing(), timed_as(1.0, 0.1):
            index.store_as(storage)
            index.tune("ivf", 0.95)
        assert index.tuning is not None and index.tuning.kind == "ivf"
        assert index.tuning.recall["10"] >= 0.95
        found = FolderIndex(tmp_path / storage).search(queries, 10)
        names = [[match.id for match in hits] for hits in found]
        assert recall_of(names, names_exactly(queries, vectors, 10)) >= 0.9
        for query, hits in zip(queries, found, strict=True):
            own = vectors[[int(match.id) for match in hits]] @ query
            np.testing.assert_allclose([match.score for match in hits], own, atol=1e-6)
        [lists] = (tmp_path / storage).glob("fast-*/index.faiss")
        sizes[storage] = lists.stat().st_size
    assert sizes["float32"] - sizes["pq:8+float32"] > (DIM - 8) * ROWS - (DIM * 4 * 256) - 1000


# --- damage -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", APPROXIMATE)
@pytest.mark.parametrize("damage", ["missing", "empty", "short", "cut", "garbage", "another"])
def test_a_damaged_file_is_refused(
    tmp_path: Path, vectors: np.ndarray, kind: str, damage: str
) -> None:
    index = tuned(tmp_path / "index", vectors, kind)
    [path] = index.root.glob("fast-*/index.faiss")
    content = path.read_bytes()
    other = tuned(tmp_path / "other", vectors[:500], kind).root
    path.unlink()
    if damage != "missing":
        [foreign] = other.glob("fast-*/index.faiss")
        path.write_bytes(
            {
                "empty": b"",
                "short": content[: len(content) // 2],
                "cut": content[:-1],
                "garbage": b"garbage" * 1000,
                "another": foreign.read_bytes(),
            }[damage]
        )
    with pytest.raises(
        StoreError, match=r"index\.faiss is damaged \(.+\): index again with --kind exact"
    ):
        FolderIndex(index.root).search(vectors[:1], 3)


def test_who_has_the_old_state_open_goes_on_reading_it(
    tmp_path: Path, vectors: np.ndarray, queries: np.ndarray
) -> None:
    index = tuned(tmp_path / "index", vectors, "ivf")
    reader, late = FolderIndex(index.root), FolderIndex(index.root)
    before = found_ids(reader, queries, 10)
    with index.writing():
        index.tune("exact")
    assert found_ids(reader, queries, 10) == before
    # Its lists are gone before it has opened them.
    assert found_ids(late, queries, 10) == names_exactly(queries, vectors, 10)


@pytest.mark.parametrize("key", ["kind", "settings", "recall", "rows"])
def test_a_damaged_choice_is_refused(tmp_path: Path, vectors: np.ndarray, key: str) -> None:
    index = tuned(tmp_path / "index", vectors[:500], "ivf")
    path = index.root / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["tuning"][key] = "x"
    path.write_text(json.dumps(manifest))
    with pytest.raises(StoreError, match=r"manifest\.json is damaged"):
        FolderIndex(index.root)


def test_facts_stay(tmp_path: Path, vectors: np.ndarray) -> None:
    assert tuned(tmp_path / "index", vectors[:500], "ivf").facts == facts()
