"""Storages of an index in a folder: what is stored is found, changed and told like in float32."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from folder_checks import count_embedded
from helpers import draw, write_groups, write_image
from index_helpers import DIM, block, clustered, found_ids, make, timed_as, write
from whiten.datasets.finding import find_items
from whiten.embedding.encoder import Encoder
from whiten.errors import ConfigError, MissingExtraError, StoreError
from whiten.index import Changes, Index
from whiten.index.local.folder import FolderIndex
from whiten.index.local.tuning import KINDS
from whiten.index.where import parse_where
from whiten.retrieval.exact import exact_search
from whiten.utils.arrays import Vectors, normalize_rows

CODES = ["float16", "int8", "pca:8", "pq:8", "binary"]
KEPT = ["int8+float32", "binary+float32"]
STORAGES = CODES + KEPT
BYTES = {"float16": 64, "int8": 32, "pca:8": 16, "pq:8": 8, "binary": 4}
ROWS = 1200


@pytest.fixture(scope="module")
def vectors() -> Vectors:
    return clustered(ROWS)


@pytest.fixture(scope="module")
def queries() -> Vectors:
    found = clustered(ROWS)[100:160] + 0.1 * clustered(60, seed=3)
    return normalize_rows(found)


def stored_as(folder: Path, vectors: Vectors, storage: str) -> FolderIndex:
    index = make(folder, vectors)
    with index.writing():
        index.store_as(storage)
    return index


def held(index: FolderIndex) -> Vectors:
    """All vectors in order, L2-normalised."""
    ids = [name for page in index.pages(500) for name in page["id"].to_pylist()]
    return normalize_rows(index.fetch(ids).vectors)


# --- searched ---------------------------------------------------------------------------


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("count", [1, 3, 60])
def test_answers_are_those_of_exact_search_of_what_is_stored(
    tmp_path: Path, vectors: Vectors, queries: Vectors, storage: str, count: int
) -> None:
    index = stored_as(tmp_path / "index", vectors, storage)
    for where in (None, "price == 3", "price < 8"):
        prices = np.arange(ROWS) % 10
        allowed = {None: None, "price == 3": prices == 3, "price < 8": prices < 8}[where]
        parsed = None if where is None else parse_where(where, {"price": "int"})
        found = FolderIndex(index.root).search(queries[:count], 10, parsed)
        expected = exact_search(queries[:count], held(index), 10, allowed)
        for hits, (_, scores) in zip(found, expected, strict=True):
            if storage in KEPT:  # an answer may be missing, never better
                assert hits[0].score == pytest.approx(scores[0], abs=1e-5)
            else:
                np.testing.assert_allclose([hit.score for hit in hits], scores, atol=1e-5)
            assert allowed is None or all(allowed[int(hit.id)] for hit in hits)


@pytest.mark.parametrize("storage", STORAGES)
def test_what_is_stored_is_near_and_small(tmp_path: Path, vectors: Vectors, storage: str) -> None:
    index = stored_as(tmp_path / "index", vectors, storage)
    cosines = np.einsum("nd,nd->n", held(index), vectors)
    kind = storage.removesuffix("+float32")
    closest = {"float16": 1 - 1e-6, "int8": 0.9995, "pca:8": 0.6, "pq:8": 0.9, "binary": 0.7}
    assert cosines.mean() >= (1 - 1e-6 if storage in KEPT else closest[kind])
    [codes] = index.root.glob("segment-*/*.codes")
    assert codes.stat().st_size == ROWS * BYTES[kind]
    assert bool(list(index.root.glob("segment-*/vectors.f32"))) == (storage in KEPT)


@pytest.mark.parametrize("first", [1, 10])
def test_int8_that_began_with_a_few_images_holds_the_others_as_well(
    tmp_path: Path, vectors: Vectors, queries: Vectors, first: int
) -> None:
    index = stored_as(tmp_path / "index", vectors[:first], "int8")
    write(index, [block(vectors[first:], "n")])
    found = found_ids(index, queries, 10)
    names = [*map(str, range(first)), *(f"n{row}" for row in range(ROWS - first))]
    expected = [{names[row] for row in rows} for rows, _ in exact_search(queries, vectors, 10)]
    shared = [len(own & set(hits)) / 10 for own, hits in zip(expected, found, strict=True)]
    assert np.mean(shared) > 0.9


def test_full_vectors_re_rank_the_answers(
    tmp_path: Path, vectors: Vectors, queries: Vectors
) -> None:
    expected = exact_search(queries, vectors, 10)
    shared = {}
    for storage in ("binary", "binary+float32"):
        index = stored_as(tmp_path / storage, vectors, storage)
        found = index.search(queries, 10)
        shared[storage] = np.mean(
            [
                len({int(hit.id) for hit in hits} & set(rows)) / 10
                for hits, (rows, _) in zip(found, expected, strict=True)
            ]
        )
    for query, hits in zip(queries, found, strict=True):
        own = vectors[[int(hit.id) for hit in hits]] @ query
        np.testing.assert_allclose([hit.score for hit in hits], own, atol=1e-6)
    assert shared["binary+float32"] > 0.97 > shared["binary"]


@pytest.mark.parametrize("storage", ["int8", "pca:8", "int8+float32"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "auto"])
def test_kinds_of_search_work_on_what_is_stored(
    tmp_path: Path, vectors: Vectors, queries: Vectors, storage: str, kind: str
) -> None:
    index = stored_as(tmp_path / "index", vectors, storage)
    with index.writing(), timed_as(1.0, 0.1):
        index.tune("auto")
        assert index.tuning is not None and index.tuning.kind == "exact"
        index.tune(kind)
    assert index.tuning.asked == kind
    found = found_ids(FolderIndex(index.root), queries, 10)
    expected = exact_search(queries, held(index), 10)
    pairs = zip(found, expected, strict=True)
    assert np.mean([len(set(map(int, own)) & set(rows)) for own, (rows, _) in pairs]) > 8.5


# --- changed ----------------------------------------------------------------------------


@pytest.mark.parametrize("storage", STORAGES)
def test_what_stays_is_not_changed_by_changes(
    tmp_path: Path, vectors: Vectors, storage: str
) -> None:
    index = stored_as(tmp_path / "index", vectors, storage)
    every = [str(n) for n in range(ROWS)]
    vectors_before = index.fetch(every).vectors
    codes = {name: row.tobytes() for name, row in zip(every, vectors_before, strict=True)}
    more = clustered(500, seed=9)
    write(index, [block(more, "new-")], [str(n) for n in range(450)])  # everything is merged
    assert [part.count for part in index._opened.manifest.parts] == [ROWS + 50]
    again = index.fetch([str(n) for n in range(500, 700)])
    write(index, [again])  # as what only moved: read, and written again
    opened = FolderIndex(tmp_path / "index")
    assert len(opened) == ROWS + 50 and opened.storage.name == storage
    names = [str(n) for n in range(450, ROWS)]
    if storage.startswith("pca"):
        before = np.array([np.frombuffer(codes[name], np.float32) for name in names])
        np.testing.assert_allclose(opened.fetch(names).vectors, before, atol=1e-6)
    else:
        found = opened.fetch(names).vectors
        assert {n: v.tobytes() for n, v in zip(names, found, strict=True)} == {
            n: codes[n] for n in names
        }
    new = normalize_rows(opened.fetch([f"new-{n}" for n in range(500)]).vectors)
    assert np.einsum("nd,nd->n", new, more).mean() > 0.4
    left = {path.name for path in (tmp_path / "index").rglob("*") if path.is_file()}
    wanted = {".lock", "manifest.json", "rows.arrows", opened.storage.codec, opened.storage.codes}
    assert {n for n in left if not n.startswith("gone-")} == wanted | (
        {"vectors.f32"} if storage in KEPT else set()
    )


@pytest.mark.parametrize("storage", ["float16", "int8", "pca:3", "binary", "int8+float32"])
def test_an_index_of_images(
    encoder: Encoder, images: Path, tmp_path: Path, storage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "index"
    write_groups(images, {"a": 3, "b": 3, "c": 3})
    built = Index.build(encoder, images, place, storage=storage)
    assert built.storage == storage and len(built) == 9
    assert built.loss is not None and built.loss.kind == storage
    [hits] = built.search(images / "c" / "1.png", k=2)
    assert storage == "binary" or hits[0].id == "c/1.png"
    assert hits[0].score == pytest.approx(1, abs=1e-3) or storage in ("pca:3", "binary")
    np.testing.assert_allclose(np.linalg.norm(built.vectors(built.ids()), axis=1), 1, atol=1e-5)
    counts = count_embedded(encoder, monkeypatch)
    assert Index.build(encoder, images, place, storage=storage).changes == Changes(unchanged=9)
    before = Index.open(place).vectors(["a/0.png"])
    (images / "a" / "0.png").rename(images / "b" / "moved.png")
    (images / "b" / "0.png").unlink()
    again = Index.build(encoder, images, place)  # the storage stays
    assert again.storage == storage and not counts
    assert (again.changes.added, again.changes.removed) == (1, 2)
    np.testing.assert_allclose(again.vectors(["b/moved.png"]), before, atol=1e-6)
    more = tmp_path / "more"
    write_image(more / "z" / "0.png", seed=40)
    assert again.add(more).added == 1
    [hits] = Index.open(place).search(draw(40), k=9, where="group == 'z'")
    assert [hit.id for hit in hits] == ["z/0.png"]


def test_float32_is_stored_as_before(encoder: Encoder, images: Path, tmp_path: Path) -> None:
    for place, storage in (("plain", None), ("named", "float32")):
        index = Index.build(encoder, images, tmp_path / place, storage=storage)
        assert index.storage == "float32" and index.loss is None
    plain, named = (tmp_path / name for name in ("plain", "named"))
    manifest = json.loads((plain / "manifest.json").read_text())
    assert manifest["format"] == 3 and "storage" not in manifest
    for path in plain.glob("segment-*/*"):
        assert path.read_bytes() == (named / path.relative_to(plain)).read_bytes()


# --- chosen -----------------------------------------------------------------------------


def test_full_vectors_can_be_stored_in_another_way(
    tmp_path: Path, vectors: Vectors, queries: Vectors
) -> None:
    index = stored_as(tmp_path / "index", vectors, "int8+float32")
    reader = FolderIndex(index.root)
    before = found_ids(reader, queries, 10)
    for storage in ("binary+float32", "float32", "pca:8"):
        with index.writing():
            index.store_as(storage)
        assert FolderIndex(index.root).storage.name == storage
    assert found_ids(reader, queries, 10) == before  # who has it open goes on reading it
    assert found_ids(FolderIndex(index.root), vectors[:3], 1) == [["0"], ["1"], ["2"]]
    assert len(list(index.root.glob("codec-*"))) == len(list(index.root.glob("*/*.codes"))) == 1
    with index.writing(), pytest.raises(StoreError, match="as pca:8, its full vectors are gone"):
        index.store_as("float32")


def test_a_tuned_index_is_tuned_again(tmp_path: Path, vectors: Vectors) -> None:
    with timed_as(1.0, 0.1):
        index = make(tmp_path / "index", vectors, "ivf")
        with index.writing():
            index.store_as("int8")
    assert index.tuning is not None and index.tuning.kind == "ivf"
    assert len(list(index.root.glob("fast-*"))) == 1


@pytest.mark.parametrize(
    ("storage", "message"),
    [
        ("int4", "there is no kind 'int4'"),
        ("float32+float32", "there is no storage"),
        ("int8+float16", r"there is no kind 'int8\+float16'"),
        ("pq:5", "cannot cut 12 dimensions"),
        ("pca:13", "needs 13 axes, the embeddings have 12"),
    ],
)
def test_what_cannot_be_had_is_refused_before_anything_is_embedded(
    encoder: Encoder, images: Path, tmp_path: Path, storage: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Index.build(encoder, images, tmp_path / "index", storage=storage)
    assert not (tmp_path / "index").exists()


def test_too_few_images_leave_the_index_as_it_was(
    encoder: Encoder, images: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"cannot be stored as pq:4, and is stored as before: "):
        Index.build(encoder, images, tmp_path / "index", storage="pq:4")
    assert Index.open(tmp_path / "index").storage == "float32"
    [item] = [item for item in find_items(images) if item.id == "a/0.png"]
    alone = Index.build(encoder, [item], tmp_path / "alone", storage="int8")
    assert alone.storage == "int8" and alone.loss is None


def test_a_conversion_that_cannot_be_is_refused_before_images_are_added(
    encoder: Encoder, images: Path, tmp_path: Path
) -> None:
    [item] = [item for item in find_items(images) if item.id == "a/0.png"]
    place = tmp_path / "index"
    Index.build(encoder, [item], place, storage="int8")
    with pytest.raises(StoreError, match="is stored as int8, its full vectors are gone"):
        Index.build(encoder, images, place, keep=True, storage="binary")
    assert len(Index.open(place)) == 1
    assert len(Index.build(encoder, images, place, keep=True, storage="int8")) == 6


def test_without_faiss(
    encoder: Encoder, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    with pytest.raises(MissingExtraError, match="product quantisation"):
        Index.build(encoder, images, tmp_path / "index", storage="pq:4")


def test_a_database_stores_float32(encoder: Encoder, images: Path, tmp_path: Path) -> None:
    place = f"milvus:{tmp_path / 'index.db'}#photos"
    with pytest.raises(ConfigError, match="which stores float32"):
        Index.build(encoder, images, place, storage="int8")


def test_the_loss_is_kept(tmp_path: Path, vectors: Vectors) -> None:
    index = stored_as(tmp_path / "index", vectors, "binary")
    loss = FolderIndex(index.root).storage.loss
    assert loss is not None and loss == index.storage.loss
    assert (loss.kind, loss.bytes, loss.map) == ("binary", DIM // 8, None)
    assert loss.overlap is not None and 0.3 < loss.overlap.low < loss.overlap.value < 0.9


# --- damage and kills -------------------------------------------------------------------


@pytest.mark.parametrize("name", ["codec-*", "segment-*/*.codes"])
@pytest.mark.parametrize("damage", ["missing", "empty", "short", "garbage"])
def test_damage_is_refused(tmp_path: Path, vectors: Vectors, name: str, damage: str) -> None:
    index = stored_as(tmp_path / "index", vectors, "int8")
    [path] = index.root.glob(name)
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes({"empty": b"", "short": content[:-1], "garbage": b"garbage"}[damage])
    with pytest.raises(StoreError, match=r"is damaged \(.+\): delete .* and index again"):
        FolderIndex(index.root)


@pytest.mark.parametrize("step", ["save_codec", "write_codes", "measure", "_commit", "_sweep"])
def test_a_killed_change_of_storage_goes_on(
    tmp_path: Path, vectors: Vectors, queries: Vectors, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = make(tmp_path / "index", vectors)
    with monkeypatch.context() as patch:
        where = FolderIndex if step.startswith("_") else "whiten.index.local.folder"
        killed = lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)  # noqa: E731
        if isinstance(where, str):
            patch.setattr(f"{where}.{step}", killed)
        else:
            patch.setattr(where, step, killed)
        with pytest.raises(KeyboardInterrupt), index.writing():
            index.store_as("int8")
    opened = FolderIndex(index.root)
    assert opened.storage.name == ("int8" if step == "_sweep" else "float32")
    assert found_ids(opened, vectors[:3], 1) == [["0"], ["1"], ["2"]]
    with opened.writing():
        opened.store_as("int8")
        opened.write(opened.facts, ["5"], ())  # type: ignore[arg-type]
    assert opened.storage.name == "int8" and len(opened) == ROWS - 1
    assert not list(index.root.glob("*/vectors.f32"))
    assert len(list(index.root.glob("codec-*"))) == 1


def test_embeddings_of_a_killed_addition_are_not_lost(
    encoder: Encoder, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "index"
    index = Index.build(encoder, images, place, storage="int8")
    more = tmp_path / "more"
    for number in range(4):
        write_image(more / "z" / f"{number}.png", seed=30 + number)
    counts = count_embedded(encoder, monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(FolderIndex, "_commit", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            index.add(more)
    assert sum(counts) == 4
    assert Index.open(place, encoder).add(more).added == 4
    assert sum(counts) == 4
