"""Store the images of a collection as columns, in a third of the memory of objects."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from whiten.utils.names import NameIndex
from whiten.utils.urls import joined

_CHUNK = 8192  # images held as objects at once

# Paths may not be valid Unicode.
_COLUMNS = {"id": pa.large_string(), "path": pa.large_binary(), "group": pa.large_string()}
_FRAME_MS = "frame_ms"  # an optional column


@dataclass(frozen=True, slots=True)
class Item:
    """One image of a collection.

    Attributes:
        id: name, unique in the collection and valid UTF-8.
        path: path of the file.
        group: label of the image (landmark, product); None if unknown.
        frame_ms: milliseconds since the video's first frame; None if not a frame.
    """

    id: str
    path: str
    group: str | None = None
    frame_ms: int | None = None


_NO_TIME = -(1 << 63)


def _times(values: array[int]) -> pa.Array:
    known = np.frombuffer(values, np.int64)
    return pa.array(known, mask=known == _NO_TIME)


class _Growing:
    """Millions of byte strings in one buffer, which becomes an Arrow column without a copy."""

    def __init__(self) -> None:
        self._data, self._ends, self._is_valid = bytearray(), array("q", [0]), bytearray()

    def append(self, value: bytes | None) -> None:
        self._data += value or b""
        self._ends.append(len(self._data))
        self._is_valid.append(value is not None)

    def __len__(self) -> int:
        return len(self._is_valid)

    def finish(self, kind: pa.DataType) -> pa.Array:
        bits = np.packbits(np.frombuffer(self._is_valid, np.bool_), bitorder="little")
        buffers = [pa.py_buffer(part) for part in (bits, self._ends, self._data)]
        return pa.Array.from_buffers(kind, len(self._is_valid), buffers)


class Items(Sequence[Item]):
    """Images with unique ids; each becomes an `Item` when it is accessed.

    Attributes:
        ids, paths, groups: (n,) Arrow columns; paths as bytes, groups null if unknown.
        frame_ms: (n,) likewise, null if unknown; None if no image is a video frame.
    """

    def __init__(
        self, ids: pa.Array, paths: pa.Array, groups: pa.Array, frame_ms: pa.Array | None = None
    ) -> None:
        self.ids, self.paths, self.groups = (
            column.cast(kind)
            for column, kind in zip((ids, paths, groups), _COLUMNS.values(), strict=True)
        )
        self.frame_ms = None if frame_ms is None else frame_ms.cast(pa.int64())

    @classmethod
    def of(cls, items: Iterable[Item]) -> Items:
        """Convert images to columns."""
        if isinstance(items, Items):
            return items
        ids, paths, groups = (_Growing() for _ in _COLUMNS)
        times = array("q")  # empty while no image has one
        for item in items:
            if item.frame_ms is not None or times:
                times.extend([_NO_TIME] * (len(ids) - len(times)))
                times.append(_NO_TIME if item.frame_ms is None else item.frame_ms)
            ids.append(item.id.encode())
            paths.append(os.fsencode(item.path))
            groups.append(None if item.group is None else item.group.encode())
        columns = zip((ids, paths, groups), _COLUMNS.values(), strict=True)
        filled = [column.finish(kind) for column, kind in columns]
        return cls(*filled, *([_times(times)] if times else []))

    @classmethod
    def from_table(cls, table: pa.Table) -> Items:
        """Build from columns `id`, `path`, `group` and optionally `frame_ms`, as in `table`."""
        names = [*_COLUMNS, *({_FRAME_MS} & set(table.schema.names))]
        return cls(*(table[name].combine_chunks() for name in names))

    def table(self) -> pa.Table:
        columns = dict(zip(_COLUMNS, (self.ids, self.paths, self.groups), strict=True))
        return pa.table(columns if self.frame_ms is None else columns | {_FRAME_MS: self.frame_ms})

    def sorted(self) -> Items:
        """Sort by the code points of the ids."""
        if pc.all(pc.less_equal(self.ids[:-1], self.ids[1:])).as_py() is not False:
            return self
        return self.take(pc.sort_indices(self.ids).to_numpy())

    def under(self, folder: str) -> Items:
        """Return the images with relative paths as they lead from a folder."""
        paths = [os.fsencode(joined(folder, os.fsdecode(path))) for path in self.paths.to_pylist()]
        return Items(self.ids, pa.array(paths, pa.large_binary()), self.groups, self.frame_ms)

    def first_twice(self) -> str | None:
        """Return an id that occurs twice in sorted images; None if there is none."""
        row = pc.index(pc.equal(self.ids[:-1], self.ids[1:]), True).as_py()
        return None if row < 0 else self[row].id

    def take(self, rows: npt.NDArray[Any]) -> Items:
        """Select by row numbers or by a mask."""
        wanted = np.flatnonzero(rows) if rows.dtype == bool else rows
        at = pa.array(wanted, pa.int64())
        times = None if self.frame_ms is None else self.frame_ms.take(at)
        return Items(self.ids.take(at), self.paths.take(at), self.groups.take(at), times)

    @cached_property
    def by_id(self) -> NameIndex:
        """Index that finds images by id."""
        return NameIndex(self.ids)

    @property
    def videos(self) -> pa.Array:
        """Return the video name per frame, (n,): the folder in the id, see `video_of`.

        A group is not a video, since several videos may share one. Only for images without a time,
        which `whiten frames` did not make, it stands for the video, if known. Null for images with
        neither.
        """
        folders = pc.if_else(
            pc.match_substring(self.ids, "/"),
            pc.replace_substring_regex(self.ids, "/[^/]*$", "/"),  # no group ends like this
            pa.scalar(None, self.ids.type),
        )
        if self.frame_ms is None:
            return pc.coalesce(self.groups, folders)
        is_frame = pc.is_valid(self.frame_ms)
        return pc.coalesce(pc.if_else(is_frame, folders, self.groups), self.groups, folders)

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[Item]:
        for start in range(0, len(self), _CHUNK):
            part = slice(start, start + _CHUNK)
            columns = [column[part].to_pylist() for column in (self.ids, self.paths, self.groups)]
            times = None if self.frame_ms is None else self.frame_ms[part].to_pylist()
            columns.append(times or [None] * len(columns[0]))
            for name, path, group, time in zip(*columns, strict=True):
                yield Item(name, os.fsdecode(path), group, time)

    @overload
    def __getitem__(self, key: int) -> Item: ...
    @overload
    def __getitem__(self, key: slice) -> Items: ...
    def __getitem__(self, key: int | slice) -> Item | Items:
        if isinstance(key, slice):
            return self.take(np.arange(len(self))[key])
        path = os.fsdecode(self.paths[key].as_py())
        time = None if self.frame_ms is None else self.frame_ms[key].as_py()
        return Item(self.ids[key].as_py(), path, self.groups[key].as_py(), time)


def video_of(frame_id: str) -> str:
    """Return `VIDEO` for `VIDEO/0000.jpg`; "" for an image outside any folder."""
    return frame_id.rpartition("/")[0]
