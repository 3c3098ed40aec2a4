"""Look up millions of image names without an object for each, and show names as text."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path, PosixPath
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from whiten.utils.arrays import Indices

Names: TypeAlias = "Sequence[str | None] | pa.Array"

_CHUNK = 65536
_ESCAPED = re.compile(rb"\\x([0-9a-f]{2})")


def name_codes(names: Names) -> Indices:
    """Number the names by first occurrence, equal names alike; -1 for None."""
    column = names if isinstance(names, pa.Array) else pa.array(names, pa.large_string())
    codes: Indices = column.dictionary_encode().indices.fill_null(-1).to_numpy().astype(np.int64)
    return codes


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


_URL = re.compile(r"(s3|gs|gcs|az|hf|https?):/+(?=[^/])", re.IGNORECASE)
_SCHEMES = {"gcs": "gs"}


def as_url(place: str | os.PathLike[str]) -> str | None:
    """Return the URL of a storage service, also one whose slashes a `Path` has joined.

    None for a path.
    """
    text = os.fspath(place)
    found = _URL.match(text)
    if found is None:
        return None
    scheme = found[1].lower()
    return f"{_SCHEMES.get(scheme, scheme)}://{text[found.end() :]}"


class UrlPath(PosixPath):
    """A URL where code expects a path: it has a name, a suffix and a parent, and is no folder."""

    def __str__(self) -> str:
        text = super().__str__()
        return as_url(text) or text

    def __fspath__(self) -> str:
        return str(self)

    def resolve(self, strict: bool = False) -> UrlPath:
        return self

    def absolute(self) -> UrlPath:
        return self


def as_path(place: str | os.PathLike[str]) -> Path:
    """Return a path; a URL as one that shows itself as it is."""
    url = as_url(place)
    return Path(place) if url is None else UrlPath(url)


def named_place(place: str | os.PathLike[str]) -> str:
    """Return a path or a URL as the user named it."""
    return as_url(place) or os.fspath(place)


def absolute(path: str) -> str:
    """Return the absolute path, with links as they are named; a URL is absolute."""
    return as_url(path) or os.path.abspath(path)  # noqa: PTH100


def joined(folder: str, path: str) -> str:
    """Return where a path leads that starts at a folder; either may be a URL."""
    if as_url(path) is not None:
        return as_url(path) or path
    if (url := as_url(folder)) is not None:
        return f"{url.rstrip('/')}/{path}"
    return os.path.join(folder, path)


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
