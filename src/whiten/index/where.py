"""Read filters, `price < 10 and group in ["shoes", "bags"]`, as the user writes them.

A filter has the syntax of a Python expression; Python's parser reads it, and it is never
evaluated. A name in backticks is a column, whatever letters it has, as in pandas.
"""

from __future__ import annotations

import ast
import keyword
import math
import re
import unicodedata
from collections.abc import Collection, Mapping
from typing import TypeAlias, get_args

from whiten.errors import ConfigError, nearest
from whiten.index.columns import FILTERABLE, KINDS, NUMBER, TIME, TRUTH, UTC, stored_name
from whiten.index.conditions import Compare, Logic, Missing, Operator, Test, Text, Value, Where
from whiten.index.dates import read_moment
from whiten.utils.names import is_text

_OPERATORS: dict[type[ast.cmpop], Operator] = {
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.In: "in",
}
_TESTS: dict[str, Test] = {name: name for name in get_args(Test)}
_OF_PANDAS = dict.fromkeys(("isna", "isnull"), "name is None") | dict.fromkeys(
    ("notna", "notnull"), "name is not None"
)
_LEAST, _LARGEST = -(2**63), 2**63 - 1
# What applies a filter recurses, too: Python ends at a limit of its own, and Arrow, which makes a
# chain of the joined comparisons, overflows the stack of the process.
_DEEPEST, _MOST_JOINED = 100, 2000
_MIRRORED: dict[Operator, Operator] = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}
_ACCEPTED: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "int": (int, float),
    "float": (int, float),
    "bool": (bool,),
    "decimal": (int, float, str),
    "flag": (bool, str),
    "date": (str,),
    "instant": (str,),
}
_REMEDY = {
    "bool": ": write True or False",
    "flag": ": write True or False",
    "string": ": put text in quotes",
    "date": ": write a date, '2024-01-03' or '2024-01-03T10:00:00'",
    "instant": ": write a time, '2024-01-03T10:00:00+02:00'",
}
# A text in quotes, or a name in backticks, where two backticks stand for one.
_QUOTED = re.compile(r"""("(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')|`((?:[^`]|``)+)`(?!`)""", re.DOTALL)


def parse_where(text: str, columns: Mapping[str, str]) -> Where:
    """Read a filter.

    Args:
        text: comparisons (`== != < <= > >= in`, `is None`, `is not None`), tests of text
            (`name.startswith('a')`, `endswith`, `contains`, or `'a' in name`) and columns that are
            true or false, joined by `and`, `or`, `not` and parentheses.
        columns: name -> kind, see `whiten.index.columns`.

    Raises:
        ConfigError: the text is no filter, names an unknown column, or compares a column with a
            value of another type.
    """
    if not text.strip():
        raise ConfigError("the filter is empty: write it like price < 10, or leave it out")
    reader = _Reader(text, columns)
    try:
        return reader.read(ast.parse(reader.plain.strip(), mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        if isinstance(error, ConfigError):
            raise
        if isinstance(error, RecursionError):
            raise _too_deep(text) from error
        reason = f" ({error.msg})" if isinstance(error, SyntaxError) and error.msg else ""
        equal = ": write == for equal" if reader.is_assigned else ""
        remedy = reader.hint or equal or ": write it like price < 10 and group == 'shoes'"
        raise ConfigError(f"cannot read the filter {text!r}{reason}{remedy}") from error


class _Reader:
    """Reads one filter.

    Attributes:
        plain: the filter, with an identifier instead of each name in backticks.
        hint: what to write instead of a name that needs backticks and has none; or "".
        is_assigned: whether it has a =.
    """

    def __init__(self, text: str, columns: Mapping[str, str]) -> None:
        self._text = text
        self._columns = columns
        self._names: dict[str, str] = {}
        self._joined = 0
        prefix = "_column"
        while prefix in text:
            prefix += "_"

        def name(found: re.Match[str]) -> str:
            if found[1] is not None:
                return found[1]
            identifier = f" {prefix}{len(self._names)}"
            self._names[identifier.strip()] = found[2].replace("``", "`")
            return f"{identifier} "

        self.plain = _QUOTED.sub(name, text)
        rest = _QUOTED.sub(" ", text)
        odd = [column for column in columns if _as_written(column) != column and column in rest]
        odd.sort(key=len)
        self.hint = f": write {_as_written(odd[-1])}, in backticks" if odd else ""
        self.is_assigned = re.search("[^=!<>]=[^=]", rest) is not None

    def _wrong(self, problem: str) -> ConfigError:
        return ConfigError(f"the filter {self._text!r}{problem}{self.hint}")

    def _shown(self, node: ast.AST) -> str:
        text = ast.unparse(node)
        for identifier in reversed(self._names):  # the longest first
            text = text.replace(identifier, f"`{self._names[identifier]}`")
        return text

    def read(self, node: ast.expr, depth: int = 0) -> Where:
        if depth > _DEEPEST:
            raise _too_deep(self._text)
        if isinstance(node, ast.BoolOp):
            self._joined += len(node.values)
            if self._joined > _MOST_JOINED:
                raise ConfigError(
                    f"the filter {self._text[:80]!r}… joins more than {_MOST_JOINED} comparisons: "
                    "write one with a list, like name in ['a', 'b'], or a shorter one"
                )
            terms = tuple(self.read(value, depth + 1) for value in node.values)
            return Logic("and" if isinstance(node.op, ast.And) else "or", terms)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return Logic("not", (self.read(node.operand, depth + 1),))
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            pairs = zip(sides, node.ops, sides[1:], strict=False)
            terms = tuple(self._compare(left, op, right) for left, op, right in pairs)
            return terms[0] if len(terms) == 1 else Logic("and", terms)
        if isinstance(node, ast.Call):
            return self._call(node)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitAnd | ast.BitOr):
            raise self._wrong(": join comparisons with `and` and `or`, not & and |")
        if isinstance(node, ast.Name) and self._columns[self._column(node)] in ("bool", "flag"):
            return self._compare(node, ast.Eq(), ast.Constant(value=True))
        raise self._wrong(f" has {self._shown(node)!r} where a comparison belongs")

    # --- columns and values -------------------------------------------------------------

    def _column(self, node: ast.Name) -> str:
        name = self._names.get(node.id, node.id)
        if name in self._columns:
            return name
        # Python reads identifiers in their compatible form: ﬁ as fi.
        same = [c for c in self._columns if unicodedata.normalize("NFKC", c) == name]
        if len(same) == 1 and node.id not in self._names:
            return same[0]
        raise ConfigError(
            f"there is no column {name!r}{nearest(name, self._columns) or '.'} There are "
            f"{', '.join(map(_as_written, self._columns))}."
        )

    def _stored(self, name: str, key: str = "") -> str:
        return (name if name in FILTERABLE else stored_name(name)) + key

    def _value(self, name: str, node: ast.expr) -> object:
        try:
            return ast.literal_eval(node)
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            pass
        if isinstance(node, ast.Name) and node.id.lower() in ("null", "nan", "none", "nil"):
            raise self._wrong(f": ask for missing values with {_as_written(name)} is None")
        if isinstance(node, ast.Name) and node.id.lower() in ("true", "false"):
            raise self._wrong(f": write {_as_written(name)} == {node.id.capitalize()}")
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitAnd | ast.BitOr):
            raise self._wrong(": join comparisons with `and` and `or`, not & and |")
        raise self._wrong(
            f" compares {_as_written(name)} with {self._shown(node)}, which is no value: put text "
            "in quotes"
        )

    def _check(self, name: str, value: object) -> Value:
        """Refuse a value of another type than the column's."""
        kind = self._columns[name]
        if value is None:
            raise self._wrong(f": ask for missing values with {_as_written(name)} is None")
        is_other_bool = isinstance(value, bool) and bool not in _ACCEPTED[kind]
        if is_other_bool or not isinstance(value, _ACCEPTED[kind]):
            raise ConfigError(
                f"column {name} holds {kind} values, {value!r} is not one{_REMEDY.get(kind, '')}"
            )
        if isinstance(value, str) and not is_text(value):
            raise self._wrong(f" has {value!r}, which is not text")
        assert isinstance(value, str | int | float)
        return value

    # --- tests of text ------------------------------------------------------------------

    def _call(self, node: ast.Call) -> Where:
        """Read `name.startswith('a')`, also with `.str` in between as in pandas."""
        called = node.func
        if isinstance(called, ast.Attribute) and called.attr in _OF_PANDAS:
            raise self._wrong(f": ask for missing values with {_OF_PANDAS[called.attr]}")
        if not isinstance(called, ast.Attribute) or called.attr not in _TESTS:
            raise self._wrong(
                f" has {self._shown(node)!r}: tests of text are startswith, endswith and contains, "
                "like name.startswith('a')"
            )
        owner = called.value
        if isinstance(owner, ast.Attribute) and owner.attr == "str":
            owner = owner.value
        if not isinstance(owner, ast.Name):
            raise self._wrong(f" tests no column in {self._shown(node)!r}")
        if len(node.args) != 1 or node.keywords:
            raise self._wrong(f": {called.attr} takes one text, like name.{called.attr}('a')")
        name = self._column(owner)
        values = self._value(name, node.args[0])
        tests = [
            self._test(name, _TESTS[called.attr], value)
            for value in (values if isinstance(values, tuple) else (values,))
        ]
        return tests[0] if len(tests) == 1 else self._any(name, tests)

    def _test(self, name: str, test: Test, value: object) -> Where:
        kind = self._columns[name]
        stored = FILTERABLE.get(name) if name in FILTERABLE else str(KINDS[kind][""])
        if stored not in ("string", "large_string"):
            raise ConfigError(f"column {name} holds {kind} values, and only text {test} a text")
        if not isinstance(value, str):
            raise self._wrong(f": {test} takes one text, like name.{test}('a')")
        if not is_text(value):
            raise self._wrong(f" has {value!r}, which is not text")
        return Text(self._stored(name), test, value)

    # --- comparisons --------------------------------------------------------------------

    def _compare(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> Where:
        if isinstance(op, ast.NotIn | ast.IsNot):
            positive = ast.In() if isinstance(op, ast.NotIn) else ast.Is()
            return Logic("not", (self._compare(left, positive, right),))
        if isinstance(op, ast.Is):
            is_none = isinstance(right, ast.Constant) and right.value is None
            if not isinstance(left, ast.Name) or not is_none:
                raise self._wrong(": compare with == != < <= > >= or in, or by `is None`")
            return Missing(self._stored(self._column(left)))
        operator = _OPERATORS[type(op)]
        if isinstance(right, ast.Name) and not isinstance(left, ast.Name):
            if operator == "in":
                name = self._column(right)
                return self._test(name, "contains", self._value(name, left))
            left, right, operator = right, left, _MIRRORED.get(operator, operator)
        if not isinstance(left, ast.Name):
            raise self._wrong(f" compares no column in {self._shown(left)!r}")
        name = self._column(left)
        given = self._value(name, right)
        values = given if operator == "in" else [given]
        if not isinstance(values, list | tuple | set):
            raise self._wrong(": after `in` comes a list, like ['a', 'b']")
        checked = [self._check(name, value) for value in values]
        kind = self._columns[name]
        if kind == "bool" and operator not in ("==", "!=", "in"):
            raise ConfigError(f"column {name} is true or false: compare it with == or !=")
        if kind == "int":
            return compare_whole(self._stored(name), operator, checked)  # type: ignore[arg-type]
        keyed: dict[str, list[Value]] = {}
        for value in checked:
            key, stored = self._keyed(name, kind, operator, value)
            keyed.setdefault(self._stored(name, key), []).append(stored)
        if operator == "in":
            every = [Compare(column, "in", tuple(some)) for column, some in keyed.items()]
            return self._any(name, every)
        [(column, [one])] = keyed.items()
        return Compare(column, operator, one)

    def _keyed(self, name: str, kind: str, operator: str, value: Value) -> tuple[str, Value]:
        """Return the key that a value is compared with, and the value as that holds it."""
        if kind == "float" or (kind == "decimal" and not isinstance(value, str)):
            assert not isinstance(value, str)
            return NUMBER if kind == "decimal" else "", _as_float(value)
        if kind == "flag" and isinstance(value, bool):
            if operator not in ("==", "!=", "in"):
                raise ConfigError(f"column {name} is true or false: compare it with == or !=")
            return TRUTH, value
        if kind not in ("date", "instant"):
            return "", value
        moment = read_moment(str(value))
        if moment is None:
            raise ConfigError(f"column {name} holds dates, {value!r} is not one{_REMEDY[kind]}")
        if moment.utc is None:
            return TIME, moment.time
        if kind == "date":
            raise ConfigError(
                f"column {name} holds dates and times without a time zone: leave out the zone of "
                f"{value!r}"
            )
        return UTC, moment.utc

    def _any(self, name: str, tests: Collection[Where]) -> Where:
        if len(tests) == 1:
            return next(iter(tests))
        return Logic("or", tuple(tests)) if tests else Compare(self._stored(name), "in", ())


def _too_deep(text: str) -> ConfigError:
    return ConfigError(f"the filter {text[:80]!r}… is nested too deeply")


def _as_written(column: str) -> str:
    """Return a column as a filter names it: in backticks if it is no identifier."""
    if column.isidentifier() and not keyword.iskeyword(column):
        return column
    return f"`{column.replace('`', '``')}`"


def _as_float(value: int | float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


_Number: TypeAlias = int | float


def compare_whole(column: str, operator: Operator, values: Collection[_Number]) -> Where:
    """Compare an int64 column with any numbers, rewritten as int64 values.

    Databases differ in how they compare them with floats, and Arrow refuses to.
    """
    held = tuple(int(one) for one in values if _LEAST <= one <= _LARGEST and one == int(one))
    if operator == "in":
        return Compare(column, "in", held)
    if held:
        return Compare(column, operator, held[0])
    never = Compare(column, "in", ())
    always = Logic("not", (never,))
    [value] = values
    if operator in ("==", "!="):
        return never if operator == "==" else always
    if not _LEAST <= value <= _LARGEST:
        return always if (value > 0) == (operator in ("<", "<=")) else never
    if operator in ("<", "<="):
        return Compare(column, "<=", math.floor(value))
    return Compare(column, ">=", math.ceil(value))
