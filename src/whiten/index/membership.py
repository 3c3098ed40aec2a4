"""The collections of an index: which rows are whose, so that no id stands for two images.

An index of one collection records nothing per row. Once a second one is added, each row carries
the number of its source in `COLLECTION`; rows from before carry none.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from whiten.datasets.collection import Items
from whiten.errors import ConfigError, StoreError
from whiten.index.columns import COLLECTION
from whiten.index.rows import Facts

UNKNOWN = -1  # owner of rows of an earlier version that indexed several collections

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Membership:
    """The collections of an index once one of them is indexed.

    Attributes:
        sources, prefixes, divided: as in `Facts`.
        number: position of the indexed collection among the sources.
        renamed: whether its ids begin with another name than before.
    """

    sources: list[str]
    prefixes: dict[str, str]
    divided: int
    number: int
    renamed: bool

    @property
    def prefix(self) -> str:
        """Name that the ids begin with; "" for none."""
        return self.prefixes.get(self.sources[self.number], "") if self.sources else ""


def join(
    origin: str | None, name: str | None, before: Facts | None, place: str, keep: bool
) -> Membership:
    """Return the collections once `origin` is indexed.

    Args:
        origin: absolute path of the collection; None for items given in Python.
        name: name that its ids shall begin with; None keeps the earlier one.
        before: facts of the index so far; None for a new one.
        place: the place of the index, for messages.
        keep: whether the collection is added to the others.

    Raises:
        StoreError: the index is of other images, which would be replaced.
        ConfigError: the name cannot be one.
    """
    if name is not None and (not name or "/" in name):
        raise ConfigError(f"a collection cannot be called {name!r}: use a name without slashes")
    mine = (name or "") if origin is None else origin
    sources = [""] if before is None else list(before.sources) or [""]
    prefixes = {} if before is None else dict(before.prefixes)
    if before is None:
        sources = [mine]
    elif mine not in sources:
        if keep:
            sources.append(mine)
        elif origin is not None or len(sources) > 1:
            moved = _moved(sources, mine, place)
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
    return Membership([] if sources == [""] else sources, prefixes, divided, number, renamed)


def _moved(sources: list[str], origin: str, place: str) -> int:
    """Return which source now stands at `origin`: the only one that is no longer at its place."""
    missing = [n for n, s in enumerate(sources) if Path(s).is_absolute() and not Path(s).exists()]
    if len(missing) == 1 or sources == [""]:
        return missing[0] if missing else 0
    if len(sources) > 1:
        raise StoreError(
            f"{place} is of {len(sources)} collections, and {origin} is none of them: add it with "
            "--add, or take images out with --remove"
        )
    raise StoreError(
        f"{place} is of {sources[0]}, not of {origin}: add these images with --add, or name "
        "another place"
    )


def named(items: Items, prefix: str) -> Items:
    """Return the images with ids that begin with a name."""
    if not prefix:
        return items
    kind = items.ids.type
    ids = pc.binary_join_element_wise(pa.scalar(prefix, kind), items.ids, pa.scalar("/", kind))
    return Items(ids, items.paths, items.groups, items.frame_ms)


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
    except OSError:  # the other file is gone: if its collection is known, it may come back
        return owner != UNKNOWN
