"""Indexes that cannot be used: another model's, damaged, of another format; and odd names."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from helpers import TEACHER, draw
from whiten.datasets.finding import find_items
from whiten.embedding.embed import embed
from whiten.embedding.encoder import Encoder
from whiten.embedding.opening import load
from whiten.errors import NoImagesError, StoreError
from whiten.index import Index
from whiten.index.collections import open_source
from whiten.index.local.folder import FolderIndex
from whiten.store.store import Store


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "index"


@pytest.fixture
def index(encoder: Encoder, images: Path, place: Path) -> Index:
    return Index.build(encoder, images, place)


def test_another_model_is_refused(index: Index, images: Path, place: Path) -> None:
    other = load(f"{TEACHER}?seed=1")
    for use in (lambda: Index.open(place, other), lambda: Index.build(other, images, place)):
        with pytest.raises(StoreError, match=r"was made with another model, .* than "):
            use()
    assert Index.open(place).facts == index.facts


@pytest.mark.parametrize("use", ["add", "put", "remove"])
def test_an_opened_index_that_was_deleted_is_not_made_anew(
    index: Index, images: Path, place: Path, use: str
) -> None:
    source = open_source(index.encoder, images, None, (), ())
    place.rename(place.with_name("away"))
    with pytest.raises(StoreError, match="is no longer an index: it was deleted or moved away"):
        if use == "put":
            index.put(source)
        else:
            getattr(index, use)(images if use == "add" else ["a/0.png"])
    assert not place.exists()


def test_an_opened_index_that_is_deleted_while_it_is_written(
    index: Index, images: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = FolderIndex._commit

    def vanish(*arguments: Any) -> None:
        shutil.rmtree(place)
        place.mkdir()
        monkeypatch.setattr("whiten.index.local.folder.write_durably", lambda *_: None)
        monkeypatch.setattr("whiten.index.local.folder.flush_folder", lambda *_: None)
        commit(*arguments)

    monkeypatch.setattr(FolderIndex, "_commit", vanish)
    with pytest.raises(StoreError, match="is no longer an index: it was deleted or moved away"):
        index.remove("a/0.png")


def parts(place: Path) -> list[Path]:
    return [place / "manifest.json", *place.glob("segment-*/*"), *place.glob("gone-*")]


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("damage", ["missing", "empty", "garbage", "short", "null"])
def test_damage_is_reported(index: Index, place: Path, number: int, damage: str) -> None:
    index.remove("a/0.png")
    assert len(parts(place)) == 4
    path = parts(place)[number]
    content = {"garbage": b"\xff\x00garbage", "short": path.read_bytes()[:-1], "null": b"null"}
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(content.get(damage, b""))
    with pytest.raises(StoreError, match=r"is damaged|is not an index|missing") as caught:
        Index.open(place)
    assert str(place) in str(caught.value)


def test_another_format_is_refused(index: Index, place: Path) -> None:
    manifest = json.loads((place / "manifest.json").read_text())
    (place / "manifest.json").write_text(json.dumps({**manifest, "format": 2}))
    with pytest.raises(StoreError, match="has index format 2, this version reads 3 and 4: delete"):
        Index.open(place)


def test_a_manifest_that_lacks_an_entry_says_which(index: Index, place: Path) -> None:
    (place / "manifest.json").write_text("{}")
    with pytest.raises(StoreError, match=r"manifest.json is damaged \(it lacks 'format'\): delete"):
        Index.open(place)


@pytest.mark.parametrize("foreign", ["notes.txt", "config.yaml", "embeddings"])
def test_a_foreign_folder_is_left_alone(
    encoder: Encoder, images: Path, place: Path, foreign: str
) -> None:
    place.mkdir()
    (place / foreign).write_text("mine")
    with pytest.raises(StoreError, match="holds something else than an index"):
        Index.build(encoder, images, place)
    assert [path.name for path in place.iterdir()] == [foreign]


def test_names_that_are_not_text(encoder: Encoder, images: Path, place: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    try:
        draw(7).save(images.parent / "plain.png")
        (images.parent / "plain.png").rename(images / "a" / name)
    except OSError:
        pytest.skip("the file system takes text names only")
    built = Index.build(encoder, images, place)
    [[hit]] = built.search(draw(7), k=1)
    assert hit.path == str(images / "a" / name)
    assert hit.id == r"a/caf\xe9.png"


def test_models_that_share_no_image(encoder: Encoder, images: Path, tmp_path: Path) -> None:
    for number, part in enumerate("ab"):
        embed(find_items(images / part), encoder.parts[0].teacher, tmp_path / f"store{number}")
    stored = [load(f"store:{tmp_path / f'store{number}'}") for number in range(2)]
    both = Encoder("both", [one.parts[0] for one in stored])
    with pytest.raises(NoImagesError, match="none of 6 images could be indexed"):
        Index.build(both, images, tmp_path / "index")
    assert len(Store.open(tmp_path / "store0")) == 3
