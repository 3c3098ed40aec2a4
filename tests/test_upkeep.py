"""A store stays true: changed, moved and mended images are noticed, the others are not read."""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from command_line import prints
from counting_teacher import contents, make_newer, make_teacher, overwrite, plain, seen, spoil
from helpers import TEACHER, write_groups
from whiten.datasets.finding import find_items
from whiten.embedding import row_makers
from whiten.embedding.embed import embed, summarize
from whiten.errors import ImageError
from whiten.media.reading import read_bytes
from whiten.models.sources import stored
from whiten.models.uri import parse_uri
from whiten.store import upkeep
from whiten.views.plan import ViewPlan

ImageFolder = Callable[..., Path]


@pytest.fixture
def reread(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Files that were read to see whether they have changed."""
    paths: list[str] = []

    def read(path: str) -> bytes:
        paths.append(path)
        return read_bytes(path)

    monkeypatch.setattr(upkeep, "read_bytes", read)
    return paths


def test_a_changed_image_is_embedded_anew(
    mixed_images: Path, tmp_path: Path, small_shards: None
) -> None:
    items = find_items(mixed_images)
    embed(items, make_teacher(), tmp_path / "s", views=(0, 1))
    before = contents(tmp_path / "s")
    overwrite(items[6].path, "purple")
    teacher = make_teacher()
    store = embed(items, teacher, tmp_path / "s", views=(0, 1))
    for view in (0, 1):
        expected = plain(make_teacher(), items, view, ViewPlan())
        np.testing.assert_allclose(store.gather([i.id for i in items], view), expected, atol=1e-5)
    assert seen(teacher) == 2  # the image alone, two views of it
    kept = contents(tmp_path / "s").items() & before.items()
    assert len(kept) == len(before) - 1
    assert len(store) == 24


@pytest.mark.parametrize("same_size", [False, True])
def test_an_image_is_replaced_by_one_that_is_older_than_the_store(
    mixed_images: Path, tmp_path: Path, same_size: bool
) -> None:
    path = mixed_images / "group0" / "bitmap.bmp"
    Image.new("RGB", (16, 16), "red").save(path)
    os.utime(path, (1e9, 1e9))
    items = find_items(mixed_images)
    embed(items, make_teacher(), tmp_path / "s")
    time.sleep(0.02)  # clocks of file systems tick some hundred times a second
    Image.new("RGB", (16, 16 if same_size else 20), "blue").save(path)
    os.utime(path, (1e9, 1e9))
    store = embed(items, make_teacher(), tmp_path / "s")
    expected = plain(make_teacher(), items, 0, ViewPlan())
    np.testing.assert_allclose(store.gather([i.id for i in items]), expected, atol=1e-5)


def test_touched_images_are_read_once_and_not_embedded(
    mixed_images: Path, tmp_path: Path, reread: list[str]
) -> None:
    items = find_items(mixed_images)
    store = embed(items, make_teacher(), tmp_path / "s")
    before = store.gather([item.id for item in items])
    for item in items:
        make_newer(item.path)
    teacher = make_teacher()
    for _ in range(2):
        store = embed(items, teacher, tmp_path / "s")
    assert seen(teacher) == 0
    assert sorted(reread) == sorted(item.path for item in items)
    assert np.array_equal(store.gather([item.id for item in items]), before)


def test_a_store_that_cannot_be_written_is_read(
    mixed_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = find_items(mixed_images)
    embed(items, make_teacher(), tmp_path / "s")
    before = contents(tmp_path / "s")
    make_newer(items[0].path)

    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "replace", refuse)
    assert len(embed(items, make_teacher(), tmp_path / "s")) == 12
    assert contents(tmp_path / "s") == before


def test_a_removed_image_stays_stored(mixed_images: Path, tmp_path: Path) -> None:
    items = find_items(mixed_images)
    embed(items, make_teacher(), tmp_path / "s")
    Path(items[3].path).unlink()
    teacher = make_teacher()
    store = embed(items, teacher, tmp_path / "s")
    assert (seen(teacher), len(store)) == (0, 12)


def test_embed_tells_what_a_store_holds_of_removed_images(
    colour_teachers: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_groups(tmp_path / "photos", {"a": 2, "b": 1})
    command = ("embed", folder, "--model", TEACHER, "--out", tmp_path / "store", "--views", "2")
    assert "stay" not in prints(capsys, *command)[1]
    (folder / "b" / "0.png").unlink()
    out, err = prints(capsys, *command)
    assert "6 embeddings" in out
    assert "1 image of" in err and "now, and the embeddings stay" in err
    assert json.loads(prints(capsys, *command, "--json")[0])["others"] == 1


def test_a_moved_collection_is_known_by_its_content(
    mixed_images: Path, tmp_path: Path, reread: list[str]
) -> None:
    first = find_items(mixed_images)
    vectors = embed(first, make_teacher(), tmp_path / "s").gather([i.id for i in first])
    moved = find_items(mixed_images.rename(tmp_path / "moved"))
    teacher = make_teacher()
    for _ in range(2):
        store = embed(moved, teacher, tmp_path / "s")
    assert seen(teacher) == 0
    assert sorted(reread) == sorted(item.path for item in moved)
    assert np.array_equal(store.gather([i.id for i in moved]), vectors)
    places = store.seen(store.shards[0])
    assert {i.id: i.path for i in moved} == {name: seen.path for name, seen in places.items()}


def test_another_image_of_the_same_id_is_embedded(mixed_images: Path, tmp_path: Path) -> None:
    embed(find_items(mixed_images), make_teacher(), tmp_path / "s")
    other = Path(shutil.copytree(mixed_images, tmp_path / "other"))
    items = find_items(other)
    Image.new("RGB", (40, 32), "orange").save(items[0].path)
    for item in items:
        os.utime(item.path, (1e9, 1e9))  # older than the store: the place tells
    store = embed(items, make_teacher(), tmp_path / "s")
    expected = plain(make_teacher(), items, 0, ViewPlan())
    np.testing.assert_allclose(store.gather([i.id for i in items]), expected, atol=1e-5)


@pytest.mark.parametrize("content", [b"", b"no image"])
def test_an_image_that_is_spoilt_is_skipped(
    mixed_images: Path, tmp_path: Path, content: bytes
) -> None:
    items = find_items(mixed_images)
    embed(items, make_teacher(), tmp_path / "s")
    (mixed_images / "group0" / "000.jpg").write_bytes(content)
    after = embed(items, make_teacher(), tmp_path / "s")
    fresh = embed(items, make_teacher(), tmp_path / "fresh")
    assert after.skipped == fresh.skipped and len(after) == len(fresh) == 11
    again = embed(items, make_teacher(), tmp_path / "s")
    assert again.skipped == fresh.skipped


@pytest.mark.parametrize("backup", [False, True])
def test_a_mended_image_is_embedded(mixed_images: Path, tmp_path: Path, backup: bool) -> None:
    spoil(mixed_images)
    items = find_items(mixed_images)
    embed(items, make_teacher(), tmp_path / "s")
    missing = mixed_images / "group2" / "link.webp"
    missing.unlink()
    time.sleep(0.02)  # clocks of file systems tick some hundred times a second
    shutil.copyfile(mixed_images / "group2" / "001.jpg", missing)
    if backup:  # keeps the old date
        os.utime(missing, (1e9, 1e9))
    store = embed(items, make_teacher(), tmp_path / "s")
    assert "group2/link.webp" not in {s.id for s in store.skipped}
    assert len(store.skipped) == 3
    mended = [i for i in items if i.id == "group2/link.webp"]
    expected = plain(make_teacher(), mended, 0, ViewPlan())
    np.testing.assert_allclose(store.gather(["group2/link.webp"]), expected, atol=1e-5)


def test_a_skipped_image_that_is_deleted_is_no_longer_reported(
    mixed_images: Path, tmp_path: Path, reread: list[str]
) -> None:
    reasons = spoil(mixed_images)
    items = find_items(mixed_images)
    store = embed(items, make_teacher(), tmp_path / "s")
    assert {skip.id for skip in summarize(store, items).skipped} == set(reasons)
    (mixed_images / "group1" / "0005.png").unlink()
    items = find_items(mixed_images)
    store = embed(items, make_teacher(), tmp_path / "s")
    assert {skip.id for skip in summarize(store, items).skipped} == {*reasons} - {"group1/0005.png"}
    assert summarize(store, items).embeddings == 12
    assert reread == []


def test_a_skipped_image_is_tried_again_once_it_may_be_read(
    mixed_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = mixed_images / "group0" / "000.jpg"
    items = find_items(mixed_images)

    def refuse(name: str) -> bytes:
        if name == str(path):
            raise ImageError("permission denied")
        return read_bytes(name)

    with monkeypatch.context() as locked:
        locked.setattr(row_makers, "read_bytes", refuse)
        for _ in range(2):
            store = embed(items, make_teacher(), tmp_path / "s")
            assert [(s.id, s.reason) for s in store.skipped] == [
                ("group0/000.jpg", "permission denied")
            ]
    time.sleep(0.02)
    path.chmod(0o600)
    teacher = make_teacher()
    store = embed(items, teacher, tmp_path / "s")
    assert (store.skipped, len(store), seen(teacher)) == ([], 12, 1)


def test_what_a_store_did_not_hold_is_found_there_later(mixed_images: Path, tmp_path: Path) -> None:
    items = find_items(mixed_images)
    source = tmp_path / "source"
    embed(items[:8], make_teacher(), source, views=(0, 1))
    for _ in range(2):
        teacher = stored.open_uri(parse_uri(f"store:{source}"))
        store = embed(items, teacher, tmp_path / "s", views=(0, 1))
        assert [s.id for s in store.skipped] == [i.id for i in items[8:]]
        assert len(store.shards) == 1
    made = embed(items, make_teacher(), source)
    teacher = stored.open_uri(parse_uri(f"store:{source}"))
    store = embed(items, teacher, tmp_path / "s")
    assert store.skipped == []
    ids = [i.id for i in items]
    assert np.array_equal(store.gather(ids), made.gather(ids))
    assert np.array_equal(store.gather(ids[:8], 1), made.gather(ids[:8], 1))


def test_copies_are_noticed(mixed_images: Path, tmp_path: Path) -> None:
    shutil.copy(mixed_images / "group0" / "000.jpg", mixed_images / "group2" / "copy.jpg")
    shutil.copy(mixed_images / "group0" / "001.png", mixed_images / "another.png")
    items = find_items(mixed_images)
    store = embed(items, make_teacher(), tmp_path / "s", views=(0, 1))
    summary = summarize(store, items)
    assert summary.duplicates == [
        ["another.png", "group0/001.png"],
        ["group0/000.jpg", "group2/copy.jpg"],
    ]
    assert (summary.embeddings, summary.dim, summary.skipped) == (28, 8, [])
    assert summarize(store, items[1:]).duplicates == summary.duplicates[1:]
