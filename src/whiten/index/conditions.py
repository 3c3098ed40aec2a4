"""Filters of an index, as every backend applies them; `whiten.index.where` reads them.

Comparisons and tests of text are false, and so are their negations, where the value is missing.
`Missing` is always true or false.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal, TypeAlias

import pyarrow.compute as pc

Value: TypeAlias = str | int | float | bool
Operator = Literal["==", "!=", "<", "<=", ">", ">=", "in"]
Test = Literal["startswith", "endswith", "contains"]


@dataclass(frozen=True)
class Compare:
    """Compares a stored column with a value, or for `in` with several."""

    column: str
    operator: Operator
    value: Value | tuple[Value, ...]


@dataclass(frozen=True)
class Text:
    """Tests whether a stored column of text starts with, ends with or contains a text."""

    column: str
    test: Test
    value: str


@dataclass(frozen=True)
class Missing:
    """Tests whether a stored column has no value."""

    column: str


@dataclass(frozen=True)
class Logic:
    """Joins filters by `and` or `or`, or negates one by `not`."""

    operator: Literal["and", "or", "not"]
    terms: tuple[Where, ...]


Where: TypeAlias = Compare | Text | Missing | Logic


def to_arrow(where: Where) -> pc.Expression:
    """Return the filter for Arrow tables and Parquet files."""
    if isinstance(where, Logic):
        terms = [to_arrow(term) for term in where.terms]
        if where.operator == "not":
            return ~terms[0]
        return reduce(lambda a, b: a & b if where.operator == "and" else a | b, terms)
    column = pc.field(where.column)
    if isinstance(where, Missing):
        return column.is_null()
    if isinstance(where, Text):
        tests = {
            "startswith": pc.starts_with,
            "endswith": pc.ends_with,
            "contains": pc.match_substring,
        }
        test: pc.Expression = tests[where.test](column, where.value)
        return test
    value = where.value
    if where.operator == "in":
        assert isinstance(value, tuple)
        # `isin` is false for a missing value; `| missing` makes it null, as comparisons are.
        # Without values there is no type to compare with.
        missing = column != column
        return column.isin(list(value)) | missing if value else missing
    comparisons: dict[Operator, Any] = {
        "==": column.__eq__,
        "!=": column.__ne__,
        "<": column.__lt__,
        "<=": column.__le__,
        ">": column.__gt__,
        ">=": column.__ge__,
    }
    expression: pc.Expression = comparisons[where.operator](value)
    return expression
