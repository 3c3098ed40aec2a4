"""An index in PostgreSQL with the pgvector extension: a table of rows, and a table of facts.

Rows are looked up by the SHA-256 of their id, since PostgreSQL cannot index texts above 2,700
bytes, and read by serial number, in insertion order. The user's columns are columns of the table,
under their own names.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from whiten.errors import (
    ConfigError,
    LockedError,
    MissingExtraError,
    StoreError,
    one_line,
    refuse_later,
)
from whiten.index.columns import COLUMNS, stored_kinds
from whiten.index.conditions import Where
from whiten.index.databases.addresses import read_address
from whiten.index.rows import Backend, Block, Facts, Match, as_of, matches
from whiten.utils.arrays import Vectors

try:
    from psycopg import errors
    from psycopg.sql import SQL, Composed, Identifier, Literal
except ImportError as error:
    raise MissingExtraError("an index in PostgreSQL", "pgvector") from error

from whiten.index.databases.postgres import Postgres
from whiten.index.databases.sql import LONGEST_NAME, identifier, to_sql

if TYPE_CHECKING:
    from psycopg import Connection

FORMAT = 1
_MOST_DIMENSIONS = 16_000  # limit of pgvector
_MOST_IN_GRAPH = 2_000  # limit of its HNSW index
_BATCH = 500  # rows per request
_VIEW, _WIDEST_VIEW = 200, 1000  # candidates that a search of the graph keeps; pgvector's limit
_SYSTEM = {"tableoid", "xmin", "cmin", "xmax", "cmax", "ctid"}
_TYPES = {"string": 'text COLLATE "C"', "int": "bigint", "float": "float8", "bool": "boolean"}


class PgvectorIndex(Backend):
    """Index in a PostgreSQL database.

    Attributes:
        place: opens the index again; without a password.
        facts: None while there is no index.
    """

    def __init__(self, text: str) -> None:
        self._address = read_address(text, "pgvector")
        self.place = self._address.place
        self._postgres = Postgres(self, self._address)
        self._rows = Identifier(self._address.name)
        self._notes = Identifier(f"{self._address.name}_facts")
        self.facts: Facts | None = None
        self._version: Any = None  # of the record of facts that was read last
        self.refresh()

    def refresh(self) -> None:
        with self._postgres.use() as connection:
            self.facts = self._read_facts(connection)

    @contextmanager
    def _reading(self) -> Iterator[Connection[Any]]:
        """Yield a connection that sees one state of the index, of the model in `facts`.

        Raises:
            StoreError: the index was deleted or made again since.
        """
        version = SQL("SELECT tableoid, xmin::text, ctid::text FROM {}").format(self._notes)
        with self._postgres.use() as connection, connection.transaction():
            connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            found = connection.execute(version).fetchone()
            if found != self._version:
                facts, before = self._read_facts(connection), self.facts
                if facts is None or before is None or facts.model != before.model:
                    raise StoreError(f"{self.place} was made again: open it again")
                self.facts, self._version = facts, found
            yield connection

    def _read_facts(self, connection: Connection[Any]) -> Facts | None:
        there = [_is_table(connection, table) for table in (self._rows, self._notes)]
        if there == [False, False]:
            return None
        elsewhere = "name another one, DATABASE#NAME"
        if not all(there):
            raise StoreError(f"{self.place} is a table of something else: {elsewhere}")
        try:
            row = connection.execute(SQL("SELECT format, facts FROM {}").format(self._notes))
            form, text = row.fetchone() or (None, None)
        except errors.UndefinedColumn as error:
            raise StoreError(f"{self.place} is a table of something else: {elsewhere}") from error
        refuse_later(self.place, "index", form, FORMAT)
        if form != FORMAT:
            raise StoreError(
                f"{self.place} has index format {form!r}, this version reads {FORMAT}: drop its "
                "tables and index again, or name other ones"
            )
        try:
            return Facts.from_json(json.loads(str(text)))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StoreError(
                f"{self.place} is damaged (facts: {one_line(error)}): drop its tables and index "
                "again"
            ) from error

    # --- reading ------------------------------------------------------------------------

    def __len__(self) -> int:
        if self.facts is None:
            return 0
        with self._postgres.use() as connection:
            found = connection.execute(SQL("SELECT count(*) FROM {}").format(self._rows))
            return int(found.fetchone()[0])  # type: ignore[index]

    def known(self) -> pa.Table:
        assert self.facts is not None
        return pa.concat_tables([self.facts.schema().empty_table(), *self.pages(1 << 14)])

    def pages(self, size: int) -> Iterator[pa.Table]:
        """Yield all rows in insertion order."""
        assert self.facts is not None
        select = SQL("SELECT {}, serial FROM {} WHERE serial > %s ORDER BY serial LIMIT %s").format(
            _names(self.facts), self._rows
        )
        last = 0
        while True:
            with self._postgres.use() as connection:
                rows = connection.execute(select, (last, size)).fetchall()
            if not rows:
                return
            last = rows[-1][-1]
            yield _table(rows, self.facts)

    def fetch(self, ids: Sequence[str]) -> Block:
        assert self.facts is not None
        select = SQL("SELECT {}, embedding FROM {} WHERE key = ANY(%s)").format(
            _names(self.facts), self._rows
        )
        found: dict[str, tuple[Any, ...]] = {}
        with self._reading() as connection:
            for start in range(0, len(ids), _BATCH):
                keys = [_key(name) for name in ids[start : start + _BATCH]]
                found |= {row[0]: row for row in connection.execute(select, (keys,), binary=True)}
        for name in ids:
            if name not in found:
                raise StoreError(f"{self.place} has no image {name!r}")
        rows = [found[name] for name in ids]
        vectors = np.array([row[-1] for row in rows], np.float32)
        return Block(_table(rows, self.facts), vectors.reshape(len(rows), self.facts.dim))

    def search(self, queries: Vectors, k: int, where: Where | None = None) -> list[list[Match]]:
        """See `Backend.search`; ties are ordered by id."""
        assert self.facts is not None
        condition, values = (SQL("true"), []) if where is None else to_sql(where)
        is_graph = self._address.index == "hnsw"
        # The graph is used for exactly this ordering only; any other is a full scan.
        score = Identifier("-embedding <#> query")  # no column of the user's
        of_all, of_graph = (
            SQL(
                "SELECT * FROM (SELECT {}, -(embedding <#> %s) AS {score} FROM {} WHERE {} "
                "ORDER BY {} LIMIT %s) AS best ORDER BY {score} DESC, id"
            ).format(_names(self.facts), self._rows, condition, order, score=score)
            for order in (SQL("{} DESC, id").format(score), SQL("embedding <#> %s"))
        )
        found = []
        with self._reading() as connection:
            if is_graph:
                # A filter passes only part of what the graph finds.
                width = max(_VIEW, 2 * k) if where is None else _WIDEST_VIEW
                view = SQL("SET LOCAL hnsw.ef_search = {}").format(min(width, _WIDEST_VIEW))
                connection.execute(view)
                connection.execute("SET LOCAL hnsw.iterative_scan = strict_order")
            for query in np.ascontiguousarray(queries, np.float32):
                given = [query, *values]
                rows = []
                if is_graph:
                    rows = connection.execute(of_graph, [*given, query, k], binary=True).fetchall()
                if len(rows) < k:  # pgvector gives up where none of the nearest 20,000 passes
                    rows = connection.execute(of_all, [*given, k], binary=True).fetchall()
                scores = np.array([row[-1] for row in rows], np.float64)
                found.append(matches(_table(rows, self.facts), scores, self.facts.columns))
        return found

    # --- writing ------------------------------------------------------------------------

    @contextmanager
    def writing(self) -> Iterator[None]:
        lock = "hashtextextended('whiten ' || current_schema() || ' ' || %s, 0)"
        with self._postgres.use() as connection:
            found = connection.execute(f"SELECT pg_try_advisory_lock({lock})", [self._address.name])
            if not found.fetchone()[0]:  # type: ignore[index]
                raise LockedError(
                    f"another process is changing {self.place}: wait until it is done"
                )
        self._postgres.holds_lock = True
        try:
            self.refresh()
            yield
        finally:
            self._postgres.unlock(f"SELECT pg_advisory_unlock({lock})", [self._address.name])

    def staged(self, facts: Facts) -> list[Block]:
        return []

    def write(self, facts: Facts, gone: Sequence[str], new: Iterable[Block]) -> None:
        # Written first, so that rows are known to be of this model even after a kill.
        is_first = self.facts is None or not self.facts.complete
        self._settle(replace(facts, complete=False) if is_first else facts)
        names = map(identifier, facts.schema().names)
        columns = [Identifier("key"), *names, Identifier("embedding")]
        upsert = SQL("INSERT INTO {} ({}) VALUES ({}) ON CONFLICT (key) DO UPDATE SET {}").format(
            self._rows,
            SQL(", ").join(columns),
            SQL(", ").join([SQL("%s")] * len(columns)),
            SQL(", ").join(SQL("{0} = EXCLUDED.{0}").format(name) for name in columns[1:]),
        )
        for block in new:
            records = _records(block, self.place)
            for start in range(0, len(records), _BATCH):
                with self._postgres.use() as connection, connection.transaction():
                    connection.cursor().executemany(upsert, records[start : start + _BATCH])
        # Last, because vectors of removed rows may be reused for new rows.
        delete = SQL("DELETE FROM {} WHERE key = ANY(%s)").format(self._rows)
        for start in range(0, len(gone), _BATCH):
            with self._postgres.use() as connection:
                connection.execute(delete, ([_key(name) for name in gone[start : start + _BATCH]],))
        with self._postgres.use() as connection, connection.transaction():
            self._write_facts(connection, facts)

    def discard(self) -> None:
        with self._postgres.use() as connection, connection.transaction():
            for table in (self._rows, self._notes):
                connection.execute(SQL("DROP TABLE IF EXISTS {}").format(table))
        self.facts = None

    def _settle(self, facts: Facts) -> None:
        """Create or alter the table to match these facts, and write them, in one transaction."""
        _refuse(facts, self._address.index, self.place)
        self._postgres.need_vectors()
        with self._postgres.use() as connection, connection.transaction():
            if self.facts is None:
                self._create(connection, facts)
            else:
                self._alter(connection, self.facts, facts)
            if self._address.index == "hnsw":
                graph = Identifier(f"{self._address.name}_hnsw")
                connection.execute(
                    SQL(
                        "CREATE INDEX IF NOT EXISTS {} ON {} USING hnsw (embedding vector_ip_ops)"
                    ).format(graph, self._rows)
                )
            self._write_facts(connection, facts)

    def _create(self, connection: Connection[Any], facts: Facts) -> None:
        kinds = {"path": "bytea NOT NULL", "frame_ms": "bigint", "group": _TYPES["string"]}
        text = f"{_TYPES['string']} NOT NULL"
        columns = [
            SQL("{} {}").format(Identifier(name), SQL(kinds.get(name, text))) for name in COLUMNS
        ]
        columns += [
            SQL("{} {}").format(identifier(name), SQL(_TYPES[kind]))
            for name, kind in facts.added().items()
        ]
        connection.execute(
            SQL(
                "CREATE TABLE {} (key bytea PRIMARY KEY, serial bigint GENERATED ALWAYS AS "
                "IDENTITY UNIQUE, {}, embedding vector({}) NOT NULL)"
            ).format(self._rows, SQL(", ").join(columns), Literal(facts.dim))
        )
        connection.execute(
            SQL("CREATE TABLE {} (format integer NOT NULL, facts text NOT NULL)").format(
                self._notes
            )
        )

    def _alter(self, connection: Connection[Any], before: Facts, now: Facts) -> None:
        """Drop and add metadata columns; a column whose kind changes keeps what `as_of` keeps."""
        old = {n: kind for n, kind in before.columns.items() if now.columns.get(n) != kind}
        new = {n: kind for n, kind in now.columns.items() if before.columns.get(n) != kind}
        fields = list(stored_kinds({n: kind for n, kind in new.items() if n in old}))
        pages = self.pages(1 << 14) if fields else ()
        kept = [as_of(page, now).select(["id", *fields]) for page in pages]
        changed = {*stored_kinds(old), *stored_kinds(new)}
        for name in before.added():
            if name in changed or name not in now.added():
                drop = SQL("ALTER TABLE {} DROP COLUMN {}")
                connection.execute(drop.format(self._rows, identifier(name)))
        for name, kind in now.added().items():
            if name in changed or name not in before.added():
                add = SQL("ALTER TABLE {} ADD COLUMN {} {}")
                connection.execute(add.format(self._rows, identifier(name), SQL(_TYPES[kind])))
        update = SQL("UPDATE {} SET {} WHERE key = %s").format(
            self._rows, SQL(", ").join(SQL("{} = %s").format(identifier(f)) for f in fields)
        )
        for page in kept:  # none, if no kind changes
            rows = page.to_pylist()
            values = [(*list(row.values())[1:], _key(row["id"])) for row in rows]
            connection.cursor().executemany(update, values)

    def _write_facts(self, connection: Connection[Any], facts: Facts) -> None:
        text = json.dumps(facts.to_json())
        connection.execute(SQL("DELETE FROM {}").format(self._notes))
        insert = SQL("INSERT INTO {} VALUES (%s, %s)").format(self._notes)
        connection.execute(insert, (FORMAT, text))
        self.facts, self._version = Facts.from_json(json.loads(text)), None


def _refuse(facts: Facts, index: str, place: str) -> None:
    """Refuse facts that pgvector cannot store: raises StoreError or ConfigError."""
    if facts.dim > _MOST_DIMENSIONS:
        raise StoreError(
            f"{place}: pgvector keeps at most {_MOST_DIMENSIONS} dimensions, not {facts.dim}: use "
            "a smaller model or a folder"
        )
    if index == "hnsw" and facts.dim > _MOST_IN_GRAPH:
        raise ConfigError(
            f"{place}: pgvector's HNSW takes at most {_MOST_IN_GRAPH} dimensions, not {facts.dim}: "
            "leave ?index=hnsw out"
        )
    for name in facts.columns:
        if name in _SYSTEM or len(name.encode()) > LONGEST_NAME or "\0" in name:
            raise StoreError(
                f"{place}: a column cannot be called {name!r} in PostgreSQL: rename it in the table"
            )


def _is_table(connection: Connection[Any], table: Identifier) -> bool:
    name = table.as_string(connection)
    found = connection.execute("SELECT to_regclass(%s) IS NOT NULL", (name,)).fetchone()
    return bool(found and found[0])


def _names(facts: Facts) -> Composed:
    return SQL(", ").join(map(identifier, facts.schema().names))


def _key(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def _records(block: Block, place: str) -> list[tuple[Any, ...]]:
    rows = block.rows.to_pylist()
    for row in rows:
        for column, value in row.items():
            if isinstance(value, str) and "\0" in value:
                raise StoreError(
                    f"{place}: {column} of {row['id'][:80]!r} has a null character (NUL), which "
                    "PostgreSQL cannot keep: take it out, or use a folder"
                )
    return [
        (_key(row["id"]), *row.values(), vector)
        for row, vector in zip(rows, block.vectors, strict=True)
    ]


def _table(rows: Sequence[Sequence[Any]], facts: Facts) -> pa.Table:
    """Return rows of PostgreSQL with the columns of `Facts.schema`; other columns are dropped."""
    schema = facts.schema()
    columns = [
        pa.array((row[number] for row in rows), field.type) for number, field in enumerate(schema)
    ]
    return pa.table(columns, schema=schema)
