"""Read where images come from (shop, camera, year, design team) out of a column of their table."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from whiten.datasets.collection import Items
from whiten.datasets.matching import find_rows
from whiten.datasets.shards import shard_table
from whiten.datasets.tables import is_table, read_names, read_table
from whiten.errors import ConfigError, nearest
from whiten.utils.urls import as_path

_KEYS = ("id", "path")  # columns that say which image a row is of
_SHOWN = 20  # most names in an error


@dataclass(frozen=True)
class Sources:
    """The source of each image.

    Attributes:
        column: the column that names it.
        table: the table that has the column.
        of_image: source of each image, by id; images without one share `missing`.
    """

    column: str
    table: Path
    of_image: dict[str, str]

    @property
    def missing(self) -> str:
        """Name of the source of images whose source is not known."""
        return f"(no {self.column})"

    @property
    def known(self) -> list[str]:
        """All sources, sorted; the missing one last."""
        return sorted(set(self.of_image.values()), key=lambda name: (name == self.missing, name))

    def are_of(self, wanted: Sequence[str]) -> npt.NDArray[np.bool_]:
        """(n,) whether an image is of one of the wanted sources.

        Raises:
            ConfigError: there is no such source.
        """
        known = self.known
        for name in wanted:
            if name not in known:
                more = f" and {len(known) - _SHOWN} more" if len(known) > _SHOWN else ""
                raise ConfigError(
                    f"{self.table} has no {name!r} in column {self.column!r}"
                    f"{_near(name, known)} It has {_listed(known)}{more}"
                )
        return np.isin(np.array([*self.of_image.values()], object), list(wanted))


def read_sources(source: str | os.PathLike[str], items: Items, column: str) -> Sources:
    """Read the source of each image.

    Args:
        source: the table that lists the images; or their folder, with a table directly in it.
        items: the images, as `find_items` found them.
        column: name of the column; an empty cell is a missing source, and so is an image of a
            folder that the table does not list.

    Raises:
        ConfigError: no table has the column, several tables of a folder have it, or the table lists
            an image twice or none of these.
    """
    root = as_path(source)
    read = shard_table(root, items)
    is_folder = read is None and root.is_dir()
    table = _only_table(root, column) if is_folder else root
    if read is None and not is_table(table):
        raise ConfigError(
            f"{table} has no columns: name a table that lists the images and their sources"
        )
    read = read or read_table(table, _KEYS, (*_KEYS, column))
    _require_column(table, read.names, column)
    _, rows = find_rows(table, read, items, is_collection=not is_folder)
    texts = _texts(read.columns[column])
    found = Sources(column, table, {})
    for name, row in zip(items.ids.to_pylist(), rows.tolist(), strict=True):
        found.of_image[name] = (texts[row] if row >= 0 else None) or found.missing
    return found


def without_sources(
    source: str | os.PathLike[str], items: Items, column: str, names: Sequence[str]
) -> Items:
    """Return the images that are not of these sources; all, if no table has the column."""
    root = as_path(source)
    shards = shard_table(root, items)
    if shards is not None and column not in shards.names:
        return items
    if shards is None and not any(
        _has(table, column) for table in (_tables(root) if root.is_dir() else [root])
    ):
        return items
    sources = read_sources(root, items, column)
    return items.take(~sources.are_of([name for name in names if name in sources.known]))


def _require_column(table: Path, names: Sequence[str], column: str) -> None:
    if column not in names:
        raise ConfigError(
            f"{table} has no column {column!r}{_near(column, names)} It has {_listed(names)}"
        )
    if column in _KEYS:
        raise ConfigError(
            f"column {column!r} of {table} names images and not their sources: name another column"
        )


def _only_table(folder: Path, column: str) -> Path:
    """Return the one table directly in a folder that lists images and has the column."""
    tables = {table: _names(table) for table in _tables(folder)}
    tables = {table: names for table, names in tables.items() if not set(_KEYS).isdisjoint(names)}
    if not tables:
        raise ConfigError(
            f"{folder} has no table that names the sources of its images: put a CSV or Parquet "
            f"with columns path,{column} directly into it, or name a table instead of the folder"
        )
    fitting = [table for table, names in tables.items() if column in names]
    if len(fitting) > 1:
        both = " and ".join(table.name for table in fitting)
        raise ConfigError(
            f"{both} in {folder} each have a column {column!r}: leave one of them in the folder"
        )
    if fitting:
        return fitting[0]
    if len(tables) == 1:
        [(table, names)] = tables.items()
        _require_column(table, names, column)
    every = list(dict.fromkeys(name for names in tables.values() for name in names))
    raise ConfigError(
        f"no table in {folder} has a column {column!r}{_near(column, every)} "
        f"They have {_listed(every)}"
    )


def _near(name: str, known: Sequence[str]) -> str:
    """Return the end of a sentence that names what may be meant, whatever its case."""
    by_case = {other.casefold(): other for other in known}
    if (same := by_case.get(name.strip().casefold())) is not None:
        return f"; did you mean {same!r}?"
    return nearest(name, known) or "."


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:_SHOWN])) + (", …" if len(names) > _SHOWN else "")


def _texts(column: pa.ChunkedArray) -> list[str | None]:
    """Return cells as text: years that a missing value made 2019.0 as 2019, blanks as None."""
    texts = []
    for value in column.to_pylist():
        if isinstance(value, float):
            value = None if value != value else int(value) if value.is_integer() else value
        texts.append(None if value is None else str(value).strip() or None)
    return texts


# --- tables -----------------------------------------------------------------------------


def _tables(folder: Path) -> list[Path]:
    return sorted(
        path for path in folder.iterdir() if is_table(path) and not path.name.startswith(".")
    )


def _has(path: Path, column: str) -> bool:
    """Return whether a path is a readable table that has a column."""
    return is_table(path) and column in _names(path)


def _names(path: Path) -> list[str]:
    """Return a table's column names; none of an unreadable one."""
    try:
        return read_names(path, _KEYS)
    except ConfigError:
        return []
