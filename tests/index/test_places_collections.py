"""Several collections in one index, first runs that fail, and disks that are missing: in any place.

No id ever stands for two images, and nothing is removed that only seems to be gone.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from command_line import Captured, fails, prints
from folder_checks import count_embedded
from helpers import TEACHER, draw, write_card, write_groups, write_image
from whiten.datasets.collection import Item
from whiten.embedding.encoder import Encoder
from whiten.embedding.opening import load
from whiten.errors import ConfigError, NoImagesError, StoreError
from whiten.index import Changes, Index
from whiten.index.places import open_place


@pytest.fixture
def cards(tmp_path: Path) -> tuple[Path, Path]:
    return write_card(tmp_path / "first", 100), write_card(tmp_path / "second", 200)


def state(place: str) -> list[tuple[str, str, str]]:
    index = Index.open(place)
    rows = (row for page in index.pages(100) for row in page.to_pylist())
    return sorted((row["id"], row["path"].decode(), row["content_hash"]) for row in rows)


def finds(index: Index, path: Path) -> str:
    """The id of the image that the index holds of this file's own content."""
    [[hit]] = index.search(path, k=1)
    assert hit.score == pytest.approx(1, abs=1e-5) and hit.path == str(path)
    return hit.id


# --- collections ------------------------------------------------------------------------


def test_ids_of_another_collection_are_refused(
    encoder: Encoder, cards: tuple[Path, Path], place: str, tmp_path: Path
) -> None:
    first, second = cards
    index = Index.build(encoder, first, place)
    before = state(place)
    remedy = r"2 of these ids.*'DSC0001\.png' for .*first/DSC0001\.png.*--collection NAME"
    with pytest.raises(StoreError, match=remedy):
        index.add(second)
    with pytest.raises(StoreError, match=remedy):
        Index.build(encoder, second, place, keep=True)
    items = [Item(path.name, str(path)) for path in sorted(second.iterdir())]
    with pytest.raises(StoreError, match=remedy):
        index.add(items)
    for folder in cards:  # tables of equal relative paths
        (folder / "list.csv").write_text("path\nDSC0001.png\nDSC0002.png\n")
    with pytest.raises(StoreError, match=remedy):
        index.add(second / "list.csv")
    assert index.add(first / "list.csv").unchanged == 2  # the same files
    assert state(place) == before
    index.add(second, collection="card 2")
    ids = ["DSC0001.png", "DSC0002.png", "card 2/DSC0001.png", "card 2/DSC0002.png"]
    assert sorted(index.ids()) == ids
    files = [path for folder in cards for path in sorted(folder.glob("*.png"))]
    assert [finds(Index.open(place), path) for path in files] == ids


@pytest.mark.slow
def test_each_collection_is_brought_up_to_date_alone(
    encoder: Encoder, cards: tuple[Path, Path], place: str
) -> None:
    first, second = cards
    Index.build(encoder, first, place)
    Index.build(encoder, second, place, keep=True, collection="b")
    for folder in cards:
        assert Index.build(encoder, folder, place).changes == Changes(unchanged=2)
    (first / "DSC0002.png").unlink()
    write_image(first / "DSC0003.png", 150)
    write_image(second / "DSC0001.png", 250)
    changes = Index.build(encoder, first, place).changes
    assert changes == Changes(added=1, removed=1, embedded=1, unchanged=1)
    changes = Index.build(encoder, second, place, keep=True).changes
    assert changes == Changes(updated=1, embedded=1, unchanged=1)
    index = Index.open(place)
    assert sorted(index.ids()) == ["DSC0001.png", "DSC0003.png", "b/DSC0001.png", "b/DSC0002.png"]
    assert finds(index, second / "DSC0001.png") == "b/DSC0001.png"
    assert finds(index, first / "DSC0003.png") == "DSC0003.png"


@pytest.mark.slow
def test_a_name_that_comes_later_or_changes(
    encoder: Encoder, tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = write_card(tmp_path / "first", 100), write_groups(tmp_path / "second", {"x": 2})
    Index.build(encoder, first, place)
    Index.build(encoder, second, place, keep=True)
    write_image(second / "DSC0001.png", 300)  # now it meets
    before = state(place)
    with pytest.raises(StoreError, match=r"1 of these ids.*--collection NAME"):
        Index.build(encoder, second, place)
    assert state(place) == before
    counts = count_embedded(encoder, monkeypatch)
    changed = Index.build(encoder, second, place, keep=True, collection="b")
    assert sum(counts) == 1
    assert changed.changes == Changes(added=3, removed=2, embedded=1)
    ids = ["DSC0001.png", "DSC0002.png", "b/DSC0001.png", "b/x/0.png", "b/x/1.png"]
    assert sorted(changed.ids()) == ids
    write_image(first / "b" / "DSC0001.png", 301)  # and now the first meets the name
    with pytest.raises(StoreError, match=r"'b/DSC0001\.png' for .*second/DSC0001\.png"):
        Index.build(encoder, first, place)
    for name in ("", " ", "a/b"):
        with pytest.raises(ConfigError, match="a collection cannot be called"):
            Index.build(encoder, first, place, collection=name)


@pytest.mark.slow
def test_a_collection_that_moved_among_others(
    encoder: Encoder, cards: tuple[Path, Path], place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = cards
    Index.build(encoder, first, place)
    Index.build(encoder, second, place, keep=True, collection="b")
    counts = count_embedded(encoder, monkeypatch)
    moved = first.rename(first.with_name("moved"))
    assert Index.build(encoder, moved, place).changes == Changes(updated=2)
    assert not counts
    assert finds(Index.open(place), moved / "DSC0001.png") == "DSC0001.png"
    second = second.rename(second.with_name("moved too"))
    assert Index.build(encoder, second, place).changes == Changes(updated=2)
    assert not counts
    assert finds(Index.open(place), second / "DSC0001.png") == "b/DSC0001.png"


@pytest.mark.slow
def test_two_collections_that_moved_one_after_the_other(
    encoder: Encoder, cards: tuple[Path, Path], place: str
) -> None:
    Index.build(encoder, cards[0], place)
    Index.build(encoder, cards[1], place, keep=True, collection="two")
    first, second = (folder.rename(folder.with_name(f"{folder.name} too")) for folder in cards)
    with pytest.raises(StoreError, match="is none of them: add it with --add"):
        Index.build(encoder, first, place)
    assert Index.build(encoder, first, place, keep=True).changes == Changes(updated=2)
    # What remains of the first one's earlier place is no image: only the second can have moved.
    assert Index.build(encoder, second, place).changes == Changes(updated=2)
    assert finds(Index.open(place), second / "DSC0001.png") == "two/DSC0001.png"


def test_columns_of_each_collection_are_kept(
    encoder: Encoder, cards: tuple[Path, Path], place: str
) -> None:
    for number, folder in enumerate(cards):
        rows = "".join(f"DSC000{n}.png,{10 * number + n}\n" for n in (1, 2))
        (folder / "list.csv").write_text(f"path,price\n{rows}")
    first, second = (folder / "list.csv" for folder in cards)
    Index.build(encoder, first, place)
    Index.build(encoder, second, place, keep=True, collection="b")
    assert Index.build(encoder, first, place).changes == Changes(unchanged=2)
    index = Index.open(place)
    [hits] = index.search_vectors(index.vectors(["DSC0001.png"]), 4, where="price > 1")
    assert {hit.id: hit.metadata for hit in hits} == {
        "DSC0002.png": {"price": 2},
        "b/DSC0001.png": {"price": 11},
        "b/DSC0002.png": {"price": 12},
    }


@pytest.mark.slow
def test_a_new_name_keeps_what_is_known_of_its_images(
    encoder: Encoder, tmp_path: Path, place: str
) -> None:
    first, second = write_card(tmp_path / "first", 100), write_groups(tmp_path / "second", {"x": 2})
    table = tmp_path / "m.csv"
    table.write_text("id,price,group\nDSC0001.png,1,north\nDSC0002.png,2,\n")
    Index.build(encoder, first, place, metadata=table)
    table.write_text("id,price,group\nx/0.png,5,south\nx/1.png,6,\n")
    Index.build(encoder, second, place, keep=True, metadata=table)
    write_image(second / "DSC0001.png", 300)  # now it meets, and must have a name
    table.write_text("id,price\nDSC0001.png,7.5\nx/1.png,8\n")
    Index.build(encoder, second, place, keep=True, collection="b", metadata=table)
    index = Index.build(encoder, first, place, keep=True, collection="a")
    known = {one.id: (one.metadata.get("price"), one.group) for one in index.items(index.ids())}
    assert known == {
        "a/DSC0001.png": (1, "north"),
        "a/DSC0002.png": (2, None),
        "b/DSC0001.png": (7.5, None),
        "b/x/0.png": (5, "south"),
        "b/x/1.png": (8, None),
    }


@pytest.mark.slow
def test_unreadable_images_of_several_collections(
    encoder: Encoder, cards: tuple[Path, Path], place: str
) -> None:
    """They are listed while they are there, under the name that they have."""
    first, second = cards
    for folder in cards:
        (folder / f"{folder.name}.png").write_bytes(b"no image, and long enough to be one")

    def skipped(folder: Path, **options: str) -> list[str]:
        built = Index.build(encoder, folder, place, keep=bool(options), **options)  # type: ignore[arg-type]
        return [skip.id for skip in built.skipped]

    assert skipped(first) == ["first.png"]
    assert skipped(second, collection="b") == ["first.png", "b/second.png"]
    assert skipped(second, collection="c") == ["first.png", "c/second.png"]
    (first / "first.png").unlink()
    assert skipped(second) == ["first.png", "c/second.png"]
    assert skipped(first) == ["c/second.png"]
    (second / "second.png").unlink()
    assert skipped(second) == []


# --- first runs that fail ---------------------------------------------------------------


@pytest.mark.slow
def test_a_failed_first_run_leaves_nothing(
    encoder: Encoder, images: Path, place: str, tmp_path: Path
) -> None:
    wrong, right = tmp_path / "wrong.csv", tmp_path / "right.csv"
    wrong.write_text("path\nnowhere/0.png\nnowhere/1.png\n")
    right.write_text("path\nimages/a/0.png\nimages/b/0.png\n")
    with pytest.raises(NoImagesError, match="none of 2 images could be indexed"):
        Index.build(encoder, wrong, place)
    with pytest.raises(StoreError, match="is not an index"):
        Index.open(place)
    assert place.startswith(("milvus:", "pgvector:")) or not Path(place).exists()
    assert Index.build(encoder, right, place).changes == Changes(added=2, embedded=2)
    assert finds(Index.open(place), images / "b" / "0.png") == "images/b/0.png"


@pytest.mark.slow
def test_an_interrupted_first_run_is_bound_to_nothing(
    encoder: Encoder, images: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("whiten.index.synchronise.CHUNK", 2)
    calls = 0

    def interrupt(*_: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("whiten.index.synchronise._Work._skip", interrupt)
        for name in ("a", "b"):
            (images / name / "1.png").write_bytes(b"no image")
        with pytest.raises(KeyboardInterrupt):
            Index.build(encoder, images, place)
    with pytest.raises(StoreError, match=r"is unfinished.*run the same|is not an index"):
        Index.open(place)
    with monkeypatch.context() as patch:
        counts = count_embedded(encoder, patch)
        built = Index.build(encoder, images / "b", place)
    assert sorted(built.ids()) == ["0.png", "2.png"]
    assert sum(counts) <= 2
    again = Index.build(load(f"{TEACHER}?seed=1"), images, f"{place}2")
    assert len(again) == 4


@pytest.mark.slow
def test_a_first_run_of_another_model_after_an_interrupted_one(
    encoder: Encoder, images: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("whiten.index.synchronise.CHUNK", 2)
    other = load(f"{TEACHER}?seed=1&dim=5")
    with monkeypatch.context() as patch:
        patch.setattr(
            "whiten.index.synchronise._Work._skip",
            lambda *_: (_ for _ in ()).throw(KeyboardInterrupt),
        )
        (images / "b" / "1.png").write_bytes(b"no image")
        with pytest.raises(KeyboardInterrupt):
            Index.build(other, images, place)
    assert len(Index.build(encoder, images, place)) == 5


@pytest.mark.slow
def test_an_emptied_index_takes_another_collection_or_model(
    encoder: Encoder, cards: tuple[Path, Path], place: str
) -> None:
    first, second = cards
    index = Index.build(encoder, first, place)
    index.remove(index.ids())
    index = Index.build(encoder, second, place, keep=True, collection="two")
    assert index.ids() == ["two/DSC0001.png", "two/DSC0002.png"]
    assert Index.build(encoder, first, place).changes.added == 2
    index.refresh()
    index.remove(index.ids())
    del index
    other = load(f"{TEACHER}?seed=1&dim=5")
    assert Index.build(other, second, place).ids() == ["DSC0001.png", "DSC0002.png"]


def test_an_index_without_images_says_so(
    encoder: Encoder, images: Path, place: str, tmp_path: Path, capsys: Captured
) -> None:
    index = Index.build(encoder, images, place)
    index.remove(index.ids())
    option = ("--store" if ":" in place else "--index", place)
    message = fails(capsys, "search", images / "a" / "0.png", *option)
    assert "is empty: index images first" in message
    more = write_card(tmp_path / "more", 100)
    assert len(Index.build(encoder, more, place)) == 2  # it is bound to no collection


# --- a disk that is missing -------------------------------------------------------------


def test_a_disk_that_is_missing(
    encoder: Encoder, tmp_path: Path, place: str, capsys: Captured
) -> None:
    images = write_card(tmp_path / "disk", 100, count=12)
    Index.build(encoder, images, place)
    before = state(place)
    away = images.rename(tmp_path / "away")
    write_image(images / "stray.png", 300)
    with pytest.raises(StoreError, match=r"12 of its 12 images, first 'DSC0001\.png'.*--remove-m"):
        Index.build(encoder, images, place)
    assert state(place) == before
    option = ("--store" if ":" in place else "--out", place)
    assert "--remove-missing" in fails(capsys, "index", images, *option)
    assert state(place) == before
    table = away / "few.csv"
    table.write_text("".join(["path\n", *(f"DSC{n:04d}.png\n" for n in range(1, 6))]))
    shutil.rmtree(images)
    with pytest.raises(StoreError, match=r"7 of its 12 images.*--remove-missing"):
        Index.build(encoder, table, place)
    table.write_text("".join(["path\n", *(f"DSC{n:04d}.png\n" for n in range(1, 7))]))
    assert Index.build(encoder, table, place).changes.removed == 6  # half of them may go
    write_image(images / "stray.png", 300)
    shutil.move(table, tmp_path / "gone.csv")
    prints(capsys, "index", images, *option, "--remove-missing")
    assert Index.open(place).ids() == ["stray.png"]


def test_few_images_may_all_go(encoder: Encoder, tmp_path: Path, place: str) -> None:
    images = write_card(tmp_path / "images", 100, count=9)
    Index.build(encoder, images, place)
    for path in images.iterdir():
        path.unlink()
    write_image(images / "stray.png", 300)
    assert Index.build(encoder, images, place).changes.removed == 9


# --- equal contents ---------------------------------------------------------------------


def test_copies_are_embedded_once(
    encoder: Encoder, tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("whiten.index.synchronise.CHUNK", 4)
    images = tmp_path / "images"
    for number in range(20):
        write_image(images / f"{number:02d}.png", number // 10)  # two drawings
    broken = b"no image, and long enough to be one"
    for number in range(20, 23):
        (images / f"{number}.png").write_bytes(broken)
    counts = count_embedded(encoder, monkeypatch)
    index = Index.build(encoder, images, place)
    assert sum(counts) == 2
    assert (index.changes.added, index.changes.embedded) == (20, 2)
    assert [skip.id for skip in index.skipped] == ["20.png", "21.png", "22.png"]
    expected = encoder.embed([draw(0), draw(1)]).repeat(10, axis=0)
    names = [f"{number:02d}.png" for number in range(20)]
    np.testing.assert_allclose(index.vectors(names), expected, atol=1e-6)
    assert open_place(place).known()["content_hash"].to_pylist().count(None) == 0
