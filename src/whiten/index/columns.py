"""Kinds of metadata columns, how an index stores them, and how they change without loss.

Some columns are stored as they were written, and filters compare them by keys in further columns:
`7.50` stays `7.50` and is below 8, `2024-01-03T01:00+02:00` keeps its day and its zone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from whiten.index.dates import read_moment

# Columns of every index; the user's metadata columns follow.
COLUMNS = {
    "id": pa.large_string(),
    "path": pa.large_binary(),  # paths may not be valid Unicode
    "content_hash": pa.large_string(),
    "stamp": pa.large_string(),  # see `write_stamp`; empty if unknown
    "group": pa.large_string(),
    "frame_ms": pa.int64(),
}

# Column that follows them in an index of several collections: see `whiten.index.membership`.
COLLECTION = "whiten_collection"

# Columns that a filter may name besides the metadata.
FILTERABLE = {"id": "string", "group": "string", "frame_ms": "int"}

# A column of the metadata with this name takes the place of the collection's own groups.
GROUP = "group"

_TEXT, _OWN = pa.large_string(), " (yours)"
NUMBER, TRUTH, TIME, UTC = " (number)", " (truth)", " (time)", " (utc)"

# Kind -> what is stored, by the suffix of its name: "" is the value, the others are its keys.
KINDS: dict[str, dict[str, pa.DataType]] = {
    "string": {"": _TEXT},
    "int": {"": pa.int64()},
    "float": {"": pa.float64()},
    "bool": {"": pa.bool_()},
    "decimal": {"": _TEXT, NUMBER: pa.float64()},  # numbers, as written
    "flag": {"": _TEXT, TRUTH: pa.bool_()},  # true or false, as written
    "date": {"": _TEXT, TIME: _TEXT},  # dates and times without a zone, as written
    "instant": {"": _TEXT, TIME: _TEXT, UTC: _TEXT},  # times with zones, as written
}
_NAMES = {str(pa.bool_()): "bool", str(pa.int64()): "int", str(pa.float64()): "float"}

# A number as people write it. `00123`, `1e5`, `+5` and `1,000` may be codes, and are text.
_NUMBER = re.compile(r"\s*-?(0|[1-9]\d*|(?=\.))(\.\d*([eE][+-]?\d+)?)?\s*", re.ASCII)
_INT = re.compile(r"0|-?[1-9]\d{0,18}", re.ASCII)
_MOST_DIGITS = 2**53  # whole numbers up to this are exact as float


def stored_name(name: str) -> str:
    """Return the name under which a column is stored: its own, unless the index uses that."""
    suffixes = (_OWN, NUMBER, TRUTH, TIME, UTC)
    return f"{name}{_OWN}" if name in (*COLUMNS, COLLECTION) or name.endswith(suffixes) else name


def stored_fields(columns: Mapping[str, str]) -> dict[str, pa.DataType]:
    """Return what is stored of the metadata: name -> type."""
    return {
        stored_name(name) + suffix: kind
        for name, column in columns.items()
        if name != GROUP
        for suffix, kind in KINDS[column].items()
    }


def stored_kinds(columns: Mapping[str, str]) -> dict[str, str]:
    """Return what is stored of the metadata: name -> string, int, float or bool."""
    return {name: _NAMES.get(str(kind), "string") for name, kind in stored_fields(columns).items()}


# --- reading text -----------------------------------------------------------------------

_BOOLS = ({"true", "false"}, {"True", "False"})


def _is_float(text: str) -> bool:
    """Return whether reading and writing a number changes nothing, not even its spelling."""
    try:
        number = float(text)
    except ValueError:
        return False
    if _INT.fullmatch(text):
        return abs(int(text)) <= _MOST_DIGITS
    return number == number and repr(number) == text


def _is_decimal(text: str) -> bool:
    if _is_float(text):
        return abs(float(text)) != float("inf")
    if not _NUMBER.fullmatch(text) or not any(letter.isdigit() for letter in text):
        return False
    return abs(float(text)) < float("inf") and ("." in text or abs(int(text)) <= _MOST_DIGITS)


def _is_date(text: str) -> bool:
    moment = read_moment(text)
    return moment is not None and moment.utc is None


def _is_instant(text: str) -> bool:
    moment = read_moment(text)
    return moment is not None and moment.utc is not None


_IS_ONE: dict[str, Callable[[str], bool]] = {
    "int": lambda text: bool(_INT.fullmatch(text)) and -(2**63) <= int(text) < 2**63,
    "float": _is_float,
    "decimal": _is_decimal,
    "bool": lambda text: text in ("true", "false", "True", "False"),
    "flag": lambda text: text.strip().lower() in ("true", "false"),
    "date": _is_date,
    "instant": _is_instant,
    "string": lambda text: True,
}


def no_such(texts: Sequence[str | None], kind: str) -> int | None:
    """Return the first row whose text is not of a kind; None if there is none."""
    is_one = _IS_ONE[kind]
    wrong = (n for n, text in enumerate(texts) if text is not None and not is_one(text))
    return next(wrong, None)


def kind_of(texts: Sequence[str | None]) -> str:
    """Return the kind of a column of text: one that reading and writing changes nothing of."""
    there = {text for text in texts if text is not None}
    if there and any(there <= names for names in _BOOLS):
        return "bool"
    for kind in ("int", "float", "decimal", "flag", "date", "instant"):
        if there and no_such(list(there), kind) is None:
            if kind == "float" and not any(_is_decimal(text) for text in there):
                break  # nothing but inf, which may be a word
            return kind
    return "string"


def read_texts(texts: Sequence[str | None], kind: str) -> dict[str, pa.Array]:
    """Return what is stored of a column of text, by suffix; all texts are of this kind."""
    reads: dict[str, Callable[[str], object]] = {
        "int": int,
        "float": float,
        "bool": lambda text: text.lower() == "true",
    }
    read = reads.get(kind, str)
    stored = {"": [None if text is None else read(text) for text in texts]}
    keys: dict[str, Callable[[str], object]] = {
        NUMBER: float,
        TRUTH: lambda text: text.strip().lower() == "true",
        TIME: lambda text: getattr(read_moment(text), "time", None),
        UTC: lambda text: getattr(read_moment(text), "utc", None),
    }
    for suffix in list(KINDS[kind])[1:]:
        stored[suffix] = [None if text is None else keys[suffix](text) for text in texts]
    return {suffix: pa.array(stored[suffix], of) for suffix, of in KINDS[kind].items()}


# --- changing the kind ------------------------------------------------------------------


# Changes of kind that keep values; besides, whatever is stored as text may become any other text.
_WIDER = {("int", "float"), ("int", "decimal"), ("float", "decimal"), ("bool", "flag")}


def _keeps_values(before: str, now: str) -> bool:
    is_text = KINDS[before][""] == KINDS[now][""] == _TEXT
    return before == now or is_text or (before, now) in _WIDER


def convert(column: pa.Array | pa.ChunkedArray, before: str, now: str) -> dict[str, pa.Array]:
    """Convert a column to another kind; values that it would lose or change become missing.

    Whole numbers become float or decimal, float decimal, bool flag; text becomes what it is, and
    what is stored as it was written becomes text.

    Args:
        column: (n,) the values.

    Returns:
        What is stored of the column, by suffix.
    """
    if not _keeps_values(before, now):
        return {suffix: pa.nulls(len(column), of) for suffix, of in KINDS[now].items()}
    if before == now and len(KINDS[now]) == 1:
        return {"": column}
    if (before, now) == ("int", "float"):
        is_exact = pc.and_(
            pc.less_equal(column, _MOST_DIGITS), pc.greater_equal(column, -_MOST_DIGITS)
        )
        return {"": pc.if_else(is_exact, column, None).cast(pa.float64())}
    write: Callable[[object], str] = {"bool": lambda value: str(value).lower()}.get(before, str)
    is_one = _IS_ONE[now]
    texts = [None if value is None else write(value) for value in column.to_pylist()]
    return read_texts([text if text is None or is_one(text) else None for text in texts], now)


def widen(column: pa.Array | pa.ChunkedArray, before: str, now: str) -> dict[str, pa.Array] | None:
    """Convert a column to another kind; None if a value would be lost or change its meaning."""
    converted = convert(column, before, now)
    return converted if converted[""].null_count == column.null_count else None


def kind_of_fields(there: Mapping[str, pa.DataType], stored: str) -> str | None:
    """Return the kind that is stored under a name among some fields; None if there is none."""
    for kind in sorted(KINDS, key=lambda kind: -len(KINDS[kind])):
        if all(there.get(stored + suffix) == of for suffix, of in KINDS[kind].items()):
            return kind
    return None


def lost_fields(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Return what is stored of columns that are dropped, or whose kind changes with its values."""
    lost = {
        name: kind
        for name, kind in before.items()
        if name not in now or not _keeps_values(kind, now[name])
    }
    return list(stored_fields(lost))
