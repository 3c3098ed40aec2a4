"""Indexes in folders: built, brought up to date, opened, searched."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from folder_checks import check_vectors, count_embedded, paths_of
from helpers import TEACHER, draw, write_groups, write_image
from whiten.datasets.finding import find_items
from whiten.embedding.embed import embed
from whiten.embedding.encoder import Encoder
from whiten.embedding.opening import load
from whiten.embedding.rows import embed_rows
from whiten.errors import ConfigError, NoImagesError, NonFiniteInputError, StoreError
from whiten.index import Changes, Index
from whiten.index.local.folder import FolderIndex
from whiten.models.registry import open_teacher


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "index"


@pytest.fixture
def index(encoder: Encoder, images: Path, place: Path) -> Index:
    return Index.build(encoder, images, place)


# --- searching --------------------------------------------------------------------------


def test_an_image_finds_itself_first(index: Index, images: Path) -> None:
    assert len(index) == 6
    for item in find_items(images):
        [hits] = index.search(item.path, k=3)
        assert (hits[0].id, hits[0].path, hits[0].group) == (item.id, item.path, item.group)
        assert hits[0].score == pytest.approx(1, abs=1e-5)
        assert [hit.group for hit in hits] == [item.group] * 3
        assert hits[0].score >= hits[1].score >= hits[2].score


def test_several_queries_and_more_hits_than_images(index: Index) -> None:
    results = index.search([draw(0), draw(1)], k=99)
    assert [len(hits) for hits in results] == [6, 6]
    assert [hits[0].id for hits in results] == ["a/0.png", "b/0.png"]


def test_embeddings_in_lists_and_tensors_search(index: Index) -> None:
    queries = index.vectors(["a/0.png", "b/0.png"])
    for given in (queries.tolist(), torch.from_numpy(queries)):
        assert index.search_arrays(given, 2)[0][:, 0].tolist() == ["a/0.png", "b/0.png"]


def test_scores_of_queries_of_any_length_are_cosines(index: Index) -> None:
    queries = index.vectors(["a/0.png", "b/0.png"])
    ids, scores = index.search_arrays(queries, 3)
    # The squares of very small and very large float32 vanish or overflow in float32.
    for lengths in ([7, 0.01], [1e-25, 1e25]):
        scaled = (queries * np.array(lengths)[:, None]).astype(np.float32)
        found = index.search_arrays(scaled, 3)
        np.testing.assert_array_equal(found[0], ids)
        np.testing.assert_allclose(found[1], scores, atol=1e-5)


def test_what_cannot_be_asked(index: Index) -> None:
    with pytest.raises(ConfigError, match="k must be at least 1, not 0"):
        index.search(draw(0), k=0)
    with pytest.raises(ConfigError, match=r"must be \(n, 12\), as the index is, not \(1, 5\)"):
        index.search_vectors(np.ones((1, 5), np.float32))
    with pytest.raises(NonFiniteInputError, match="sample 1 holds NaN"):
        index.search_arrays(np.stack([np.ones(12), np.full(12, np.nan)]))
    with pytest.raises(ConfigError, match=r"query 1 is all zeros, .*: embed that image again"):
        index.search_vectors(np.stack([np.ones(12), np.zeros(12)]))
    with pytest.raises(ConfigError, match="expected rows of numbers"):
        index.search_vectors(np.full((1, 12), "1"))
    with pytest.raises(ConfigError, match="there is no column 'grp'; did you mean 'group'"):
        index.search(draw(0), where="grp == 'a'")


def test_an_opened_index_opens_its_model(index: Index, encoder: Encoder, place: Path) -> None:
    opened = Index.open(place)
    assert opened.ids() == index.ids()
    assert opened.facts == index.facts
    assert opened.facts.model == encoder.fingerprint()
    assert opened.search(draw(1), k=2) == index.search(draw(1), k=2)
    check_vectors(opened, encoder)


def test_a_model_without_a_uri_has_to_be_named(encoder: Encoder, images: Path, place: Path) -> None:
    both = Encoder("both", [*encoder.parts, *load(f"{TEACHER}?seed=1&dim=7").parts])
    (images / "b" / "broken.png").write_bytes(b"no image")
    built = Index.build(both, images, place)
    kept, vectors, skipped = embed_rows(both, find_items(images))
    assert built.ids() == [item.id for item in kept]
    assert [skip.id for skip in built.skipped] == [skip.id for skip in skipped] == ["b/broken.png"]
    np.testing.assert_array_equal(built.vectors(built.ids()), vectors)
    with pytest.raises(ConfigError, match="made with both, which no single URI opens"):
        Index.open(place).search(draw(0))
    assert Index.open(place, both).search(draw(0), k=1)[0][0].id == "a/0.png"


def test_an_index_is_opened_from_anywhere(
    encoder: Encoder, images: Path, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = Index.build(encoder, Path("images"), place)
    assert paths_of(built) == [item.path for item in find_items(images)]
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert Index.build(encoder, images, place).changes == Changes(unchanged=6)
    check_vectors(Index.open(place), encoder)


def test_the_model_of_an_index_is_opened_from_anywhere(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    weights = timm.create_model("test_resnet", pretrained=False).state_dict()
    torch.save(weights, tmp_path / "own.pth")
    model = "timm:test_resnet?weights=own.pth&size=32"
    first = Index.build(load(model), images, tmp_path / "first")
    store = embed(find_items(images), open_teacher(model), tmp_path / "store")
    Index.build(None, store.folder, tmp_path / "second")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for name in ("first", "second"):
        index = Index.open(tmp_path / name)
        assert index.search(images / "a" / "0.png", k=1)[0][0].id == "a/0.png"
        assert index.encoder.fingerprint() == first.encoder.fingerprint()


# --- bringing it up to date -------------------------------------------------------------


def test_nothing_changed_is_nothing_done(
    index: Index, encoder: Encoder, images: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.stat().st_mtime_ns for path in place.iterdir() if path.name != ".lock"}
    monkeypatch.setattr("whiten.index.sources.read_bytes", lambda path: pytest.fail(path))
    again = Index.build(encoder, images, place)
    assert again.changes == Changes(unchanged=6)
    after = {path: path.stat().st_mtime_ns for path in place.iterdir() if path.name != ".lock"}
    assert after == before


def test_only_what_is_new_is_embedded(
    index: Index, encoder: Encoder, images: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = count_embedded(encoder, monkeypatch)
    write_image(images / "c" / "0.png", seed=2)
    write_image(images / "a" / "1.png", seed=50)  # other content under an old name
    (images / "b" / "0.png").rename(images / "b" / "moved.png")
    shutil.copy(images / "b" / "1.png", images / "b" / "copy.png")
    (images / "b" / "2.png").unlink()
    (images / "a" / "broken.png").write_bytes(b"no image")
    changed = Index.build(encoder, images, place)
    assert sum(counts) == 2
    assert changed.changes.skipped[0].id == "a/broken.png"
    changed.changes.skipped.clear()
    assert changed.changes == Changes(added=3, updated=1, removed=2, embedded=2, unchanged=3)
    assert sorted(changed.ids()) == [
        *("a/0.png", "a/1.png", "a/2.png"),
        *("b/1.png", "b/copy.png", "b/moved.png", "c/0.png"),
    ]
    check_vectors(changed, encoder)
    assert Index.build(encoder, images, place).changes.unchanged == 7


def test_touched_files_are_read_and_not_embedded(
    index: Index, encoder: Encoder, images: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = count_embedded(encoder, monkeypatch)
    later = time.time() + 10
    os.utime(images / "a" / "0.png", (later, later))
    assert Index.build(encoder, images, place).changes == Changes(updated=1, unchanged=5)
    assert Index.build(encoder, images, place).changes == Changes(unchanged=6)
    moved = images.rename(images.with_name("moved"))
    again = Index.build(encoder, moved, place)
    assert again.changes.updated == 6 and not counts
    assert paths_of(again) == [item.path for item in find_items(moved)]


def test_what_cannot_be_read_is_told_each_time_and_tried_when_it_changes(
    encoder: Encoder, images: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = images / "a" / "broken.png"
    bad.write_bytes(b"no image")
    assert [skip.id for skip in Index.build(encoder, images, place).skipped] == ["a/broken.png"]
    with monkeypatch.context() as patch:
        patch.setattr("whiten.index.sources.read_bytes", lambda path: pytest.fail(path))
        again = Index.build(encoder, images, place)
    assert [skip.id for skip in again.changes.skipped] == ["a/broken.png"]
    draw(9).save(bad)
    mended = Index.build(encoder, images, place)
    assert mended.changes.added == 1 and not mended.skipped


def test_an_image_that_can_no_longer_be_read_stays(
    index: Index, encoder: Encoder, images: Path, place: Path
) -> None:
    (images / "a" / "0.png").write_bytes(b"")
    again = Index.build(encoder, images, place)
    assert len(again) == 6
    assert [(skip.id, skip.reason) for skip in again.skipped] == [("a/0.png", "empty file")]


def test_nothing_readable(encoder: Encoder, tmp_path: Path, place: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "x.png").write_bytes(b"no image")
    with pytest.raises(NoImagesError, match=r"none of 1 images could be indexed, first 'x\.png': "):
        Index.build(encoder, tmp_path / "images", place)


def test_add_and_remove(index: Index, encoder: Encoder, tmp_path: Path, place: Path) -> None:
    more = tmp_path / "more"
    for number in range(2):
        write_image(more / "c" / f"{number}.png", seed=30 + number)
    assert index.add(more) == Changes(added=2, embedded=2)
    assert len(index) == 8
    assert index.remove(["a/0.png", "c/1.png"]).removed == 2
    check_vectors(Index.open(place), encoder)
    assert index.ids() == ["a/1.png", "a/2.png", "b/0.png", "b/1.png", "b/2.png", "c/0.png"]
    assert "a/0.png" not in {hit.id for hit in index.search(draw(0), k=9)[0]}
    with pytest.raises(StoreError, match=r"has no image 'a/0\.png'"):
        index.remove(["a/1.png", "a/0.png"])
    assert len(index) == 6
    assert Index.build(encoder, more, place).changes == Changes(added=1, embedded=1, unchanged=1)
    third = write_groups(tmp_path / "third", {"d": 1})
    with pytest.raises(StoreError, match=r"is of 2 collections.*--add"):
        Index.build(encoder, third, place)
    assert len(Index.open(place)) == 7


def test_another_collection_does_not_push_out_the_first(
    index: Index, encoder: Encoder, tmp_path: Path, place: Path
) -> None:
    more = write_groups(tmp_path / "more", {"c": 2})
    with pytest.raises(StoreError, match=r"index is of .*images, not of .*more: .*--add"):
        Index.build(encoder, more, place)
    assert len(Index.open(place)) == 6


def test_many_changes_are_merged(index: Index, encoder: Encoder, images: Path, place: Path) -> None:
    for number in range(12):
        write_image(images / "d" / f"{number}.png", seed=20 + number)
        index = Index.build(encoder, images, place)
    assert len(index) == 18
    assert len(list(place.glob("segment-*"))) <= 8
    index.remove([f"d/{number}.png" for number in range(10)])
    assert len(list(place.glob("segment-*"))) == 1 and not list(place.glob("gone-*"))
    check_vectors(Index.open(place), encoder)


def test_an_open_index_goes_on_and_sees_changes_when_asked(
    index: Index, encoder: Encoder, images: Path, place: Path
) -> None:
    reader = Index.open(place)
    write_image(images / "c" / "0.png", seed=2)
    Index.build(encoder, images, place)
    index.remove([name for name in Index.open(place).ids() if name.startswith("b/")])
    assert len(reader) == 6 and reader.search(draw(1), k=1)[0][0].id == "b/0.png"
    reader.refresh()
    assert len(reader) == 4 and reader.search(draw(2), k=1)[0][0].id == "c/0.png"


def test_one_writer_at_a_time(index: Index, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Index, "patience", 0.0)
    with (
        FolderIndex(place).writing(),
        pytest.raises(StoreError, match=r"another process is changing .*: wait until it is done"),
    ):
        index.remove(["a/0.png"])


# --- killed -----------------------------------------------------------------------------


def test_a_killed_build_goes_on_where_it_was(
    encoder: Encoder, images: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("whiten.index.synchronise.CHUNK", 2)
    counts = count_embedded(encoder, monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(FolderIndex, "_commit", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            Index.build(encoder, images, place)
    assert sum(counts) == 6
    with pytest.raises(StoreError, match="is not an index"):
        Index.open(place)
    [staged] = place.glob("segment-*")
    rows = (staged / "rows.arrows").read_bytes()
    (staged / "rows.arrows").write_bytes(rows[: len(rows) - len(rows) // 4])  # cut in a batch
    built = Index.build(encoder, images, place)
    assert 6 < sum(counts) < 12
    assert [item.id for item in find_items(images)] == built.ids()
    check_vectors(built, encoder)
    assert [path.name for path in place.iterdir() if path.is_dir()] == ["segment-000001"]


def test_a_kill_loses_seconds_of_a_slow_model(
    encoder: Encoder, images: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However slow it is, each of these few images is written before the next is embedded."""
    for name, value in {"_FIRST": 2, "_LEAST": 1, "_SECONDS": 0.0}.items():
        monkeypatch.setattr(f"whiten.index.synchronise.{name}", value)
    teacher = encoder.parts[0].teacher
    counts = count_embedded(encoder, monkeypatch)
    with monkeypatch.context() as patch:
        counted = teacher.forward

        def interrupted(inputs):  # type: ignore[no-untyped-def]
            if sum(counts) == 5:
                raise KeyboardInterrupt
            return counted(inputs)

        patch.setattr(teacher, "forward", interrupted)
        with pytest.raises(KeyboardInterrupt):
            Index.build(encoder, images, place)
    counts.clear()
    assert Index.build(encoder, images, place).changes.added == 6
    assert counts == [1]


def test_the_staged_rows_of_another_model_are_not_taken(
    encoder: Encoder, images: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(FolderIndex, "_commit", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            Index.build(load(f"{TEACHER}?seed=1"), images, place)
    check_vectors(Index.build(encoder, images, place), encoder)


# --- of a store -------------------------------------------------------------------------


def test_a_store_is_indexed_without_its_model(
    encoder: Encoder, images: Path, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("whiten.embedding.embed.SHARD_ROWS", 4)
    embed(find_items(images), encoder.parts[0].teacher, tmp_path / "store", views=(0, 1))
    with monkeypatch.context() as patch:
        patch.setattr("whiten.index.collections.load", lambda *_: pytest.fail("opened a model"))
        built = Index.build(None, tmp_path / "store", place)
        assert built.changes == Changes(added=6, embedded=6)
        assert Index.build(None, tmp_path / "store", place).changes == Changes(unchanged=6)
    check_vectors(built, encoder)
    assert built.facts.model == encoder.fingerprint()
    assert Index.open(place).search(draw(1), k=1)[0][0].id == "b/0.png"
    shutil.rmtree(images / "b")
    folder = tmp_path / "smaller"
    embed(find_items(images), encoder.parts[0].teacher, folder)
    folder.replace(tmp_path / "other")
    shutil.rmtree(tmp_path / "store")
    (tmp_path / "other").replace(tmp_path / "store")
    assert Index.build(None, tmp_path / "store", place).changes.removed == 3
