"""Several indexes of one model that are searched as one."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from whiten.errors import ConfigError, StoreError
from whiten.index.columns import stored_kinds, stored_name, widen
from whiten.index.conditions import Compare, Logic, Missing, Where
from whiten.index.local.folder import FolderIndex
from whiten.index.local.storage.kinds import BASE
from whiten.index.rows import Backend, Block, Facts, Match, as_of, facts_of, in_pages
from whiten.index.where import compare_whole
from whiten.utils.arrays import Indices, Vectors, normalize_rows
from whiten.utils.names import NameIndex

_log = logging.getLogger(__name__)

_AT_ONCE = 1 << 16  # rows
_NUMBERS = {"int", "float"}


class JoinedIndex(Backend):
    """Several indexes as one `Backend`, for searches only.

    The hits are those of one index of all rows, in the order of the indexes where scores are equal.

    Attributes:
        place: all places, for display.
        facts: what the indexes have in common, and all their columns and sources.

    Raises:
        StoreError: one is no index, they are of different models, or two have the same id.
        ConfigError: a column holds values of different kinds.
    """

    facts: Facts | None

    def __init__(self, parts: Sequence[Backend]) -> None:
        self._parts = parts
        self.place = ", ".join(part.place for part in parts)
        self._check()

    def _check(self) -> None:
        self.facts = _joined_facts(self._parts)
        self._ids, self._lost = [], set[str]()
        for part in self._parts:
            pages = [self._looked_at(page) for page in part.pages(_AT_ONCE)]
            self._ids.append([page["id"] for page in pages])
        self.__dict__.pop("_by_id", None)
        ids = pa.chunked_array([c for own in self._ids for id_ in own for c in id_.chunks], _TEXT)
        if pc.count_distinct(ids).as_py() < len(ids):
            self._refuse_same(ids)
        self._states = [part.state() for part in self._parts]  # last: what is refused stays refused

    def _refuse_same(self, ids: pa.ChunkedArray) -> NoReturn:
        counted = ids.value_counts()
        again = counted.filter(pc.greater(counted.field("counts"), 1)).field("values")
        first = again[0].as_py()
        where = [
            part.place
            for part, own in zip(self._parts, self._ids, strict=True)
            if any(pc.any(pc.equal(column, again[0])).as_py() for column in own)
        ]
        raise StoreError(
            f"{' and '.join(where[:2] if len(where) > 1 else where * 2)} both have the id "
            f"{first!r}, one of {len(again)}: index one of them with --collection NAME, which its "
            "ids then begin with"
        )

    def _looked_at(self, page: pa.Table) -> pa.Table:
        """Note the columns of whole numbers that the floats of another index do not hold."""
        for name in self._floats:
            column = page[stored_name(name)] if stored_name(name) in page.schema.names else None
            is_whole = column is not None and pa.types.is_integer(column.type)
            if is_whole and widen(column, "int", "float") is None:
                self._lost.add(name)
        return page

    def tell_lost(self) -> None:
        if self._lost:
            _log.warning(
                "%s: whole numbers beyond 2^53 are missing in pages of column %s, which holds "
                "floats in another index; items() has them",
                self.place,
                ", ".join(sorted(self._lost)),
            )

    @property
    def _floats(self) -> list[str]:
        return [name for name, kind in self._facts.columns.items() if kind == "float"]

    @property
    def _facts(self) -> Facts:
        assert self.facts is not None
        return self.facts

    def refresh(self) -> None:
        for part in self._parts:
            part.refresh()
        if self._states != [part.state() for part in self._parts]:
            self._check()

    # --- reading ------------------------------------------------------------------------

    def __len__(self) -> int:
        return sum(len(part) for part in self._parts)

    def known(self) -> pa.Table:
        return pa.concat_tables([self._facts.schema().empty_table(), *self.pages(_AT_ONCE)])

    def pages(self, size: int) -> Iterator[pa.Table]:
        found = (page for part in self._parts for page in part.pages(size))
        return in_pages((as_of(page, self._facts) for page in found), size)

    @cached_property
    def _by_id(self) -> tuple[NameIndex, Vectors]:
        """Return a table of all ids, and for each index the row after its last."""
        columns = [chunk for own in self._ids for column in own for chunk in column.chunks]
        ends = np.cumsum([sum(map(len, own)) for own in self._ids])
        return NameIndex(pa.chunked_array(columns, _TEXT).combine_chunks()), ends

    def _owners(self, ids: Sequence[str]) -> Indices:
        """Return the number of the index of each id, (n,); raises StoreError for unknown ids."""
        index, ends = self._by_id
        rows = index.rows(list(ids))
        if (rows < 0).any():
            raise StoreError(f"{self.place} has no image {ids[int((rows < 0).argmax())]!r}")
        return np.searchsorted(ends, rows, side="right")

    def items(self, ids: Sequence[str]) -> list[Match]:
        # Unlike `fetch`, with whole numbers that no float holds.
        numbers = self._owners(ids)
        found: dict[str, Match] = {}
        for number in np.unique(numbers).tolist():
            mine = [ids[row] for row in np.flatnonzero(numbers == number).tolist()]
            own = self._parts[number].items(mine)
            found |= {hit.id: _with_floats(hit, self._floats) for hit in own}
        return [found[name] for name in ids]

    def fetch(self, ids: Sequence[str]) -> Block:
        owners = self._owners(ids)
        vectors = np.empty((len(ids), self._facts.dim), np.float32)
        tables, order = [self._facts.schema().empty_table()], [np.zeros(0, np.int64)]
        for number in np.unique(owners).tolist():
            mine = np.flatnonzero(owners == number)
            block = self._parts[number].fetch([ids[row] for row in mine.tolist()])
            is_full = _storage(self._parts[number]) == BASE
            vectors[mine] = block.vectors if is_full else normalize_rows(block.vectors)
            tables.append(as_of(block.rows, self._facts))
            order.append(mine)
        table = pa.concat_tables(tables).take(pa.array(np.argsort(np.concatenate(order))))
        return Block(table, vectors)

    def as_stored(self, vector: Vectors, ids: Sequence[str]) -> Vectors:
        index, ends = self._by_id
        owners = np.searchsorted(ends, index.rows(list(ids)), side="right")
        forms = np.concatenate([part.as_stored(vector, [""]) for part in self._parts])
        return forms[owners]

    def search(self, queries: Vectors, k: int, where: Where | None = None) -> list[list[Match]]:
        found: list[list[Match]] = [[] for _ in queries]
        for part in self._parts:
            own = None if where is None else _narrowed(where, part)
            if own is False:
                continue
            answers = part.search(queries, k, None if own is True else own)
            for hits, more in zip(found, answers, strict=True):
                hits += [_with_floats(hit, self._floats) for hit in more]
        return [sorted(hits, key=lambda hit: -hit.score)[:k] for hits in found]

    # --- never writing ------------------------------------------------------------------

    @contextmanager
    def writing(self) -> Iterator[None]:
        self._refuse_change()
        yield

    def staged(self, facts: Facts) -> Sequence[Block]:
        return []

    def write(self, facts: Facts, gone: Sequence[str], new: Iterable[Block]) -> None:
        self._refuse_change()

    def discard(self) -> None:
        self._refuse_change()

    def _refuse_change(self) -> NoReturn:
        raise StoreError(f"{self.place}: several indexes are only searched: change one at a time")


_TEXT = pa.large_string()


def _storage(part: Backend) -> str:
    return part.storage.name if isinstance(part, FolderIndex) else BASE


def _joined_facts(parts: Sequence[Backend]) -> Facts:
    every = [facts_of(part) for part in parts]
    first = every[0]
    columns: dict[str, str] = {}
    holders: dict[str, str] = {}
    for part, facts in zip(parts, every, strict=True):
        if facts.model != first.model:
            raise StoreError(
                f"{part.place} was made with another model ({facts.name}) than {parts[0].place} "
                f"({first.name}): search them apart, or index one of them again"
            )
        for name, kind in facts.columns.items():
            before = columns.setdefault(name, kind)
            holder = holders.setdefault(name, part.place)
            if before == kind:
                continue
            if {before, kind} != _NUMBERS:
                raise ConfigError(
                    f"column {name} holds {before} values in {holder} and {kind} values in "
                    f"{part.place}: index one of them again with values of one kind"
                )
            columns[name] = "float"
    return replace(
        first,
        uri=next((facts.uri for facts in every if facts.uri), ""),
        sources=list(dict.fromkeys(source for facts in every for source in facts.sources)),
        columns=columns,
        skipped=[skip for facts in every for skip in facts.skipped],
        prefixes={source: name for facts in every for source, name in facts.prefixes.items()},
        divided=0,
        complete=all(facts.complete for facts in every),
        converted=[source for facts in every for source in facts.converted],
    )


def _with_floats(hit: Match, floats: Sequence[str]) -> Match:
    """Return the hit as an index of all rows would hold it: with whole numbers as floats.

    Numbers that no float holds, such as ids of 64 bits, stay as they are.
    """
    whole = {name: float(v) for name in floats if isinstance(v := hit.metadata.get(name), int)}
    whole = {name: value for name, value in whole.items() if value == hit.metadata[name]}
    return replace(hit, metadata=hit.metadata | whole) if whole else hit


def _narrowed(where: Where, part: Backend) -> Where | bool:
    """Return the filter of all columns for an index that has some of them; True passes all rows."""
    facts = facts_of(part)
    stored = stored_kinds(facts.columns)
    own = {"id", "group", "frame_ms", *stored}
    whole = {stored_name(name) for name, kind in facts.columns.items() if kind == "int"}
    return _simplified(where, own, whole, False)


def _simplified(where: Where, own: set[str], whole: set[str], negated: bool) -> Where | bool:
    if isinstance(where, Logic):
        if where.operator == "not":
            return _simplified(where.terms[0], own, whole, not negated)
        decides = (where.operator == "or") != negated  # what one term decides alone
        terms = [_simplified(term, own, whole, negated) for term in where.terms]
        if decides in terms:
            return decides
        left = tuple(term for term in terms if not isinstance(term, bool))
        if len(left) < 2:
            return left[0] if left else not decides
        return Logic("or" if decides else "and", left)
    if where.column not in own:  # every value is missing
        return isinstance(where, Missing) and not negated
    if isinstance(where, Compare) and where.column in whole:
        values = where.value if isinstance(where.value, tuple) else (where.value,)
        numbers = [value for value in values if not isinstance(value, str)]
        where = compare_whole(where.column, where.operator, numbers)
    return Logic("not", (where,)) if negated else where
