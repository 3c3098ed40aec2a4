"""Filters of an index in the syntax of Milvus."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from whiten.index.conditions import Compare, Logic, Missing, Text, Value, Where
from whiten.index.databases.milvus_rows import Layout

_ESCAPED = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r"}  # in this order
_NEGATED = {"==": "!=", "!=": "==", "<": ">=", ">=": "<", ">": "<=", "<=": ">", "in": "not in"}
_LEAST = -(2**63)
_SURROGATES = (0xD7FF, 0xE000)  # neighbours in the order of texts
_TESTS: dict[str, Callable[[str, str], bool]] = {
    "startswith": str.startswith,
    "endswith": str.endswith,
    "contains": str.__contains__,
}


def to_milvus(where: Where, layout: Layout, negated: bool = False) -> str:
    """Return the filter in Milvus syntax.

    `not` is pushed down to the comparisons, because Milvus versions differ in how it treats
    missing values; each comparison requires a value itself.
    """
    if isinstance(where, Logic):
        if where.operator == "not":
            return to_milvus(where.terms[0], layout, not negated)
        operator = where.operator
        if negated:
            operator = "or" if operator == "and" else "and"
        return f" {operator} ".join(f"({to_milvus(term, layout, negated)})" for term in where.terms)
    field, flag = layout.fields[where.column], layout.flags.get(where.column)
    there = "" if where.column == "id" else f"{flag} == true" if flag else f"{field} is not null"
    if isinstance(where, Missing):
        if not there:
            return 'id != ""' if negated else "id in []"
        if negated:
            return there
        return f"{flag} == false" if flag else f"{field} is null"
    if isinstance(where, Text):
        some = "" if where.test == "startswith" else "%"
        more = "" if where.test == "endswith" else "%"
        test = f"{field} like {literal(some + _plain_pattern(where.value) + more)}"
        test = f"not ({test})" if negated else test
        return f"{there} and {test}" if there else test
    if where.operator == "in" and not where.value:  # always false
        return (there or 'id != ""') if negated else "id in []"
    operator_ = _NEGATED[where.operator] if negated else where.operator
    comparison = f"{field} {operator_} {literal(where.value, computed=bool(layout.flags))}"
    return f"{there} and {comparison}" if there else comparison


def without_patterns(where: Where, values: Callable[[str], Iterable[str]]) -> Where:
    """Return an equal filter without tests of text, for servers that know no patterns.

    Milvus finds parts of a text, and escapes, since 2.4. A prefix is a range; otherwise the values
    that pass are listed.

    Args:
        values: returns the values of a column.
    """
    if isinstance(where, Logic):
        return replace(where, terms=tuple(without_patterns(term, values) for term in where.terms))
    if not isinstance(where, Text):
        return where
    if where.test == "startswith":
        first = Compare(where.column, ">=", where.value)
        after = _after(where.value)
        if after is None:
            return first
        return Logic("and", (first, Compare(where.column, "<", after)))
    passes = _TESTS[where.test]
    found = {value for value in values(where.column) if passes(value, where.value)}
    return Compare(where.column, "in", tuple(sorted(found)))


def _after(prefix: str) -> str | None:
    """Return the first text after all that start with a prefix; None if there is none."""
    prefix = prefix.rstrip(chr(sys.maxunicode))
    if not prefix:
        return None
    last = ord(prefix[-1])
    return prefix[:-1] + chr(_SURROGATES[1] if last == _SURROGATES[0] else last + 1)


def _plain_pattern(text: str) -> str:
    """Return a pattern of `like` for exactly this text."""
    return re.sub(r"([\\%_])", r"\\\1", text)


def literal(value: Value | Sequence[Value], *, computed: bool = False) -> str:
    """Return a value, or several, in Milvus syntax.

    Args:
        computed: write infinity and the least integer as a computation: servers before 2.5 read
            numbers without their sign, and none that is out of range.
    """
    if isinstance(value, str):
        for plain, escaped in _ESCAPED.items():
            value = value.replace(plain, escaped)
        return f'"{value}"'
    if isinstance(value, float) and math.isinf(value):
        text = "1e308*10" if computed else "1e999"
        return text if value > 0 else f"-{text}"
    if computed and value == _LEAST and isinstance(value, int):
        return f"{_LEAST + 1}-1"
    if isinstance(value, int | float):
        return str(value).lower()
    return f"[{', '.join(literal(one, computed=computed) for one in value)}]"
