"""A file that a table lists under several paths is one image."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers import TEACHER, write_image
from whiten.datasets.finding import find_items
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
