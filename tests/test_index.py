"""Indexes: built, extended, opened, searched, refused; and the page of hits."""

from __future__ import annotations

import json
import os
import re
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from helpers import TEACHER, draw, write_groups, write_image
from whiten.embed import embed
from whiten.encoder import Encoder, load
from whiten.errors import ConfigError, ImageError, NoImagesError, StoreError
from whiten.index import Index, Match
from whiten.media import find_items
from whiten.searching import Found, search_folder, write_hits_page


@pytest.fixture
def encoder(colour_teachers: None) -> Encoder:
    return load(TEACHER)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_groups(tmp_path / "images", {"a": 3, "b": 3})


@pytest.fixture
def index(encoder: Encoder, images: Path, tmp_path: Path) -> Index:
    return Index.build(encoder, find_items(images), tmp_path / "index")


def count_embedded(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Collects how many images each forward pass from now on sees."""
    counts: list[int] = []
    teacher = encoder.parts[0].teacher
    forward = teacher.forward

    def counted(inputs):  # type: ignore[no-untyped-def]
        counts.append(len(inputs))
        return forward(inputs)

    monkeypatch.setattr(teacher, "forward", counted)
    return counts


def test_an_image_finds_itself_first(index: Index, encoder: Encoder, images: Path) -> None:
    assert len(index) == 6
    for item in find_items(images):
        [hits] = index.search(encoder, item.path, k=3)
        assert hits[0].id == item.id
        assert hits[0].path == item.path
        assert hits[0].score == pytest.approx(1, abs=1e-5)
        assert [hit.id.split("/")[0] for hit in hits] == [item.group] * 3
        assert hits[0].score >= hits[1].score >= hits[2].score


def test_several_queries_and_more_hits_than_images(index: Index, encoder: Encoder) -> None:
    results = index.search(encoder, [draw(0), draw(1)], k=99)
    assert [len(hits) for hits in results] == [6, 6]
    assert [hits[0].id for hits in results] == ["a/0.png", "b/0.png"]


def test_k_must_be_positive(index: Index, encoder: Encoder) -> None:
    with pytest.raises(ConfigError, match="k must be at least 1, not 0"):
        index.search(encoder, draw(0), k=0)


def test_open_finds_what_was_built(index: Index, encoder: Encoder, images: Path) -> None:
    opened = Index.open(index.folder)
    assert opened.ids == [item.id for item in find_items(images)] == index.ids
    assert opened.paths == index.paths
    assert opened.model == encoder.fingerprint()
    np.testing.assert_allclose(opened.vectors, encoder.embed(opened.paths), atol=1e-6)


def test_unreadable_images_are_listed(encoder: Encoder, images: Path, tmp_path: Path) -> None:
    (images / "a" / "broken.png").write_bytes(b"no image")
    built = Index.build(encoder, find_items(images), tmp_path / "index")
    assert [skip.id for skip in built.skipped] == ["a/broken.png"]
    assert [skip.id for skip in Index.open(built.folder).skipped] == ["a/broken.png"]
    assert len(built) == 6


def test_extending_embeds_new_images_only(
    index: Index, encoder: Encoder, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = count_embedded(encoder, monkeypatch)
    write_image(images / "c" / "0.png", seed=2)
    write_image(images / "c" / "1.png", seed=2, variant=1)
    extended = Index.build(encoder, find_items(images), index.folder)
    assert sum(counts) == 2
    assert len(extended) == 8
    assert extended.search(encoder, draw(2), k=1)[0][0].id == "c/0.png"


def test_a_changed_image_is_updated(index: Index, encoder: Encoder, images: Path) -> None:
    changed = write_image(images / "a" / "1.png", seed=50)
    later = time.time() + 10
    os.utime(changed, (later, later))
    updated = Index.build(encoder, find_items(images), index.folder)
    assert len(updated) == 6
    [[hit]] = updated.search(encoder, draw(50), k=1)
    assert hit.id == "a/1.png"
    assert hit.score == pytest.approx(1, abs=1e-5)


def test_a_deleted_image_is_found_no_more(index: Index, encoder: Encoder, images: Path) -> None:
    (images / "a" / "0.png").unlink()
    updated = Index.build(encoder, find_items(images), index.folder)
    assert "a/0.png" not in updated.ids
    assert len(updated) == 5


def test_another_model_is_refused(index: Index, images: Path) -> None:
    other = load(f"{TEACHER}?seed=1")
    for use in (
        lambda: index.search(other, draw(0)),
        lambda: Index.build(other, find_items(images), index.folder),
    ):
        with pytest.raises(StoreError, match=r"built with another model .* another index folder"):
            use()
    assert Index.open(index.folder).model == index.model


@pytest.mark.parametrize("name", ["manifest.json", "names.arrow", "vectors.npy"])
@pytest.mark.parametrize("damage", ["missing", "empty", "garbage", "short", "null"])
def test_damage_is_reported(index: Index, name: str, damage: str) -> None:
    path = index.folder / name
    content = {"garbage": b"\xff\x00garbage", "short": path.read_bytes()[:-20], "null": b"null"}
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(content.get(damage, b""))
    with pytest.raises(StoreError, match=r"is damaged|is not an index") as caught:
        Index.open(index.folder)
    assert str(index.folder) in str(caught.value)


def test_parts_must_fit(index: Index) -> None:
    manifest = json.loads((index.folder / "manifest.json").read_text())
    manifest["count"] -= 1
    (index.folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(StoreError, match="its parts do not fit"):
        Index.open(index.folder)


@pytest.mark.parametrize("foreign", ["notes.txt", "config.yaml"])
def test_a_foreign_folder_is_left_alone(
    encoder: Encoder, images: Path, tmp_path: Path, foreign: str
) -> None:
    folder = tmp_path / "mine"
    (folder / "embeddings").mkdir(parents=True)  # a run has such a folder too
    (folder / foreign).write_text("mine")
    with pytest.raises(StoreError, match="holds something else than an index"):
        Index.build(encoder, find_items(images), folder)
    assert sorted(path.name for path in folder.iterdir()) == sorted(["embeddings", foreign])


def test_models_that_share_no_image(encoder: Encoder, images: Path, tmp_path: Path) -> None:
    for number, part in enumerate("ab"):
        embed(find_items(images / part), encoder.parts[0].teacher, tmp_path / f"store{number}")
    stored = [load(f"store:{tmp_path / f'store{number}'}") for number in range(2)]
    both = Encoder("both", [one.parts[0] for one in stored])
    with pytest.raises(NoImagesError, match="none of 6 images could be embedded by all 2 models"):
        Index.build(both, find_items(images), tmp_path / "index")
    assert [path.name for path in (tmp_path / "index").iterdir()] == ["embeddings"]


def test_another_format_is_refused(index: Index) -> None:
    manifest = json.loads((index.folder / "manifest.json").read_text())
    (index.folder / "manifest.json").write_text(json.dumps({**manifest, "format": 1}))
    with pytest.raises(StoreError, match="has index format 1, this version reads 2: delete it"):
        Index.open(index.folder)


def test_an_unchanged_collection_is_not_opened(
    index: Index, encoder: Encoder, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.stat().st_mtime_ns for path in index.folder.iterdir()}
    monkeypatch.setattr("whiten.embed.read_bytes", lambda path: pytest.fail(f"opened {path}"))
    assert Index.build(encoder, find_items(images), index.folder).ids == index.ids
    assert {path: path.stat().st_mtime_ns for path in index.folder.iterdir()} == before


def test_a_moved_collection_is_opened_once(
    index: Index, encoder: Encoder, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = images.rename(images.with_name("moved"))
    counts = count_embedded(encoder, monkeypatch)
    opened = Index.build(encoder, find_items(moved), index.folder)
    assert opened.paths == [item.path for item in find_items(moved)]
    assert not counts
    monkeypatch.setattr("whiten.embed.read_bytes", lambda path: pytest.fail(f"opened {path}"))
    assert Index.build(encoder, find_items(moved), index.folder).paths == opened.paths


def test_a_kill_while_files_are_replaced_mixes_nothing(
    index: Index, encoder: Encoder, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (images / "a" / "0.png").rename(images / "b" / "9.png")  # as many as before, in another order

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("whiten.index._write_names", killed)
        with pytest.raises(KeyboardInterrupt):
            Index.build(encoder, find_items(images), index.folder)
    with pytest.raises(StoreError, match="is not an index"):
        Index.open(index.folder)
    rebuilt = Index.build(encoder, find_items(images), index.folder)
    assert rebuilt.ids == [item.id for item in find_items(images)]
    np.testing.assert_allclose(rebuilt.vectors, encoder.embed(rebuilt.paths), atol=1e-6)


def test_names_that_are_not_text(encoder: Encoder, images: Path, tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    try:
        draw(7).save(tmp_path / "plain.png")
        (tmp_path / "plain.png").rename(images / "a" / name)
    except OSError:
        pytest.skip("the file system takes text names only")
    built = Index.build(encoder, find_items(images), tmp_path / "index")
    [[hit]] = built.search(encoder, draw(7), k=1)
    assert hit.path == str(images / "a" / name)
    assert hit.id == r"a/caf\xe9.png"


def test_two_models_side_by_side(encoder: Encoder, images: Path, tmp_path: Path) -> None:
    other = load(f"{TEACHER}?seed=1&dim=7")
    both = Encoder("both", [*encoder.parts, *other.parts])
    (images / "b" / "broken.png").write_bytes(b"no image")
    built = Index.build(both, find_items(images), tmp_path / "index")
    kept, vectors, skipped = both.embed_items(find_items(images))
    assert built.ids == [item.id for item in kept]
    assert [skip.id for skip in built.skipped] == [skip.id for skip in skipped] == ["b/broken.png"]
    np.testing.assert_array_equal(built.vectors, vectors)


def test_a_killed_build_goes_on(encoder: Encoder, images: Path, tmp_path: Path) -> None:
    built = Index.build(encoder, find_items(images), tmp_path / "index")
    (built.folder / "manifest.json").rename(built.folder / ".manifest.json.partial")
    assert len(Index.build(encoder, find_items(images), built.folder)) == 6


def test_nothing_readable(encoder: Encoder, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "x.png").write_bytes(b"no image")
    with pytest.raises(NoImagesError, match="none of 1 images could be read"):
        Index.build(encoder, find_items(tmp_path / "images"), tmp_path / "index")


# --- searching a folder -----------------------------------------------------------------


def test_search_folder(encoder: Encoder, images: Path, tmp_path: Path) -> None:
    query = images / "b" / "1.png"
    found = search_folder(query, TEACHER, images, index=tmp_path / "index", k=2)
    assert found.matches[0].id == "b/1.png"
    assert len(found.matches) == 2
    assert found.index == tmp_path / "index"
    write_image(images / "b" / "new.png", seed=1, variant=1)
    again = search_folder(query, TEACHER, images, index=tmp_path / "index", k=9)
    assert {match.id for match in again.matches[:2]} == {"b/1.png", "b/new.png"}


def test_search_folder_needs_a_place_for_the_index(encoder: Encoder, images: Path) -> None:
    with pytest.raises(ConfigError, match="add --index FOLDER"):
        search_folder(images / "a" / "0.png", TEACHER, images)


def test_search_folder_names_an_unreadable_query(encoder: Encoder, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"cannot read .*gone\.png: no such file"):
        search_folder(tmp_path / "gone.png", TEACHER, tmp_path, index=tmp_path / "index")
    assert not (tmp_path / "index").exists()


class Page(HTMLParser):
    """Sources of the images, and the text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.tags: set[str] = set()
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.sources += [value or "" for name, value in attrs if name == "src"]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_of_hits_stands_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    query = write_image(tmp_path / "<b>&query.png", seed=1)
    near = write_image(tmp_path / "near.png", seed=2)
    matches = [
        Match("<script>alert(1)</script>.png", str(near), 0.98765),
        Match("gone.png", str(tmp_path / "gone.png"), 0.5),
    ]
    written = write_hits_page(query, Found(matches, [], tmp_path))
    html = written.read_text(encoding="utf-8")
    page = Page(html)
    assert "script" not in page.tags and "b" not in page.tags
    assert "<b>&query.png" in page.text
    assert "<script>alert(1)</script>.png" in page.text
    assert "0.988" in page.text and "0.500" in page.text
    assert len(page.sources) == 3
    assert [source[:23] for source in page.sources[:2]] == ["data:image/jpeg;base64,"] * 2
    assert page.sources[2] == ""  # gone since
    assert not re.search(r"https?://|url\(|@import", html)


def test_a_query_whose_name_is_not_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    query = tmp_path / os.fsdecode(b"caf\xe9.png")
    draw(1).save(tmp_path / "plain.png")
    try:
        (tmp_path / "plain.png").rename(query)
    except OSError:
        pytest.skip("the file system takes text names only")
    page = write_hits_page(query, Found([], [], tmp_path)).read_text(encoding="utf-8")
    assert r"caf\xe9.png" in page
