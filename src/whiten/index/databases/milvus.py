"""An index in Milvus: in a file with Milvus Lite, or in a cluster; the code is the same.

Rows are stored in one collection and the facts in another. Each row has a serial number, by which
rows are read in pages: Milvus returns at most 16,384 rows at once, unordered. The columns of a
collection are fixed at creation, so that changed metadata needs a new collection; the rows are
copied to it before the facts name it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from whiten.errors import StoreError
from whiten.index.columns import COLLECTION, COLUMNS, stored_kinds
from whiten.index.conditions import Logic, Missing, Text, Value, Where
from whiten.index.databases.addresses import read_address
from whiten.index.databases.milvus_facts import MilvusFacts
from whiten.index.databases.milvus_server import connect, one_writer
from whiten.index.rows import Block, Facts, Match, as_of, matches
from whiten.utils.arrays import Vectors

MOST = 16_384  # most rows per answer
_BATCH = 500  # rows per request: messages are limited to 64 MB
_QUERIES = 64
_LONGEST = 65_535  # bytes of a text
_HEX = "hex:"  # prefix of a path that is not valid Unicode
_ESCAPED = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r"}  # in this order
_INDEXES: dict[str, dict[str, Any]] = {
    "flat": {"index_type": "FLAT"},
    "hnsw": {"index_type": "HNSW", "params": {"M": 16, "efConstruction": 200}},
}
_NEGATED = {"==": "!=", "!=": "==", "<": ">=", ">=": "<", ">": "<=", "<=": ">", "in": "not in"}


class MilvusIndex:
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

    def known(self) -> pa.Table:
        assert self.facts is not None
        return pa.concat_tables([self.facts.schema().empty_table(), *self.pages(MOST)])

    def pages(self, size: int) -> Iterator[pa.Table]:
        """Yield all rows in the order in which they were written."""
        assert self.facts is not None
        fields = [*_fields(self.facts).values(), "serial"]
        waiting: list[pa.Table] = []
        for rows in self._some(fields):
            waiting.append(_table(rows, self.facts))
            while sum(map(len, waiting)) >= size:
                table = pa.concat_tables(waiting)
                yield table.slice(0, size)
                waiting = [table.slice(size)]
        if sum(map(len, waiting)):
            yield pa.concat_tables(waiting)

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
        fields = [*_fields(self.facts).values(), "embedding"]
        for start in range(0, len(ids), _BATCH):
            condition = f"id in {_literal(tuple(dict.fromkeys(ids[start : start + _BATCH])))}"
            for row in self._client.query(self._rows, filter=condition, output_fields=fields):
                found[row["id"]] = row
        for name in ids:
            if name not in found:
                raise StoreError(f"{self.place} has no image {name!r}")
        rows = [found[name] for name in ids]
        vectors = np.array([row["embedding"] for row in rows], np.float32)
        return Block(_table(rows, self.facts), vectors.reshape(len(rows), self.facts.dim))

    def search(self, queries: Vectors, k: int, where: Where | None = None) -> list[list[Match]]:
        """See `Backend.search`; ties are ordered by id.

        Raises:
            StoreError: k is above 16,384, and so is the number of rows.
        """
        assert self.facts is not None
        k = min(k, len(self)) if k > MOST else k
        if k > MOST:
            raise StoreError(f"{self.place}: Milvus answers at most {MOST} rows: ask for fewer")
        fields = _fields(self.facts)
        found: list[list[Match]] = []
        at_once = max(1, min(_QUERIES, MOST // (k + 8)))
        for start in range(0, len(queries), at_once):
            some = np.ascontiguousarray(queries[start : start + at_once], np.float32)
            for hits in self._nearest(some, k, where, fields):
                best = sorted(hits, key=lambda hit: (-hit["distance"], hit["id"]))[:k]
                scores = np.array([hit["distance"] for hit in best], np.float32)
                rows = _table([hit["entity"] for hit in best], self.facts)
                found.append(matches(rows, scores, self.facts.columns))
        return found

    def _nearest(
        self, queries: Vectors, k: int, where: Where | None, fields: Mapping[str, str]
    ) -> list[list[dict[str, Any]]]:
        """Return at least k hits per query, including all ties with the k-th."""
        limit = min(k + 8, MOST)
        while True:
            answers: list[list[dict[str, Any]]] = self._client.search(
                self._rows,
                data=list(queries),
                anns_field="embedding",
                filter="" if where is None else to_milvus(where, fields),
                limit=limit,
                output_fields=list(fields.values()),
                search_params=self._search_params(limit),
            )
            ties = (len(a) == limit and a[k - 1]["distance"] == a[-1]["distance"] for a in answers)
            if limit == MOST or not any(ties):
                return answers
            limit = min(2 * limit, MOST)

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
        for block in new:
            names = block.rows["id"].to_pylist()
            for start in range(0, len(names), _BATCH):
                rows = _records(block.rows.slice(start, _BATCH), facts, self.place)
                self._upsert(rows, block.vectors[start : start + _BATCH])
        # Last, because vectors of removed rows may be reused for new rows.
        for start in range(0, len(gone), _BATCH):
            # Not by `ids=`: some client versions do not escape quotes there.
            condition = f"id in {_literal(tuple(gone[start : start + _BATCH]))}"
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
            name = self._head.new_name()
            self._create(name, facts)
            if before is not None:
                self._copy(before, name, facts)
            self._head.rows, self._head.index = name, self._address.index
        self.facts = self._head.write(facts)
        self._head.sweep()

    def _copy(self, before: Facts, name: str, facts: Facts) -> None:
        """Copy all rows into another collection."""
        for rows in self._some([*_fields(before).values(), "serial", "embedding"], _BATCH):
            records = _records(as_of(_table(rows, before), facts), facts, self.place)
            for record, row in zip(records, rows, strict=True):
                record["serial"], record["embedding"] = row["serial"], row["embedding"]
            self._client.upsert(name, data=records)

    def discard(self) -> None:
        if hasattr(self, "_client"):
            self._head.drop()
            self.facts = None

    def _create(self, name: str, facts: Facts) -> None:
        from pymilvus import DataType

        types = {
            "string": DataType.VARCHAR,
            "int": DataType.INT64,
            "float": DataType.DOUBLE,
            "bool": DataType.BOOL,
        }
        schema = self._client.create_schema(auto_id=False, enable_dynamic_field=False)
        for column, field in _fields(facts).items():
            kind = facts.added().get(column, "int" if column == "frame_ms" else "string")
            options: dict[str, Any] = {"max_length": _LONGEST} if kind == "string" else {}
            if column == "id":
                options["is_primary"] = True
            elif column not in ("path", "content_hash", "stamp"):
                options["nullable"] = True
            schema.add_field(field, types[kind], **options)
        schema.add_field("serial", DataType.INT64)
        schema.add_field("embedding", DataType.FLOAT_VECTOR, dim=facts.dim)
        index = self._client.prepare_index_params()
        index.add_index("embedding", metric_type="IP", **_INDEXES[self._address.index])
        self._client.create_collection(
            name, schema=schema, index_params=index, consistency_level="Strong"
        )


def _fields(facts: Facts) -> dict[str, str]:
    """Return column -> Milvus field; field names are limited to letters, digits and _."""
    names = {name: name for name in COLUMNS} | {"group": "group_name"}  # `group` is an SQL keyword
    if facts.divided:
        names[COLLECTION] = COLLECTION
    for number, column in enumerate(sorted(stored_kinds(facts.columns))):
        is_name = re.fullmatch("[A-Za-z0-9_]{1,200}", column)
        names[column] = f"meta_{column}" if is_name else f"meta{number}"
    return names


def _table(rows: Sequence[Mapping[str, Any]], facts: Facts) -> pa.Table:
    """Return rows from Milvus as a table with the columns of `Facts.schema`."""
    fields = _fields(facts)
    columns = {
        column.name: pa.array((row.get(fields[column.name]) for row in rows), column.type)
        for column in facts.schema()
        if column.name != "path"
    }
    columns["path"] = pa.array((_read_path(row["path"]) for row in rows), COLUMNS["path"])
    return pa.table({name: columns[name] for name in facts.schema().names})


def _records(rows: pa.Table, facts: Facts, place: str) -> list[dict[str, Any]]:
    """Return rows in the form that Milvus takes.

    Raises:
        StoreError: a text is too long.
    """
    fields = _fields(facts)
    records = []
    for row in rows.to_pylist():
        row["path"] = _write_path(row["path"])
        for column, value in row.items():
            if isinstance(value, str) and len(value.encode()) > _LONGEST:
                raise StoreError(
                    f"{place}: {column} of {row['id'][:80]!r} has more than {_LONGEST} bytes, "
                    "which Milvus cannot keep: shorten it, or use a folder or pgvector"
                )
        records.append({fields[column]: value for column, value in row.items()})
    return records


def _write_path(path: bytes) -> str:
    """Return a path as text; one that is not valid Unicode is written in hexadecimal."""
    try:
        text = path.decode("utf-8")
    except UnicodeDecodeError:
        return _HEX + path.hex()
    return _HEX + path.hex() if text.startswith(_HEX) else text


def _read_path(text: str) -> bytes:
    return bytes.fromhex(text[len(_HEX) :]) if text.startswith(_HEX) else text.encode()


def to_milvus(where: Where, fields: Mapping[str, str], negated: bool = False) -> str:
    """Return the filter in Milvus syntax.

    `not` is pushed down to the comparisons, because Milvus versions differ in how it treats
    missing values; each comparison requires a value itself.
    """
    if isinstance(where, Logic):
        if where.operator == "not":
            return to_milvus(where.terms[0], fields, not negated)
        operator = where.operator
        if negated:
            operator = "or" if operator == "and" else "and"
        return f" {operator} ".join(f"({to_milvus(term, fields, negated)})" for term in where.terms)
    field = fields[where.column]
    there = "" if where.column == "id" else f"{field} is not null"
    if isinstance(where, Missing):
        if not there:
            return 'id != ""' if negated else "id in []"
        return there if negated else f"{field} is null"
    if isinstance(where, Text):
        some = "" if where.test == "startswith" else "%"
        more = "" if where.test == "endswith" else "%"
        test = f"{field} like {_literal(some + _plain_pattern(where.value) + more)}"
        test = f"not ({test})" if negated else test
        return f"{there} and {test}" if there else test
    if where.operator == "in" and not where.value:  # always false
        return (there or 'id != ""') if negated else "id in []"
    operator_ = _NEGATED[where.operator] if negated else where.operator
    comparison = f"{field} {operator_} {_literal(where.value)}"
    return f"{there} and {comparison}" if there else comparison


def _plain_pattern(text: str) -> str:
    """Return a pattern of `like` for exactly this text."""
    return re.sub(r"([\\%_])", r"\\\1", text)


def _literal(value: Value | Sequence[Value]) -> str:
    if isinstance(value, str):
        for plain, escaped in _ESCAPED.items():
            value = value.replace(plain, escaped)
        return f'"{value}"'
    if isinstance(value, float) and math.isinf(value):
        return "1e999" if value > 0 else "-1e999"
    if isinstance(value, int | float):
        return str(value).lower()
    return f"[{', '.join(map(_literal, value))}]"
