"""What every place of an index does alike: a folder, Milvus in a file, PostgreSQL with pgvector."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from command_line import Captured, prints
from helpers import TEACHER, draw, write_groups, write_image
from random_rows import backend_of, block_of
from whiten.datasets.collection import Item
from whiten.embedding.encoder import Encoder
from whiten.embedding.opening import load
from whiten.errors import ConfigError, StoreError
from whiten.index import Index, synchronise
from whiten.index.places import open_place
from whiten.index.rows import Facts


@pytest.fixture
def index(encoder: Encoder, images: Path, place: str) -> Index:
    return Index.build(encoder, images, place)


# --- built, and brought up to date ------------------------------------------------------


def test_an_image_finds_itself_first(index: Index, encoder: Encoder, images: Path) -> None:
    assert len(index) == 6
    for name in index.ids():
        [hits] = index.search(images / name, k=3)
        assert hits[0].id == name
        assert hits[0].path == str(images / name)
        assert hits[0].score == pytest.approx(1, abs=1e-5)
        assert [hit.group for hit in hits] == [name.split("/")[0]] * 3
        assert hits[0].score >= hits[1].score >= hits[2].score


def test_arrays_of_ids_and_scores(index: Index) -> None:
    vectors = index.vectors(["b/0.png", "a/0.png"])
    ids, scores = index.search_arrays(vectors, 8)
    hits = index.search_vectors(vectors, 8)
    assert ids.shape == scores.shape == (2, 8) and scores.dtype == np.float32
    for row in range(2):
        assert ids[row, :6].tolist() == [hit.id for hit in hits[row]]
        np.testing.assert_allclose(scores[row, :6], [hit.score for hit in hits[row]], rtol=1e-6)
    assert ids[:, 6:].tolist() == [[None, None]] * 2 and np.isneginf(scores[:, 6:]).all()


def test_any_place_on_the_command_line(
    capsys: Captured, encoder: Encoder, images: Path, place: str
) -> None:
    """A database may be named where a folder may: its address keeps its slashes."""
    out, _ = prints(capsys, "index", images, "--model", TEACHER, "--out", place)
    assert out.startswith(f"{Index.open(place).place}: 6 images; 6 added")
    query = images / "b" / "0.png"
    options = ("-k", "1", "--index", place, "--paths-only")
    assert prints(capsys, "search", query, *options)[0] == f"{query}\n"
    assert prints(capsys, "search", query, *options, "--background", place)[0] == f"{query}\n"


def test_opened_again_it_is_the_same(index: Index, encoder: Encoder, place: str) -> None:
    opened = Index.open(place, encoder)
    assert opened.ids() == index.ids() == sorted(index.ids())
    assert opened.facts == index.facts
    np.testing.assert_allclose(
        opened.vectors(opened.ids()), encoder.embed([m.path for m in opened.items(opened.ids())]),
        atol=1e-6,
    )  # fmt: skip


def test_nothing_changed_nothing_done(
    index: Index, encoder: Encoder, images: Path, place: str
) -> None:
    again = Index.build(encoder, images, place)
    assert (again.changes.unchanged, again.changes.embedded, again.changes.updated) == (6, 0, 0)


def test_a_folder_that_changed(index: Index, encoder: Encoder, images: Path, place: str) -> None:
    write_image(images / "c" / "new.png", seed=7)
    changed = write_image(images / "a" / "1.png", seed=50)
    later = time.time() + 10
    os.utime(changed, (later, later))
    (images / "a" / "2.png").rename(images / "c" / "moved.png")
    (images / "b" / "0.png").unlink()
    (images / "b" / "broken.png").write_bytes(b"no image")
    done = Index.build(encoder, images, place)
    changes = done.changes
    assert (changes.added, changes.updated, changes.removed) == (2, 1, 2)
    assert (changes.embedded, changes.unchanged) == (2, 3)  # what moved has its vector
    assert [skip.id for skip in changes.skipped] == ["b/broken.png"]
    present = ["a/0.png", "a/1.png", "b/1.png", "b/2.png", "c/moved.png", "c/new.png"]
    opened = Index.open(place, encoder)
    assert sorted(opened.ids()) == present
    assert [skip.id for skip in opened.skipped] == ["b/broken.png"]
    for seed, name in ((7, "c/new.png"), (50, "a/1.png")):
        [[hit]] = opened.search(draw(seed), k=1)
        assert (hit.id, hit.score) == (name, pytest.approx(1, abs=1e-5))
    np.testing.assert_allclose(
        opened.vectors(present), encoder.embed([images / name for name in present]), atol=1e-6
    )


def test_contents_that_change_places(
    index: Index, encoder: Encoder, images: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = images / "a" / "0.png", images / "b" / "0.png"
    one.rename(images / "x")
    other.rename(one)
    (images / "x").rename(other)
    monkeypatch.setattr(synchronise, "CHUNK", 1)  # the second comes when the first is written
    done = Index.build(encoder, images, place)
    assert done.changes.updated == 2
    names = ["a/0.png", "b/0.png"]
    np.testing.assert_allclose(
        done.vectors(names), encoder.embed([images / name for name in names]), atol=1e-6
    )


def test_a_collection_that_moved_is_not_embedded(
    index: Index, encoder: Encoder, images: Path, place: str
) -> None:
    items = [
        Item(f"{path.parent.name}/{path.name}", str(path))
        for path in sorted(images.rename(images.with_name("moved")).rglob("*.png"))
    ]
    done = Index.build(encoder, items, place)
    assert (done.changes.updated, done.changes.embedded) == (6, 0)
    assert [match.path for match in done.items(done.ids())] == [item.path for item in items]


def test_added_to_and_taken_from(index: Index, tmp_path: Path, place: str) -> None:
    more = write_groups(tmp_path / "more", {"z": 2})
    assert index.add(more).added == 2
    index.remove(["a/0.png", "z/1.png"])
    opened = Index.open(place)
    assert sorted(opened.ids()) == [
        "a/1.png",
        "a/2.png",
        "b/0.png",
        "b/1.png",
        "b/2.png",
        "z/0.png",
    ]
    with pytest.raises(StoreError, match=r"has no image 'a/0\.png'"):
        index.remove(["b/0.png", "a/0.png"])
    assert len(index) == 6
    index.remove(opened.ids())
    assert len(Index.open(place)) == 0
    assert index.search(draw(0), k=3) == [[]]


def test_rows_and_vectors_in_the_order_of_the_ids(place: str) -> None:
    index = backend_of(place, 700)
    expected = block_of(index.facts, [f"r{n}" for n in range(700)]).vectors
    order = np.random.default_rng(1).permutation(700)
    ids = [f"r{n}" for n in order]
    assert [match.id for match in index.items(ids)] == ids
    assert np.array_equal(index.vectors(ids), expected[order])  # to the last bit
    assert np.array_equal(index.vectors(["r5", "r3", "r5"]), expected[[5, 3, 5]])
    assert index.vectors([]).shape == (0, 8)
    with pytest.raises(StoreError, match="has no image 'nobody'"):
        index.vectors(["r1", "nobody"])
    assert [len(page) for page in index.pages(300)] == [300, 300, 100]
    assert [name for page in index.pages(300) for name in page["id"].to_pylist()] == index.ids()
    assert set(index.ids()) == set(ids)


def test_a_row_is_replaced_whole(place: str) -> None:
    index = backend_of(place, 3, price=[1.5, None, 2.5])
    backend = open_place(place)
    new = block_of(index.facts, ["r0", "new"], seed=9, price=[None, 7.0])
    with backend.writing():
        backend.write(index.facts, ["r2", "never there"], [new])
    index.refresh()
    assert sorted(index.ids()) == ["new", "r0", "r1"]
    assert np.array_equal(index.vectors(["new", "r0"]), new.vectors[::-1])
    assert [match.metadata for match in index.items(["r0", "new"])] == [{}, {"price": 7.0}]


# --- searched ---------------------------------------------------------------------------


def test_the_nearest_are_those_of_a_plain_product(place: str) -> None:
    index = backend_of(place, 3000, dim=24)
    vectors = block_of(index.facts, [f"r{n}" for n in range(3000)]).vectors
    queries = block_of(index.facts, ["q"] * 70, seed=5).vectors
    scores = queries @ vectors.T
    best = np.argsort(-scores, axis=1)[:, :10]
    for hits, row, order in zip(index.search_vectors(queries, 10), scores, best, strict=True):
        assert [hit.id for hit in hits] == [f"r{n}" for n in order]
        np.testing.assert_allclose([hit.score for hit in hits], row[order], atol=1e-6)


def test_the_same_ten_as_in_a_folder(encoder: Encoder, tmp_path: Path, place: str) -> None:
    images = write_groups(tmp_path / "images", {f"group {n}": 4 for n in range(15)})
    exact = Index.build(encoder, images, tmp_path / "exact")
    index = Index.build(encoder, images, place)
    queries = exact.vectors(exact.ids())
    for where in (None, "group >= 'group 3' and not group == 'group 7'"):
        pairs = zip(
            exact.search_vectors(queries, where=where),
            index.search_vectors(queries, where=where),
            strict=True,
        )
        for expected, found in pairs:
            assert [hit.id for hit in found] == [hit.id for hit in expected]
            np.testing.assert_allclose(
                [hit.score for hit in found], [hit.score for hit in expected], atol=1e-6
            )


def test_the_equally_near_stand_in_order(place: str) -> None:
    facts = Facts("model", "", "random", 8)
    block = block_of(facts, sorted(f"r{n}" for n in range(50)))
    block.vectors[5:45] = block.vectors[5]
    backend = open_place(place)
    with backend.writing():
        backend.write(facts, (), [block])
    [hits] = Index(backend).search_vectors(block.vectors[5:6], 10)
    assert [hit.id for hit in hits] == block.rows["id"].to_pylist()[5:15]


def test_k_larger_than_what_is_there(place: str) -> None:
    index = backend_of(place, 5)
    assert [len(hits) for hits in index.search_vectors(np.ones((2, 8), np.float32), 99)] == [5, 5]
    with pytest.raises(ConfigError, match="k must be at least 1, not 0"):
        index.search_vectors(np.ones((2, 8), np.float32), 0)


# --- who may change it ------------------------------------------------------------------


def test_another_model_is_refused(index: Index, images: Path, place: str) -> None:
    other = load(f"{TEACHER}?seed=1")
    for use in (lambda: Index.open(place, other), lambda: Index.build(other, images, place)):
        with pytest.raises(StoreError, match="was made with another model"):
            use()
    assert len(Index.open(place)) == 6


def test_nothing_there(place: str, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    with pytest.raises(StoreError, match="is not an index: make one"):
        Index.open(place)
    assert sorted(tmp_path.iterdir()) == before


def test_one_writer_at_a_time(
    index: Index, encoder: Encoder, images: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Index, "patience", 0.0)
    backend = open_place(place)
    with backend.writing():
        with pytest.raises(StoreError, match=r"another process is changing .*: wait until"):
            Index.build(encoder, images, place)
        with pytest.raises(StoreError, match="another process is changing"):
            index.remove("a/0.png")
        assert len(Index.open(place)) == 6
    index.remove("a/0.png")
    backend.refresh()
    assert len(backend) == 5


def test_a_short_change_of_another_process_is_waited_for(
    index: Index, encoder: Encoder, images: Path, place: str
) -> None:
    other = open_place(place)
    (images / "a" / "0.png").unlink()
    changes = (
        lambda: Index.build(encoder, images, place),
        lambda: index.add(images),
        lambda: index.remove("a/1.png"),
    )
    for change in changes:
        with ThreadPoolExecutor(1) as pool:
            with other.writing():
                done = pool.submit(change)
                time.sleep(0.1)
                assert not done.done()
            done.result()
    assert len(Index.open(place)) == 4
