"""Decide which metadata columns an index has after a change, and the values that stay."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from whiten.errors import ConfigError, nearest
from whiten.index.columns import GROUP, KINDS, stored_name
from whiten.index.metadata import Metadata, merged_kind

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Columns:
    """The metadata columns of an index after a change.

    Attributes:
        kinds: kind of each column, as in `Facts.columns`.
        given: (n,) what is stored of the columns that a table gives, by stored name.
        listed: (n,) mask of the images whose values the table gives; the others keep theirs.
        dropped: columns that go.
        notes: what the user should know, a line each.
    """

    kinds: dict[str, str] = field(default_factory=dict)
    given: dict[str, pa.Array] = field(default_factory=dict)
    listed: npt.NDArray[np.bool_] | None = None
    dropped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def of_rows(self, rows: pa.Table, before: pa.Table, found: Rows) -> pa.Table:
        """Add the metadata to rows, and set the groups.

        Args:
            rows: (n,) the images, with the groups of their collection.
            before: the rows of the index, with the columns of now.
            found: (n,) positions of the images in `before`, -1 for new ones.
        """
        at = pa.array(found, mask=found < 0)
        columns = {
            stored_name(name) + suffix: of
            for name, kind in self.kinds.items()
            for suffix, of in KINDS[kind].items()
            if name != GROUP
        }
        for name, of in columns.items():
            rows = rows.append_column(name, self._values(name, before[name].take(at)).cast(of))
        if GROUP in self.kinds:
            old = pc.if_else(pa.array(found >= 0), before[GROUP].take(at), rows[GROUP])
            place = rows.schema.get_field_index(GROUP)
            rows = rows.set_column(place, GROUP, self._values(GROUP, old))
        return rows

    def _values(self, name: str, kept: pa.ChunkedArray) -> pa.ChunkedArray:
        if name not in self.given:
            return kept
        return pc.if_else(pa.array(self.listed), pa.chunked_array([self.given[name]]), kept)


def columns_after(
    metadata: Metadata | None,
    before: dict[str, str],
    known: Callable[[], tuple[pa.Table, Rows]],
    *,
    keep: bool,
    drop: Sequence[str] = (),
) -> Columns:
    """Return the columns of an index once a collection is indexed.

    Without a table all columns stay. A table replaces them, and is added to them with `keep`;
    images that it does not list keep their values.

    Args:
        metadata: the columns that a table gives to the images; None without a table.
        before: the columns of the index.
        known: returns the rows of the index, and (n,) where the images are among them, -1 for new
            images.
        keep: whether images that the collection lacks stay in the index.
        drop: columns to drop.

    Raises:
        ConfigError: a column to drop does not exist, or values that stay and values of the table
            fit no one kind.
    """
    for name in drop:
        if name not in before:
            columns = f"; it has {', '.join(before)}" if before else "; it has none"
            raise ConfigError(
                f"the index has no column {name!r} to drop{nearest(name, before) or columns}"
            )
        if metadata is not None and name in metadata.columns:
            raise ConfigError(
                f"column {name!r} is in {metadata.table}: leave it out there, or drop it first, "
                "without the table, and then add it"
            )
    left = {name: kind for name, kind in before.items() if name not in drop}
    if metadata is None:
        return Columns(left, dropped=list(drop))
    staying = None
    kinds: dict[str, str] = {}
    given: dict[str, pa.Array] = {}
    for name, column in metadata.columns.items():
        kind = column.kind
        if name in left and name != GROUP:
            if staying is None:
                staying = _staying(*known(), metadata.listed, keep)
            kept = staying[stored_name(name)]
            if kept.null_count < len(kept):
                kind = merged_kind(name, column, left[name], kept, metadata.table)
            elif column.values.null_count == len(column.values):
                kind = left[name]
        stored = column.stored_as(kind)
        assert stored is not None
        kinds[name] = kind
        given |= {_stored(name) + suffix: values for suffix, values in stored.items()}
    kinds = left | kinds if keep else kinds
    dropped = [name for name in before if name not in kinds]
    return Columns(kinds, given, metadata.listed, dropped, metadata.notes)


def _stored(name: str) -> str:
    return name if name == GROUP else stored_name(name)


def _staying(known: pa.Table, found: Rows, listed: npt.NDArray[np.bool_], keep: bool) -> pa.Table:
    """Return the rows of the index whose values stay: of images that the table does not list."""
    stays = np.full(len(known), keep)
    stays[found[found >= 0]] = True
    stays[found[(found >= 0) & listed]] = False
    return known.filter(pa.array(stays))
