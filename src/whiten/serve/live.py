"""An index that many clients query concurrently while others may change it."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from whiten.errors import ConfigError, StoreError, one_line
from whiten.index import Index, Match
from whiten.index.query import SearchOptions
from whiten.index.query import search as run
from whiten.index.rows import FILTERABLE, Facts, matches
from whiten.index.where import Where, parse_where
from whiten.utils.arrays import Vectors

REFRESH_SECONDS = 1.0
MAX_WHERE = 2000  # characters; longer filters would strain Python's parser
_PAGE = 4096  # rows per block

# Errors of a filter that only show when it is applied, such as a number beyond 64 bits.
_FILTER_ERRORS = (ConfigError, pa.ArrowException, OverflowError, ValueError, TypeError)


class UnknownImageError(Exception):
    """Raised if the index has no image with this id."""

    def __init__(self, name: str) -> None:
        super().__init__(f"there is no image {name[:200]!r}")


@dataclass(frozen=True)
class Search:
    """One search: the (n, dim) vectors of one query, and the options."""

    vectors: Vectors
    options: SearchOptions

    @property
    def is_plain(self) -> bool:
        """True if it can share a pass over the vectors with other searches."""
        options = self.options
        return len(self.vectors) == 1 and not (
            options.videos or options.expand or options.background
        )


class LiveIndex:
    """An index behind a lock; changes by others are seen within a second.

    An index in a folder opens other files when it has changed, and a database has one connection:
    neither is thread-safe. Waiting searches share one pass over the vectors.
    """

    def __init__(self, index: Index, clock: Callable[[], float] = time.monotonic) -> None:
        self._index = index
        self._clock = clock
        self._lock = threading.Lock()
        self._seen = -math.inf

    def _fresh(self) -> Index:
        """Return the current index; the lock must be held."""
        if self._clock() - self._seen >= REFRESH_SECONDS:
            self._index.refresh()
            self._seen = self._clock()
        return self._index

    @property
    def facts(self) -> Facts:
        with self._lock:
            return self._fresh().facts

    def __len__(self) -> int:
        with self._lock:
            return len(self._fresh())

    def read_where(self, text: str) -> Where | None:
        """Parse a filter; raises ConfigError if it is invalid."""
        if not text.strip():
            return None
        if len(text) > MAX_WHERE:
            raise ConfigError(
                f"the filter has {len(text)} characters, above the limit of {MAX_WHERE}: write a "
                "shorter one"
            )
        return parse_where(text, FILTERABLE | self.facts.columns)

    def search(self, searches: Sequence[Search]) -> list[list[Match] | Exception]:
        """Return hits in the order of the searches; plain ones with one filter share a pass."""
        found: list[list[Match] | Exception] = [[] for _ in searches]
        shared: dict[str, list[int]] = {}
        for number, search in enumerate(searches):
            key = repr(search.options.where) if search.is_plain else f"alone {number}"
            shared.setdefault(key, []).append(number)
        with self._lock:
            index = self._fresh()
            for numbers in shared.values():
                try:
                    answers = _together(index, [searches[number] for number in numbers])
                except _FILTER_ERRORS as error:  # all of them have this filter
                    for number in numbers:
                        found[number] = ConfigError(f"the filter cannot be used: {one_line(error)}")
                    continue
                for number, hits in zip(numbers, answers, strict=True):
                    found[number] = hits
        return found

    def item(self, name: str) -> Match:
        """Return an image by id; raises UnknownImageError if it is not in the index."""
        with self._lock:
            index = self._fresh()
            try:
                return index.items([name])[0]
            except (StoreError, ValueError):  # text that is not valid UTF-8 names nothing
                raise UnknownImageError(name) from None

    def file(self, name: str) -> str:
        """Return the file of an indexed image; raises UnknownImageError if there is none."""
        return self.item(name).path

    def vector(self, name: str) -> Vectors:
        """Return the (dim,) vector of an image; raises UnknownImageError if there is none."""
        with self._lock:
            index = self._fresh()
            try:
                vector: Vectors = index.vectors([name])[0]
            except (StoreError, ValueError):
                raise UnknownImageError(name) from None
            return vector

    def listing(self, offset: int, limit: int) -> tuple[int, list[Match]]:
        """Return the number of images, and one page of them in the index's order."""
        with self._lock:
            index = self._fresh()
            total, first, parts = len(index), 0, []
            if offset >= total:
                return total, []
            for page in index.pages(max(limit, _PAGE)):
                start, stop = max(0, offset - first), offset + limit - first
                if start < len(page) and stop > 0:
                    parts.append(page.slice(start, stop - start))
                first += len(page)
                if first >= offset + limit:
                    break
            rows = pa.concat_tables(parts)
            return total, matches(rows, np.ones(len(rows)), index.facts.columns)


def _together(index: Index, searches: Sequence[Search]) -> list[list[Match]]:
    if not searches[0].is_plain:
        return [run(index, search.vectors, search.options) for search in searches]
    most = max(search.options.k for search in searches)
    vectors = np.concatenate([search.vectors for search in searches])
    answers = index.search_vectors(vectors, most, where=searches[0].options.where)
    return [
        [hit for hit in hits[: search.options.k] if search.options.is_enough(hit)]
        for search, hits in zip(searches, answers, strict=True)
    ]
