"""Columns of metadata in every place of an index: what was written stays, and compares as it is."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from column_helpers import IDS, shown, write
from random_rows import passing
from whiten.embedding.encoder import Encoder
from whiten.errors import ConfigError
from whiten.index import Index

# column -> kind, cells, and the ids' numbers that filters find
CASES: dict[str, tuple[str, list[str], dict[str, list[int]]]] = {
    "country": (
        "string",
        ["NA", "DE", "nan", "NULL", "None", ""],
        {"country == 'NA'": [0], "country is None": [5], "country != 'DE'": [0, 2, 3, 4]},
    ),
    "zip": (
        "string",
        ["00123", "123", "99", "", "07", "1"],
        {"zip == '00123'": [0], "zip.startswith('0')": [0, 4], "zip.endswith('23')": [0, 1]},
    ),
    "hash": ("string", ["1e5", "2e7", "12", "1_000", "1,000", "+5"], {"hash == '1e5'": [0]}),
    "number": (
        "string",
        ["12345678901234567890", "12345678901234567891", "1", "2", "3", "4"],
        {"number == '12345678901234567891'": [1]},
    ),
    "count": ("int", ["5", "-3", "0", "", "9223372036854775807", "7"], {"count < 1": [1, 2]}),
    "size": (
        "float",
        ["5", "7.5", "1e-05", "", "-0.1", "1e+16"],
        {"size < 1": [2, 4], "size is None": [3]},
    ),
    "price": (
        "decimal",
        ["7.50", "8", "10.00", " 12.5", "", ".5"],
        {"price < 10": [0, 1, 5], "price == 7.5": [0], "price == '7.50'": [0], "price > 9": [2, 3]},
    ),
    "version": ("decimal", ["1.10", "1.9", "1.1", "2.0", "", "3.10"], {"version == '1.10'": [0]}),
    "sold": ("bool", ["true", "false", "", "true", "true", "false"], {"sold == False": [1, 5]}),
    "there": (
        "flag",
        ["TRUE", "FALSE", "", "TRUE", "TRUE", "FALSE"],
        {"there == True": [0, 3, 4], "not there == True": [1, 5], "there in ['FALSE']": [1, 5]},
    ),
    "taken": (
        "date",
        ["2024-01-03", "2024-01-03T10:00:00", "2024-01-03 09:59", "", "2023-12-31T23:59:59.9",
         "2024-01-04"],
        {
            "taken >= '2024-01-03T00:00:00'": [0, 1, 2, 5],
            "'2024-01-03' <= taken < '2024-01-04'": [0, 1, 2],
            "taken < '2024-01-03T10:00'": [0, 2, 4],
            "taken == '2024-01-03T10:00:00.000'": [1],
            "taken in ['2024-01-04', '2024-01-03']": [0, 5],
            "taken is None": [3],
            "taken.startswith('2024-01')": [0, 1, 2, 5],
        },
    ),
    "sent": (
        "instant",
        ["2024-01-03T01:00:00+02:00", "2024-01-02T23:00:00Z", "2024-01-03 00:00:00 UTC", "",
         "2024-01-02T18:30-0430", "2024-01-03T01:00:00.000001+02"],
        {
            "sent >= '2024-01-03'": [0, 2, 5],  # the day that was written
            "sent == '2024-01-02T23:00:00Z'": [0, 1, 4],  # the same moment
            "sent > '2024-01-03T01:00+02:00'": [2, 5],
            "sent <= '2024-01-02T23:00+00:00'": [0, 1, 4],
        },
    ),
    "time": ("string", ["10:30", "09:15", "", "23:59:59", "00:00", "7"], {"time < '10'": [1, 4]}),
    "score": ("int", ["1", "2", "3", "4", "5", "6"], {"score > 4": [4, 5]}),
    "view": ("string", ["top", "", "side", "top", "top", "x"], {"view == 'side'": [2]}),
    "class": ("string", ["a", "b", "", "a", "a", "b"], {"`class` == 'b'": [1, 5]}),
    "my price": ("int", ["1", "2", "3", "", "5", "6"], {"`my price` <= 2": [0, 1]}),
    "a`b": ("int", ["1", "2", "3", "", "5", "6"], {"`a``b` == 2": [1]}),
    "key": ("int", ["1", "2", "3", "", "5", "6"], {"key == 2 and score == 2": [1]}),
    "serial": ("int", ["1", "2", "3", "", "5", "6"], {"serial == 2": [1]}),
    "embedding": ("string", ["x", "y", "", "", "", ""], {"embedding == 'y'": [1]}),
    "content_hash": ("string", ["x", "y", "", "", "", ""], {"content_hash == 'y'": [1]}),
    "stamp": ("string", ["x", "y", "", "", "", ""], {"stamp == 'y'": [1]}),
    "metadata": ("string", ["x", "y", "", "", "", ""], {"metadata == 'y'": [1]}),
    "50 % off (time)": ("string", ["x", "y", "", "", "", ""], {"`50 % off (time)` == 'y'": [1]}),
    "ﬁ": ("int", ["1", "2", "", "", "", ""], {"`ﬁ` == 2": [1], "ﬁ == 1": [0]}),
    "title": (
        "string",
        ["50% off", "50_x", 'a\\b "q"', "it's\nnew", "Zürich", ""],
        {
            "title.contains('0%')": [0],
            "title.str.contains('_')": [1],
            "'\\\\' in title": [2],
            "'\"q\"' in title": [2],
            "'\\nn' in title": [3],
            "'x' not in title": [0, 2, 3, 4],
            "not title.endswith('h')": [0, 1, 2, 3],
            "title.startswith(('50', 'Z'))": [0, 1, 4],
            "title.startswith('z')": [],
            "title.contains('')": [0, 1, 2, 3, 4],
            "title is not None and not title.contains('0')": [2, 3, 4],
            "title is None or title == 'Zürich'": [4, 5],
            "not (title is None or title == 'Zürich')": [0, 1, 2, 3],
            "group.startswith('a') and id.endswith('1.png')": [1],
            "id is None": [],
        },
    ),
}  # fmt: skip


@pytest.mark.slow
def test_columns(encoder: Encoder, images: Path, place: str, tmp_path: Path) -> None:
    columns = {name.replace(" ", "__"): cells for name, (_, cells, _) in CASES.items()}
    built = Index.build(encoder, images, place, metadata=write(tmp_path / "m.csv", **columns))
    assert built.facts.columns == {name: kind for name, (kind, _, _) in CASES.items()}
    for name, (kind, cells, filters) in CASES.items():
        texts = [cell or None for cell in cells]
        if kind in ("int", "float", "bool"):
            found = [None if value is None else value for value in shown(built, name)]
            assert found == [None if text is None else json.loads(text) for text in texts], name
        else:
            assert shown(built, name) == texts
        for where, numbers in filters.items():
            assert passing(built, where) == [IDS[number] for number in numbers], where
    again = Index.build(encoder, images, place, metadata=tmp_path / "m.csv")
    assert (again.changes.unchanged, again.changes.dropped) == (6, [])
    nightly = Index.build(encoder, images, place)
    assert (nightly.changes.unchanged, nightly.changes.updated) == (6, 0)
    assert shown(nightly, "sent") == shown(built, "sent")


def test_typed_columns(encoder: Encoder, images: Path, place: str, tmp_path: Path) -> None:
    zone = timezone(timedelta(hours=2))
    moment = datetime(2024, 1, 3, 1, 0, tzinfo=zone)
    table = pa.table(
        {
            "id": IDS[:2],
            "zoned": pa.array([moment, None], pa.timestamp("us", "Europe/Berlin")),
            "plain": pa.array([moment.replace(tzinfo=None), None], pa.timestamp("ns")),
            "day": pa.array([moment.date(), None]),
            "clock": pa.array([moment.time(), None]),
            "price": pa.array([Decimal("7.50"), None], pa.decimal128(10, 2)),
            "whole": pa.array([Decimal(7), None], pa.decimal128(38, 0)),
            "kind": pa.array(["x", None]).dictionary_encode(),
            "large": pa.array([2**64 - 1, None], pa.uint64()),
            "code": pa.array(["00123", None]),
            "digits": pa.array(["7", None]),
            "nothing": pa.nulls(2),
            "half": pa.array([np.float16(0.5), None], pa.float16()),
        }
    )
    pq.write_table(table, tmp_path / "m.parquet")
    built = Index.build(encoder, images, place, metadata=tmp_path / "m.parquet")
    assert built.items(IDS[:1])[0].metadata == {
        "zoned": "2024-01-03T00:00:00+01:00",
        "plain": "2024-01-03T01:00:00",
        "day": "2024-01-03",
        "clock": "01:00:00.000000",
        "price": "7.50",
        "whole": 7,
        "kind": "x",
        "large": "18446744073709551615",
        "code": "00123",
        "digits": "7",
        "half": 0.5,
    }
    for where in (
        "zoned == '2024-01-03T01:00+02:00'", "zoned >= '2024-01-03'", "plain > '2024-01-03'",
        "day == '2024-01-03'", "price < 8", "whole == 7", "digits == '7'", "half < 1",
        "clock < '02:00'",
    ):  # fmt: skip
        assert passing(built, where) == IDS[:1], where
    pq.write_table(pa.table({"id": IDS[:1], "tags": [["x"]]}), tmp_path / "m.parquet")
    with pytest.raises(ConfigError, match=r"column 'tags' of type list.*: make it numbers or text"):
        Index.build(encoder, images, place, metadata=tmp_path / "m.parquet")


# --- what stays -------------------------------------------------------------------------


@pytest.mark.slow
def test_values_that_a_table_does_not_list_stay(
    encoder: Encoder, images: Path, place: str, tmp_path: Path
) -> None:
    table = write(tmp_path / "m.csv", price=[5, 8], colour=["red", "blue"])
    Index.build(encoder, images, place, metadata=table)
    added = Index.build(encoder, images, place, keep=True)  # without a table
    assert shown(added, "price")[:3] == [5, 8, None]
    table.write_text("id,price,new\na/2.png,7,x\na/1.png,,y\n")
    added = Index.build(encoder, images, place, metadata=table, keep=True)
    assert shown(added, "price")[:4] == [5, None, 7, None]  # an empty cell is missing
    assert shown(added, "colour")[:3] == ["red", "blue", None]
    assert shown(added, "new")[:3] == [None, "y", "x"]
    replaced = Index.build(encoder, images, place, metadata=write(table, price=[1]))
    assert replaced.changes.dropped == ["colour", "new"]
    assert shown(replaced, "price")[:3] == [1, None, 7]
    table.write_text("id,colour\nb/0.png,green\n")
    again = Index.build(encoder, images, place, metadata=table, keep=True)
    assert shown(again, "colour") == [None, None, None, "green", None, None]
    with pytest.raises(ConfigError, match="no column 'colur' to drop; did you mean 'colour'"):
        Index.build(encoder, images, place, drop_columns=["colur"])
    assert shown(Index.open(place), "colour")[3] == "green"


WIDER: list[tuple[list[str], list[str], str, list[Any]]] = [
    (["5", "8"], ["7.5"], "float", [5.0, 8.0, 7.5]),
    (["7.5", "0.25"], ["8"], "float", [7.5, 0.25, 8.0]),
    (["5", "8"], ["7.50"], "decimal", ["5", "8", "7.50"]),
    (["7.5", "8"], ["7.50"], "decimal", ["7.5", "8.0", "7.50"]),
    (["7.50", "8"], ["9"], "decimal", ["7.50", "8", "9"]),
    (["5", "8"], ["9007199254740993"], "int", [5, 8, 9007199254740993]),
    (["2024-01-03", ""], ["2024-01-04T10:00"], "date", ["2024-01-03", None, "2024-01-04T10:00"]),
    (["true", "false"], ["TRUE"], "flag", ["true", "false", "TRUE"]),
    (["x", "00123"], ["123"], "string", ["x", "00123", "123"]),
    (["x", "8"], ["2024-01-03"], "string", ["x", "8", "2024-01-03"]),
    (["", ""], ["7.5"], "float", [None, None, 7.5]),
    (["5", "8"], [""], "int", [5, 8, None]),
]


@pytest.mark.slow
@pytest.mark.parametrize(("before", "more", "kind", "values"), WIDER)
def test_types_widen_without_loss(
    encoder: Encoder,
    images: Path,
    place: str,
    tmp_path: Path,
    before: list[str],
    more: list[str],
    kind: str,
    values: list[Any],
) -> None:
    Index.build(encoder, images, place, metadata=write(tmp_path / "m.csv", x=before))
    table = tmp_path / "more.csv"
    table.write_text(f"id,x\n{IDS[2]},{more[0]}\n")
    index = Index.build(encoder, images, place, metadata=table, keep=True)
    for _ in range(2):
        assert index.facts.columns == {"x": kind}
        assert shown(index, "x")[:3] == values
        assert [type(value) for value in shown(index, "x")[:3]] == [type(value) for value in values]
        index = Index.build(encoder, images, place)
    if kind in ("float", "decimal"):
        assert passing(index, "x < 7.6") == [
            name for name, value in zip(IDS, values, strict=False)
            if value is not None and float(value) < 7.6
        ]  # fmt: skip
    if kind == "date":
        assert passing(index, "x >= '2024-01-03T00:00'") == [IDS[0], IDS[2]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "more", "message"),
    [
        ("5", "dear", "that holds int values, 'dear' is not one"),
        ("9007199254740993", "7.5", "that holds int values, '7.5' is not one"),
        ("2024-01-03", "unknown", "that holds date values, 'unknown' is not one"),
        (
            "2024-01-03",
            "2024-01-03T01:00Z",
            "that holds date values, '2024-01-03T01:00Z' is not one",
        ),
        ("true", "maybe", "that holds bool values, 'maybe' is not one"),
    ],
)
def test_what_does_not_fit_is_refused(
    encoder: Encoder,
    images: Path,
    place: str,
    tmp_path: Path,
    before: str,
    more: str,
    message: str,
) -> None:
    Index.build(encoder, images, place, metadata=write(tmp_path / "m.csv", x=[before]))
    table = tmp_path / "more.csv"
    table.write_text(f"id,x\n{IDS[2]},{more}\n")
    with pytest.raises(ConfigError, match=message):
        Index.build(encoder, images, place, metadata=table, keep=True)
    kept = Index.open(place)
    assert str(shown(kept, "x")[0]).lower() == before
    del kept
    Index.build(encoder, images, place, drop_columns=["x"])
    assert shown(Index.build(encoder, images, place, metadata=table, keep=True), "x")[0] is None


def test_numbers_for_a_column_of_text_are_named(
    encoder: Encoder, images: Path, tmp_path: Path
) -> None:
    Index.build(encoder, images, tmp_path / "idx", metadata=write(tmp_path / "m.csv", x=["a"]))
    pq.write_table(pa.table({"id": [IDS[2]], "x": [5]}), tmp_path / "more.parquet")
    with pytest.raises(
        ConfigError, match="that holds string values, the new ones are int; correct"
    ):
        Index.build(encoder, images, tmp_path / "idx", metadata=tmp_path / "more.parquet")


CHANGED = [  # cells, what one of them becomes, the kinds of the column, and how many rows change
    (["7.50", "8", "9"], "n/a", ("decimal", "string"), 1),
    (["2024-01-03", "2024-01-04", "2024-01-05T10:00"], "soon", ("date", "string"), 1),
    (["2024-01-03T10:00Z", "2024-01-04T10:00Z", ""], "2024-01-03", ("instant", "string"), 1),
    (["TRUE", "false", "True"], "maybe", ("flag", "string"), 1),
    (["7.50", "n/a", "9"], "8", ("string", "decimal"), 1),
    (["2024-01-03", "soon", ""], "2024-01-04", ("string", "date"), 1),
    (["1", "2", "3"], "2.50", ("int", "decimal"), 1),
    (["1", "9007199254740993", "3"], "2.5", ("int", "float"), 1),
    (["1", "2", "3"], "x", ("int", "string"), 3),
    (["1", "2.50", "3"], "2", ("decimal", "int"), 3),
]


@pytest.mark.parametrize(("cells", "cell", "kinds", "changed"), CHANGED)
def test_one_cell_that_changes_the_kind_of_a_column(
    encoder: Encoder,
    images: Path,
    place: str,
    tmp_path: Path,
    cells: list[str],
    cell: str,
    kinds: tuple[str, str],
    changed: int,
) -> None:
    """The others keep their values, though their rows are not written again."""
    built = Index.build(encoder, images, place, metadata=write(tmp_path / "m.csv", x=cells))
    assert built.facts.columns == {"x": kinds[0]}
    now = [cells[0], cell, cells[2]]
    built = Index.build(encoder, images, place, metadata=write(tmp_path / "m.csv", x=now))
    assert (built.facts.columns, built.changes.updated) == ({"x": kinds[1]}, changed)
    values = shown(Index.open(place), "x")
    number = {"int": int, "float": float}.get(kinds[1], str)
    assert values == [*(number(text) if text else None for text in now), None, None, None]


@pytest.mark.slow
def test_values_that_a_table_takes_away_do_not_return(
    encoder: Encoder, images: Path, place: str, tmp_path: Path
) -> None:
    for cells in (["TRUE", "false", "x"], ["2024-01-03", "", ""], ["7.50", "", ""]):
        table = write(tmp_path / "m.csv", x=cells)
        Index.build(encoder, images, place, metadata=table)
    table.write_text(f"id,x\n{IDS[0]},word\n")
    built = Index.build(encoder, images, place, metadata=table)
    assert shown(built, "x") == ["word", *[None] * 5]


@pytest.mark.slow
def test_values_of_removed_rows_decide_nothing(
    encoder: Encoder, images: Path, place: str, tmp_path: Path
) -> None:
    table = write(tmp_path / "m.csv", x=["7.50", "n/a", "9"])
    index = Index.build(encoder, images, place, metadata=table)
    index.remove(IDS[1])
    (images / IDS[1]).unlink()
    built = Index.build(encoder, images, place, metadata=write(table, x=["7.50", "", "9"]))
    assert built.facts.columns == {"x": "decimal"}
    kept = [item.metadata.get("x") for item in Index.open(place).items([IDS[0], IDS[2]])]
    assert kept == ["7.50", "9"]
    assert passing(built, "x > 8") == [IDS[2]]


def test_a_column_that_stays_text_says_why(
    encoder: Encoder, images: Path, place: str, tmp_path: Path
) -> None:
    table = write(tmp_path / "m.csv", price=["5", "n/a", "7"], code=["x", "y", "z"])
    assert Index.build(encoder, images, place, metadata=table).changes.notes == [
        f"column 'price' of {table} is kept as text: most of it are numbers, but not 'n/a' (row 2)"
    ]


def test_columns_of_several_collections(
    encoder: Encoder, images: Path, place: str, tmp_path: Path
) -> None:
    more = tmp_path / "more"
    for name in IDS[:2]:
        (more / name).parent.mkdir(parents=True, exist_ok=True)
        (more / name).write_bytes((images / name).read_bytes() + b"\0")  # another file
    prices = write(tmp_path / "m.csv", price=[5, 8])
    Index.build(encoder, images, place, metadata=prices)
    write(prices, price=["7.5", ""], whiten_collection=["x", "y"])
    Index.build(encoder, more, place, metadata=prices, keep=True, collection="b")
    index = Index.build(encoder, images, place)  # one of two, as every night
    names = ["a/0.png", "a/1.png", "b/a/0.png", "b/a/1.png"]
    assert [item.metadata.get("price") for item in index.items(names)] == [5.0, 8.0, 7.5, None]
    assert passing(index, "price > 6") == ["a/1.png", "b/a/0.png"]
    assert passing(index, "whiten_collection == 'y'") == ["b/a/1.png"]
