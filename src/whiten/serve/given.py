"""Read the metadata that a client sends with an image."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from pydantic_core import from_json

from whiten.errors import ConfigError
from whiten.index.columns import GROUP, kind_of
from whiten.index.metadata import OWN, Column, Metadata

Values: TypeAlias = "dict[str, str | int | float | bool | None]"

_LONGEST = 200  # characters of a column's name
_MOST = 200  # columns


def read_values(text: str) -> Values:
    """Read a JSON object of texts, numbers, true, false and null, by column.

    Raises:
        ConfigError: it is something else, or a column cannot have this name.
    """
    if not text.strip():
        return {}
    try:
        values = from_json(text, allow_inf_nan=False)
    except ValueError as error:
        raise ConfigError(f"metadata: not JSON, {error}") from None
    if not isinstance(values, dict):
        raise ConfigError('metadata: must be an object, such as {"price": 5}')
    if len(values) > _MOST:
        raise ConfigError(f"metadata: {len(values)} columns, above the limit of {_MOST}")
    for name, value in values.items():
        if not name.strip() or len(name) > _LONGEST or "\0" in name:
            raise ConfigError(f"metadata: a column cannot be called {name[:_LONGEST]!r}")
        if name in OWN:
            raise ConfigError(f"metadata: {name!r} is no column but a field of every image")
        if not isinstance(value, str | int | float | bool | None):
            raise ConfigError(f"metadata: {name!r} must be a text, a number, true, false or null")
        is_long = isinstance(value, int) and not -(2**63) <= value < 2**63
        if is_long or (isinstance(value, float) and not math.isfinite(value)):
            raise ConfigError(f"metadata: the number of {name!r} is beyond 64 bits")
        if isinstance(value, str) and "\0" in value:
            raise ConfigError(f"metadata: the text of {name!r} has a null byte")
    return values


def metadata_of(rows: Sequence[Values], columns: Mapping[str, str]) -> Metadata | None:
    """Return the columns of several images; all name the same columns, with values of one type.

    Args:
        columns: those of the index, name -> kind.
    """
    found: dict[str, Column] = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        if values[0] is not None or name == GROUP or name in columns:
            found[name] = _column(name, values, columns)
    return Metadata("the metadata", found, np.ones(len(rows), bool)) if found else None


_KINDS = {bool: ("bool", pa.bool_()), int: ("int", pa.int64()), float: ("float", pa.float64())}


def _column(name: str, values: Sequence[Any], columns: Mapping[str, str]) -> Column:
    if name == GROUP:
        values = [None if value is None else _text(value) for value in values]
    kind, of = _KINDS.get(type(values[0]), ("string", pa.large_string()))
    is_text = kind == "string"
    if is_text and name in columns and name != GROUP:
        kind = kind_of(values)  # a date, for example, if the column is of dates
    return Column(kind, pa.array(values, of), is_text)


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
