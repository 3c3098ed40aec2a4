"""Connect to PostgreSQL, reconnect when the connection is lost, and raise one-line errors."""

from __future__ import annotations

import struct
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import psycopg
from psycopg.adapt import Dumper, Loader
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import Format
from psycopg.types import TypeInfo

from whiten.errors import ConfigError, StoreError, one_line
from whiten.index.databases.addresses import Address

_SECONDS = 10  # timeout to connect to a server
_SCHEMES = ("postgresql://", "postgres://")

Connection = psycopg.Connection[Any]


class Postgres:
    """A connection that lives as long as its owner; threads take turns.

    Attributes:
        holds_lock: whether the connection holds a lock, which another one would lack.
    """

    def __init__(self, owner: object, address: Address) -> None:
        self._address = address
        self._lock = threading.RLock()
        self._connections: list[Connection] = []  # none or one
        self._dsn = _read_dsn(address)
        self.holds_lock = False
        weakref.finalize(owner, _close, self._connections)

    @contextmanager
    def use(self) -> Iterator[Connection]:
        """Yield the connection to one thread; database errors become StoreError."""
        with self._lock:
            if not self._connections or self._connections[0].closed:
                if self.holds_lock:  # another process may be writing by now
                    raise StoreError(
                        f"{self._address.place}: the connection was lost while writing: run again"
                    )
                self._connections[:] = [self._connect()]
            try:
                yield self._connections[0]
            except psycopg.Error as error:
                raise StoreError(f"{self._address.place}: {_reason(error)}") from error

    def unlock(self, statement: str, values: Sequence[Any]) -> None:
        """Release a lock; a lost connection has released it already."""
        self.holds_lock = False
        with suppress(psycopg.Error), self._lock:
            if self._connections and not self._connections[0].closed:
                self._connections[0].execute(statement, values)

    def _connect(self) -> Connection:
        try:
            connection = psycopg.connect(self._dsn, autocommit=True)
        except psycopg.Error as error:
            raise StoreError(f"{self._address.place}: {_why_not(error)}") from error
        _exchange_vectors(connection)
        return connection

    def need_vectors(self) -> None:
        """Install the extension into the database if it is missing.

        Raises:
            StoreError: the server lacks it, or this user may not install it.
        """
        with self.use() as connection:
            if TypeInfo.fetch(connection, "vector") is not None:
                return
            try:
                connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
            except psycopg.errors.InsufficientPrivilege as error:
                raise StoreError(
                    f"{self._address.place}: the pgvector extension is not in this database, and "
                    "this user may not create it: let an administrator run CREATE EXTENSION vector "
                    "there"
                ) from error
            except (
                psycopg.errors.FeatureNotSupported,
                psycopg.errors.UndefinedFile,
            ) as error:
                raise StoreError(
                    f"{self._address.place}: this server does not have the pgvector extension: "
                    "install it there, https://github.com/pgvector/pgvector"
                ) from error
            _exchange_vectors(connection)


def _close(connections: list[Connection]) -> None:
    for connection in connections:
        connection.close()


def _read_dsn(address: Address) -> str:
    if not address.server.startswith(_SCHEMES):
        raise ConfigError(
            f"{address.place}: write it as pgvector:postgresql://USER@HOST/DATABASE#TABLE"
        )
    try:
        given = conninfo_to_dict(address.server)
        for port in str(given.get("port", "")).split(","):
            int(port or 0)
    except (psycopg.Error, ValueError) as error:  # its message may contain the password
        raise ConfigError(
            f"{address.place} cannot be read: write it as "
            "pgvector:postgresql://USER@HOST/DATABASE#TABLE, special characters as %XX"
        ) from error
    defaults: dict[str, Any] = {"connect_timeout": _SECONDS, "application_name": "whiten"}
    return make_conninfo(**(defaults | given))


def _why_not(error: psycopg.Error) -> str:
    reason = _reason(error)
    if "password" in reason or "authentication" in reason or "no pg_hba.conf entry" in reason:
        return f"{reason}: correct the user, or set the password in PGPASSWORD or ~/.pgpass"
    if "database" in reason and "does not exist" in reason:
        return f"{reason}: create it with `createdb`, or correct the name"
    if "role" in reason and "does not exist" in reason:
        return f"{reason}: correct the user"
    return f"no PostgreSQL server answers there ({reason}): start it, or correct the address"


def _reason(error: psycopg.Error) -> str:
    return error.diag.message_primary or one_line(error)


def _exchange_vectors(connection: Connection) -> None:
    """Send arrays as pgvector's `vector` in binary, which keeps every digit."""
    found = TypeInfo.fetch(connection, "vector")
    if found is None:
        return

    number = found.oid

    class VectorDumper(Dumper):
        format = Format.BINARY
        oid = number

        def dump(self, obj: Any) -> bytes:
            return struct.pack(">HH", len(obj), 0) + bytes(obj.astype(">f4"))

    class VectorLoader(Loader):
        format = Format.BINARY

        def load(self, data: Any) -> Any:
            return np.frombuffer(data, ">f4", offset=4)

    connection.adapters.register_dumper(np.ndarray, VectorDumper)
    connection.adapters.register_loader(number, VectorLoader)
