"""Filters against plain Python, what a wrong one is told, and names over all of Unicode."""

from __future__ import annotations

import os
import random
import re
import tempfile
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from random_rows import backend_of, block_of, passing
from whiten.errors import ConfigError
from whiten.index import Index
from whiten.index.columns import read_texts, stored_name
from whiten.index.places import open_place
from whiten.index.rows import Facts
from whiten.index.where import parse_where

# --- against plain Python ---------------------------------------------------------------

KINDS = {
    "count": "int", "size": "float", "sold": "bool", "my title": "string", "price": "decimal",
    "taken": "date", "sent": "instant",
}  # fmt: skip
TEXTS = ["", "a", "ab", "b%", "a_b", "\\", "ü", "it's", '"', "🦄a", "A", "a\nb", " a"]
PRICES = ["7.50", "8", "0.10", "-3.0", "10.00"]
DATES = [
    "2024-01-03",
    "2024-01-03T10:00:00",
    "2024-01-03T10:00:00.5",
    "2023-12-31T23:59",
    "0001-01-01",
]
TIMES = ["2024-01-03T01:00:00+02:00", "2024-01-02T23:00:00Z", "2024-01-03T01:00:00-11:30"]
VALUES: dict[str, list[Any]] = {
    "count": [0, 1, -5, 7, 2**63 - 1, -(2**63)],
    "size": [0.0, 1.5, -2.25, 1e300, float("inf")],
    "sold": [True, False],
    "my title": TEXTS,
    "price": PRICES,
    "taken": DATES,
    "sent": TIMES,
}  # fmt: skip
BOUNDS: dict[str, list[Any]] = VALUES | {
    "count": [*VALUES["count"], 0.5, 7.0, 1e300, -(2**70)],
    "size": [*VALUES["size"][:-1], 1, 3],
    "price": [7.5, 8, 0.1, -3, 9.99],
}
ORDERS: dict[str, Callable[[Any, Any], bool]] = {
    "==": lambda a, b: a == b, "!=": lambda a, b: a != b, "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b, ">": lambda a, b: a > b, ">=": lambda a, b: a >= b,
}  # fmt: skip
READ: dict[str, Callable[[Any], Any]] = {
    "price": float, "taken": datetime.fromisoformat, "sent": datetime.fromisoformat,
}  # fmt: skip

Row = dict[str, Any]
Truth = Callable[[Row], bool | None]  # None: nothing is known


def one_test(rng: random.Random) -> tuple[str, Truth]:
    name = rng.choice(list(KINDS))
    shown = f"`{name}`" if " " in name else name
    value = READ.get(name, lambda one: one)
    kind = rng.random()
    if kind < 0.1:
        negated = rng.random() < 0.5
        text = f"{shown} is {'not ' if negated else ''}None"
        return text, lambda row: (row[name] is not None) == negated
    if kind < 0.3 and KINDS[name] not in ("int", "float", "bool"):
        test = rng.choice(["startswith", "endswith", "contains"])
        part = rng.choice(TEXTS + PRICES + ["2024-01", "00", "Z"])
        of = {"startswith": str.startswith, "endswith": str.endswith, "contains": str.__contains__}
        text = f"{part!r} in {shown}" if test == "contains" else f"{shown}.{test}({part!r})"
        return text, lambda row: None if row[name] is None else of[test](row[name], part)
    if kind < 0.5:
        some = rng.sample(BOUNDS[name], rng.randint(0, 2))
        negated = rng.random() < 0.5
        bounds = [value(one) for one in some]
        text = f"{shown} {'not ' if negated else ''}in {some!r}"
        return (
            text,
            lambda row: None if row[name] is None else (value(row[name]) in bounds) != negated,
        )
    operator = rng.choice(["==", "!="] if name == "sold" else list(ORDERS))
    bound = rng.choice(BOUNDS[name])
    text = f"{shown} {operator} {bound!r}"
    return (
        text,
        lambda row: None if row[name] is None else ORDERS[operator](value(row[name]), value(bound)),
    )


def any_filter(rng: random.Random, depth: int = 3) -> tuple[str, Truth]:
    """A filter, and what it is by three-valued logic."""
    kind = rng.random()
    if depth == 0 or kind < 0.4:
        return one_test(rng)
    text, truth = any_filter(rng, depth - 1)
    if kind < 0.6:
        return f"not ({text})", lambda row: None if (t := truth(row)) is None else not t
    other, more = any_filter(rng, depth - 1)
    decides = kind > 0.8  # what one side of `or` decides alone; of `and` it is False

    def joined(row: Row) -> bool | None:
        sides = (truth(row), more(row))
        return decides if decides in sides else None if None in sides else not decides

    return f"({text}) {'or' if decides else 'and'} ({other})", joined


def rows_of(rng: random.Random, total: int) -> list[Row]:
    return [{name: rng.choice([None, *VALUES[name]]) for name in KINDS} for _ in range(total)]


def index_of(place: str, rows: list[Row]) -> Index:
    facts = Facts("model", "", "random", 4, columns=KINDS)
    columns: dict[str, list[object]] = {}
    for name, kind in KINDS.items():
        values = [row[name] for row in rows]
        stored = (
            {"": values} if kind in ("int", "float", "bool") else
            {suffix: keys.to_pylist() for suffix, keys in read_texts(values, kind).items()}
        )  # fmt: skip
        columns |= {stored_name(name) + suffix: keys for suffix, keys in stored.items()}
    backend = open_place(place)
    with backend.writing():
        backend.write(facts, (), [block_of(facts, [f"r{n}" for n in range(len(rows))], **columns)])
    return Index(backend)


def assert_as_python(place: str, cases: int) -> None:
    rng = random.Random(7)
    rows = rows_of(rng, 60)
    index = index_of(place, rows)
    query = np.ones((1, 4), np.float32)
    for _ in range(cases):
        text, truth = any_filter(rng)
        [hits] = index.search_vectors(query, len(rows), where=text)
        found = {int(hit.id[1:]) for hit in hits}
        assert found == {n for n, row in enumerate(rows) if truth(row)}, text


@pytest.mark.slow
def test_filters_are_as_python_evaluates_them(place: str) -> None:
    assert_as_python(place, 300)


@pytest.mark.slow
def test_ten_thousand_filters(tmp_path: Path) -> None:
    assert_as_python(str(tmp_path / "index"), 10_000)


# --- what a wrong one is told -----------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("my title == 'a'", "write `my title`, in backticks"),
        ("class == 'a'", "write `class`, in backticks"),
        ("a-b < 3", "write `a-b`, in backticks"),
        ("count == None", "ask for missing values with count is None"),
        ("`my title` in ['a', None]", "ask for missing values with `my title` is None"),
        ("count is NULL", "or by `is None`"),
        ("count == null", "ask for missing values with count is None"),
        ("`my title`.isna()", "ask for missing values with name is None"),
        ("not count.notnull()", "ask for missing values with name is not None"),
        ("count = 3", "cannot read the filter"),
        ("(count < 3) & (count > 1)", "join comparisons with `and` and `or`, not & and |"),
        ("count < 3 & count > 1", "join comparisons with `and` and `or`, not & and |"),
        ("count.startswith('1')", "column count holds int values, and only text startswith"),
        ("'a' in count", "column count holds int values, and only text contains"),
        ("`my title`.lower() == 'a'", "compares no column in '`my title`.lower()'"),
        ("`my title`.lower()", "tests of text are startswith, endswith and contains"),
        ("`my title`.startswith(1)", "startswith takes one text"),
        ("`my title`.startswith('a', 'b')", "startswith takes one text"),
        ("len(count) == 1", "compares no column in 'len(count)'"),
        ("taken > 5", "column taken holds date values, 5 is not one: write a date, '2024-01-03'"),
        ("taken > '3 Jan'", "column taken holds dates, '3 Jan' is not one: write a date"),
        ("taken > '2024-01-03T00:00Z'", "without a time zone: leave out the zone"),
        ("sent == 'now'", "column sent holds dates, 'now' is not one"),
        ("`my titel` == 'a'", "there is no column 'my titel'; did you mean 'my title'"),
        ("``", "cannot read the filter"),
        ("`count < 3", "cannot read the filter"),
        ("`my title` == 5", "holds string values, 5 is not one: put text in quotes"),
        ("price < True", "column price holds decimal values, True is not one"),
    ],
)
def test_what_a_wrong_filter_is_told(where: str, message: str) -> None:
    columns = {**KINDS, "class": "string", "a-b": "int"}
    with pytest.raises(ConfigError) as caught:
        parse_where(where, columns)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value) and "_column" not in str(caught.value)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        *(("not " * n + "count < 1", "is nested too deeply") for n in (101, 400, 900, 5000)),
        ("(count < 3 or not " * 90 + "count < 1" + ")" * 90, "is nested too deeply"),
        *((" or ".join(["count < 1"] * n), "in ['a', 'b']") for n in (2001, 20_000)),
        ("not (" + " and ".join(["(count < 1 or sold == True)"] * 700) + ")", "in ['a', 'b']"),
    ],
)
def test_a_filter_that_would_overflow_a_stack_is_refused(where: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        parse_where(where, KINDS)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_the_largest_filters_can_be_applied(tmp_path: Path) -> None:
    index = backend_of(str(tmp_path / "index"), 3, count=[0, 1, 2])
    deepest = "(count < 1 or not " * 50 + "count < 1" + ")" * 50
    for where in ("not " * 100 + "count < 1", deepest, " or ".join(["count < 1"] * 2000)):
        assert passing(index, where)[0] == "r0"


# --- names over all of Unicode ----------------------------------------------------------


@pytest.mark.slow
@settings(deadline=None)
@given(
    names=st.lists(st.text(min_size=1), min_size=1, max_size=5, unique=True),
    column=st.text(min_size=1).map(str.strip).filter(bool),
)
def test_any_name_is_found_in_a_folder(names: list[str], column: str) -> None:
    facts = Facts("model", "", "random", 4, columns={column: "string"})
    with tempfile.TemporaryDirectory() as folder:
        backend = open_place(os.path.join(folder, "index"))
        with backend.writing():
            block = block_of(facts, names, **{stored_name(column): list(names)})
            backend.write(facts, (), [block])
        index = Index.open(os.path.join(folder, "index"))
        assert index.ids() == names
        for name in names:
            where = f"id == {name!r} and `{column.replace('`', '``')}` == {name!r}"
            [[hit]] = index.search_vectors(np.ones((1, 4), np.float32), 9, where=where)
            assert (hit.id, hit.to_json()["metadata"]) == (name, {column: name})


def test_values_of_a_dropped_column_do_not_return(tmp_path: Path) -> None:
    place = str(tmp_path / "index")
    index = backend_of(place, 3, x=[1, 2, 3])
    backend = index._backend
    for columns in ({}, {"x": "int"}):
        facts = Facts("model", "", "random", 8, ["here"], columns)
        with backend.writing():
            backend.write(facts, (), [])
    assert [item.metadata for item in Index.open(place).items(["r0", "r1"])] == [{}, {}]
