"""The collections of an index: which rows are whose, so that no id stands for two images.

An index of one collection records nothing per row. Once a second one is added, each row carries
the number of its source in `COLLECTION`; rows from before carry none.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from whiten.datasets.collection import Items
from whiten.datasets.locating import source_exists
from whiten.errors import ConfigError, StoreError
from whiten.index.columns import COLLECTION
from whiten.index.rows import Facts
from whiten.media.reading import is_there_now
from whiten.utils.names import is_text
from whiten.utils.urls import as_url

_FEWER = 8  # times as many rows as values

UNKNOWN = -1  # owner of rows of an earlier version that indexed several collections

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Membership:
    """The collections of an index once one of them is indexed.

    Attributes:
        sources, prefixes, divided: as in `Facts`.
        number: position of the indexed collection among the sources.
        former: name that its ids began with before, "" for none; None if it stays the same.
    """

    sources: list[str]
    prefixes: dict[str, str]
    divided: int
    number: int
    former: str | None = None

    @property
    def prefix(self) -> str:
        """Name that the ids begin with; "" for none."""
        return self.prefixes.get(self.sources[self.number], "") if self.sources else ""

    def find(self, ids: pa.Array, known: pa.Table, before: Facts) -> Numbers:
        """Return the row of each image in the index so far, (n,), -1 for new images.

        Images of a renamed collection are found by their former ids.

        Args:
            ids: (n,) ids of this collection.
            known: the rows of the index.
            before: the facts of the index.
        """
        if self.former is None:
            return index_in(ids, known["id"])
        rows = index_in(_prefixed(_without(ids, self.prefix), self.former), known["id"])
        found = np.flatnonzero(rows >= 0)
        rows[found[owners(known, before)[rows[found]] != self.number]] = -1
        return rows

    def owns(self, name: str) -> bool:
        """Return whether an id of the index so far can only be of this collection, by its name."""
        names = [self.prefixes.get(source, "") for source in self.sources] or [""]
        if self.former is not None:
            names[self.number] = self.former
        first = name.partition("/")[0]
        mine = names[self.number]
        return (first if first in names else "") == mine and names.count(mine) == 1


def join(
    origin: str | None,
    name: str | None,
    before: Facts | None,
    place: str,
    keep: bool,
    known: Callable[[], pa.Table],
) -> Membership:
    """Return the collections once `origin` is indexed.

    Args:
        origin: absolute path of the collection; None for items given in Python.
        name: name that its ids shall begin with; None keeps the earlier one.
        before: facts of the index so far; None for a new one.
        place: the place of the index, for messages.
        keep: whether the collection is added to the others.
        known: returns the rows of the existing index.

    Raises:
        StoreError: the index is of other images, which would be replaced.
        ConfigError: the name cannot be one.
    """
    if name is not None and (not name.strip() or "/" in name):
        raise ConfigError(
            f"a collection cannot be called {name!r}: use a name that is not blank and has no "
            "slashes"
        )
    if name is not None and not is_text(name):
        raise ConfigError(f"a collection cannot be called {name!r}, which is not text")
    mine = (name or "") if origin is None else origin
    sources = [""] if before is None else list(before.sources) or [""]
    prefixes = {} if before is None else dict(before.prefixes)
    if before is None:
        sources = [mine]
    elif mine not in sources:
        if keep:
            sources.append(mine)
        elif origin is not None or len(sources) > 1:
            moved = _moved(sources, mine, place, lambda: set(owners(known(), before).tolist()))
            if sources[moved] in prefixes:
                prefixes[mine] = prefixes.pop(sources[moved])
            sources[moved] = mine
        else:
            mine = sources[0]  # items given in Python replace the only collection
    number = sources.index(mine)
    earlier = prefixes.get(mine, "")
    if name is not None:
        prefixes[mine] = name
    divided = 0
    if len(sources) > 1 and before is not None:
        divided = before.divided or max(1, len(before.sources))
    renamed = before is not None and prefixes.get(mine, "") != earlier
    former = earlier if renamed else None
    return Membership([] if sources == [""] else sources, prefixes, divided, number, former)


def _moved(sources: list[str], origin: str, place: str, with_images: Callable[[], set[int]]) -> int:
    """Return which source now stands at `origin`: the only one that is no longer at its place.

    Args:
        with_images: returns the sources that have images in the index: others, whose images were
            added again from elsewhere or removed, do not count if several are missing.
    """
    missing = [n for n, s in enumerate(sources) if _is_place(s) and not source_exists(s)]
    if len(missing) > 1:
        missing = sorted(with_images().intersection(missing))
    if len(missing) == 1 or sources == [""]:
        return missing[0] if missing else 0
    if len(sources) > 1:
        raise StoreError(
            f"{place} is of {len(sources)} collections, and {origin or 'this one, without a name,'}"
            " is none of them: add it with --add, or take images out with --remove"
        )
    raise StoreError(
        f"{place} is of {sources[0]}, not of {origin}: add these images with --add, or name "
        "another place"
    )


def _is_place(source: str) -> bool:
    return as_url(source) is not None or Path(source).is_absolute()


def named(items: Items, prefix: str) -> Items:
    """Return the images with ids that begin with a name."""
    if not prefix:
        return items
    return Items(_prefixed(items.ids, prefix), items.paths, items.groups, items.frame_ms)


def _prefixed(ids: pa.Array, prefix: str) -> pa.Array:
    if not prefix:
        return ids
    kind = ids.type
    return pc.binary_join_element_wise(pa.scalar(prefix, kind), ids, pa.scalar("/", kind))


def _without(ids: pa.Array, prefix: str) -> pa.Array:
    return pc.utf8_slice_codeunits(ids, len(prefix) + 1) if prefix else ids


def index_in(values: pa.Array | pa.ChunkedArray, column: pa.ChunkedArray) -> Numbers:
    """Return the first position of each value in a column; -1 for null and missing values."""
    if len(values) * _FEWER < len(column):  # a table of the few takes less than one of the column
        wanted = values.unique().drop_null()
        at = pc.index_in(column, value_set=wanted, skip_nulls=True).fill_null(-1).to_numpy()
        here = np.flatnonzero(at >= 0)[::-1]
        first = np.full(len(wanted) + 1, -1, np.int64)  # the last one is for null
        first[at[here]] = here
        return first[index_in(values, pa.chunked_array([wanted]))]
    found = pc.index_in(values, value_set=column, skip_nulls=True).fill_null(-1)
    rows: Numbers = found.to_numpy(zero_copy_only=False).astype(np.int64)
    return rows


def owners(rows: pa.Table, facts: Facts) -> Numbers:
    """Return the number of each row's collection, (n,); UNKNOWN if nothing tells.

    Args:
        rows: with the columns of `facts.schema()`.
    """
    found = np.full(len(rows), UNKNOWN, np.int64)
    if facts.divided:
        recorded = rows[COLLECTION].fill_null(UNKNOWN)
        found[:] = recorded.to_numpy()
    old = facts.divided or len(facts.sources)
    is_old = found == UNKNOWN
    if old <= 1:
        found[is_old] = 0
        return found
    for number in sorted(range(old), key=lambda n: len(facts.sources[n])):  # the longest counts
        folder = os.fsencode(os.path.join(facts.sources[number], ""))
        inside = pc.starts_with(rows["path"], folder).to_numpy(zero_copy_only=False)
        found[is_old & inside] = number
    return found


def record(owned: Numbers, facts: Facts) -> pa.Array:
    """Return what rows record of their owners: nothing where the first of all is meant."""
    is_plain = (owned == UNKNOWN) | ((owned == 0) & (facts.divided == 1))
    return pa.array(owned, mask=is_plain)


def meets(path: bytes, other: bytes, owner: int) -> bool:
    """Return whether an id that two collections share stands for two images.

    Args:
        path: the file that is indexed now.
        other: the file that the id stands for so far, of the collection `owner`.
    """
    if path == other:
        return False
    try:
        return not os.path.samefile(path, other)  # noqa: PTH121 - bytes
    except (
        OSError
    ):  # one is no file of its own, or gone: if its collection is known, it may be back
        return owner != UNKNOWN or is_there_now(os.fsdecode(other))
