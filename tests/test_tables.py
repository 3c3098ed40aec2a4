"""Tables of images: dialects of CSV, encodings, headers, and the ids, paths and groups in them."""

from __future__ import annotations

import csv
import io
import os
import tempfile
from datetime import UTC
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from whiten.datasets.collection import Item
from whiten.datasets.finding import find_items
from whiten.datasets.given import given_items
from whiten.datasets.matching import find_rows
from whiten.datasets.tables import read_table
from whiten.errors import ConfigError

ROWS = [["path", "group", "title"], ["a.jpg", "x", 'so, "he" said;\nand left'], ["ü.jpg", "", "\t"]]


def text_of(delimiter: str = ",", end: str = "\r\n", quoting: Any = csv.QUOTE_MINIMAL) -> str:
    file = io.StringIO(newline="")
    csv.writer(file, delimiter=delimiter, lineterminator=end, quoting=quoting).writerows(ROWS)
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", text_of().encode()),
        ("t.csv", text_of(end="\n").encode("utf-8-sig")),
        ("t.csv", text_of(";").encode()),
        ("t.csv", text_of("\t").encode()),
        ("t.csv", text_of("|").encode()),
        ("t.csv", text_of(quoting=csv.QUOTE_ALL).encode()),  # as R and databases write them
        ("t.csv", text_of(";", quoting=csv.QUOTE_ALL).encode("utf-8-sig")),
        ("t.tsv", text_of("\t", quoting=csv.QUOTE_ALL).encode()),
        ("t.CSV", ("sep=;\r\n" + text_of(";")).encode("utf-8-sig")),
        ("t.tsv", text_of("\t").encode()),
        ("t.tsv", text_of(",").encode()),
        ("t.csv", text_of(quoting=csv.QUOTE_ALL).replace('","', '", "').encode()),
        ("t.csv", text_of().encode("utf-16")),
        ("t.csv", text_of("\t").encode("utf-16")),
        ("t.csv", b"\xfe\xff" + text_of().encode("utf-16-be")),
        ("t.csv", text_of().encode("utf-32")),
    ],
)
def test_forms_of_csv(tmp_path: Path, name: str, content: bytes) -> None:
    table = tmp_path / name
    table.write_bytes(content)
    assert list(find_items(table)) == [
        Item("a.jpg", str(tmp_path / "a.jpg"), "x"),
        Item("ü.jpg", str(tmp_path / "ü.jpg"), None),
    ]
    read = read_table(table, ["path"]).columns
    assert read["title"].to_pylist() == ['so, "he" said;\nand left', "\t"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("path\né.jpg\n".encode("latin-1"), "byte 0xe9 is not UTF-8): it must be CSV in UTF-8"),
        ("path\na.jpg\n".encode("utf-16-le"), "seems to be UTF-16: save it as UTF-8"),
        (b"", "it is empty"),
        (b"PATH,GROUP\na.jpg,x\n", "has no column 'path', only 'PATH', 'GROUP'; rename 'PATH'"),
        (b"paths\na.jpg\n", "rename 'paths' if it is meant"),
        (b"filename,label\na.jpg,x\n", "rename 'filename' if it is meant"),
        (b"path, path\na.jpg,b.jpg\n", "has two columns 'path': rename one"),
        (b"path,group\na.jpg,x,y\n", "has 3 cells in row 1 and 2 columns"),
        (b'path,group\na.jpg,"x\nb.jpg,y\n', "line 3: unexpected end of data"),
        (b"id,path\n1,a.jpg\n1,b.jpg\n", "lists '1' twice"),
        (b"id,path\n,a.jpg\n", "has no id in row 1"),
        (b"path\na.jpg\nb.jpg\na.jpg\n", "lists 'a.jpg' twice"),
        (b"group,path\nx,a.jpg\ny\n", "has no path in row 2"),
        (b"path,group\n,x\n", "has no path in row 1"),
        (b"path\na\0b.jpg\n", "a path with a null character"),
    ],
)
def test_what_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    table = tmp_path / "t.csv"
    table.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        find_items(table)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_header_with_spaces_has_its_groups(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text('path, group\na.jpg, x\nb.jpg, "y, z"\nc.jpg,\n')
    assert [item.group for item in find_items(table)] == ["x", "y, z", None]
    table.write_text(" path , group \na.jpg,x\n")  # the cells have none
    assert list(find_items(table)) == [Item("a.jpg", str(tmp_path / "a.jpg"), "x")]


@pytest.mark.parametrize("near", ["Group", "groups", "label", "class_id", "GROUP", "gruop"])
def test_a_name_like_group_is_pointed_out(tmp_path: Path, near: str) -> None:
    table = tmp_path / "t.csv"
    table.write_text(f"path,{near},size\na.jpg,x,1\n")
    told: list[str] = []
    assert find_items(table, told.append)[0].group is None
    assert told == [
        f"{table} has no column 'group', so that no groups are known; {near!r} is not read"
    ]
    table.write_text("path,size\na.jpg,1\n")
    find_items(table, told.append)
    assert len(told) == 1


def test_a_group_that_may_mean_none_is_pointed_out(tmp_path: Path) -> None:
    """Nan is a bread, and also what NumPy writes."""
    table = tmp_path / "t.csv"
    table.write_text("path,group\na.jpg,nan\nb.jpg,nan\nc.jpg,None\nd.jpg,\ne.jpg,nano\n")
    told: list[str] = []
    groups = [item.group for item in find_items(table, told.append)]
    assert groups == ["nan", "nan", "None", None, "nano"]
    assert [line.split(":")[1].split(",")[0] for line in told] == [
        " 2 images of group 'nan'",
        " 1 image of group 'None'",
    ]


def test_paths_that_were_written_on_windows(tmp_path: Path) -> None:
    for name in ("a/b/1.png", "c\\2.png", "c/2.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    table = tmp_path / "images.csv"
    table.write_text("path,price\na\\b\\1.png,5\nc\\2.png,6\nnone\\3.png,7\n")
    items = find_items(table)
    assert items.ids.to_pylist() == ["a\\b\\1.png", "c\\2.png", "none\\3.png"]
    found = [os.path.relpath(os.fsdecode(path), tmp_path) for path in items.paths.to_pylist()]
    assert found == ["a/b/1.png", "c\\2.png", "none\\3.png"]
    folder = find_items(tmp_path / "a")
    read = read_table(table, ("path",))
    assert find_rows(table, read, folder)[1].tolist() == [0]
    frame = pa.table({"path": [str(tmp_path / "a") + "\\b\\1.png"]})
    assert given_items(frame)[0].path == str(tmp_path / "a/b/1.png")


def test_an_id_beside_the_path_is_the_id_of_the_row(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("id,path,price\n017,a.jpg,5\nb.jpg,c.jpg,6\nc.jpg,a.jpg,7\n")
    assert [(item.id, Path(item.path).name) for item in find_items(table)] == [
        ("017", "a.jpg"),
        ("b.jpg", "c.jpg"),
        ("c.jpg", "a.jpg"),
    ]
    pq.write_table(pa.table({"path": ["a.jpg", "b.jpg"], "id": [12, 7]}), tmp_path / "t.parquet")
    assert [item.id for item in find_items(tmp_path / "t.parquet")] == ["12", "7"]


def test_a_missing_label_of_a_data_frame_is_no_group(tmp_path: Path) -> None:
    table = tmp_path / "t.parquet"
    labels = pa.array([7.0, float("nan"), None])
    pq.write_table(pa.table({"path": ["a", "b", "c"], "group": labels}), table)
    assert [item.group for item in find_items(table)] == ["7", None, None]
    categories = pa.array(["x", None, "x"]).dictionary_encode()
    pq.write_table(pa.table({"path": ["a", "b", "c"], "group": categories}), table)
    assert [item.group for item in find_items(table)] == ["x", None, "x"]


@pytest.mark.parametrize(
    ("name", "values", "texts"),
    [
        ("group", [7.0, float("nan"), 1e20], ["7", None, "1e+20"]),
        ("group", [True, False, None], ["true", "false", None]),
        ("group", ["007", "", None], ["007", None, None]),
        ("group", [b"a", b"b", b"a"], ["a", "b", "a"]),
        ("id", [0.0, 1.0, 2.5], ["0", "1", "2.5"]),
        ("id", [3, 4, 5], ["3", "4", "5"]),
        ("path", [0, 1, 2], ["0", "1", "2"]),
        (" path ", ["a", "b", "c"], ["a", "b", "c"]),
        ("frame_ms", [True, True, True], [None] * 3),
        ("frame_ms", [0, 40, 80], [0, 40, 80]),
    ],
)
def test_a_data_frame_is_read_as_its_parquet(
    tmp_path: Path, name: str, values: list[object], texts: list[object]
) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(({} if "path" in name else {"path": ["x", "y", "z"]}) | {name: values})
    frame.to_parquet(tmp_path / "t.parquet")
    column = name.strip().replace("path", "id")  # which is the path as it is given
    for items in (given_items(frame), find_items(tmp_path / "t.parquet")):
        assert [getattr(item, column) for item in items] == texts


def test_paths_of_a_data_frame_may_be_path_objects() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"path": [Path("b/1.png"), "a.png"]})
    assert [item.path for item in given_items(frame)] == ["a.png", "b/1.png"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"path": ["a", "b"], "group": ["x", 1]}, "cannot read the data frame .*column group"),
        ({"path": ["a", ""]}, "the data frame has no path in row 2"),
        ({"path": ["a", "b"], "id": ["x", ""]}, "the data frame has no id in row 2"),
        ({"path": ["a", "b\0"]}, "null character"),
        ({"Path": ["a", "b"]}, "rename 'Path' if it is meant"),
        ({"path": ["a", "b"], "frame_ms": np.array([0, 1 << 63], np.uint64)}, "'frame_ms'"),
    ],
)
def test_a_data_frame_that_lists_no_images_is_refused(
    columns: dict[str, object], message: str
) -> None:
    pandas = pytest.importorskip("pandas")
    with pytest.raises(ConfigError, match=message):
        given_items(pandas.DataFrame(columns))


def test_an_empty_path_is_refused() -> None:
    with pytest.raises(ConfigError, match="empty path"):
        given_items(["a.png", ""])


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (",path\n0,a\n1,b\n", ["path"]),  # the index of a data frame
        (",path\n3,a\n7,b\n", ["Unnamed: 0", "path"]),
        ("path,\na,\nb,\n", ["path"]),  # a comma at the end of each line
        (",Unnamed: 0,path\n0,0,a\n1,5,b\n", ["Unnamed: 0", "path"]),
        ("path,a,,\na,1,2,\n", ["path", "a", "Unnamed: 2"]),
    ],
)
def test_columns_without_a_name(tmp_path: Path, text: str, names: list[str]) -> None:
    table = tmp_path / "t.csv"
    table.write_text(text)
    assert read_table(table, ["path"]).columns.schema.names == names


# --- whatever is in a table ---------------------------------------------------------------

CELL = st.one_of(
    st.text(st.characters(codec="utf-8", exclude_characters="\0")),
    st.sampled_from(
        ["", "NA", "nan", "NULL", "None", "00123", "1e5", "7.50", " x", '"', "\r", "ÿ"]
    ),
)
HEADER = st.one_of(
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8),
    st.sampled_from(
        ["", " price", "my price", "class", "id", "group", "Unnamed: 0", "a;b", "a\nb"]
    ),
)


@st.composite
def tables(draw: st.DrawFn) -> list[list[str]]:
    """A header with `path`, and rows of any text."""
    names = ["path", *draw(st.lists(HEADER, max_size=4))]
    names = draw(st.permutations(names))
    row = st.lists(CELL, min_size=len(names), max_size=len(names))
    return [names, *draw(st.lists(row, max_size=5))]


@settings(deadline=None)
@given(
    rows=tables(),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"]),
    delimiter=st.sampled_from(",;\t"),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
)
@example([["path", ""], ["a", ""]], "utf-8", "\t", csv.QUOTE_MINIMAL)
@example([["path", "group"], ["a", "b"]], "utf-8", ",", csv.QUOTE_ALL)
@example([["path", ' "b'], ["a", " b"]], "utf-8", ",", csv.QUOTE_MINIMAL)
def test_any_csv_is_read_as_pythons_csv_reads_it(
    rows: list[list[str]], encoding: str, delimiter: str, quoting: Any
) -> None:
    file = io.StringIO(newline="")
    csv.writer(file, delimiter=delimiter, quoting=quoting).writerows(rows)
    content = file.getvalue().encode(encoding)
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder, "t.csv")
        table.write_bytes(content)
        try:
            read = read_table(table, ["path"])
        except ConfigError as error:
            assert "two columns" in str(error)
            stripped = [name.strip() for name in rows[0] if name.strip()]
            assert len(set(stripped)) < len(stripped)
            return
    expected = list(csv.reader(io.StringIO(file.getvalue(), newline=""), delimiter=delimiter))
    header, body = expected[0], [row for row in expected[1:] if row]
    assert len(read.columns) == len(body)
    for number, name in enumerate(header):
        cells = [row[number] or None for row in body]
        if name.strip():
            found = read.columns[name.strip().removeprefix("\ufeff").strip()].to_pylist()
            spaced = [cell and cell.lstrip(" ") for cell in cells]
            assert found in (cells, spaced)
            assert found == cells or all(other.startswith(" ") for other in header[1:])


COLUMN = st.sampled_from(
    [
        (pa.string(), st.text(st.characters(codec="utf-8"))),
        (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
        (pa.uint64(), st.integers(0, 2**64 - 1)),
        (pa.float64(), st.floats(allow_nan=False)),
        (pa.bool_(), st.booleans()),
        (pa.date32(), st.dates()),
        (pa.timestamp("us", "UTC"), st.datetimes(timezones=st.just(UTC))),
        (pa.decimal128(20, 2), st.decimals(-(10**9), 10**9, places=2)),
    ]
)


@st.composite
def typed_columns(draw: st.DrawFn) -> list[tuple[str, pa.Array]]:
    """Columns of any names and types, `path` among them; names may be empty or equal."""
    count = draw(st.integers(0, 5))
    columns = [("path", pa.array([f"{n}.jpg" for n in range(count)], pa.string()))]
    for name in draw(st.lists(HEADER, max_size=4)):
        kind, values = draw(COLUMN)
        cells = draw(st.lists(st.none() | values, min_size=count, max_size=count))
        columns.append((name, pa.array(cells, kind)))
    return draw(st.permutations(columns))


@settings(deadline=None)
@given(columns=typed_columns())
@example([("path", pa.array(["a", "b"])), ("", pa.array([5, 6])), ("", pa.array([7, 8]))])
@example([("", pa.array([5, 6])), ("path", pa.array(["a", "b"])), ("Unnamed: 0", pa.array([7, 8]))])
def test_any_parquet_is_read_as_it_was_written(columns: list[tuple[str, pa.Array]]) -> None:
    names = [name for name, _ in columns]
    named = [name.strip() for name in names if name.strip()]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "t.parquet")
        pq.write_table(pa.table([column for _, column in columns], names=names), path)
        if len(set(named)) < len(named):
            with pytest.raises(ConfigError, match="two columns"):
                read_table(path, ["path"])
            return
        read = read_table(path, ["path"]).columns
    assert len(read) == len(columns[0][1])
    for number, (name, column) in enumerate(columns):
        shown = name.strip() or f"Unnamed: {number}"
        while not name.strip() and shown in named:
            shown += ".1"
        if name.strip() or shown in read.schema.names:  # a data frame's index is left out
            assert read[shown].to_pylist() == column.to_pylist()
