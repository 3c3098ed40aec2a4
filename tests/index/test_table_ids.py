"""Ids, paths and groups of a table of metadata, and of a table of images."""

from __future__ import annotations

from pathlib import Path

import pytest

from column_helpers import IDS, shown, write
from random_rows import passing
from whiten.embedding.encoder import Encoder
from whiten.index import Index


def test_groups_of_the_metadata(encoder: Encoder, images: Path, place: str, tmp_path: Path) -> None:
    table = write(tmp_path / "m.csv", group=["x", "7"], price=[1, 2])
    built = Index.build(encoder, images, place, metadata=table)
    assert [item.group for item in built.items(IDS)] == ["x", "7", "a", "b", "b", "b"]
    assert passing(built, "group == '7'") == [IDS[1]]
    nightly = Index.build(encoder, images, place)
    assert [item.group for item in nightly.items(IDS[:3])] == ["x", "7", "a"]
    assert nightly.changes.unchanged == 6
    without = Index.build(encoder, images, place, drop_columns=["group"])
    assert [item.group for item in without.items(IDS[:3])] == ["a", "a", "a"]


def test_ids_beside_paths(encoder: Encoder, images: Path, place: str, tmp_path: Path) -> None:
    """`SELECT id, path, price`: of a folder's images the path decides, whatever the ids."""
    table = images.parent / "rows.csv"
    table.write_text(f"id,path,price\n{IDS[1]},{IDS[0]},5\n{IDS[0]},{IDS[1]},8\n")
    built = Index.build(encoder, images, place, metadata=table)
    assert shown(built, "price")[:3] == [5, 8, None]
    assert built.changes.notes == [
        f"column 'id' of {table} is not read, images keep their own ids: rename it to keep it"
    ]
    table.write_text(f"id,path,price\n17,images/{IDS[0]},6\n18,{images / IDS[1]},9\n")
    assert shown(Index.build(encoder, images, place, metadata=table), "price")[:2] == [6, 9]


def test_a_table_of_images_with_ids(encoder: Encoder, images: Path, place: str) -> None:
    table = images.parent / "rows.csv"
    table.write_text(f"id,path,price\n17,images/{IDS[0]},5\n18,images/{IDS[1]},8\n")
    built = Index.build(encoder, table, place)
    assert built.ids() == ["17", "18"]
    assert [item.metadata for item in built.items(["18"])] == [{"price": 8}]
    assert passing(built, "price < 6") == ["17"]


@pytest.mark.slow
def test_the_index_of_a_data_frame(
    encoder: Encoder, images: Path, place: str, tmp_path: Path
) -> None:
    table = tmp_path / "m.csv"
    table.write_text(f",id,price\n0,{IDS[0]},5\n1,{IDS[1]},8\n")
    built = Index.build(encoder, images, place, metadata=table)
    assert built.facts.columns == {"price": "int"}
    assert passing(built, "price < 6") == [IDS[0]]
    table.write_text(f",id,price\n3,{IDS[0]},5\n9,{IDS[1]},8\n")
    again = Index.build(encoder, images, place, metadata=table)
    assert passing(again, "price < 9 and `Unnamed: 0` == 9") == [IDS[1]]
