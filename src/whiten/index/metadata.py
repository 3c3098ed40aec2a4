"""Read the user's columns of a collection, to filter and show, from CSV or Parquet."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from whiten.datasets.collection import Items
from whiten.errors import ConfigError, one_line
from whiten.index.rows import COLLECTION, COLUMNS, TYPES
from whiten.utils.names import NameIndex

# Columns that every table of images has, and other keys of an answer.
_OWN = {*COLUMNS, "view", "embedding"}
_REFUSED = {"content_hash", "stamp", "score", "metadata", "view", "embedding", COLLECTION}


def read_metadata(table: str | os.PathLike[str], items: Items) -> tuple[pa.Table, dict[str, str]]:
    """Read the columns of a table that describe images.

    Args:
        table: CSV or Parquet with a column `id`, or `path` as in the collection's own table.
        items: the images.

    Returns:
        The columns, (n,) in the order of the items, null for items that are not listed; and their
        types, as in `Facts.columns`.

    Raises:
        ConfigError: the table cannot be read, has neither column, lists an image twice, lists none
            of these images, or has a column of an unsupported type.
    """
    path = Path(table)
    found = _read(path)
    key = next((name for name in ("id", "path") if name in found.schema.names), None)
    if key is None:
        raise ConfigError(f"{path} has no column 'id' or 'path': it must say which image it is of")
    if reserved := sorted(_REFUSED & set(found.schema.names)):
        raise ConfigError(f"{path} has a column {reserved[0]!r}, which is taken: rename it")
    keys = found[key].cast(pa.large_string()).combine_chunks()
    if len(pc.unique(keys)) < len(keys):
        counts = pc.value_counts(keys).to_pylist()
        twice = next(count["values"] for count in counts if count["counts"] > 1)
        raise ConfigError(f"{path} lists {twice!r} twice: give every image one row")
    rows = NameIndex(keys).rows(items.ids.to_pylist())
    if len(items) and not (rows >= 0).any():
        raise ConfigError(f"{path} describes none of these images; its first is {keys[0]!s}")
    names = [name for name in found.schema.names if name not in _OWN]
    kinds = {name: _kind(path, found.schema.field(name)) for name in names}
    at = pa.array(rows, mask=rows < 0)
    columns = {name: found[name].take(at).cast(TYPES[kind]) for name, kind in kinds.items()}
    for name, kind in kinds.items():
        if kind == "float":  # NaN means missing
            no_number = pc.fill_null(pc.is_nan(columns[name]), False)
            columns[name] = pc.if_else(no_number, None, columns[name])
    return pa.table(columns), kinds


def has_metadata(table: str | os.PathLike[str]) -> bool:
    """Return whether a table of images has columns of the user."""
    path = Path(table)
    is_table = path.suffix.lower() in (".csv", ".parquet") and path.is_file()
    return is_table and not set(_read(path).schema.names) <= _OWN


def _read(path: Path) -> pa.Table:
    try:
        if path.suffix.lower() == ".parquet":
            import pyarrow.parquet as pq

            return pq.read_table(path)
        from pyarrow import csv

        options = csv.ConvertOptions(strings_can_be_null=True)
        return csv.read_csv(path, convert_options=options)
    except (OSError, pa.ArrowException) as error:
        raise ConfigError(f"cannot read {path} ({one_line(error)}): give CSV or Parquet") from error


def _kind(path: Path, field: pa.Field) -> str:
    kind = field.type
    if pa.types.is_boolean(kind):
        return "bool"
    if pa.types.is_integer(kind):
        return "int"
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return "float"
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_temporal, pa.types.is_null)
    if any(is_one(kind) for is_one in tests):
        return "string"
    raise ConfigError(f"{path} has a column {field.name!r} of type {kind}: make it numbers or text")
