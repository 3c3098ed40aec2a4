"""Collections in tar shards and Parquet tables of images, and under URLs."""

from __future__ import annotations

import logging
import os
import posixpath
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from whiten.datasets.collection import Item, Items
from whiten.datasets.locating import Located, is_pattern, locate, path_of
from whiten.datasets.patterns import Choice
from whiten.datasets.pictures import (
    image_column,
    is_damaged,
    left_out,
    picture_columns,
    picture_items,
)
from whiten.datasets.samples import tar_columns, tar_items
from whiten.datasets.tables import Table, is_table_name
from whiten.datasets.walking import Walk
from whiten.errors import ConfigError, NoImagesError
from whiten.media.formats import SUFFIXES
from whiten.storage.places import PARQUET, TAR
from whiten.utils.urls import as_url, named_place

_log = logging.getLogger(__name__)

_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")


def find_shards(source: str | os.PathLike[str]) -> Located | None:
    """Return the files of a source in shards, by a pattern, or under a URL; None for other sources.

    A folder or prefix with image files of its own is none: its shards are told and not read.

    Raises:
        NoImagesError, ConfigError, StorageError: see `locate`.
    """
    text = named_place(source)
    if as_url(text) is not None or is_pattern(text):
        found = locate(text)
        return None if _only_table(found) else found
    if os.path.isdir(text):  # noqa: PTH112
        return _in_folder(text)
    folder, name = os.path.split(text)
    suffix = _suffix(text)
    if suffix == TAR or suffix in _COMPRESSED:
        return Located(folder, [name], is_named=True)
    if suffix == PARQUET and os.path.isfile(text) and image_column(text):  # noqa: PTH113
        return Located(folder, [name], is_named=True)
    return None


def _only_table(found: Located) -> bool:
    """Return whether a source is one table of paths."""
    if len(found.names) != 1 or not found.is_named:
        return False
    [name] = found.names
    place = found.place(name)
    return is_table_name(name) and not (
        _suffix(place) == PARQUET and image_column(place) is not None
    )


def _in_folder(folder: str) -> Located | None:
    wanted = frozenset([TAR, PARQUET, *(f".{end.rpartition('.')[2]}" for end in _COMPRESSED)])
    names = sorted(item.id for item in Walk(Path(folder), wanted, Choice()))
    names = [name for name in names if _is_shard(os.path.join(folder, name))]
    return Located(os.path.join(folder, ""), names, is_named=False) if names else None


def _is_shard(place: str) -> bool:
    """Return whether a file that no one named holds images."""
    suffix = _suffix(place)
    if suffix != PARQUET:
        return suffix == TAR or suffix in _COMPRESSED
    return is_damaged(place) or image_column(place) is not None


def shard_items(found: Located, source: str, choice: Choice) -> Items:
    """Return the images of located files, unsorted.

    Raises:
        NoImagesError: they hold none.
        ConfigError: a file is compressed, is of no kind that holds images, or names one twice.
        StorageError: a service refuses or does not answer.
    """
    names = found.names
    if not found.is_named:
        names = _one_kind(found, source)
    items = Items.of(
        item
        for name in names
        if choice.enters(name)
        for item in _items(found, name)
        if choice.takes(item.id.rstrip("/"))
    )
    if not items and not choice:
        raise NoImagesError(
            f"{source} holds no image: name tar shards, Parquet tables with a column of images, a "
            "table with columns path,group, or a folder of images"
        )
    return items


def _one_kind(found: Located, source: str) -> list[str]:
    """Return the image files of a folder or prefix; its shards only if it has none."""
    images, shards = [], []
    for name in found.names:
        place = found.place(name)
        if _suffix(place) in SUFFIXES:
            images.append(name)
        elif _is_shard(place):
            shards.append(name)
    if images and shards:
        _log.warning(
            "%s: not read: %s tar or Parquet files beside the image files; name them to read them",
            source,
            f"{len(shards):,}",
        )
    return images or shards


def _items(found: Located, name: str) -> Iterator[Item]:
    place = found.place(name)
    suffix = _suffix(place)
    if suffix == TAR:
        yield from tar_items(place, name)
    elif suffix in SUFFIXES:
        yield Item(name, place, posixpath.dirname(name) or None)
    elif suffix == PARQUET and not found.is_named and is_damaged(place):
        yield Item(f"{name}/", f"{place}/")  # reading it gives the reason
    elif suffix == PARQUET and (column := image_column(place)) is not None:
        yield from picture_items(place, name, column)
    elif suffix in _COMPRESSED:
        raise ConfigError(
            f"{place} is compressed, and its members cannot be found without reading all before "
            "them: decompress it to .tar (images are compressed already)"
        )
    else:
        raise ConfigError(
            f"{place} is neither a tar shard nor a Parquet with a column of images: name those"
        )


def shard_table(source: str | os.PathLike[str], items: Items) -> Table | None:
    """Return the columns that shards have of their images, with `id` and `path`; None without any.

    Args:
        items: the images, as `find_items` found them; others are left out.
    """
    found = find_shards(source)
    if found is None:
        return None
    names = found.names if found.is_named else _one_kind(found, named_place(source))
    parts = [part for name in names if (part := _columns(found, name, items)) is not None]
    if not parts:
        return None
    table = pa.concat_tables(_of_equal_types(parts), promote_options="permissive")
    return Table(table, table.schema.names, is_text=False)


def _of_equal_types(parts: list[pa.Table]) -> list[pa.Table]:
    """Return tables whose columns have one type each: text where numbers and text meet."""
    kinds: dict[str, set[pa.DataType]] = {}
    for field in (field for part in parts for field in part.schema):
        kinds.setdefault(field.name, set()).add(field.type)
    mixed = {
        name
        for name, of in kinds.items()
        if len(of) > 1 and not (all(map(_is_number, of)) and _meet(parts, name))
    }
    return [
        part.cast(
            pa.schema(
                [f.with_type(pa.large_string()) if f.name in mixed else f for f in part.schema]
            )
        )
        for part in parts
    ]


def _meet(parts: list[pa.Table], name: str) -> bool:
    """Return whether one type holds the numbers of all tables without loss."""
    columns = [part.select([name]) for part in parts if name in part.schema.names]
    try:
        pa.concat_tables(columns, promote_options="permissive")
    except pa.ArrowException:
        return False
    return True


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _columns(found: Located, name: str, items: Items) -> pa.Table | None:
    place = found.place(name)
    suffix = _suffix(place)
    if suffix == TAR:
        rows = list(tar_columns(place, name, lambda one: items.by_id.rows([one])[0] >= 0))
        return _as_table(rows) if rows else None
    if suffix == PARQUET and is_damaged(place):
        return None
    if suffix == PARQUET and (column := image_column(place)) is not None:
        for other in left_out(place, column):
            _log.warning("column %r is left out, no filter can compare its values", other)
        return picture_columns(place, name, column)
    return None


def _as_table(rows: list[dict[str, Any]]) -> pa.Table:
    """Return JSON objects as columns; those of lists and objects are left out, mixed ones text."""
    columns = {}
    for key in dict.fromkeys(key for row in rows for key in row):
        values = [row.get(key) for row in rows]
        if any(isinstance(value, list | dict) for value in values):
            _log.warning("column %r is left out, no filter can compare its values", key)
            continue
        kinds = {type(value) for value in values if value is not None}
        if not kinds:
            continue
        columns[key] = pa.array(*_typed(values, kinds))
    return pa.table(columns)


def _typed(values: list[Any], kinds: set[type]) -> tuple[list[Any], pa.DataType]:
    if kinds == {bool}:
        return values, pa.bool_()
    if kinds == {int} and all(value is None or abs(value) < 1 << 63 for value in values):
        return values, pa.int64()
    if kinds <= {int, float} and all(value is None or _is_float(value) for value in values):
        return [None if value is None else float(value) for value in values], pa.float64()
    return [None if value is None else str(value) for value in values], pa.large_string()


def _is_float(value: float) -> bool:
    """Return whether a float holds a number without loss; long ids are none."""
    try:
        return isinstance(value, float) or float(value) == value
    except OverflowError:
        return False


def _suffix(place: str) -> str:
    """Return the suffix of a path or URL; only URLs of HTTP have a query that `?` begins."""
    lowered = path_of(place).lower()
    compressed = next((end for end in _COMPRESSED if lowered.endswith(end)), None)
    return compressed or posixpath.splitext(lowered)[1]
