"""An index that is asked by many at once, and may be changed by others meanwhile."""

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
from whiten.index.rows import FILTERABLE, Facts, matches
from whiten.index.where import Where, parse_where
from whiten.utils.arrays import Vectors

REFRESH_SECONDS = 1.0
MAX_WHERE = 2000  # characters: Python's parser is for people, not for whole books
_PAGE = 4096  # rows that are looked at at once

# What a filter can still be wrong in when it is applied, such as a number beyond 64 bits.
_FILTER_ERRORS = (ConfigError, pa.ArrowException, OverflowError, ValueError, TypeError)


class UnknownImageError(Exception):
    """The index has no image of this id."""

    def __init__(self, name: str) -> None:
        super().__init__(f"there is no image {name[:200]!r}")


@dataclass(frozen=True)
class Question:
    """One search.

    Attributes:
        vector: (dim,) of the query.
        k: hits.
        where: only among these.
    """

    vector: Vectors
    k: int
    where: Where | None = None


class LiveIndex:
    """An index behind a lock; what others change is seen within a second.

    A folder's index opens other files when it has changed, and the connection to a database is one:
    neither is for two threads at a time. Searches that wait are one pass over the vectors.
    """

    def __init__(self, index: Index, clock: Callable[[], float] = time.monotonic) -> None:
        self._index = index
        self._clock = clock
        self._lock = threading.Lock()
        self._seen = -math.inf

    def _fresh(self) -> Index:
        """The index as it is now; the lock must be held."""
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
        """Raises ConfigError for a filter that cannot be read."""
        if not text.strip():
            return None
        if len(text) > MAX_WHERE:
            raise ConfigError(
                f"the filter has {len(text)} characters, above the limit of {MAX_WHERE}: write a "
                "shorter one"
            )
        return parse_where(text, FILTERABLE | self.facts.columns)

    def search(self, questions: Sequence[Question]) -> list[list[Match] | Exception]:
        """Answers in the order of the questions; those of the same kind cost one pass."""
        found: list[list[Match] | Exception] = [[] for _ in questions]
        kinds: dict[str, list[int]] = {}
        for number, question in enumerate(questions):
            kinds.setdefault(repr(question.where), []).append(number)
        with self._lock:
            index = self._fresh()
            for numbers in kinds.values():
                asked = [questions[number] for number in numbers]
                most = max(question.k for question in asked)
                queries = np.stack([question.vector for question in asked])
                try:
                    answers = index.search_vectors(queries, most, where=asked[0].where)
                except _FILTER_ERRORS as error:  # which is no one else's
                    for number in numbers:
                        found[number] = ConfigError(f"the filter cannot be used: {one_line(error)}")
                    continue
                for number, question, hits in zip(numbers, asked, answers, strict=True):
                    found[number] = hits[: question.k]
        return found

    def item(self, name: str) -> Match:
        """Raises UnknownImageError where it is not there."""
        with self._lock:
            index = self._fresh()
            try:
                return index.items([name])[0]
            except (StoreError, ValueError):  # text that is no UTF-8 names nothing
                raise UnknownImageError(name) from None

    def file(self, name: str) -> str:
        """Where the file of an indexed image is; raises UnknownImageError where it is not there."""
        return self.item(name).path

    def vector(self, name: str) -> Vectors:
        """(dim,) of an indexed image; raises UnknownImageError where it is not there."""
        with self._lock:
            index = self._fresh()
            try:
                vector: Vectors = index.vectors([name])[0]
            except (StoreError, ValueError):
                raise UnknownImageError(name) from None
            return vector

    def listing(self, offset: int, limit: int) -> tuple[int, list[Match]]:
        """How many there are, and some of them in the index's order."""
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
