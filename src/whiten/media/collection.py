"""The images of a collection, as columns: a third of the memory that as many objects take."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from whiten.media.naming import NameIndex

_CHUNK = 8192  # images that exist as objects at once

# Paths need not be text.
_COLUMNS = {"id": pa.large_string(), "path": pa.large_binary(), "group": pa.large_string()}


@dataclass(frozen=True, slots=True)
class Item:
    """One image of a collection.

    Attributes:
        id: name that is unique in the collection and valid UTF-8.
        path: where the file is.
        group: what the image shows (landmark, product), or None where unknown.
    """

    id: str
    path: str
    group: str | None = None


class Items(Sequence[Item]):
    """Images with unique ids; each becomes an `Item` when it is looked at.

    Attributes:
        ids, paths, groups: (n,) Arrow columns; paths as bytes, groups null where unknown.
    """

    def __init__(self, ids: pa.Array, paths: pa.Array, groups: pa.Array) -> None:
        self.ids, self.paths, self.groups = (
            column.cast(kind)
            for column, kind in zip((ids, paths, groups), _COLUMNS.values(), strict=True)
        )

    @classmethod
    def of(cls, items: Iterable[Item]) -> Items:
        """The same images as columns."""
        if isinstance(items, Items):
            return items
        rest = iter(items)
        parts = [[pa.array([], kind)] for kind in _COLUMNS.values()]
        while part := list(islice(rest, _CHUNK)):
            rows = [(item.id, os.fsencode(item.path), item.group) for item in part]
            columns = zip(parts, zip(*rows, strict=True), _COLUMNS.values(), strict=True)
            for found, column, kind in columns:
                found.append(pa.array(column, kind))
        # Popped, so that no column is there twice for longer than it takes to join it.
        joined = cls(*(pa.concat_arrays(parts.pop(0)) for _ in _COLUMNS))
        pa.default_memory_pool().release_unused()  # it would keep the parts' memory
        return joined

    @classmethod
    def from_table(cls, table: pa.Table) -> Items:
        """From columns `id`, `path` and `group`, as `table` has them."""
        return cls(*(table[name].combine_chunks() for name in _COLUMNS))

    def table(self) -> pa.Table:
        columns = (self.ids, self.paths, self.groups)
        return pa.table(dict(zip(_COLUMNS, columns, strict=True)))

    def sorted(self) -> Items:
        """In the order of the ids' code points."""
        if pc.all(pc.less_equal(self.ids[:-1], self.ids[1:])).as_py() is not False:
            return self
        return self.take(pc.sort_indices(self.ids).to_numpy())

    def first_twice(self) -> str | None:
        """An id that occurs more than once, of sorted images; None if there is none."""
        row = pc.index(pc.equal(self.ids[:-1], self.ids[1:]), True).as_py()
        return None if row < 0 else self[row].id

    def take(self, rows: npt.NDArray[Any]) -> Items:
        """Those at some rows, or where a mask is true."""
        wanted = np.flatnonzero(rows) if rows.dtype == bool else rows
        at = pa.array(wanted, pa.int64())
        return Items(self.ids.take(at), self.paths.take(at), self.groups.take(at))

    @cached_property
    def by_id(self) -> NameIndex:
        """Finds images by id."""
        return NameIndex(self.ids)

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[Item]:
        for start in range(0, len(self), _CHUNK):
            part = slice(start, start + _CHUNK)
            columns = (column[part].to_pylist() for column in (self.ids, self.paths, self.groups))
            for name, path, group in zip(*columns, strict=True):
                yield Item(name, os.fsdecode(path), group)

    @overload
    def __getitem__(self, key: int) -> Item: ...
    @overload
    def __getitem__(self, key: slice) -> Items: ...
    def __getitem__(self, key: int | slice) -> Item | Items:
        if isinstance(key, slice):
            return self.take(np.arange(len(self))[key])
        path = os.fsdecode(self.paths[key].as_py())
        return Item(self.ids[key].as_py(), path, self.groups[key].as_py())
