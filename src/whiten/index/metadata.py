"""Read the user's columns of a collection, to filter and show, from CSV or Parquet."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from whiten.datasets.collection import Items
from whiten.datasets.matching import find_rows
from whiten.datasets.tables import Table, read_table
from whiten.errors import ConfigError
from whiten.index.columns import GROUP, kind_of, no_such, read_texts, widen
from whiten.index.typed import kind_and_values
from whiten.utils.urls import as_path

# Columns that every table of images has, and that an index has itself.
OWN = ("id", "path", "frame_ms")
_USUAL = 0.5  # fraction of numbers or dates above which a column of text is pointed out


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        kind: the kind of its values, see `whiten.index.columns`.
        values: (n,) in the order of the images, null for images that are not listed.
        is_text: whether the values are the text of the file, which may be read as another kind.
    """

    kind: str
    values: pa.Array
    is_text: bool

    def stored_as(self, kind: str) -> dict[str, pa.Array] | None:
        """Return what is stored of the column, by suffix; None if a value is not of the kind."""
        if not self.is_text:
            return widen(self.values, self.kind, kind)
        texts = self.values.to_pylist()
        return read_texts(texts, kind) if no_such(texts, kind) is None else None

    def why_not(self, kind: str) -> str:
        """Say why its values are not of a kind: by the first such one, or by their own kind."""
        texts = self.values.cast(pa.large_string()).to_pylist()
        wrong = no_such(texts, kind)
        return (
            f"{texts[wrong]!r} is not one" if wrong is not None else f"the new ones are {self.kind}"
        )


@dataclass(frozen=True)
class Metadata:
    """The columns that a table gives to images.

    Attributes:
        table: the file.
        columns: by name; `group` among them if the table has one that the collection has not.
        listed: (n,) mask of the images that the table lists.
        notes: what the user should know, a line each.
    """

    table: str
    columns: dict[str, Column]
    listed: npt.NDArray[np.bool_]
    notes: list[str] = field(default_factory=list)


def read_metadata(
    table: str | os.PathLike[str],
    items: Items,
    *,
    is_collection: bool = False,
    read: Table | None = None,
) -> Metadata:
    """Read the columns of a table that describe images.

    See `find_rows` for which image a row is of.

    Args:
        table: CSV or Parquet with a column `id`, or `path` as in the collection's own table.
        items: the images.
        is_collection: whether the images themselves are of this table.
        read: the table, if it was read before.

    Raises:
        ConfigError: the table cannot be read, has neither column, lists an image twice, lists none
            of these images, or has a column of an unsupported type.
    """
    path = as_path(table)
    read = read or read_table(path, ("path",) if is_collection else ("id", "path"))
    notes: list[str] = []
    key, rows = find_rows(path, read, items, is_collection=is_collection)
    ours: tuple[str, ...] = (*OWN, GROUP)
    if not is_collection:
        ours = OWN
        left = {"id": "images keep their own ids", "frame_ms": "every index has its own"}
        notes += [
            f"column {name!r} of {path} is not read, {why}: rename it to keep it"
            for name, why in left.items()
            if name in read.names and name != key
        ]
    at = pa.array(rows, mask=rows < 0)
    columns = {}
    for name in read.columns.schema.names:
        if name in ours:
            continue
        column, note = _column(path, name, read)
        values = column.values.take(at)
        columns[name] = Column(column.kind, values, column.is_text)
        notes += [note] if note else []
    return Metadata(str(path), columns, rows >= 0, notes)


# --- what a column holds ----------------------------------------------------------------


def _column(path: Path, name: str, read: Table) -> tuple[Column, str]:
    """Return a column with all its rows, and a note if most of it is not text but the rest is."""
    values = read.columns[name]
    if not read.is_text:
        kind, values, is_text = kind_and_values(path, name, values)
        return Column(kind, values, is_text), ""
    values = values.combine_chunks()
    texts = values.to_pylist()
    if name == GROUP:
        return Column("string", values, True), ""
    kind = kind_of(texts)
    note = _why_text(path, name, texts) if kind == "string" else ""
    return Column(kind, values, True), note


def _why_text(path: Path, name: str, texts: list[str | None]) -> str:
    there = [text for text in texts if text is not None]
    for kind, what in (("decimal", "numbers"), ("date", "dates"), ("instant", "times with zones")):
        wrong = [text for text in there if no_such([text], kind) is not None]
        if len(wrong) < _USUAL * len(there):
            return (
                f"column {name!r} of {path} is kept as text: most of it are {what}, but not "
                f"{wrong[0]!r} (row {texts.index(wrong[0]) + 1})"
            )
    return ""


def merged_kind(name: str, column: Column, before: str, kept: pa.ChunkedArray, table: str) -> str:
    """Return the kind of a column that some images keep and others get from a table.

    Args:
        before: its kind in the index.
        kept: the values that stay.

    Raises:
        ConfigError: no kind holds both without loss.
    """
    choices: Iterable[str] = (before, column.kind, "float", "decimal")
    if before == "string":
        is_written = column.kind in ("decimal", "flag", "date", "instant")
        choices = (column.kind, "string") if is_written else ("string",)
    for kind in choices:
        if kind == "string" and before != "string":
            continue
        if widen(kept, before, kind) is not None and column.stored_as(kind) is not None:
            return kind
    raise ConfigError(
        f"column {name!r} of {table} does not fit the index: that holds {before} values, "
        f"{column.why_not(before)}; correct the table, rename the column, or first "
        "drop what is there with --drop-columns"
    )
