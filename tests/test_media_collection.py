"""A collection as columns is the same images, found by their names."""

from __future__ import annotations

import os

import numpy as np
import pyarrow as pa
import pytest

from whiten.datasets.collection import Item, Items, video_of
from whiten.utils import names as naming
from whiten.utils.names import NameIndex, name_codes

ITEMS = [
    Item("ä/1.jpg", "/photos/ä/1.jpg", "ä"),
    Item("b.jpg", os.fsdecode(b"/photos/\xff.jpg")),
    Item("a/2.jpg", "/photos/a/2.jpg", "a"),
    Item("Ω.jpg", "Ω.jpg", ""),
]


def test_images_come_back_as_they_were() -> None:
    items = Items.of(iter(ITEMS))
    assert list(items) == [items[i] for i in range(4)] == ITEMS
    assert items[-1] == ITEMS[-1]
    assert list(items[::-2]) == ITEMS[::-2]
    assert list(items[1:3]) == ITEMS[1:3]
    assert list(items.take(np.array([True, False, False, True]))) == [ITEMS[0], ITEMS[3]]
    assert list(items.take(np.array([2, 0]))) == [ITEMS[2], ITEMS[0]]
    assert list(items.sorted()) == sorted(ITEMS, key=lambda item: item.id)
    assert list(Items.from_table(items.table())) == ITEMS
    assert Items.of(items) is items
    assert len(Items.of([])) == 0
    with pytest.raises(IndexError):
        items[4]


def test_more_images_than_a_chunk() -> None:
    many = [Item(str(i), f"/{i}") for i in range(20_000)]
    assert list(Items.of(many)) == many


def test_names_are_found_and_strangers_are_not() -> None:
    names = [f"image {i}" for i in range(1000)]
    index = NameIndex(pa.array(names))
    assert index.rows(["image 999", "nobody", "image 0", "image 999"]).tolist() == [999, -1, 0, 999]
    assert index.rows(names).tolist() == list(range(1000))
    assert index.rows([]).tolist() == []
    assert NameIndex(pa.array([], pa.string())).rows(["a"]).tolist() == [-1]


def test_names_of_equal_hash_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(naming, "_hashes", lambda names: np.array([len(n) for n in names], int))
    index = NameIndex(pa.array(["a", "bb", "c", "dd", "e"]))
    asked = ["dd", "e", "x", "a", "bb", "c", "yy", "zzz"]
    assert index.rows(asked).tolist() == [3, 4, -1, 0, 1, 2, -1, -1]


def test_equal_names_have_equal_codes() -> None:
    assert name_codes(["b", None, "a", "b", ""]).tolist() == [0, -1, 1, 0, 2]
    assert name_codes([None, None]).tolist() == [-1, -1]
    assert name_codes(pa.array(["x", "y", "x"])).tolist() == [0, 1, 0]


def test_a_frame_belongs_to_its_group_or_its_folder() -> None:
    frames = [
        Item("a/0000.jpg", "/f/a/0000.jpg"),
        Item("sub/a/0001.jpg", "/f/sub/a/0001.jpg"),
        Item("b/0000.jpg", "/f/b/0000.jpg", "copies"),
        Item("c/0000.jpg", "/f/c/0000.jpg", "copies"),
        Item("alone.jpg", "/f/alone.jpg"),
    ]
    assert Items.of(frames).videos.to_pylist() == ["a/", "sub/a/", "copies", "copies", None]


def test_videos_that_share_a_group_are_videos_of_their_own() -> None:
    frames = Items.of(
        [
            Item("day/one/0000.jpg", "0.jpg", "day", 0),
            Item("day/two/0000.jpg", "1.jpg", "day", 0),
            Item("photo.jpg", "2.jpg", "a group"),
            Item("loose.jpg", "3.jpg", None, 5),
        ]
    )
    assert frames.videos.to_pylist() == ["day/one/", "day/two/", "a group", None]
    assert video_of("day/one/0000.jpg") == "day/one" and video_of("photo.jpg") == ""
