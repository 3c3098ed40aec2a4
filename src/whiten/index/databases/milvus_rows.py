"""Rows of an index as Milvus stores them: names of fields, records and missing values.

Nullable fields came with Milvus 2.5. On an earlier server each column that may lack a value has a
second, boolean field that says whether it has one; its own field is then 0, false or empty.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from whiten.errors import StoreError
from whiten.index.columns import COLLECTION, COLUMNS, stored_kinds
from whiten.index.rows import Facts

LONGEST = 65_535  # bytes of a text
_HEX = "hex:"  # prefix of a path that is not valid Unicode
_ALWAYS = ("id", "path", "content_hash", "stamp")  # columns that have a value in every row
_NEUTRAL: dict[str, Any] = {"string": "", "int": 0, "float": 0.0, "bool": False}


@dataclass(frozen=True)
class Layout:
    """Fields of a collection of rows.

    Attributes:
        kinds: column -> string, int, float or bool.
        fields: column -> Milvus field.
        flags: column -> field that says whether a row has a value; empty if fields are nullable.
    """

    kinds: dict[str, str]
    fields: dict[str, str]
    flags: dict[str, str]

    @classmethod
    def of(cls, facts: Facts, *, nullable: bool) -> Layout:
        """Return the layout of an index; names of fields are limited to letters, digits and _."""
        names = {name: name for name in COLUMNS} | {"group": "group_name"}  # `group` is a keyword
        if facts.divided:
            names[COLLECTION] = COLLECTION
        for number, column in enumerate(sorted(stored_kinds(facts.columns))):
            is_name = re.fullmatch("[A-Za-z0-9_]{1,200}", column)
            names[column] = f"meta_{column}" if is_name else f"meta{number}"
        added = facts.added()
        kinds = {
            column: added.get(column, "int" if column == "frame_ms" else "string")
            for column in names
        }
        flags = {column: f"has_{field}" for column, field in names.items() if column not in _ALWAYS}
        return cls(kinds, names, {} if nullable else flags)

    @property
    def names(self) -> list[str]:
        """All fields but the serial number and the embedding."""
        return [*self.fields.values(), *self.flags.values()]

    def add_to(self, schema: Any) -> None:
        """Add the fields to the schema of a new collection."""
        from pymilvus import DataType

        types = {
            "string": DataType.VARCHAR,
            "int": DataType.INT64,
            "float": DataType.DOUBLE,
            "bool": DataType.BOOL,
        }
        for column, field in self.fields.items():
            kind = self.kinds[column]
            options: dict[str, Any] = {"max_length": LONGEST} if kind == "string" else {}
            if column == "id":
                options["is_primary"] = True
            elif column not in _ALWAYS and not self.flags:
                options["nullable"] = True
            schema.add_field(field, types[kind], **options)
        for flag in self.flags.values():
            schema.add_field(flag, DataType.BOOL)

    def records(self, rows: pa.Table, place: str) -> list[dict[str, Any]]:
        """Return rows in the form that Milvus takes.

        Raises:
            StoreError: a text is too long.
        """
        return [dict(self._record(row, place)) for row in rows.to_pylist()]

    def _record(self, row: dict[str, Any], place: str) -> Iterator[tuple[str, Any]]:
        row["path"] = _write_path(row["path"])
        for column, value in row.items():
            if isinstance(value, str) and len(value.encode()) > LONGEST:
                raise StoreError(
                    f"{place}: {column} of {row['id'][:80]!r} has more than {LONGEST} bytes, "
                    "which Milvus cannot keep: shorten it, or use a folder or pgvector"
                )
            if column in self.flags:
                yield self.flags[column], value is not None
                value = _NEUTRAL[self.kinds[column]] if value is None else value
            yield self.fields[column], value

    def table(self, rows: Sequence[Mapping[str, Any]], facts: Facts) -> pa.Table:
        """Return rows from Milvus as a table with the columns of `Facts.schema`."""
        columns = {
            column.name: pa.array((self._value(row, column.name) for row in rows), column.type)
            for column in facts.schema()
        }
        return pa.table({name: columns[name] for name in facts.schema().names})

    def _value(self, row: Mapping[str, Any], column: str) -> Any:
        if column in self.flags and not row[self.flags[column]]:
            return None
        value = row.get(self.fields[column])
        return _read_path(value) if column == "path" and value is not None else value


def _write_path(path: bytes) -> str:
    """Return a path as text; one that is not valid Unicode is written in hexadecimal."""
    try:
        text = path.decode("utf-8")
    except UnicodeDecodeError:
        return _HEX + path.hex()
    return _HEX + path.hex() if text.startswith(_HEX) else text


def _read_path(text: str) -> bytes:
    return bytes.fromhex(text[len(_HEX) :]) if text.startswith(_HEX) else text.encode()
