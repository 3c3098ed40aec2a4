"""Rows of a table that name one file by several paths: `a.jpg`, `./a.jpg`, links, and so on."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from whiten.datasets.collection import Item, Items
from whiten.errors import ConfigError


def merge_spellings(items: Items, table: Path) -> Items:
    """Keep one row per file; rows with an id of their own are left alone.

    The shortest path stays. Symbolic links count by their target, and where the file system ignores
    case, so does this.

    Args:
        items: the rows of the table, sorted by id.

    Raises:
        ConfigError: the rows of one file differ in another column.
    """
    real_folder = lru_cache(maxsize=1 << 16)(os.path.realpath)
    found: dict[str, list[int]] = {}
    for row, item in enumerate(items):
        if item.path == os.path.join(table.parent, item.id):
            found.setdefault(_real(item.path, real_folder).casefold(), []).append(row)
    drop: list[int] = []
    for rows in found.values():
        for same in _same_files([(row, items[row]) for row in rows]) if len(rows) > 1 else ():
            _require_equal([item for _, item in same], table)
            kept = min(same, key=lambda one: (len(one[1].id), one[1].id))
            drop += [row for row, _ in same if row != kept[0]]
    if not drop:
        return items
    keep = np.ones(len(items), bool)
    keep[drop] = False
    return items.take(keep)


def _real(path: str, real_folder: Any) -> str:
    """Return the path with links resolved; looks up each folder once."""
    folder, name = os.path.split(path)
    if name in ("", os.curdir, os.pardir) or Path(path).is_symlink():
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


def _require_equal(items: Sequence[Item], table: Path) -> None:
    rows = [row for row in _rows(table) if row.get("path") in {item.id for item in items}]
    for row in rows[1:]:
        for name, value in rows[0].items():
            if name != "path" and row.get(name) != value:
                raise ConfigError(
                    f"{table} lists one file as {rows[0]['path']!r} and as {row['path']!r}, with "
                    f"other values of {name!r}: give every image one row"
                )


def _rows(table: Path) -> list[dict[str, Any]]:
    if table.suffix.lower() == ".csv":
        with table.open(newline="", encoding="utf-8-sig") as file:
            return list(csv.DictReader(file))
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = pq.read_table(table).to_pylist()
    return rows
