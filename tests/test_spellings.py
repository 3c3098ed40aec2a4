"""A file that a table lists under several paths is one image."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers import TEACHER, write_image
from whiten.datasets import spellings as spellings_module
from whiten.datasets.collection import Item
from whiten.datasets.finding import find_items
from whiten.datasets.given import given_items
from whiten.errors import ConfigError
from whiten.index import Index


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for number, name in enumerate("abc"):
        write_image(folder / "in" / f"{name}.png", number)
    (folder / "link.png").symlink_to(folder / "in" / "a.png")
    (folder / "linked").symlink_to(folder / "in")
    return folder


def write(table: Path, rows: list[tuple[str, object]]) -> Path:
    columns = {"path": [path for path, _ in rows], "price": [price for _, price in rows]}
    if table.suffix == ".parquet":
        pq.write_table(pa.table(columns), table)
    else:
        table.write_text("".join(["path,price\n", *(f"{path},{price}\n" for path, price in rows)]))
    return table


def spellings(photos: Path) -> list[str]:
    return [
        *("./in/a.png", "in/a.png", "in/../in/a.png", f"{photos}/in/a.png", f"{photos}//in/a.png"),
        *("link.png", "linked/a.png", "linked/../in/a.png"),
    ]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_several_paths_of_one_file(colour_teachers: None, photos: Path, suffix: str) -> None:
    rows = [(path, 5) for path in spellings(photos)]
    table = write(photos / f"list{suffix}", [*rows, ("in/b.png", 6), ("gone.png", 7)])
    items = find_items(table)
    assert items.ids.to_pylist() == ["gone.png", "in/a.png", "in/b.png"]
    index = Index.build(TEACHER, table, photos.parent / "index")
    assert {one.id: one.metadata["price"] for one in index.items(index.ids())} == {
        "in/a.png": 5,
        "in/b.png": 6,
    }
    [hits] = index.search(photos / "in" / "a.png", 5)
    assert [hit.id for hit in hits] == ["in/a.png", "in/b.png"]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_rows_of_one_file_that_differ(photos: Path, suffix: str) -> None:
    table = write(photos / f"list{suffix}", [("in/a.png", 5), ("./in/a.png", 6), ("in/b.png", 6)])
    with pytest.raises(ConfigError, match=r"one file as '.*a\.png' and as .*values of 'price'"):
        find_items(table)


def test_files_that_only_look_alike(photos: Path) -> None:
    write_image(photos / "in" / "A.PNG", 9)
    names = ["in/A.PNG", "in/a.png", "in/c.png", "nowhere/A.png", "nowhere/a.png"]
    table = write(photos / "list.csv", [(name, 1) for name in names])
    is_one = (photos / "in" / "A.PNG").samefile(photos / "in" / "a.png")
    assert len(find_items(table)) == (4 if is_one else 5)


def test_several_paths_of_one_file_in_python(
    colour_teachers: None, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pandas = pytest.importorskip("pandas")
    monkeypatch.chdir(photos)
    paths = [*spellings(photos), "in/b.png", "gone.png"]
    assert given_items(paths).ids.to_pylist() == ["gone.png", "in/a.png", "in/b.png"]
    prices = [5.0] * (len(paths) - 2) + [6.0, None]
    frame = pandas.DataFrame({"path": paths, "price": prices, "sold": [None] * len(paths)})
    index = Index.build(TEACHER, frame, photos.parent / "index")
    assert {one.id: one.metadata["price"] for one in index.items(index.ids())} == {
        "in/a.png": 5,
        "in/b.png": 6,
    }
    frame.loc[0, "price"] = 7
    with pytest.raises(ConfigError, match=r"the collection lists one file as .* of 'price'"):
        given_items(frame)
    mine = [Item("in/a.png", "in/a.png", "x"), Item("link.png", "link.png", "y")]
    with pytest.raises(ConfigError, match="values of 'group'"):
        given_items(mine)


def test_a_table_is_read_once_for_all_its_repeated_files(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"{spelling}in/{name}.png" for spelling in ("", "./") for name in "abc"]
    table = write(photos / "list.parquet", [(name, float("nan")) for name in names])
    read = spellings_module._rows
    times = []
    monkeypatch.setattr(spellings_module, "_rows", lambda path: times.append(path) or read(path))
    assert find_items(table).ids.to_pylist() == ["in/a.png", "in/b.png", "in/c.png"]
    assert times == [table]
