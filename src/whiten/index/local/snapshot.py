"""One state of an index in a folder, opened for reading and search."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from whiten.errors import StoreError
from whiten.index.conditions import Where, to_arrow
from whiten.index.local.manifest import Manifest, Part
from whiten.index.local.segments import Segment
from whiten.index.local.tuning import Fast, open_fast
from whiten.index.rows import Block, Match, match_columns, matches_of
from whiten.retrieval.exact import QUERIES, Mask, Nearest, Rows
from whiten.utils.arrays import Vectors
from whiten.utils.memory import gather_rows
from whiten.utils.names import NameIndex

_BATCH = 8192  # rows copied at once
_SLICED = 32  # rows, up to which a slice each is faster than any `take`
_SCANS = 30  # lookups of ids by scan before a table is built, which takes longer than as many


class Snapshot:
    """The segments of a manifest; immutable, so that any number of threads may search.

    Rows are numbered across all segments, removed ones included: this number is their place.

    Attributes:
        manifest: names the segments.
        coding: storage of the vectors; None for float32.
        segments: one per part.
        present: per segment, (n,) mask of rows that are not removed; None is all.

    Raises:
        StoreError: a file is damaged.
    """

    def __init__(self, root: Path, manifest: Manifest) -> None:
        self.root = root
        self.manifest = manifest
        self.facts = manifest.facts
        self.coding = manifest.storage.open(root, manifest.facts.dim)
        self.segments = [
            Segment.open(root / part.name, manifest.facts, part.count, self.coding, part.lost)
            for part in manifest.parts
        ]
        self.present = [_read_gone(root, part) for part in manifest.parts]
        self._lookups = 0  # of ids so far
        self._fast: dict[int, Fast] = {}  # opened on first search

    def __len__(self) -> int:
        return sum(
            len(segment) if present is None else int(present.sum())
            for segment, present in zip(self.segments, self.present, strict=True)
        )

    @property
    def counts(self) -> list[int]:
        """Number of rows per segment, removed ones included."""
        return [part.count for part in self.manifest.parts]

    def pages(self, size: int) -> Iterator[pa.Table]:
        for segment, present in zip(self.segments, self.present, strict=True):
            for start in range(0, len(segment), size):
                page = segment.rows.slice(start, size)
                yield page if present is None else page.filter(pa.array(present[start:][:size]))

    def known(self) -> pa.Table:
        return pa.concat_tables([self.facts.schema().empty_table(), *self.pages(1 << 20)])

    def blocks(self, numbers: Sequence[int]) -> Iterator[Block]:
        """Yield the remaining rows of some segments."""
        for number in numbers:
            segment, there = self.segments[number], np.flatnonzero(self.there(number))
            for start in range(0, len(there), _BATCH):
                rows = there[start : start + _BATCH]
                yield Block(segment.rows.take(pa.array(rows)), gather_rows(segment.vectors, rows))

    # --- by id --------------------------------------------------------------------------

    def there(self, number: int) -> Mask:
        """Return the (n,) mask of a segment's remaining rows."""
        present = self.present[number]
        return np.ones(len(self.segments[number]), bool) if present is None else present

    @cached_property
    def _by_id(self) -> tuple[NameIndex, Rows]:
        """Return a table of the ids of remaining rows, and their places."""
        there = [self.there(number) for number in range(len(self.segments))]
        places = np.flatnonzero(np.concatenate([np.zeros(0, bool), *there]))
        return NameIndex(self.known()["id"].combine_chunks()), places

    def places(self, ids: Sequence[str]) -> Rows:
        """Return the place of each id; -1 if it is not in the index."""
        self._lookups += 1
        if self._lookups <= _SCANS:
            return self._scan_for(ids)
        index, places = self._by_id
        rows = index.rows(list(ids))
        return np.where(rows < 0, -1, places[rows]) if len(places) else rows

    def _scan_for(self, ids: Sequence[str]) -> Rows:
        """Find `places` without a table of ids, which takes longer to build than a few scans."""
        found, first = np.full(len(ids), -1, np.int64), 0
        wanted = pa.array(ids, pa.large_string())
        for number, segment in enumerate(self.segments):
            at = pc.index_in(segment.rows["id"], value_set=wanted).fill_null(-1)
            at = at.to_numpy(zero_copy_only=False)
            here = np.flatnonzero((at >= 0) & self.there(number))
            found[at[here]] = first + here
            first += len(segment)
        again: Rows = pc.index_in(wanted, value_set=wanted).to_numpy(zero_copy_only=False)
        return found[again]  # ids may repeat

    def take(self, places: Rows) -> Block:
        vectors = np.empty((len(places), self.facts.dim), np.float32)
        first = 0
        for segment in self.segments:
            inside = (places >= first) & (places < first + len(segment))
            vectors[inside] = gather_rows(segment.vectors, places[inside] - first)
            first += len(segment)
        return Block(self._rows(places), vectors)

    @cached_property
    def _batches(self) -> tuple[list[pa.RecordBatch], Rows]:
        """Return the batches of all segments, and for each batch the place after its last row."""
        batches = [batch for segment in self.segments for batch in segment.rows.to_batches()]
        return batches, np.cumsum([len(batch) for batch in batches])

    def _rows(self, places: Rows) -> pa.Table:
        """Return rows by place; Arrow's own `take` looks at every batch, for every column."""
        batches, ends = self._batches
        if len(places) <= _SLICED:
            numbers = np.searchsorted(ends, places, side="right").tolist()
            starts = [int(ends[number]) - len(batches[number]) for number in numbers]
            few = zip(numbers, places.tolist(), starts, strict=True)
            slices = [batches[number].slice(place - start, 1) for number, place, start in few]
            return pa.Table.from_batches(slices, self.facts.schema()).combine_chunks()
        wanted, back = np.unique(places, return_inverse=True)
        parts = []
        inside = np.searchsorted(ends, wanted, side="right")
        for number in np.unique(inside):
            batch = batches[number]
            rows = wanted[inside == number] - (ends[number] - len(batch))
            parts.append(batch.take(pa.array(rows)))
        found = pa.Table.from_batches(parts, self.facts.schema()).combine_chunks()
        return found.take(pa.array(back))

    # --- searching ----------------------------------------------------------------------

    def search(self, queries: Vectors, k: int, where: Where | None) -> list[list[Match]]:
        allowed = [self._allowed(number, where) for number in range(len(self.segments))]
        found: list[list[Match]] = []
        for start in range(0, len(queries), QUERIES):
            some = np.ascontiguousarray(queries[start : start + QUERIES], np.float32)
            nearest = Nearest(len(some), k)
            first = 0
            for number, segment in enumerate(self.segments):
                self._show(number, some, nearest, allowed[number], first)
                first += len(segment)
            best = nearest.best()
            found.extend(
                matches_of(self._values(places), scores.tolist(), self.facts.columns)
                for places, scores in best
            )
        return found

    def _values(self, places: Rows) -> Iterator[list[Any]]:
        """Yield what matches are made of; a table of few rows takes 20 times as long to build."""
        columns, ends = self._columns
        inside = np.searchsorted(ends, places, side="right")
        for number, place in zip(inside.tolist(), places.tolist(), strict=True):
            batch = columns[number]
            row = place - int(ends[number]) + len(batch[0])
            yield [column[row].as_py() for column in batch]

    @cached_property
    def _columns(self) -> tuple[list[list[pa.Array]], Rows]:
        """Return `_batches`, but of each only the columns of matches."""
        batches, ends = self._batches
        names = match_columns(self.facts.columns)
        return [[batch.column(name) for name in names] for batch in batches], ends

    def _show(
        self, number: int, queries: Vectors, nearest: Nearest, allowed: Mask | None, first: int
    ) -> None:
        """Pass a segment's rows to `nearest`, or only those that may be the nearest."""
        segment, fast, found = self.segments[number], self._fast_of(number), None
        if fast is not None:
            found = fast.search(queries, nearest.k, segment.gather, allowed)
        if found is None:
            found = segment.search(queries, nearest.k, allowed)
        if found is None:
            segment.scan(queries, nearest, allowed, first)
            return
        query = np.repeat(np.arange(len(found)), [len(rows) for rows, _ in found])
        rows = np.concatenate([rows for rows, _ in found])
        scores = np.concatenate([scores for _, scores in found])
        order = np.argsort(rows, kind="stable")
        nearest.offer(query[order], first + rows[order], scores[order])

    def _fast_of(self, number: int) -> Fast | None:
        part, tuning = self.manifest.parts[number], self.manifest.tuning
        if part.fast and tuning is not None and number not in self._fast:
            folder = self.root / part.fast
            try:
                self._fast[number] = open_fast(tuning, folder, part.count, self.facts.dim)
            except StoreError:
                # A writer may have deleted it; the vectors are mapped, and can still be scanned.
                if self.manifest == Manifest.read(self.root):
                    raise
        return self._fast.get(number)

    def _allowed(self, number: int, where: Where | None) -> Mask | None:
        present = self.present[number]
        if where is None:
            return present
        import pyarrow.dataset as ds  # imports pandas, if installed: a third of a search's time

        rows = self.segments[number].rows
        numbered = rows.append_column("", pa.array(np.arange(len(rows))))
        passing = ds.dataset(numbered).to_table(columns=[""], filter=to_arrow(where))[""].to_numpy()
        mask = np.zeros(len(rows), bool)
        mask[passing] = True
        return mask if present is None else mask & present


def _read_gone(root: Path, part: Part) -> Mask | None:
    if not part.gone:
        return None
    try:
        bits = np.fromfile(root / part.gone, np.uint8)
    except OSError as error:
        raise StoreError(
            f"{root / part.gone} is missing or unreadable ({error}): delete {root} and index again"
        ) from error
    if len(bits) != -(-part.count // 8):
        raise StoreError(f"{root / part.gone} is damaged: delete {root}, index again")
    return ~np.unpackbits(bits, count=part.count).astype(bool)
