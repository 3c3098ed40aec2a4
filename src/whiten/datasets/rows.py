"""Turn the rows of a table into images: its columns `path`, `id`, `group` and `frame_ms`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from whiten.datasets.collection import Items
from whiten.datasets.locating import see_anew
from whiten.datasets.tables import Table
from whiten.errors import ConfigError, one_line
from whiten.utils.urls import listed

_PART = 8192  # rows of a table held as objects at once


def table_items(read: Table, table: Path, folder: str, *, ids_may_lack: bool = False) -> Items:
    """Return the images of a table's rows, unsorted.

    Args:
        table: its name, for messages.
        folder: where relative paths start.
        ids_may_lack: whether the path names an image that has no id, where there are ids.

    Raises:
        ConfigError: a row has no path or id, or a column cannot be read.
    """
    columns = read.columns
    paths = texts_of(table, columns["path"])
    ids = texts_of(table, columns["id"]) if "id" in read.names else paths
    if ids_may_lack:
        ids = pc.coalesce(ids, paths)
    for name, column in (("path", paths), ("id", ids)):
        if column.null_count or pc.any(pc.equal(column, "")).as_py():
            row = pc.index(pc.fill_null(column, ""), "").as_py() + 1
            raise ConfigError(f"{table} has no {name} in row {row}: give every row its image")
    if pc.any(pc.match_substring(paths, "\0")).as_py():
        raise ConfigError(f"{table} has a path with a null character: correct it")
    groups = pa.nulls(len(paths), pa.large_string())
    if "group" in read.names:
        groups = texts_of(table, columns["group"])
        groups = pc.if_else(pc.equal(groups, ""), None, groups)
    files = []
    for part in in_parts(paths):
        places = [listed(folder, path) for path in part]
        see_anew(places)
        files.append(pa.array(map(os.fsencode, places), pa.large_binary()))
    times = _times(table, columns["frame_ms"]) if "frame_ms" in read.names else None
    return Items(ids, pa.concat_arrays(files), groups, times)


def in_parts(texts: pa.Array | pa.ChunkedArray) -> Iterator[list[str]]:
    """Yield the texts, few at a time: as objects they take several times the memory."""
    for start in range(0, len(texts), _PART):
        yield texts.slice(start, _PART).cast(pa.large_string()).to_pylist()


def _times(table: Path, column: pa.ChunkedArray) -> pa.Array | None:
    """Return whole numbers; None for a column of anything else, which is no time of a frame."""
    if not pa.types.is_integer(column.type):
        return None
    try:
        return column.cast(pa.int64()).combine_chunks()
    except pa.ArrowException as error:
        raise ConfigError(
            f"cannot read 'frame_ms' of {table} ({one_line(error)}): give milliseconds"
        ) from error


def texts_of(table: str | Path, column: pa.ChunkedArray) -> pa.Array:
    """Return a column of names as text, with a missing number as a missing name."""
    try:
        if pa.types.is_floating(column.type):
            column = pc.if_else(pc.is_nan(column), None, column)
        return column.cast(pa.large_string()).combine_chunks()
    except pa.ArrowException as error:
        raise ConfigError(
            f"cannot read {table} ({one_line(error)}): ids, paths and groups must be text"
        ) from error
