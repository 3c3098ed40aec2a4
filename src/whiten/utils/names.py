"""Look up millions of image names without an object for each, and show names as text."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from whiten.utils.arrays import Indices
from whiten.utils.urls import absolute, as_url

Names: TypeAlias = "Sequence[str | None] | pa.Array"

Name = TypeVar("Name", bound="str | os.PathLike[str]")

_CHUNK = 65536
_ESCAPED = re.compile(rb"\\x([0-9a-f]{2})")


def several(names: Iterable[Name] | Name) -> list[Name]:
    """List names; a single text or path is one name, not a sequence of letters."""
    if isinstance(names, str | os.PathLike):
        return [names]
    return list(names)


def is_text(name: str) -> bool:
    """Return whether a name is text, and not the bytes of a file name that is no UTF-8."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def name_codes(names: Names) -> Indices:
    """Number the names by first occurrence, equal names alike; -1 for None."""
    column = names if isinstance(names, pa.Array) else pa.array(names, pa.large_string())
    codes: Indices = column.dictionary_encode().indices.fill_null(-1).to_numpy().astype(np.int64)
    return codes


def repeated(codes: Indices) -> npt.NDArray[np.bool_]:
    """Return which of (n,) numbers from `name_codes` occur twice or more; -1 never counts."""
    return (codes >= 0) & (np.bincount(codes + 1)[codes + 1] > 1)


def group_codes(names: Names) -> Indices:
    """Number the groups by first occurrence; -1 for no group, and for one of a single member."""
    codes = name_codes(names)
    return np.where(repeated(codes), codes, -1)


def label_codes(labels: Any) -> Indices:
    """Number labels of any hashable type as `name_codes` does; -1 for None, NaN and pandas' NA.

    Args:
        labels: (n,) a sequence, or a NumPy, Arrow or pandas column.
    """
    # As plain Python values, labels of different libraries compare alike.
    convert = getattr(labels, "to_pylist", None) or getattr(labels, "tolist", None)
    values = list(labels) if convert is None else convert()
    numbers: dict[Any, int] = {}
    codes = [-1 if _is_missing(v) else numbers.setdefault(v, len(numbers)) for v in values]
    return np.array(codes, np.int64)


def _is_missing(value: Any) -> bool:
    if value is None or type(value).__name__ == "NAType":  # whose comparison is no truth value
        return True
    return bool(value != value)  # NaN and NaT alone differ from themselves


class NameIndex:
    """Positions of many distinct names, exact, in 16 bytes per name in addition to the names.

    Attributes:
        names: (n,) Arrow strings.
    """

    def __init__(self, names: pa.Array) -> None:
        self.names = names
        hashes = np.empty(len(names), np.int64)
        for start in range(0, len(names), _CHUNK):
            part = names[start : start + _CHUNK].to_pylist()
            hashes[start : start + len(part)] = _hashes(part)
        self._order = np.argsort(hashes, kind="stable")
        self._hashes = hashes[self._order]

    def __len__(self) -> int:
        return len(self.names)

    def rows(self, names: Sequence[str]) -> Indices:
        """Return the position of each name, -1 for those that are missing."""
        found = np.full(len(names), -1, np.int64)
        hashes = _hashes(names)
        place = np.searchsorted(self._hashes, hashes)
        left = np.arange(len(names))
        while True:  # once, unless names have equal hashes, which are adjacent
            left = left[place[left] < len(self._hashes)]
            left = left[self._hashes[place[left]] == hashes[left]]
            if not len(left):
                return found
            rows = self._order[place[left]]
            asked = pa.array([names[i] for i in left], self.names.type)
            is_it = pc.equal(self.names.take(pa.array(rows)), asked).to_numpy(zero_copy_only=False)
            found[left[is_it]] = rows[is_it]
            left = left[~is_it]
            place[left] += 1


def _hashes(names: Sequence[str]) -> Indices:
    return np.fromiter(map(hash, names), np.int64, len(names))


def display_path(path: str) -> str:
    r"""Return the absolute path as valid UTF-8 for display; other bytes become \\xNN."""
    return as_utf8(absolute(path))


def as_utf8(name: str) -> str:
    r"""Return a file name as valid UTF-8; invalid bytes become \\xNN."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def distinct(names: Sequence[str]) -> list[str]:
    """Number the names that occur more than once: `a`, `a (2)`, …"""
    found: list[str] = []
    for name in names:
        candidate, number = name, 2
        while candidate in found:
            candidate, number = f"{name} ({number})", number + 1
        found.append(candidate)
    return found


def real_path(shown: str) -> str:
    r"""Return the path that `display_path` shows, with \\xNN turned back into bytes."""
    if as_url(shown) is not None or os.path.lexists(shown):
        return shown
    path = os.fsdecode(_ESCAPED.sub(lambda m: bytes.fromhex(m[1].decode()), os.fsencode(shown)))
    return path if os.path.lexists(path) and display_path(path) == shown else shown
