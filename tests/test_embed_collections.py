"""Several collections into one store: no image is lost, and equal contents are embedded once."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from command_line import Captured, fails, prints
from counting_teacher import contents, make_teacher, plain, seen
from helpers import TEACHER, draw, write_card
from whiten.datasets.finding import find_items
from whiten.embedding import embed as embed_module
from whiten.embedding.embed import embed
from whiten.embedding.encoder import Encoder, Part
from whiten.embedding.rows import embed_rows
from whiten.errors import StoreError
from whiten.store.store import Store
from whiten.views.plan import ViewPlan


def test_another_collection_with_the_same_ids(
    colour_teachers: None, tmp_path: Path, capsys: Captured
) -> None:
    first, second = write_card(tmp_path / "first", 100), write_card(tmp_path / "second", 200)
    store = tmp_path / "store"
    prints(capsys, "embed", first, "--model", TEACHER, "--out", store)
    before = contents(store)
    message = fails(capsys, "embed", second, "--model", TEACHER, "--out", store)
    assert "2 of these ids for other images, first 'DSC0001.png'" in message
    assert "name another --out" in message
    shutil.rmtree(first)  # the card was taken out
    fails(capsys, "embed", second, "--model", TEACHER, "--out", store)
    assert contents(store) == before
    more = write_card(tmp_path / "more", 300).rename(tmp_path / "third")
    for path in sorted(more.iterdir()):
        path.rename(more / f"other-{path.name}")
    prints(capsys, "embed", more, "--model", TEACHER, "--out", store)
    assert len(Store.open(store)) == 4


def test_a_collection_that_moved_and_was_edited(
    colour_teachers: None, tmp_path: Path, capsys: Captured
) -> None:
    images, store = write_card(tmp_path / "images", 100, count=5), tmp_path / "store"
    prints(capsys, "embed", images, "--model", TEACHER, "--out", store)
    moved = images.rename(tmp_path / "moved")
    draw(50).save(moved / "DSC0003.png")
    prints(capsys, "embed", moved, "--model", TEACHER, "--out", store)
    assert len(Store.open(store)) == 5


@pytest.fixture
def copies(tmp_path: Path) -> Path:
    """Thirty copies of one picture, one other of the same size, and five copies of a third."""
    folder = tmp_path / "copies"
    folder.mkdir()
    for number in range(36):
        colour = "red" if number < 30 else "blue" if number == 30 else "green"
        Image.new("RGB", (20, 20), colour).save(folder / f"{number:02d}.bmp")
    return folder


def test_equal_contents_are_embedded_once(copies: Path, tmp_path: Path, small_shards: None) -> None:
    items, teacher = find_items(copies), make_teacher()
    store = embed(items, teacher, tmp_path / "store")
    assert seen(teacher) == 3
    names = [item.id for item in items]
    expected = plain(make_teacher(), items, 0, ViewPlan())
    np.testing.assert_allclose(store.gather(names), expected, atol=1e-5)
    kept, vectors, _ = embed_rows(Encoder("one", [Part(teacher)]), items)
    assert seen(teacher) == 6 and kept.ids.to_pylist() == names
    np.testing.assert_allclose(vectors, expected, atol=1e-5)


def test_random_views_are_each_images_own(copies: Path, tmp_path: Path) -> None:
    items, teacher = find_items(copies), make_teacher()
    store = embed(items, teacher, tmp_path / "store", views=(0, 1))
    assert seen(teacher) == 3 + 36
    for view in (0, 1):
        expected = plain(make_teacher(), items, view, ViewPlan())
        found = store.gather([item.id for item in items], view)
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_an_interrupted_store_of_copies_goes_on(
    copies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embed_module, "SHARD_ROWS", 5)
    items = find_items(copies)
    whole, part = tmp_path / "whole", tmp_path / "part"
    embed(items, make_teacher(), whole)
    embed(items, make_teacher(), part)
    for shard in sorted(part.iterdir())[3:]:
        shard.unlink()
    teacher = make_teacher()
    embed(items, teacher, part)
    assert seen(teacher) == 2  # the first picture was stored already
    one, other = Store.open(whole), Store.open(part)
    names = [item.id for item in items]
    np.testing.assert_allclose(one.gather(names), other.gather(names), atol=1e-6)


def test_a_store_of_a_later_version(copies: Path, tmp_path: Path) -> None:
    import json

    import pyarrow.parquet as pq

    path = embed(find_items(copies), make_teacher(), tmp_path / "store").shards[0].path
    table = pq.read_table(path)
    facts = json.loads(table.schema.metadata[b"whiten"]) | {"format": "9"}
    pq.write_table(table.replace_schema_metadata({b"whiten": json.dumps(facts)}), path)
    with pytest.raises(StoreError, match=r"format 9.*later version of whiten: upgrade"):
        Store.open(tmp_path / "store")
