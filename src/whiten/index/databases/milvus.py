"""An index in Milvus: in a file with Milvus Lite, or in a cluster; the code is the same.

Rows are stored in one collection and the facts in another. Each row has a serial number, by which
rows are read in pages: Milvus returns at most 16,384 rows at once, unordered. The columns of a
collection are fixed at creation, so that changed metadata needs a new collection; the rows are
copied to it before the facts name it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from whiten.errors import StoreError
from whiten.index.conditions import Where
from whiten.index.databases.addresses import read_address
from whiten.index.databases.milvus_facts import MilvusFacts
from whiten.index.databases.milvus_filters import literal, to_milvus, without_patterns
from whiten.index.databases.milvus_rows import Layout
from whiten.index.databases.milvus_server import connect, keeps_nulls, one_writer
from whiten.index.rows import Backend, Block, Facts, Match, as_of, in_pages, matches
from whiten.utils.arrays import Vectors

MOST = 16_384  # most rows per answer
_BATCH = 500  # rows per request: messages are limited to 64 MB
_QUERIES = 64
_INDEXES: dict[str, dict[str, Any]] = {
    "flat": {"index_type": "FLAT"},
    "hnsw": {"index_type": "HNSW", "params": {"M": 16, "efConstruction": 200}},
}


class MilvusIndex(Backend):
    """Index in a Milvus database.

    Attributes:
        place: opens the index again; without a password.
        facts: None while there is no index.
    """

    def __init__(self, text: str) -> None:
        self._address = read_address(text, "milvus")
        self.place = self._address.place
        self.facts: Facts | None = None
        self._open(create=False)

    def _open(self, *, create: bool) -> None:
        client = connect(self, self._address, create=create)
        if client is not None:
            self._client = client
            self._head = MilvusFacts(client, self._address.name, self.place)
            self.facts = self._head.read()

    def refresh(self) -> None:
        if hasattr(self, "_client"):
            self.facts = self._head.read()
        else:
            self._open(create=False)

    # --- reading ------------------------------------------------------------------------

    def __len__(self) -> int:
        if self.facts is None:
            return 0
        answer = self._client.query(self._rows, output_fields=["count(*)"])
        return int(answer[0]["count(*)"])

    @property
    def _rows(self) -> str:
        return self._head.rows

    def _layout(self, facts: Facts) -> Layout:
        return Layout.of(facts, nullable=self._head.has_nulls)

    def known(self) -> pa.Table:
        assert self.facts is not None
        return pa.concat_tables([self.facts.schema().empty_table(), *self.pages(MOST)])

    def pages(self, size: int) -> Iterator[pa.Table]:
        """Yield all rows in the order in which they were written."""
        assert self.facts is not None
        facts = self.facts
        layout = self._layout(facts)
        found = self._some([*layout.names, "serial"])
        return in_pages((layout.table(rows, facts) for rows in found), size)

    def _some(self, fields: Sequence[str], at_once: int = MOST) -> Iterator[list[dict[str, Any]]]:
        """Yield all rows in order, `at_once` at a time."""
        collection = self._rows
        for first in range(0, self._head.serials, at_once):
            rows = self._client.query(
                collection,
                filter=f"serial >= {first} and serial < {first + at_once}",
                output_fields=list(fields),
                limit=at_once,
            )
            if len(rows):
                yield sorted(rows, key=lambda row: int(row["serial"]))

    def fetch(self, ids: Sequence[str]) -> Block:
        assert self.facts is not None
        found: dict[str, dict[str, Any]] = {}
        layout = self._layout(self.facts)
        fields = [*layout.names, "embedding"]
        for start in range(0, len(ids), _BATCH):
            condition = f"id in {literal(tuple(dict.fromkeys(ids[start : start + _BATCH])))}"
            for row in self._client.query(self._rows, filter=condition, output_fields=fields):
                found[row["id"]] = row
        for name in ids:
            if name not in found:
                raise StoreError(f"{self.place} has no image {name!r}")
        rows = [found[name] for name in ids]
        vectors = np.array([row["embedding"] for row in rows], np.float32)
        return Block(layout.table(rows, self.facts), vectors.reshape(len(rows), self.facts.dim))

    def search(self, queries: Vectors, k: int, where: Where | None = None) -> list[list[Match]]:
        """See `Backend.search`; ties are ordered by id.

        Raises:
            StoreError: k is above 16,384, and so is the number of rows.
        """
        assert self.facts is not None
        k = min(k, len(self)) if k > MOST else k
        if k > MOST:
            raise StoreError(f"{self.place}: Milvus answers at most {MOST} rows: ask for fewer")
        layout = self._layout(self.facts)
        if where is not None and not self._head.has_nulls:
            where = without_patterns(where, lambda column: self._values(layout, column))
        condition = "" if where is None else to_milvus(where, layout)
        found: list[list[Match]] = []
        at_once = max(1, min(_QUERIES, MOST // (k + 8)))
        for start in range(0, len(queries), at_once):
            some = np.ascontiguousarray(queries[start : start + at_once], np.float32)
            for hits in self._nearest(some, k, condition, layout.names):
                best = sorted(hits, key=lambda hit: (-hit["distance"], hit["id"]))[:k]
                scores = np.array([hit["distance"] for hit in best], np.float32)
                rows = layout.table([hit["entity"] for hit in best], self.facts)
                found.append(matches(rows, scores, self.facts.columns))
        return found

    def _nearest(
        self, queries: Vectors, k: int, condition: str, fields: Sequence[str]
    ) -> list[list[dict[str, Any]]]:
        """Return at least k hits per query, including all ties with the k-th."""
        limit = min(k + 8, MOST)
        while True:
            answers: list[list[dict[str, Any]]] = self._client.search(
                self._rows,
                data=list(queries),
                anns_field="embedding",
                filter=condition,
                limit=limit,
                output_fields=list(fields),
                search_params=self._search_params(limit),
            )
            ties = (len(a) == limit and a[k - 1]["distance"] == a[-1]["distance"] for a in answers)
            if limit == MOST or not any(ties):
                return answers
            limit = min(2 * limit, MOST)

    def _values(self, layout: Layout, column: str) -> Iterator[str]:
        """Yield the texts of a column, perhaps empty ones for rows without a value."""
        field = layout.fields[column]
        for rows in self._some([field, "serial"]):
            yield from (row[field] for row in rows)

    def _search_params(self, limit: int) -> dict[str, Any]:
        is_graph = self._head.index == "hnsw"
        return {"metric_type": "IP", "params": {"ef": max(200, 2 * limit)} if is_graph else {}}

    # --- writing ------------------------------------------------------------------------

    @contextmanager
    def writing(self) -> Iterator[None]:
        """A file is open in one process at a time anyway; the user must keep the writers of a
        cluster apart."""
        with one_writer(self._address):
            if hasattr(self, "_client"):
                self.refresh()
            else:
                self._open(create=True)
            yield

    def staged(self, facts: Facts) -> list[Block]:
        return []

    def write(self, facts: Facts, gone: Sequence[str], new: Iterable[Block]) -> None:
        # Written first, so that rows are known to be of this model even after a kill.
        is_first = self.facts is None or not self.facts.complete
        self._settle(replace(facts, complete=False) if is_first else facts)
        layout = self._layout(facts)
        for block in new:
            names = block.rows["id"].to_pylist()
            for start in range(0, len(names), _BATCH):
                rows = layout.records(block.rows.slice(start, _BATCH), self.place)
                self._upsert(rows, block.vectors[start : start + _BATCH])
        # Last, because vectors of removed rows may be reused for new rows.
        for start in range(0, len(gone), _BATCH):
            # Not by `ids=`: some client versions do not escape quotes there.
            condition = f"id in {literal(tuple(gone[start : start + _BATCH]))}"
            self._client.delete(self._rows, filter=condition)
        self.facts = self._head.write(facts)

    def _upsert(self, rows: list[dict[str, Any]], vectors: Vectors) -> None:
        first = self._head.take_serials(len(rows))
        for serial, (row, vector) in enumerate(zip(rows, vectors, strict=True), first):
            row["serial"], row["embedding"] = serial, vector
        self._client.upsert(self._rows, data=rows)

    def _settle(self, facts: Facts) -> None:
        """Ensure a collection with the columns of these facts, holding the existing rows."""
        before = self.facts
        if before is None or before.added() != facts.added():
            name, has_nulls = self._head.new_name(), keeps_nulls(self._client, self._address)
            layout = Layout.of(facts, nullable=has_nulls)
            self._create(name, facts, layout)
            if before is not None:
                self._copy(before, name, facts, layout)
            self._head.rows, self._head.index = name, self._address.index
            self._head.has_nulls = has_nulls
        self.facts = self._head.write(facts)
        self._head.sweep()

    def _copy(self, before: Facts, name: str, facts: Facts, layout: Layout) -> None:
        """Copy all rows into another collection."""
        former = self._layout(before)
        for rows in self._some([*former.names, "serial", "embedding"], _BATCH):
            records = layout.records(as_of(former.table(rows, before), facts), self.place)
            for record, row in zip(records, rows, strict=True):
                record["serial"], record["embedding"] = row["serial"], row["embedding"]
            self._client.upsert(name, data=records)

    def discard(self) -> None:
        if hasattr(self, "_client"):
            self._head.drop()
            self.facts = None

    def _create(self, name: str, facts: Facts, layout: Layout) -> None:
        from pymilvus import DataType

        schema = self._client.create_schema(auto_id=False, enable_dynamic_field=False)
        layout.add_to(schema)
        schema.add_field("serial", DataType.INT64)
        schema.add_field("embedding", DataType.FLOAT_VECTOR, dim=facts.dim)
        index = self._client.prepare_index_params()
        index.add_index("embedding", metric_type="IP", **_INDEXES[self._address.index])
        self._client.create_collection(
            name, schema=schema, index_params=index, consistency_level="Strong"
        )
