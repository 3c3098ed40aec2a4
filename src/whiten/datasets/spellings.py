"""Rows that name one file by several paths: `a.jpg`, `./a.jpg`, links, and so on."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from whiten.datasets.collection import Item, Items
from whiten.datasets.tables import read_table
from whiten.errors import ConfigError
from whiten.utils.urls import as_url

Rows: TypeAlias = list[dict[str, Any]]


def merge_spellings(items: Items, table: Path) -> Items:
    """Keep one row of a table per file; rows with an id of their own are left alone.

    The shortest path stays. Symbolic links count by their target, and where the file system ignores
    case, so does this.

    Args:
        items: the rows of the table, sorted by id.

    Raises:
        ConfigError: the rows of one file differ in another column.
    """

    return _merge(items, os.fspath(table.parent), str(table), lambda: _rows(table))


def merge_given(items: Items, rows: Callable[[], Rows]) -> Items:
    """Keep one image per file of those that are given in Python; see `merge_spellings`.

    Args:
        items: the images, sorted by id; relative paths start at the working directory.
        rows: returns what is given of each image, with its `path`.
    """
    return _merge(items, "", "the collection", rows)


def _merge(items: Items, folder: str, name: str, rows: Callable[[], Rows]) -> Items:
    real_folder = lru_cache(maxsize=1 << 16)(os.path.realpath)

    def real(item: Item) -> str:
        return _real(item.path, real_folder).casefold()

    # Hashes take a tenth of the memory of a collection's paths; the few equal ones are looked at.
    hashes, is_named = np.zeros(len(items), np.int64), np.zeros(len(items), bool)
    for row, item in enumerate(items):
        if as_url(item.path) is None and item.path == os.path.join(folder, item.id):
            hashes[row], is_named[row] = hash(real(item)), True
    places = np.flatnonzero(is_named)
    _, numbers, counts = np.unique(hashes[places], return_inverse=True, return_counts=True)
    found: dict[str, list[int]] = {}
    for row in places[counts[numbers] > 1].tolist():
        found.setdefault(real(items[row]), []).append(row)
    alike = [[(row, items[row]) for row in some] for some in found.values() if len(some) > 1]
    repeated = [same for some in alike for same in _same_files(some)]
    if not repeated:
        return items
    given = {str(row.get("path")): row for row in rows()}
    keep = np.ones(len(items), bool)
    for same in repeated:
        _require_equal([given[item.id] for _, item in same if item.id in given], name)
        kept = min(same, key=lambda one: (len(one[1].id), one[1].id))
        keep[[row for row, _ in same if row != kept[0]]] = False
    return items.take(keep)


def _real(path: str, real_folder: Any) -> str:
    """Return the path with links resolved; looks up each folder once."""
    folder, name = os.path.split(path)
    if name in ("", os.curdir, os.pardir) or os.path.islink(path):  # noqa: PTH114 - a Path is slow
        return os.path.realpath(path)
    return os.path.join(real_folder(folder), name)


def _same_files(rows: Sequence[tuple[int, Item]]) -> list[list[tuple[int, Item]]]:
    """Group rows whose real paths differ at most in case by the file that they lead to."""
    groups: dict[Any, list[tuple[int, Item]]] = {}
    for row, item in rows:
        try:
            status = os.stat(item.path)
            key: Any = (status.st_dev, status.st_ino)
        except (OSError, ValueError):
            key = os.path.realpath(item.path)
        groups.setdefault(key, []).append((row, item))
    return [group for group in groups.values() if len(group) > 1]


def _require_equal(rows: Rows, name: str) -> None:
    for row in rows[1:]:
        for column, value in rows[0].items():
            if column != "path" and not _is_equal(row.get(column), value):
                raise ConfigError(
                    f"{name} lists one file as {rows[0]['path']!r} and as {row['path']!r}, with "
                    f"other values of {column!r}: give every image one row"
                )


def _is_equal(one: Any, other: Any) -> bool:
    return bool(one == other) or (one != one and other != other)  # NaN


def _rows(table: Path) -> Rows:
    rows: Rows = read_table(table, ["path"]).columns.to_pylist()
    return rows
