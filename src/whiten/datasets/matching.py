"""Find the rows of a table that describe images."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from whiten.datasets.collection import Items
from whiten.datasets.tables import Table, near_name
from whiten.errors import ConfigError
from whiten.utils.urls import absolute, listed

Rows = npt.NDArray[np.int64]


def find_rows(
    path: Path, read: Table, items: Items, *, is_collection: bool = False
) -> tuple[str, Rows]:
    """Return the column that names the images, and the row of each, (n,), -1 if it is not listed.

    A row is of the image whose file or id its `path` names; else of the image with its `id`.

    Args:
        path: the table.
        read: its columns `id` and `path`, as far as there are such.
        is_collection: whether the images themselves are of this table.

    Raises:
        ConfigError: the table lists an image twice, or none of these.
    """
    if is_collection:
        key = "id" if "id" in read.names else "path"
        names = _names(path, read, key)
        if {"id", "path"} <= set(read.names):  # in a data frame some may have no id
            names = pc.coalesce(names, _names(path, read, "path"))
        rows = _find(names.to_pylist(), items.ids.to_pylist())
    else:
        key, rows = _match(path, read, items)
    if len(items) and not (rows >= 0).any():
        named = read.columns[key].drop_null()
        if not len(named):
            raise ConfigError(f"{path} has no row with a value of {key!r}, which names the image")
        first = named[0]
        near = near_name(key, [name for name in read.names if name != key])
        hint = f"; {near!r} is not read" if near else ""
        raise ConfigError(f"{path} describes none of these images; its first is {first!s}{hint}")
    return key, rows


def _match(path: Path, read: Table, items: Items) -> tuple[str, Rows]:
    """Return the column that names the images, and the row of each image, -1 if it is not listed.

    Match by files before names: an `id` may look like the path of another image.
    """
    ids = items.ids.to_pylist()
    if "path" in read.names and (files := _files(path, read)) is not None:
        wanted = [absolute(os.fsdecode(file)) for file in items.paths.to_pylist()]
        rows = _find(files, wanted)
        if (rows >= 0).any():
            return "path", rows
    found = {key: _rows_by(path, read, key, ids) for key in ("path", "id") if key in read.names}
    key = next((key for key, rows in found.items() if (rows >= 0).any()), next(iter(found)))
    _require_once(path, read, key)
    return key, found[key]


def _files(path: Path, read: Table) -> list[str] | None:
    """Return the files that the paths of a table name; None if they cannot be told apart."""
    names = _names(path, read, "path").to_pylist()
    folder = os.fspath(path.parent)
    files = [absolute(listed(folder, name)) for name in names if name]
    return files if len(set(files)) == len(names) else None


def _rows_by(path: Path, read: Table, key: str, wanted: list[str]) -> Rows:
    return _find(_names(path, read, key).to_pylist(), wanted)


def _find(names: Sequence[str | None], wanted: Sequence[str]) -> Rows:
    """Return the first row of each wanted name, -1 if there is none."""
    rows = {name: row for row, name in reversed(list(enumerate(names))) if name is not None}
    return np.array([rows.get(name, -1) for name in wanted], np.int64)


def _names(path: Path, read: Table, key: str) -> pa.Array:
    try:
        return read.columns[key].cast(pa.large_string()).combine_chunks()
    except pa.ArrowException as error:
        raise ConfigError(f"{path} has a column {key!r} that is not text: make it text") from error


def _require_once(path: Path, read: Table, key: str) -> None:
    counts = Counter(_names(path, read, key).to_pylist())
    twice = [name for name, count in counts.items() if name is not None and count > 1]
    if twice:
        raise ConfigError(f"{path} lists {twice[0]!r} twice: give every image one row")
