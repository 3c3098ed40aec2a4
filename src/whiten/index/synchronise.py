"""Update an index to match a collection, embedding only new content.

A file with unchanged stamp and path is not read. Otherwise its content hash decides: content
that is already indexed, under any name, reuses its vector.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from whiten.datasets.collection import Items
from whiten.embedding.repeats import Repeats, may_repeat
from whiten.errors import NoImagesError, StoreError
from whiten.index.colours import have_profiles, ignored_profiles
from whiten.index.columns import COLLECTION
from whiten.index.keeping import Columns
from whiten.index.membership import UNKNOWN, Membership, index_in, meets, owners, record
from whiten.index.rows import Backend, Block, Facts, as_of, lose_values, read_size
from whiten.index.sources import Source
from whiten.media.decoding import has_foreign_colours
from whiten.media.reading import Skipped, Unread, is_there_now
from whiten.utils.arrays import Vectors
from whiten.utils.names import display_path
from whiten.utils.progress import progress
from whiten.utils.urls import absolute

CHUNK = 1024  # most images that are embedded and written at once
_LEAST, _FIRST = 16, 64  # fewest, and those at the start, when the model's speed is unknown
_SECONDS = 5.0  # of work that are written at once, and lost by a kill
_EXPECTED = 32 * CHUNK  # images that a cluster embeds at once: a kill loses at most these

_FEW = 10  # images; a smaller collection may lose any number

Rows = npt.NDArray[np.int64]


@dataclass
class Changes:
    """Counts of images in one update of an index.

    Attributes:
        added: new images.
        updated: images whose content, path or metadata changed.
        removed: images that are gone from the collection.
        embedded: added and updated images that the model had to embed.
        unchanged: images left alone.
        skipped: unreadable images, with the reason; their earlier rows stay.
        dropped: metadata columns that are gone.
        notes: what else the user should know, a line each.
    """

    added: int = 0
    updated: int = 0
    removed: int = 0
    embedded: int = 0
    unchanged: int = 0
    skipped: list[Skipped] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def synchronise(
    backend: Backend,
    source: Source,
    facts: Facts,
    columns: Columns | None = None,
    *,
    joined: Membership | None = None,
    keep: bool = False,
    remove_missing: bool = False,
    show_progress: bool = False,
) -> Changes:
    """Change an index to match a collection.

    Args:
        backend: open for writing.
        source: the collection.
        facts: the new facts of the index; skipped images are added to them.
        columns: the user's columns; by default none.
        joined: the collections of the index; by default it is of this one.
        keep: whether images that the collection lacks stay in the index.
        remove_missing: whether more than half of a collection may be removed.

    Raises:
        NoImagesError: no image can be read, and the index is empty.
        StoreError: an id stands for an image of another collection, or more than half of the
            images would be removed. Nothing is changed.
    """
    joined = joined or Membership(facts.sources, facts.prefixes, facts.divided, 0)
    work = _Work(backend, source, facts, columns or Columns(), joined)
    is_first = backend.facts is None or not backend.facts.complete
    is_renamed = joined.former is not None
    gone = [] if keep and not is_first and not is_renamed else work.gone()
    if not (remove_missing or is_first or is_renamed):
        _refuse_to_empty(backend.place, source.items, gone, work.count)
    facts.skipped[:] = work.skipped_before(keep and not is_renamed)
    if len(work.touched) or gone or backend.facts != facts:
        backend.write(facts, gone, work.blocks(show_progress))
    if not len(backend):
        first = f", first {facts.skipped[0][0]!r}: {facts.skipped[0][1]}" if facts.skipped else ""
        raise NoImagesError(
            f"none of {len(source.items)} images could be indexed{first}; name a folder with "
            "readable images"
        )
    work.changes.removed = len(gone)
    work.changes.skipped = facts.skips
    if columns is not None:
        work.changes.dropped, work.changes.notes = columns.dropped, columns.notes
    return work.changes


def _refuse_to_empty(place: str, items: Items, gone: list[str], count: int) -> None:
    """Refuse to remove more than half of `count` images: a disk may not be mounted."""
    if count >= _FEW and 2 * len(gone) > count:
        raise StoreError(
            f"{place}: {len(gone)} of its {count} images, first {gone[0]!r}, are not among the "
            f"{len(items)} that are there now, and nothing was changed: is a disk missing? If they "
            "are to be removed, add --remove-missing to `whiten index`"
        )


class _Work:
    """One change: the touched images, and the sources of their vectors.

    Attributes:
        touched: rows of the source's items to look at.
        changes: counts so far.
        count: number of images of this collection in the index so far.

    Raises:
        StoreError: an id stands for an image of another collection.
    """

    def __init__(
        self, backend: Backend, source: Source, facts: Facts, columns: Columns, joined: Membership
    ) -> None:
        self._backend, self._source, self._facts = backend, source, facts
        self._joined = joined
        known = backend.known() if backend.facts else _nothing(facts)
        owned = owners(known, backend.facts or facts)
        self._before = as_of(known, facts)
        self._is_own = owned == joined.number if facts.divided else np.ones(len(known), bool)
        self.count = int(self._is_own.sum())
        self._staged = backend.staged(facts)
        ids = source.items.ids
        described = joined.find(ids, known, backend.facts or facts)
        self._now = as_of(columns.of_rows(_rows(source), self._before, described), facts)
        found = index_in(ids, known["id"])
        self._is_known = found >= 0
        if facts.divided:
            self._share(found, owned, joined.number)
        is_same = self._is_known.copy()
        is_same[is_same] = _equal(
            self._now.filter(pa.array(is_same)), self._before.take(pa.array(found[is_same]))
        )
        # Otherwise the value would be back as soon as the kind is another one.
        is_same[is_same] = ~lose_values(known, self._before, facts)[found[is_same]]
        self._has_old_colours = backend.facts is not None and ignored_profiles(backend.facts)
        if backend.facts is not None and set(facts.converted) - set(backend.facts.converted):
            is_same &= ~have_profiles(source.items, is_same, backend.place)
        skipped = {name: stamp for name, _, stamp in (backend.facts or facts).skipped}
        is_skipped = np.zeros(len(self._now), bool)
        if skipped:
            stamps = zip(self._now["id"].to_pylist(), self._now["stamp"].to_pylist(), strict=True)
            is_skipped[:] = [bool(s) and skipped.get(name) == s for name, s in stamps]
        self.touched = np.flatnonzero(~is_same & ~is_skipped)
        self.changes = Changes(unchanged=int(is_same.sum()))
        touched = self._now["stamp"].take(pa.array(self.touched))
        self._may_repeat = np.zeros(len(self._now), bool)
        # One by one: as a list, the stamps of ten million images take a gigabyte.
        self._may_repeat[self.touched] = may_repeat(read_size(s.as_py()) for s in touched)
        self._repeats = Repeats(facts.dim)

    def _share(self, found: Rows, owned: Rows, number: int) -> None:
        """Record whose the rows are; refuse ids that stand for images of other collections."""
        owner = np.full(len(found), number, np.int64)
        known = np.flatnonzero(self._is_known)
        others = known[owned[found[known]] != number]
        paths = self._now["path"].take(pa.array(others)).to_pylist()
        earlier = self._before["path"].take(pa.array(found[others])).to_pylist()
        owner[others] = owned[found[others]]
        met = np.array(
            [
                row
                for row, path, other in zip(others.tolist(), paths, earlier, strict=True)
                if meets(path, other, int(owner[row]))
            ],
            np.int64,
        )
        is_moved = self._are_moved(met, found[met])
        owner[met[is_moved]] = number
        met = met[~is_moved]
        if len(met):
            first = self._now["id"][int(met[0])].as_py()
            other = os.fsdecode(self._before["path"][int(found[met[0]])].as_py())
            raise StoreError(
                f"{self._backend.place} has {len(met)} of these ids for images of another "
                f"collection, first {first!r} for {display_path(other)}, and nothing was changed: "
                "add this one with --collection NAME, which its ids then begin with"
            )
        owner[owner == UNKNOWN] = number
        at = self._now.schema.get_field_index(COLLECTION)
        column = record(owner, self._facts)
        self._now = self._now.set_column(at, self._now.schema.field(at), column)

    def _are_moved(self, rows: Rows, before: Rows) -> npt.NDArray[np.bool_]:
        """Return for which rows, (n,), the earlier file is gone and this one has its content."""
        paths = self._before["path"].take(pa.array(before)).to_pylist()
        is_moved = np.array([not is_there_now(os.fsdecode(path)) for path in paths], bool)
        gone = rows[is_moved]
        if len(gone):
            digests = self._before["content_hash"].take(pa.array(before[is_moved])).to_pylist()
            hashes = self._source.hashes(self._source.items.take(gone))
            is_moved[is_moved] = [a == b for a, b in zip(hashes, digests, strict=True)]
        return is_moved

    def gone(self) -> list[str]:
        """Return the ids that are indexed but not in the collection.

        Images in a folder that cannot be listed may still be there.
        """
        rows = index_in(self._before["id"], self._now["id"])
        is_gone = (rows < 0) & self._is_own
        ids = self._source.items.ids
        for folder in ids.filter(pc.ends_with(ids, "/")).to_pylist():
            inside = pc.starts_with(self._before["id"], folder)
            is_gone &= ~inside.to_numpy()
        gone: list[str] = self._before["id"].filter(pa.array(is_gone)).to_pylist()
        return gone

    def skipped_before(self, keep: bool) -> list[tuple[str, str, str]]:
        """Return the images skipped last time and not touched since.

        Args:
            keep: whether images that the collection lacks stay in the index.
        """
        old = self._backend.facts.skipped if self._backend.facts else []
        rows = self._source.items.by_id.rows([name for name, _, _ in old])
        is_touched = np.zeros(len(self._now), bool)
        is_touched[self.touched] = True
        return [
            skip
            for skip, row in zip(old, rows.tolist(), strict=True)
            if ((keep or not self._joined.owns(skip[0])) if row < 0 else not is_touched[row])
        ]

    def blocks(self, show_progress: bool) -> Iterator[Block]:
        """Yield the readable touched images with their vectors; count and record the others."""
        total, done, size, expected = len(self.touched), 0, _FIRST, 0
        with progress("index", enabled=show_progress, unit="images") as update:
            while done < total:
                if done == expected:
                    expected += _EXPECTED
                    self._source.expect(self._source.items.take(self.touched[done:expected]))
                rows = self.touched[done : min(done + min(size, CHUNK), expected)]
                began = time.monotonic()
                yield self._block(rows)
                done += len(rows)
                update(done, total)
                speed = len(rows) / max(time.monotonic() - began, 1e-3)
                size = max(_LEAST, int(speed * _SECONDS))

    def _block(self, rows: Rows) -> Block:
        items = self._source.items.take(rows)
        hashes = self._source.hashes(items)
        for row, found in zip(rows, hashes, strict=True):
            if isinstance(found, Skipped):
                self._skip(row, found)
        digests = pa.array([h if isinstance(h, str) else None for h in hashes], pa.large_string())
        vectors, is_there = self._seen_before(digests, items.paths.to_pylist())
        self._embed_new(rows, items, digests.to_pylist(), vectors, is_there)
        done = np.flatnonzero(is_there)
        self.changes.updated += int(self._is_known[rows[done]].sum())
        self.changes.added += int((~self._is_known[rows[done]]).sum())
        table = self._now.take(pa.array(rows[done]))
        at = table.schema.get_field_index("content_hash")
        field_ = table.schema.field(at)
        return Block(table.set_column(at, field_, digests.take(pa.array(done))), vectors[done])

    def _embed_new(
        self,
        rows: Rows,
        items: Items,
        digests: list[str | None],
        vectors: Vectors,
        is_there: npt.NDArray[np.bool_],
    ) -> None:
        """Fill in the vectors that are not there; equal contents are embedded once."""
        first: dict[str, int] = {}
        for number, digest in enumerate(digests):
            if digest is not None and not is_there[number]:
                first.setdefault(digest, number)
        new = np.array([n for d, n in first.items() if d not in self._repeats], np.int64)
        reasons: dict[str | None, Skipped] = {}
        if len(new):
            embedded = self._source.embed(items.take(new))
            here = new[embedded.rows]
            vectors[here], is_there[here] = embedded.vectors, True
            for number in here[self._may_repeat[rows[here]]].tolist():
                self._repeats.add(str(digests[number]), vectors[number])
            skipped = items.by_id.rows([skip.id for skip in embedded.skipped]).tolist()
            for number, skip in zip(skipped, embedded.skipped, strict=True):
                reasons[digests[number]] = skip
            self.changes.embedded += len(here)
        for number, digest in enumerate(digests):
            if digest is None or is_there[number]:
                continue
            if digest in reasons:
                self._skip(rows[number], replace(reasons[digest], id=items[number].id))
            elif is_there[first[digest]]:
                vectors[number], is_there[number] = vectors[first[digest]], True
            elif digest in self._repeats:
                vectors[number], is_there[number] = self._repeats[digest], True

    def _skip(self, row: int, skip: Skipped) -> None:
        # Without a stamp it is tried again at the next update.
        stamp = "" if isinstance(skip, Unread) else self._now["stamp"][int(row)].as_py()
        self._facts.skipped.append((skip.id, skip.reason, stamp))

    def _seen_before(
        self, digests: pa.Array, paths: list[bytes]
    ) -> tuple[Vectors, npt.NDArray[np.bool_]]:
        """Return (n, dim) vectors of indexed or staged content, and a mask (n,) of those found."""
        vectors = np.empty((len(digests), self._facts.dim), np.float32)
        is_there = np.zeros(len(digests), bool)
        for block in self._staged:
            at = index_in(digests, block.rows["content_hash"])
            here = at >= 0
            vectors[here], is_there[here] = block.vectors[at[here]], True
        at = index_in(digests, self._before["content_hash"])
        left = np.flatnonzero((at >= 0) & ~is_there)
        if self._has_old_colours:
            left = left[[not has_foreign_colours(os.fsdecode(paths[row])) for row in left]]
        if len(left):
            block = self._backend.fetch(self._before["id"].take(pa.array(at[left])).to_pylist())
            # If batches are committed at once, an earlier one may have replaced the content.
            same = pc.equal(block.rows["content_hash"], digests.take(pa.array(left))).to_numpy()
            vectors[left[same]], is_there[left[same]] = block.vectors[same], True
        return vectors, is_there


def _rows(source: Source) -> pa.Table:
    """Return the rows that the index should have, without content hashes and metadata."""
    items = source.items
    table = items.table().append_column("stamp", source.stamps())
    return table.set_column(table.schema.get_field_index("path"), "path", _absolute(items.paths))


def _absolute(paths: pa.Array) -> pa.Array:
    """Make paths absolute: an index is opened from any working directory."""
    if pc.all(pc.starts_with(paths, os.fsencode(os.sep))).as_py():
        return paths
    found = [os.fsencode(absolute(os.fsdecode(path))) for path in paths.to_pylist()]
    return pa.array(found, paths.type)


def _nothing(facts: Facts) -> pa.Table:
    return facts.schema().empty_table()


def _equal(now: pa.Table, before: pa.Table) -> npt.NDArray[np.bool_]:
    """Return a mask (n,) of equal rows with a known stamp; content hashes are not known yet."""
    same = np.ones(len(now), bool)
    for name in now.schema.names:
        if name != "content_hash":
            ours, theirs = now[name], before[name]
            is_equal = pc.equal(ours, theirs).fill_null(False)
            is_equal = pc.or_(is_equal, pc.and_(ours.is_null(), theirs.is_null()))
            same &= is_equal.to_numpy(zero_copy_only=False)
    stamped: npt.NDArray[np.bool_] = pc.not_equal(now["stamp"], "").to_numpy()
    return same & stamped
