"""Several indexes searched as one: the hits of one index of all rows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from command_line import Captured, fails, prints
from helpers import TEACHER, write_image
from random_rows import backend_of, block_of
from whiten.embedding.encoder import Encoder
from whiten.errors import ConfigError, StoreError
from whiten.index import Index
from whiten.index.places import open_place
from whiten.index.query import SearchOptions, search
from whiten.index.rows import Facts

DIM = 16
SIZES = (40, 300, 7)


def rows_of(part: int, size: int) -> dict[str, list[object]]:
    """Columns of one part: the last one has no price, the first none below zero."""
    tags: list[object] = [None if n % 3 else f"t{n % 5}" for n in range(size)]
    columns = {"tag": tags}
    if part < 2:
        columns["price"] = [n - 20 if part else n for n in range(size)]
    return columns


@pytest.fixture(scope="module")
def indexes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Index, Index]:
    """Three indexes as one, and one of all their rows; videos lie across them."""
    folder = tmp_path_factory.mktemp("joined")
    places = [str(folder / name) for name in "ABC"]
    blocks = []
    for part, size in enumerate(SIZES):
        ids = [f"v{n % 11}-{part}/{n:04d}.png" for n in range(size)]
        kinds = {"tag": "string"} | ({"price": "int"} if part < 2 else {})
        facts = Facts("model", "", "random", DIM, [f"s{part}"], kinds)
        blocks.append(block_of(facts, ids, seed=part, **rows_of(part, size)))
        write(places[part], facts, [blocks[-1]])
    facts = Facts("model", "", "random", DIM, ["s0", "s1", "s2"], {"tag": "string", "price": "int"})
    whole = [
        block_of(facts, b.rows["id"].to_pylist(), part, **{"price": [None] * len(b.rows)}
                 | rows_of(part, len(b.rows)))
        for part, b in enumerate(blocks)
    ]  # fmt: skip
    write(str(folder / "all"), facts, whole)
    return Index.open(places), Index.open(folder / "all")


def write(place: str, facts: Facts, blocks: list) -> None:  # type: ignore[type-arg]
    backend = open_place(place)
    with backend.writing():
        backend.write(facts, (), blocks)


def queries(count: int) -> np.ndarray:
    return block_of(Facts("model", "", "", DIM), ["q"] * count, seed=99).vectors


@pytest.mark.parametrize(
    "where",
    [
        None, "price < 5", "not price < 5", "price is None", "not (price is None or tag == 't0')",
        "price < 2.5 or tag.startswith('t')", "tag not in ['t0'] and not price >= 100", "id > 'v5'",
        "price in [] or group is not None", "not price in []",
    ],
)  # fmt: skip
def test_as_one_index_of_all_rows(indexes: tuple[Index, Index], where: str | None) -> None:
    joined, whole = indexes
    some = queries(70)
    for k in (1, 10, 500):
        for hits, expected in zip(
            joined.search_vectors(some, k, where=where),
            whole.search_vectors(some, k, where=where),
            strict=True,
        ):
            assert [hit.id for hit in hits] == [hit.id for hit in expected]
            assert [hit.metadata for hit in hits] == [hit.metadata for hit in expected]
            np.testing.assert_allclose(
                [hit.score for hit in hits], [hit.score for hit in expected], atol=1e-6
            )


@pytest.mark.parametrize(
    "options",
    [{"videos": True, "k": 4}, {"expand": 3}, {"threshold": 0.2}, {"k": 25}, {"background": True}],
    ids=lambda options: ",".join(options),
)
def test_options_of_a_search(indexes: tuple[Index, Index], options: dict) -> None:  # type: ignore[type-arg]
    _, whole = indexes
    vectors = queries(3)
    if options.get("background"):
        options = {"background": whole}
    hits, expected = (search(index, vectors, SearchOptions(**options)) for index in indexes)
    assert expected and [hit.id for hit in hits] == [hit.id for hit in expected]
    np.testing.assert_allclose(
        [hit.score for hit in hits], [hit.score for hit in expected], atol=1e-6
    )


def test_rows_of_all(indexes: tuple[Index, Index]) -> None:
    joined, whole = indexes
    assert len(joined) == len(whole) == sum(SIZES)
    assert joined.ids() == whole.ids()
    assert [len(page) for page in joined.pages(100)] == [100, 100, 100, 47]
    assert joined.facts.sources == ["s0", "s1", "s2"]
    ids = joined.ids()[::-7]
    assert joined.items(ids) == whole.items(ids)
    assert np.array_equal(joined.vectors(ids), whole.vectors(ids))
    for read in (joined.vectors, joined.items):
        with pytest.raises(StoreError, match="has no image 'x'"):
            read(["x"])


def test_the_equally_near_stand_in_the_order_of_the_indexes(tmp_path: Path) -> None:
    facts = Facts("model", "", "random", 8)
    for name in "BA":
        block = block_of(facts, [f"{name}{n}" for n in range(5)])
        block.vectors[:] = block.vectors[0]
        write(str(tmp_path / name), facts, [block])
    index = Index.open([tmp_path / "B", tmp_path / "A"])
    [hits] = index.search_vectors(block.vectors[:1], 7)
    assert [hit.id for hit in hits] == ["B0", "B1", "B2", "B3", "B4", "A0", "A1"]


def test_they_are_only_searched(indexes: tuple[Index, Index], images: Path) -> None:
    joined, _ = indexes
    with pytest.raises(StoreError, match="several indexes are only searched"):
        joined.remove(joined.ids()[:1])


def test_numbers_of_two_kinds_are_floats(tmp_path: Path) -> None:
    backend_of(str(tmp_path / "A"), 3, price=[1, None, 3])
    facts = Facts("model", "", "random", 8, ["there"], {"price": "float"})
    write(str(tmp_path / "B"), facts, [block_of(facts, ["x", "y"], price=[1.5, 3.0])])
    index = Index.open([tmp_path / "A", tmp_path / "B"])

    def found(where: str) -> dict[str, object]:
        [hits] = index.search_vectors(np.ones((1, 8), np.float32), 9, where=where)
        return {hit.id: hit.metadata["price"] for hit in sorted(hits, key=lambda hit: hit.id)}

    assert found("price < 2.5") == {"r0": 1.0, "x": 1.5}
    assert found("not price in [1, 1.5]") == {"r2": 3.0, "y": 3.0}
    assert found("price == 3") == {"r2": 3.0, "y": 3.0}


def test_a_number_that_no_float_holds_is_shown_as_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    backend_of(str(tmp_path / "A"), 1, code=[2**53 + 1])
    facts = Facts("model", "", "random", 8, ["there"], {"code": "float"})
    write(str(tmp_path / "B"), facts, [block_of(facts, ["x"], code=[1.5])])
    index = Index.open([tmp_path / "A", tmp_path / "B"])
    [hits] = index.search_vectors(np.ones((1, 8), np.float32), 9)
    assert {hit.id: hit.metadata["code"] for hit in hits} == {"r0": 2**53 + 1, "x": 1.5}
    assert [hit.metadata["code"] for hit in index.items(["x", "r0", "x"])] == [1.5, 2**53 + 1, 1.5]
    assert index.items([]) == []
    assert index.ids() == ["r0", "x"] and not caplog.messages
    [page] = index.pages()
    assert page["code"].to_pylist() == [None, 1.5]
    assert "2^53 are missing in pages of column code" in caplog.text


# --- what is refused --------------------------------------------------------------------


def test_what_cannot_be_one(tmp_path: Path) -> None:
    for name, model, column, ids in [
        ("A", "model", {"price": "int"}, ["x", "y"]), ("B", "other", {}, ["z"]),
        ("C", "model", {}, ["w", "y"]), ("D", "model", {"price": "string"}, ["d"]),
    ]:  # fmt: skip
        facts = Facts(model, "", f"teacher of {name}", 8, [name], column)
        columns: dict[str, list[object]] = {one: [None] * len(ids) for one in column}
        write(str(tmp_path / name), facts, [block_of(facts, ids, **columns)])
    a, b, c, d = (str(tmp_path / name) for name in "ABCD")
    for places, error, message in [
        ([a, b], StoreError, rf"{b} was made with another model \(teacher of B\) than {a} \(teac"),
        ([a, c], StoreError, rf"{a} and {c} both have the id 'y', one of 1: .*--collection NAME"),
        ([a, d], ConfigError, f"price holds int values in {a} and string values in {d}"),
        ([a, f"{tmp_path}/./A"], ConfigError, "is named twice"),
        ([a, str(tmp_path / "gone")], StoreError, "gone is not an index"),
        ([], ConfigError, "name the place of an index"),
    ]:
        with pytest.raises(error, match=message) as caught:
            Index.open(places)
        assert "\n" not in str(caught.value)
    joined = Index.open([c, d])
    facts = Facts("model", "", "random", 8, ["D"], {"price": "string"})
    write(d, facts, [block_of(facts, ["w"], price=[None])])
    for _ in range(2):  # also when it is asked again
        with pytest.raises(StoreError, match="both have the id 'w'"):
            joined.refresh()


# --- command line -----------------------------------------------------------------------


def test_the_command_line(capsys: Captured, encoder: Encoder, images: Path, tmp_path: Path) -> None:
    for number in range(3):
        write_image(tmp_path / "more" / "z" / f"{number}.png", 50 + number)
    more = tmp_path / "more"
    Index.build(encoder, images, tmp_path / "A")
    Index.build(encoder, more, tmp_path / "B")
    Index.build(encoder, images, tmp_path / "all").add(more)
    query = write_image(tmp_path / "query.png", 77)
    for options in ((), ("-k", "8"), ("--where", "group == 'z'"), ("--box", "0,0,9,9")):
        expected = prints(capsys, "search", query, "--index", "all", "--json", *options)[0]
        found = prints(capsys, "search", query, "--index", "A", "B", "--json", *options)[0]
        assert json.loads(found) == json.loads(expected)
    assert json.loads(prints(capsys, "search", "--index", "A", "B", query, "--json")[0])
    hits = json.loads(prints(capsys, "search", "--id", "z/1.png", "--index", "A", "B", "--json")[0])
    assert hits[0]["id"] == "z/1.png"
    command = ("search", query, "--in", images, "--model", TEACHER, "--index", "A", "B")
    assert "name one place" in fails(capsys, *command)
    assert "leave out --writable" in fails(capsys, "serve", "A", "B", "--writable")
