"""Filter an index by columns, `price < 10 and group in ["shoes", "bags"]`, on every backend.

A filter has the syntax of a Python expression; Python's parser reads it, and it is never
evaluated. Comparisons with missing values are false.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal, TypeAlias

import pyarrow.compute as pc

from whiten.errors import ConfigError, nearest

Value: TypeAlias = str | int | float | bool
Operator = Literal["==", "!=", "<", "<=", ">", ">=", "in"]

_OPERATORS: dict[type[ast.cmpop], Operator] = {
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.In: "in",
}
_LARGEST = 2**63 - 1
_MIRRORED: dict[Operator, Operator] = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}
_ACCEPTED: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "int": (int, float),
    "float": (int, float),
    "bool": (bool,),
}


@dataclass(frozen=True)
class Compare:
    """Compares a column with a value, or for `in` with several."""

    column: str
    operator: Operator
    value: Value | tuple[Value, ...]


@dataclass(frozen=True)
class Logic:
    """Joins filters by `and` or `or`, or negates one by `not`."""

    operator: Literal["and", "or", "not"]
    terms: tuple[Where, ...]


Where: TypeAlias = Compare | Logic


def parse_where(text: str, columns: Mapping[str, str]) -> Where:
    """Read a filter.

    Args:
        text: comparisons (`== != < <= > >= in`) joined by `and`, `or`, `not` and parentheses.
        columns: name -> string, int, float or bool.

    Raises:
        ConfigError: the text is no filter, names an unknown column, or compares a column with a
            value of another type.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ConfigError(
            f"cannot read the filter {text!r}: write it like price < 10 and group == 'shoes'"
        ) from error
    try:
        return _read(tree, text, columns)
    except RecursionError as error:
        raise ConfigError(f"the filter {text[:80]!r}… is nested too deeply") from error


def _read(node: ast.expr, text: str, columns: Mapping[str, str]) -> Where:
    if isinstance(node, ast.BoolOp):
        terms = tuple(_read(value, text, columns) for value in node.values)
        return Logic("and" if isinstance(node.op, ast.And) else "or", terms)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return Logic("not", (_read(node.operand, text, columns),))
    if isinstance(node, ast.Compare):
        sides = [node.left, *node.comparators]
        pairs = zip(sides, node.ops, sides[1:], strict=False)
        terms = tuple(_compare(left, op, right, text, columns) for left, op, right in pairs)
        return terms[0] if len(terms) == 1 else Logic("and", terms)
    raise ConfigError(f"the filter {text!r} has {ast.unparse(node)!r} where a comparison belongs")


def _compare(
    left: ast.expr, op: ast.cmpop, right: ast.expr, text: str, columns: Mapping[str, str]
) -> Where:
    if isinstance(op, ast.NotIn):
        return Logic("not", (_compare(left, ast.In(), right, text, columns),))
    operator = _OPERATORS.get(type(op))
    if operator is None:
        raise ConfigError(f"the filter {text!r}: compare with == != < <= > >= or in")
    if not isinstance(left, ast.Name) and isinstance(right, ast.Name) and operator != "in":
        left, right, operator = right, left, _MIRRORED.get(operator, operator)
    if not isinstance(left, ast.Name):
        raise ConfigError(f"the filter {text!r} compares no column in {ast.unparse(left)!r}")
    if left.id not in columns:
        raise ConfigError(
            f"there is no column {left.id!r}{nearest(left.id, columns) or '.'} There are "
            f"{', '.join(columns)}."
        )
    try:
        value = ast.literal_eval(right)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
        raise ConfigError(
            f"the filter {text!r} compares {left.id} with {ast.unparse(right)}, which is no "
            "value: put text in quotes"
        ) from error
    values = value if operator == "in" else [value]
    if not isinstance(values, list | tuple | set):
        raise ConfigError(f"the filter {text!r}: after `in` comes a list, like ['a', 'b']")
    kind = columns[left.id]
    if kind == "bool" and operator not in ("==", "!=", "in"):
        raise ConfigError(f"column {left.id} is true or false: compare it with == or !=")
    for one in values:
        is_other_bool = isinstance(one, bool) and kind != "bool"
        if is_other_bool or not isinstance(one, _ACCEPTED[kind]):
            raise ConfigError(f"column {left.id} holds {kind} values, {one!r} is none")
        if isinstance(one, str) and any("\ud800" <= letter <= "\udfff" for letter in one):
            raise ConfigError(f"the filter {text!r} has {one!r}, which is not text")
    if kind == "int":
        return _compare_whole(left.id, operator, values)
    if kind == "float":
        values = [_as_float(one) for one in values]
    return Compare(left.id, operator, tuple(values) if operator == "in" else next(iter(values)))


def _as_float(value: int | float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _compare_whole(column: str, operator: Operator, values: Collection[int | float]) -> Where:
    """Compare an int64 column with any numbers, rewritten as int64 values.

    Databases differ in how they compare them with floats, and Arrow refuses to.
    """
    held = tuple(int(one) for one in values if abs(one) <= _LARGEST and one == int(one))
    if operator == "in":
        return Compare(column, "in", held)
    if held:
        return Compare(column, operator, held[0])
    never = Compare(column, "in", ())
    always = Logic("not", (never,))
    [value] = values
    if operator in ("==", "!="):
        return never if operator == "==" else always
    if abs(value) > _LARGEST:
        return always if (value > 0) == (operator in ("<", "<=")) else never
    if operator in ("<", "<="):
        return Compare(column, "<=", math.floor(value))
    return Compare(column, ">=", math.ceil(value))


def to_arrow(where: Where) -> pc.Expression:
    """Return the filter for Arrow tables and Parquet files."""
    if isinstance(where, Logic):
        terms = [to_arrow(term) for term in where.terms]
        if where.operator == "not":
            return ~terms[0]
        return reduce(lambda a, b: a & b if where.operator == "and" else a | b, terms)
    column, value = pc.field(where.column), where.value
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
