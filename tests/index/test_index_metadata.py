"""Metadata of an index in a folder: columns, tables, filters, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from folder_checks import count_embedded
from helpers import draw
from whiten.datasets.finding import find_items
from whiten.embedding.encoder import Encoder
from whiten.errors import ConfigError
from whiten.index import Index
from whiten.index.where import parse_where


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "index"


@pytest.fixture
def priced(images: Path) -> Path:
    """A table of the images with columns of the user's own."""
    rows = ["path,group,price,colour"]
    for number, item in enumerate(find_items(images)):
        price = "" if number == 5 else str(10 * number)
        rows.append(f"images/{item.id},{item.group},{price},{'red' if number % 2 else 'blue'}")
    table = images.parent / "table.csv"
    table.write_text("\n".join(rows) + "\n")
    return table


@pytest.mark.parametrize("is_metadata", [False, True])
def test_a_data_frame_describes_images_below_the_working_directory(
    encoder: Encoder,
    images: Path,
    place: Path,
    is_metadata: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pandas = pytest.importorskip("pandas")
    monkeypatch.chdir(images.parent)
    paths = [f"images/{item.id}" for item in find_items(images)]
    frame = pandas.DataFrame({"path": paths, "price": range(len(paths))})
    if is_metadata:
        built = Index.build(encoder, images, place, metadata=frame)
    else:  # numbers of which one was missing once
        built = Index.build(encoder, frame.assign(id=frame["price"].astype(float)), place)
    assert [one.metadata["price"] for one in built.items(built.ids())] == [*range(len(paths))]


@pytest.mark.parametrize(
    ("where", "numbers"),
    [
        ("price < 20", [0, 1]),
        ("20 <= price <= 30", [2, 3]),
        ("price >= 30 and colour == 'blue'", [4]),
        ("price == 0 or not colour == 'blue'", [0, 1, 3, 5]),
        ("colour in ['red', 'green'] and group != 'a'", [3, 5]),
        ("group not in ['a']", [3, 4, 5]),
        ("price in []", []),
        ("price > -1", [0, 1, 2, 3, 4]),  # nothing is known of the last one
        ("not price > -1", []),
    ],
)
def test_filters(
    encoder: Encoder, priced: Path, place: Path, where: str, numbers: list[int]
) -> None:
    built = Index.build(encoder, priced, place)
    assert built.facts.columns == {"price": "int", "colour": "string"}
    [hits] = built.search(draw(0), k=9, where=where)
    assert sorted(hit.id for hit in hits) == [built.ids()[number] for number in numbers]
    for hit in hits:
        assert hit.metadata["colour"] == ("red" if built.ids().index(hit.id) % 2 else "blue")


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("price <", "cannot read the filter"),
        ("price = 3", "write == for equal"),
        ("colour == true", "write colour == True"),
        ("price", "where a comparison belongs"),
        ("price < 'x'", "column price holds int values, 'x' is not one"),
        ("price < True", "column price holds int values, True is not one"),
        ("cost < 3", "there is no column 'cost'"),
        ("price is 3", "compare with == != < <= > >= or in"),
        ("price < colour", "compares price with colour, which is no value: put text in quotes"),
        ("colour in 'red'", "after `in` comes a list"),
        ("3 < 4", "compares no column"),
        ("__import__('os').system('true') == 0", "compares no column"),
    ],
)
def test_wrong_filters(
    encoder: Encoder, priced: Path, place: Path, where: str, message: str
) -> None:
    built = Index.build(encoder, priced, place)
    with pytest.raises(ConfigError) as caught:
        built.search(draw(0), where=where)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_column_that_is_true_or_false_is_a_filter() -> None:
    columns = {"on offer": "flag", "ok": "bool", "price": "int"}  # tables of text have flags
    assert parse_where("ok", columns) == parse_where("ok == True", columns)
    both = parse_where("not ok and `on offer`", columns)
    assert both == parse_where("not ok == True and `on offer` == True", columns)
    with pytest.raises(ConfigError, match="write `on offer`, in backticks"):
        parse_where("on offer", columns)


def test_metadata_changes_without_embedding(
    encoder: Encoder, priced: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Index.build(encoder, priced, place)
    counts = count_embedded(encoder, monkeypatch)
    priced.write_text(priced.read_text().replace(",30,red", ",31,red").replace("colour", "tone"))
    again = Index.build(encoder, priced, place)
    assert not counts and again.facts.columns == {"price": "int", "tone": "string"}
    [hits] = again.search(draw(0), where="price == 31")
    assert [hit.metadata for hit in hits] == [{"price": 31, "tone": "red"}]


def test_a_table_of_metadata(encoder: Encoder, images: Path, place: Path, tmp_path: Path) -> None:
    table = tmp_path / "sizes.csv"
    table.write_text("id,wide\na/0.png,true\nb/0.png,false\n")
    built = Index.build(encoder, images, place, metadata=table)
    assert [hit.id for hit in built.search(draw(5), where="wide == True")[0]] == ["a/0.png"]
    for text, message in (
        ("name,wide\nx,1\n", "has no column 'id' or 'path'"),
        ("id,wide\na/0.png,1\na/0.png,2\n", "lists 'a/0.png' twice"),
        ("id,wide\n,1\n,2\na/0.png,1\na/0.png,2\n", "lists 'a/0.png' twice"),
        ("id,wide\n", "has no row with a value of 'id', which names the image"),
        ("id,wide\n,1\n", "has no row with a value of 'id', which names the image"),
        ("id,wide\n,2\nx,1\n", "describes none of these images; its first is x"),
        ("id,wide\nx,1\n", "describes none of these images; its first is x"),
        ("id,wide,wide\na/0.png,1,2\n", "has two columns 'wide': rename one"),
        ("", "cannot read"),
    ):
        table.write_text(text)
        with pytest.raises(ConfigError, match=message):
            Index.build(encoder, images, place, metadata=table)
    assert len(Index.open(place).search(draw(5), where="wide in [True, False]")[0]) == 2
    for other in (images, table.rename(tmp_path / "sizes.txt")):
        with pytest.raises(ConfigError, match=r"is no table: name a file whose name ends in \.csv"):
            Index.build(encoder, images, place, metadata=other)
