"""An index that many clients query concurrently while others may change it."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from whiten.embedding.encoder import Encoder
from whiten.errors import ConfigError, LockedError, StoreError, WhitenError, one_line
from whiten.index import Index, Match
from whiten.index.columns import FILTERABLE
from whiten.index.conditions import Where
from whiten.index.model import can_query
from whiten.index.query import SearchOptions
from whiten.index.query import search as run
from whiten.index.rows import Facts
from whiten.index.where import parse_where
from whiten.utils.arrays import Vectors
from whiten.utils.files import holding

REFRESH_SECONDS = 1.0
MAX_WHERE = 2000  # characters; longer filters would strain Python's parser
_PAGE = 4096  # rows per block

_OTHER_BACKGROUND = (
    "the index or its background was made again with another model: index both with one model"
)

# Errors of a filter that only show when it is applied, such as a number beyond 64 bits.
_FILTER_ERRORS = (ConfigError, pa.ArrowException, OverflowError)


class UnknownImageError(Exception):
    """Raised if the index has no image with this id."""

    def __init__(self, name: str) -> None:
        super().__init__(f"there is no image {name[:200]!r}")


class UnavailableError(Exception):
    """Raised while the index cannot be searched; the message is the reason, without paths."""


@dataclass(frozen=True)
class Search:
    """One search.

    Attributes:
        vectors: (n, dim), the vectors of one query.
        model: fingerprint of the index's model when they were made; None does not check it.
    """

    vectors: Vectors
    options: SearchOptions
    model: str | None = None

    def against(self, background: Index | None) -> Search:
        """Return the same search, if it has a background with this one."""
        if self.options.background is None:
            return self
        return replace(self, options=replace(self.options, background=background))

    @property
    def is_plain(self) -> bool:
        """True if it can share a pass over the vectors with other searches."""
        options = self.options
        return len(self.vectors) == 1 and not (
            options.videos or options.expand or options.background
        )


@dataclass(frozen=True)
class _State:
    """An index and its background as they were at one time, and why the latter cannot be used."""

    index: Index
    background: Index | None
    no_background: str


class LiveIndex:
    """An index that many threads read; changes by others are seen within a second.

    If the index is made again with another model, that model is loaded; if it cannot be, nothing is
    answered, since the scores would mean nothing.

    A folder is read as it was when it was last looked at, so that no reader waits for a search. A
    database has one connection, and several indexes are searched as one: these are read by one
    thread at a time. Waiting searches share one pass over the vectors.
    """

    def __init__(
        self,
        index: Index,
        *,
        background: Index | None = None,
        writable: bool = False,
    ) -> None:
        self._index = index
        # Writes have an index of their own, whose state is not that of the searches. A database has
        # one connection.
        self._changed = Index.open(index.place) if writable and index.folder else None
        if writable:  # searches would wait, too, and `Writer` waits without holding them up
            (self._changed or index).patience = 0.0
        self._background = background
        self._of_folders = index.folder is not None and (
            background is None or background.folder is not None
        )
        self._now = self._state("")
        self._lock = threading.Lock()
        self._seen = -math.inf
        self._model: tuple[Encoder, str] | None = None

    def _fresh(self) -> Index:
        """Return the current index; the lock must be held.

        Raises:
            UnavailableError: it is gone, or needs a model that the service does not have.
        """
        if self._is_due():
            try:
                self._index.refresh()
            except (StoreError, ConfigError):  # which name places
                raise UnavailableError(self._reason()) from None
            no_background = self._refresh_background()
            if self._model is not None and self._model[1] != self._index.facts.model:
                self._model = None
            self._now = self._state(no_background)
            self._seen = time.monotonic()
        return self._index

    def _state(self, no_background: str) -> _State:
        background = self._background
        return _State(self._index.snapshot(), background and background.snapshot(), no_background)

    @contextmanager
    def _reading(self) -> Iterator[_State]:
        """Yield the current index and its background; the lock is held where only one may read.

        Raises:
            UnavailableError: see `_fresh`.
        """
        with ExitStack() as held:
            held.enter_context(self._lock)
            self._fresh()
            now = self._now
            if self._of_folders:
                held.close()
            yield now

    def _refresh_background(self) -> str:
        """Return why the background cannot be used; "" if it can. Other searches go on."""
        if self._background is None:
            return ""
        try:
            self._background.refresh()
        except (StoreError, ConfigError):
            is_gone = not self._background.exists
            what = "is gone, or is being made again" if is_gone else "cannot be read at present"
            return f"the background {what}"
        is_other = self._background.facts.model != self._index.facts.model
        return _OTHER_BACKGROUND if is_other else ""

    def _is_due(self) -> bool:
        if self._changed is not None:
            return True  # it costs a look at one file, and other processes may change it, too
        return time.monotonic() - self._seen >= REFRESH_SECONDS

    def _reason(self) -> str:
        """Say why the index could not be refreshed."""
        if not self._index.exists:
            return "the index is gone, or is being made again"
        facts = self._index.facts
        if self._model is not None and not can_query(self._model[0], facts):
            return (
                f"the index was made again with another model, {facts.name}: start the service "
                "again with that model"
            )
        return "the index cannot be read at present"

    @contextmanager
    def changing(self) -> Iterator[Index]:
        """Yield the current index, to be changed by one thread; searches see it from then on.

        Raises:
            LockedError: another process is changing it.
            UnavailableError: it is gone, or its model is not the one that embeds the queries.
        """
        if self._changed is None:
            with self._lock:
                try:
                    yield self._fresh()
                finally:
                    self._seen = -math.inf
            return
        root = self._changed.folder
        assert root is not None
        try:
            # What is written depends on what is there: other services and workers wait.
            with holding(root):
                self._changed.refresh()
                yield self._changed
        except FileNotFoundError:
            raise UnavailableError("the index is gone, or is being made again") from None
        except BlockingIOError:
            raise LockedError(f"another service is changing {self._index.place}") from None

    def can_add(self) -> bool:
        """Return whether the encoder is the index's own, rather than one that may query it."""
        encoder, model = self.encoder()
        facts = self.facts
        return facts.model == model and encoder.made(facts.uri, facts.model)

    def load(self) -> None:
        """Open the index's model now; raises what `Index.encoder` raises."""
        self._model = (self._index.encoder, self._index.facts.model)

    def encoder(self) -> tuple[Encoder, str]:
        """Return what embeds the queries, and the fingerprint of the index's model.

        Raises:
            UnavailableError: the index was made again with a model that cannot be opened.
        """
        model = self._model
        if model is not None and not self._is_due():
            return model
        with self._lock:
            index = self._fresh()
            if self._model is None:
                try:
                    self._model = (index.encoder, index.facts.model)
                except WhitenError:
                    raise UnavailableError(
                        f"the index was made again with another model, {index.facts.name}, which "
                        "cannot be opened here: start the service again with that model"
                    ) from None
            return self._model

    @property
    def facts(self) -> Facts:
        with self._reading() as now:
            return now.index.facts

    def __len__(self) -> int:
        with self._reading() as now:
            return len(now.index)

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
            filtered = f"{search.model} {search.options.where!r}"
            key = filtered if search.is_plain else f"alone {number}"
            shared.setdefault(key, []).append(number)
        with self._reading() as now:
            searches = [search.against(now.background) for search in searches]
            for numbers in shared.values():
                if searches[numbers[0]].model not in (None, now.index.facts.model):
                    for number in numbers:
                        found[number] = UnavailableError(
                            "the index was made again with another model just now: try again"
                        )
                    continue
                options = searches[numbers[0]].options
                if options.background is not None and now.no_background:
                    found[numbers[0]] = UnavailableError(now.no_background)
                    continue
                try:
                    answers = _together(now.index, [searches[number] for number in numbers])
                except _FILTER_ERRORS as error:
                    told: Exception = error
                    if options.where is not None:  # which all of them have
                        told = ConfigError(f"the filter cannot be used: {one_line(error)}")
                    for number in numbers:
                        found[number] = told
                    continue
                for number, hits in zip(numbers, answers, strict=True):
                    found[number] = hits
        return found

    def item(self, name: str) -> Match:
        """Return an image by id; raises UnknownImageError if it is not in the index."""
        with self._reading() as now:
            try:
                return now.index.items([name])[0]
            except (StoreError, ValueError):  # text that is not valid UTF-8 names nothing
                raise UnknownImageError(name) from None

    def file(self, name: str) -> str:
        """Return the file of an indexed image; raises UnknownImageError if there is none."""
        return self.item(name).path

    def vector(self, name: str) -> tuple[Vectors, str]:
        """Return the (dim,) vector of an image, and the fingerprint of its model.

        Raises:
            UnknownImageError: there is no such image.
        """
        with self._reading() as now:
            try:
                vector: Vectors = now.index.vectors([name])[0]
            except (StoreError, ValueError):
                raise UnknownImageError(name) from None
            return vector, now.index.facts.model

    def listing(self, offset: int, limit: int) -> tuple[int, list[Match]]:
        """Return the number of images, and one page of them in the index's order."""
        with self._reading() as now:
            index = now.index
            total, first, ids = len(index), 0, list[str]()
            if offset >= total:
                return total, []
            for page in index.pages(max(limit, _PAGE)):
                start, stop = max(0, offset - first), offset + limit - first
                if start < len(page) and stop > 0:
                    ids += page["id"].slice(start, stop - start).to_pylist()
                first += len(page)
                if first >= offset + limit:
                    break
            return total, index.items(ids)  # a joined index has numbers that its pages lack


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
