"""Change a served index: one thread takes all waiting writes, and answers once they are stored."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from whiten.datasets.collection import Item, Items
from whiten.errors import LockedError, WhitenError
from whiten.index import Index, Match
from whiten.index.columns import GROUP
from whiten.index.membership import index_in
from whiten.index.rows import matches
from whiten.index.sources import VectorSource
from whiten.media.reading import is_there_now
from whiten.serve.given import Values, metadata_of
from whiten.serve.live import LiveIndex, UnavailableError, UnknownImageError
from whiten.serve.queries import RefusedError
from whiten.serve.uploads import Uploads
from whiten.utils.arrays import Vectors
from whiten.utils.urls import as_url

_PATIENCE = 10.0  # seconds to wait for another process that changes the index
_PAUSE = 0.01
_PAGE = 1 << 20  # rows looked through at once

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Add:
    """An image to index.

    Attributes:
        id: its id; "" for that of an indexed image of the same content, else `default`.
        default: id if the image is new and `id` is "".
        content: hash of its content.
        vector: (dim,) embedding.
        model: fingerprint of the index's model then.
        path: its file; "" for an upload, whose content is `data`.
        values: metadata; columns that are not named keep their value.
    """

    id: str
    default: str
    content: str
    vector: Vectors
    model: str
    path: str = ""
    data: bytes = b""
    values: Values = field(default_factory=dict)


@dataclass(frozen=True)
class Remove:
    """An image to take out of the index."""

    id: str


@dataclass(frozen=True)
class Done:
    """A write that is stored: the image as it is, or was, and whether it is new."""

    item: Match
    is_new: bool = False


@dataclass(frozen=True)
class _Known:
    """An indexed image, and the hash of its content."""

    item: Match
    content: str


class Writer:
    """Applies writes to an index, each whole or not at all.

    A write is answered once the index that holds it is on the disk, so that a kill loses none that
    was answered. Writes that wait share one change of the index.

    Args:
        uploads: keeps uploaded images; None refuses them.
    """

    def __init__(self, live: LiveIndex, uploads: Uploads | None) -> None:
        self._live = live
        self._uploads = uploads

    def apply(self, writes: Sequence[Add | Remove]) -> list[Done | Exception]:
        """Apply writes in their order; return for each what was done, or why it was not."""
        answers: list[Done | Exception] = []
        waiting = deque(_runs(writes))
        while waiting:
            run = waiting.popleft()
            try:
                answers += _when_free(partial(self._try, run))
            except UnavailableError as error:  # the rest would wait as long, and in vain
                rest = writes[len(answers) :]
                self._drop_unstored(rest)
                return [*answers, *[error] * len(rest)]
            except (WhitenError, OSError) as error:
                if len(run) > 1:  # find the one that cannot be stored
                    waiting.extendleft([write] for write in reversed(run))
                    continue
                self._drop_unstored(run)
                answers.append(_as_answer(error))
        return answers

    def _try(self, run: Sequence[Add | Remove]) -> list[Done | Exception]:
        adds = [write for write in run if isinstance(write, Add)]
        removes = [write.id for write in run if isinstance(write, Remove)]
        with self._live.changing() as index:
            if removes:
                return self._remove(index, removes)
            return self._add(index, adds)

    # --- adding -------------------------------------------------------------------------

    def _add(self, index: Index, adds: Sequence[Add]) -> list[Done | Exception]:
        by_id = _find(index, "id", [add.id or add.default for add in adds])
        by_content = _find(index, "content_hash", [add.content for add in adds if not add.id])
        answers: dict[int, Done | Exception] = {}
        changed: dict[int, Item] = {}
        is_new: dict[int, bool] = {}
        for number, add in enumerate(adds):
            before = by_id.get(add.id) if add.id else by_content.get(add.content)
            # An image of this id has another content, or it were found by that.
            before = before or by_id.get(add.id or add.default)
            is_kept = before is not None and not self._lacks_file(before, add)
            if before is not None and is_kept and _is_as_asked(before, add):
                answers[number] = Done(before.item)
                continue
            try:
                changed[number] = self._item(index, add, before)
                is_new[number] = before is None
            except RefusedError as refusal:
                answers[number] = refusal
        if changed:
            self._put(index, [(adds[number], item) for number, item in changed.items()])
            now = _find(index, "id", [item.id for item in changed.values()])
            for number, item in changed.items():
                answers[number] = Done(now[item.id].item, is_new[number])
        return [answers[number] for number in range(len(adds))]

    def _item(self, index: Index, add: Add, before: _Known | None) -> Item:
        """Return the image as it is to be indexed; what is indexed keeps its group, and its file.

        Raises:
            RefusedError: the id stands for another image, or is of another collection; or there is
                no place for uploads.
        """
        if before is not None:
            item = before.item
            if before.content != add.content and not _is_one_file(item.path, add.path):
                raise RefusedError(
                    409,
                    f"{item.id[:200]!r} is another image: delete it first, or choose another id",
                )
            path = self._file(add) if self._lacks_file(before, add) else item.path
            return Item(item.id, path, item.group, item.frame_ms)
        name = add.id or add.default
        first, slash, _ = name.partition("/")
        if slash and first in index.facts.prefixes.values():
            raise RefusedError(409, f"ids that begin with {first + slash!r} are of a collection")
        return Item(name, self._file(add))

    def _lacks_file(self, known: _Known, add: Add) -> bool:
        """Return whether the file of an indexed image is gone, and can be had again.

        Services are not asked: a URL counts as there.
        """
        path = known.item.path
        can_keep = bool(add.path) or self._uploads is not None
        is_gone = as_url(path) is None and not is_there_now(path)
        return can_keep and known.content == add.content and is_gone

    def _file(self, add: Add) -> str:
        """Return the file of an image; an upload is kept."""
        if add.path:
            return add.path
        if self._uploads is None:
            raise RefusedError(
                409, "this service has no folder for uploads: start it with --uploads FOLDER"
            )
        return self._uploads.save(add.data, add.content)

    def _put(self, index: Index, writes: Sequence[tuple[Add, Item]]) -> None:
        adds = [add for add, _ in writes]
        source = VectorSource(
            adds[0].model,
            index.facts,
            Items.of(item for _, item in writes),
            [add.content for add in adds],
            np.stack([add.vector for add in adds]),
        )
        if not source.made(index.facts):
            raise UnavailableError(
                "the index was made again with another model just now: try again"
            )
        index.put(source, metadata_of([add.values for add in adds], index.facts.columns))

    # --- removing -----------------------------------------------------------------------

    def _remove(self, index: Index, ids: Sequence[str]) -> list[Done | Exception]:
        by_id = _find(index, "id", ids)
        known = [name for name in ids if name in by_id]
        if known:
            index.remove(known)
            files = {by_id[name].item.path: by_id[name].content for name in known}
            self._drop_uploads(index, files)
        return [
            Done(by_id[name].item) if name in by_id else UnknownImageError(name) for name in ids
        ]

    def _drop_unstored(self, run: Sequence[Add | Remove]) -> None:
        """Delete the uploads of images that were refused, if that can be done at once."""
        if self._uploads is None:
            return
        adds = [write for write in run if isinstance(write, Add) and write.data]
        files = {self._uploads.path_of(add.data, add.content): add.content for add in adds}
        with suppress(WhitenError, UnavailableError, OSError), self._live.changing() as index:
            self._drop_uploads(index, files)

    def _drop_uploads(self, index: Index, files: Mapping[str, str]) -> None:
        """Delete uploaded files that no image of the index has.

        Args:
            files: path -> hash of the content.
        """
        if self._uploads is None or not files:
            return
        wanted = pa.chunked_array([list(files.values())], pa.large_string())
        needed: set[str] = set()  # names: the same folder may have been named otherwise before
        for page in index.pages(_PAGE):
            alike = page["path"].filter(pa.array(index_in(page["content_hash"], wanted) >= 0))
            needed |= {Path(os.fsdecode(path)).name for path in alike.to_pylist()}
        for path, content in files.items():
            if Path(path).name not in needed:
                self._uploads.drop(path, content)


def _as_answer(error: Exception) -> Exception:
    if not isinstance(error, OSError):
        return error
    reason = (error.strerror or "the disk cannot be written").lower()
    return UnavailableError(f"nothing was stored: {reason}")


def _is_as_asked(known: _Known, add: Add) -> bool:
    """Return whether an indexed image has the content and the metadata already."""
    now = {**known.item.metadata, GROUP: known.item.group}
    return known.content == add.content and all(
        now.get(name) == value and type(now.get(name)) is type(value)
        for name, value in add.values.items()
    )


def _is_one_file(path: str, other: str) -> bool:
    """Return whether two paths name one file, one of them perhaps through a link."""
    try:
        return Path(path).samefile(other)
    except (OSError, ValueError):
        return False


def _find(index: Index, column: str, values: Sequence[str]) -> dict[str, _Known]:
    """Return indexed images by the values of a column, for each the first one."""
    found: dict[str, _Known] = {}
    for page in index.pages(_PAGE) if values else ():
        rows = index_in(pa.array(values, pa.large_string()), page[column])
        part = page.take(pa.array(np.unique(rows[rows >= 0])))
        items = matches(part, np.ones(len(part)), index.facts.columns)
        contents = part["content_hash"].to_pylist()
        for value, item, content in zip(part[column].to_pylist(), items, contents, strict=True):
            found.setdefault(value, _Known(item, content))
    return found


def _when_free(change: Callable[[], Answer]) -> Answer:
    """Make a change, after waiting for another process that is changing the index."""
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            return change()
        except LockedError:
            if time.monotonic() > end:
                raise UnavailableError("another process is changing the index: try again") from None
            time.sleep(_PAUSE)


def _runs(writes: Sequence[Add | Remove]) -> Iterator[list[Add | Remove]]:
    """Cut writes into runs that one change of the index can make, in their order.

    These are of one kind, of different images, and name the same columns with values of the same
    types.
    """
    for _, alike in groupby(writes, key=_shape):
        run: list[Add | Remove] = []
        names: set[str] = set()
        for write in alike:
            own = {write.id}
            if isinstance(write, Add):
                own = {write.id or write.default, f"content {write.content}"}
            if own & names:
                yield run
                run, names = [], set()
            run.append(write)
            names |= own
        yield run


def _shape(write: Add | Remove) -> Any:
    if isinstance(write, Remove):
        return None
    return write.model, [(name, type(value)) for name, value in sorted(write.values.items())]
