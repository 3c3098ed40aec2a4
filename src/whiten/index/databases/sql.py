"""Filters and column names of an index in PostgreSQL."""

from __future__ import annotations

import hashlib
from typing import Any

from psycopg.sql import SQL, Composable, Identifier

from whiten.index.conditions import Logic, Missing, Text, Where

LONGEST_NAME = 63  # bytes; PostgreSQL cuts longer ones
_OURS = {"embedding", "key", "serial"}
_OPERATORS = {"==": "=", "!=": "<>", "<": "<", "<=": "<=", ">": ">", ">=": ">="}


def to_sql(where: Where) -> tuple[Composable, list[Any]]:
    """Return the filter as an SQL condition and its parameters.

    SQL and Arrow treat missing values in comparisons and under `not` alike.
    """
    if isinstance(where, Logic):
        parts = [to_sql(term) for term in where.terms]
        values = [value for _, some in parts for value in some]
        if where.operator == "not":
            return SQL("NOT ({})").format(parts[0][0]), values
        between = SQL(f" {where.operator} ")
        return between.join(SQL("({})").format(part) for part, _ in parts), values
    column = identifier(where.column)
    if isinstance(where, Missing):
        return SQL("{} IS NULL").format(column), []
    if isinstance(where, Text):
        tests = {
            "startswith": "starts_with({}, %s::text)",
            "endswith": "right({}, length(%s::text)) = %s::text",
            "contains": "strpos({}, %s::text) > 0",
        }
        test = tests[where.test]
        return SQL(test).format(column), [where.value] * test.count("%s")
    if not isinstance(where.value, tuple):
        return SQL("{} {} %s").format(column, SQL(_OPERATORS[where.operator])), [where.value]
    if not where.value:  # always false
        return SQL("{0} <> {0}").format(column), []
    return SQL("{} = ANY(%s)").format(column), [list(where.value)]


def identifier(name: str) -> Identifier:
    """Return the column of the table that holds what is stored under a name."""
    if name in _OURS or len(name.encode()) > LONGEST_NAME or "%" in name:
        return Identifier(f"column_{hashlib.sha256(name.encode()).hexdigest()[:16]}")
    return Identifier(name)
