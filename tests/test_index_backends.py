"""What every place of an index does alike: a folder, Milvus in a file, PostgreSQL with pgvector."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers import TEACHER, draw, write_groups, write_image
from killing import CONTEXT, attempt, start_server
from postgres import Server
from whiten.encoder import Encoder, load
from whiten.errors import ConfigError, StoreError
from whiten.index import Index, synchronise
from whiten.index.places import open_place
from whiten.index.rows import Block, Facts
from whiten.media import Item

NewPlace = Callable[[], str]


@pytest.fixture(scope="module")
def postgres() -> Iterator[Server]:
    server = Server()
    yield server
    server.stop()


@pytest.fixture(params=["folder", "milvus", "pgvector"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "folder":
        yield str(tmp_path / "index")
    elif request.param == "milvus":
        yield f"milvus:{tmp_path / 'index.db'}#photos"
    else:
        yield f"pgvector:{request.getfixturevalue('postgres').new_schema()}#photos"
    gc.collect()  # a database is let go of with the last index that uses it


@pytest.fixture
def encoder(colour_teachers: None) -> Encoder:
    return load(TEACHER)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_groups(tmp_path / "images", {"a": 3, "b": 3})


@pytest.fixture
def index(encoder: Encoder, images: Path, place: str) -> Index:
    return Index.build(encoder, images, place)


def backend_of(place: str, total: int, dim: int = 8, **columns: list[object]) -> Index:
    """An index of random vectors, `r0`, `r1`, ..., with metadata columns."""
    kinds = {str: "string", bool: "bool", int: "int", float: "float"}
    types = {
        name: next(kinds[type(value)] for value in values if value is not None)
        for name, values in columns.items()
    }
    facts = Facts("model", "", "random", dim, ["here"], types)
    backend = open_place(place)
    with backend.writing():
        backend.write(facts, (), [block_of(facts, [f"r{n}" for n in range(total)], **columns)])
    return Index(backend)


def block_of(facts: Facts, ids: list[str], seed: int = 0, **columns: list[object]) -> Block:
    vectors = np.random.default_rng(seed).normal(size=(len(ids), facts.dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    own: dict[str, list[object]] = {
        "id": list(ids),
        "path": [os.fsencode(f"/images/{name}") for name in ids],
        "content_hash": [f"hash of {name}" for name in ids],
        "stamp": ["1:2:3"] * len(ids),
        "group": [None] * len(ids),
        "frame_ms": [None] * len(ids),
    }
    return Block(pa.table(own | columns, schema=facts.schema()), vectors)


def passing(index: Index, where: str) -> list[str]:
    query = np.ones((1, index.facts.dim), np.float32)
    [hits] = index.search_vectors(query, len(index) + 5, where=where)
    return sorted((hit.id for hit in hits), key=lambda name: (len(name), name))


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


FILTERS = [
    ("price < 2", ["r0"]),
    ("price <= 2.5 and not price == 1", ["r1"]),
    ("not price < 2", ["r1", "r3", "r5"]),
    ("not (price < 2 or count > 7)", ["r1"]),
    ("price > 1e30", ["r5"]),
    ("price in [1, 2.5, 9]", ["r0", "r1", "r3"]),
    ("price not in [1]", ["r1", "r3", "r5"]),
    ("price in []", []),
    ("not price in []", ["r0", "r1", "r3", "r5"]),
    ("count == 16777217", ["r3"]),
    ("count < 7.5", ["r0", "r1"]),
    ("count >= -1e300", ["r0", "r1", "r3", "r4"]),
    ("count == 7.5", []),
    ("count != 7.5", ["r0", "r1", "r3", "r4"]),
    ("count in [-3, 7.0, 8.5]", ["r0", "r1"]),
    ("count == 9223372036854775807", ["r4"]),
    ("count < 9223372036854775808", ["r0", "r1", "r3", "r4"]),
    ("5 < count < 100", ["r1"]),
    ("sold == True", ["r0", "r4"]),
    ("sold != True", ["r1"]),
    ("not sold in [True]", ["r1"]),
    ("not (sold == True and price < 2)", ["r1", "r3", "r5"]),
    ("colour == 'red'", ["r0"]),
    ("colour != 'red'", ["r1", "r2", "r3", "r4"]),
    ("colour > 'red'", ["r1", "r4"]),
    ("colour == ''", ["r2"]),
    ("colour == 'r%' or colour == 'r_d'", []),
    ("""colour == 'it\\'s "so"\\\\\\n{x}'""", ["r3"]),
    ("colour in ['Zürich', 'zürich', '\\'']", ["r4"]),
    ("id == 'r2' or id in ['r4', 'no']", ["r2", "r4"]),
    ("id not in []", ["r0", "r1", "r2", "r3", "r4", "r5"]),
    ("not id > 'r2'", ["r0", "r1", "r2"]),
    ("group == 'x'", []),
    ("not group == 'x'", []),
    ("frame_ms < 10", []),
]  # fmt: skip


def test_filters(place: str) -> None:
    index = backend_of(
        place, 6,
        price=[1.0, 2.5, None, 9.0, None, float("inf")],
        count=[-3, 7, None, 16777217, 2**63 - 1, None],
        sold=[True, False, None, None, True, None],
        colour=["red", "rot", "", 'it\'s "so"\\\n{x}', "zürich", None],
    )  # fmt: skip
    found = {where: passing(index, where) for where, _ in FILTERS}
    assert found == dict(FILTERS)


def test_filters_come_before_the_best(place: str) -> None:
    index = backend_of(place, 2000, dim=24, rare=[n % 400 == 0 for n in range(2000)])
    vectors = index.vectors([f"r{n}" for n in range(2000)])
    query = np.random.default_rng(5).normal(size=(1, 24)).astype(np.float32)
    rare = np.arange(0, 2000, 400)
    order = rare[np.argsort(-(vectors[rare] @ query[0]))]
    [hits] = index.search_vectors(query, 10, where="rare == True")
    assert [hit.id for hit in hits] == [f"r{n}" for n in order]


# --- metadata ---------------------------------------------------------------------------


def test_columns_of_the_metadata_change(encoder: Encoder, images: Path, place: str) -> None:
    def build(**columns: list[object]) -> Index:
        table = images.parent / "metadata.parquet"
        pq.write_table(pa.table({"id": ["a/0.png", "b/1.png"], **columns}), table)
        return Index.build(encoder, images, place, metadata=table)

    first = build(price=[1.5, float("nan")], **{"we 'ird\" näme": ["x", "y"]})
    assert first.items(["a/0.png"])[0].metadata == {"price": 1.5, "we 'ird\" näme": "x"}
    assert first.items(["b/1.png"])[0].metadata == {"we 'ird\" näme": "y"}
    again = build(price=[1.5, float("nan")], **{"we 'ird\" näme": ["x", "y"]})
    assert (again.changes.unchanged, again.changes.embedded) == (6, 0)
    del first, again
    second = build(price=["dear", None], select=[True, False])
    assert second.changes.embedded == 0
    assert passing(second, "price == 'dear'") == passing(second, "select == True") == ["a/0.png"]
    assert second.facts.columns == {"price": "string", "select": "bool"}
    del second
    Index.build(encoder, images, place)
    opened = Index.open(place, encoder)
    assert opened.facts.columns == {}
    assert {str(match.metadata) for match in opened.items(opened.ids())} == {"{}"}
    [[hit]] = opened.search(images / "a" / "0.png", k=1)
    assert (hit.id, hit.score) == ("a/0.png", pytest.approx(1, abs=1e-5))


# --- names that databases stumble over --------------------------------------------------

HOSTILE = [
    "it's", 'say "hi"', "back\\slash", "per%cent", "under_score", "new\nline", "tab\tcr\r", "🦄/é",
    "x'; DROP TABLE photos; --", '" or id != "', "{v}", "%s", "$1", "\x01\x7f", " ", "long" * 1000,
    "[1]", "null", "hex:00",
]  # fmt: skip


def test_hostile_ids(place: str) -> None:
    facts = Facts("model", "", "random", 8, columns={"tag": "string"})
    backend = open_place(place)
    block = block_of(facts, HOSTILE, tag=list(HOSTILE))
    with backend.writing():
        backend.write(facts, (), [block])
    index = Index(open_place(place))
    assert index.ids() == HOSTILE
    assert np.array_equal(index.vectors(HOSTILE), block.vectors)
    for name, vector in zip(HOSTILE, block.vectors, strict=True):
        [[hit]] = index.search_vectors(vector[None], 1)
        assert (hit.id, hit.path, hit.metadata) == (name, f"/images/{name}", {"tag": name})
        assert passing(index, f"id == {name!r} and tag in [{name!r}]") == [name]
        assert name not in passing(index, f"id != {name!r}")
    for name in HOSTILE[::2]:
        index.remove(name)
    assert Index(open_place(place)).ids() == HOSTILE[1::2]


def test_paths_that_are_not_text(place: str) -> None:
    facts = Facts("model", "", "random", 8)
    block = block_of(facts, ["a", "b", "c", "d"])
    paths = [b"/caf\xe9.png", b"hex:2f", "/café.png".encode(), b"\\x2f"]
    at = block.rows.schema.get_field_index("path")
    field = block.rows.schema.field(at)
    rows = block.rows.set_column(at, field, pa.array(paths, field.type))
    backend = open_place(place)
    with backend.writing():
        backend.write(facts, (), [Block(rows, block.vectors)])
    index = Index(open_place(place))
    assert index._backend.known()["path"].to_pylist() == paths
    assert [match.path for match in index.items("abcd")] == [os.fsdecode(path) for path in paths]


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


def test_one_writer_at_a_time(index: Index, encoder: Encoder, images: Path, place: str) -> None:
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


# --- killed -----------------------------------------------------------------------------


def _vector(n: int) -> np.ndarray:
    vector = np.random.default_rng(n).normal(size=16).astype(np.float32)
    return vector / np.linalg.norm(vector)


class Slow:
    """A collection of numbers whose embedding takes a while, and counts."""

    model, uri, name, dim = "model", "", "slow", 16

    def __init__(self, folder: Path) -> None:
        from whiten.media import Items

        self._log = folder / "embedded"
        self.items = Items.of([Item(f"{n:03d}", f"/images/{n}") for n in range(200)])

    def stamps(self) -> list[str]:
        return ["1:2:3"] * len(self.items)

    def hashes(self, items) -> list[str]:  # type: ignore[no-untyped-def]
        return [f"#{item.id}" for item in items]

    def embed(self, items):  # type: ignore[no-untyped-def]
        from whiten.index.sources import Embedded

        with self._log.open("a") as log:
            log.writelines(f"{item.id}\n" for item in items)
        time.sleep(0.05)
        vectors = np.array([_vector(int(item.id)) for item in items])
        return Embedded(np.arange(len(items)), vectors, [])


def _synchronise(folder: Path) -> None:
    synchronise.CHUNK = 10
    backend = open_place((folder / "place").read_text())
    source = Slow(folder)
    with backend.writing():
        facts = Facts(source.model, source.uri, source.name, source.dim, ["numbers"])
        synchronise.synchronise(backend, source, facts)


@pytest.mark.slow
def test_a_killed_change_goes_on(place: str, tmp_path: Path) -> None:
    start_server()
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "place").write_text(place)
    kills = 0
    for _ in range(60):
        process = CONTEXT.Process(target=_synchronise, args=(folder,))
        process.start()
        embedded = _count(folder)
        # Not before something new was done, so that the loop ends.
        while process.is_alive() and _count(folder) < embedded + 50:
            time.sleep(0.01)
        process.kill()
        process.join()
        if process.exitcode == 0:
            break
        kills += 1
        backend = open_place(place)
        known = [] if backend.facts is None else backend.known()["id"].to_pylist()
        for name in known:  # what is there is right
            assert np.array_equal(backend.fetch([name]).vectors[0], _vector(int(name)))
        del backend
        gc.collect()
    assert kills >= 2
    assert attempt(_synchronise, folder)
    index = Index(open_place(place))
    assert index.ids() == [f"{n:03d}" for n in range(200)]
    assert np.array_equal(index.vectors(index.ids()), [_vector(n) for n in range(200)])
    assert _count(folder) <= 200 + 20 * kills  # what was written was not embedded again


def _count(folder: Path) -> int:
    log = folder / "embedded"
    return len(log.read_text().splitlines()) if log.exists() else 0
