"""Read the typed columns of Parquet as kinds of metadata; dates become text in ISO 8601."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from whiten.errors import ConfigError
from whiten.index.columns import GROUP, kind_of

_TEXT = pa.large_string()
_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


def kind_and_values(path: Path, name: str, column: pa.ChunkedArray) -> tuple[str, pa.Array, bool]:
    """Return the kind of a column, its values, and whether these are text to be read as the kind.

    Raises:
        ConfigError: values of this type cannot be stored.
    """
    of = column.type
    try:
        if pa.types.is_dictionary(of):
            column, of = column.cast(of.value_type), of.value_type
        if name == GROUP and (pa.types.is_integer(of) or pa.types.is_boolean(of)):
            return "string", column.cast(_TEXT).combine_chunks(), True
        if pa.types.is_boolean(of):
            return "bool", column.combine_chunks(), False
        if pa.types.is_integer(of):
            largest = pc.max(column).as_py() or 0
            if largest < 2**63:
                return "int", column.cast(pa.int64()).combine_chunks(), False
            return "string", column.cast(_TEXT).combine_chunks(), True
        if pa.types.is_floating(of):
            column = column.cast(pa.float64())
            no_number = pc.fill_null(pc.is_nan(column), False)  # NaN means missing
            column = pc.if_else(no_number, None, column)
            if name == GROUP:
                return "string", column.cast(_TEXT).combine_chunks(), True
            return "float", column.combine_chunks(), False
        texts = _texts(column)
    except pa.ArrowException as error:
        raise _unsupported(path, name, of) from error
    if texts is None:
        raise _unsupported(path, name, of)
    kind = "string" if name == GROUP else kind_of(texts.to_pylist())
    if not pa.types.is_decimal(of) and kind not in ("date", "instant"):
        kind = "string"  # text that looks like a number was meant as text
    return kind, texts, True


def _unsupported(path: Path, name: str, kind: pa.DataType) -> ConfigError:
    return ConfigError(f"{path} has a column {name!r} of type {kind}: make it numbers or text")


def _texts(column: pa.ChunkedArray) -> pa.Array | None:
    of = column.type
    if pa.types.is_timestamp(of):
        return _times(column.combine_chunks())
    is_text = pa.types.is_string(of) or pa.types.is_large_string(of) or pa.types.is_null(of)
    is_view = hasattr(pa.types, "is_string_view") and pa.types.is_string_view(of)
    if is_text or is_view or pa.types.is_decimal(of) or pa.types.is_date(of):
        return column.cast(_TEXT).combine_chunks()
    return column.cast(_TEXT).combine_chunks() if pa.types.is_time(of) else None


def _times(column: pa.Array) -> pa.Array:
    """Write timestamps as `2024-01-03T10:00:00.5`, with the offset of their zone, if any."""
    plain = pa.timestamp(column.type.unit)
    utc = column.cast(plain)
    if column.type.tz is None:
        return _iso(utc)
    try:
        local = pc.local_timestamp(column).cast(plain)
    except pa.ArrowException:  # the zone is not known here
        local = utc
    shift = (local.cast(pa.int64()).fill_null(0)).to_numpy(zero_copy_only=False) - (
        utc.cast(pa.int64()).fill_null(0)
    ).to_numpy(zero_copy_only=False)
    if (shift % (60 * _SECOND[column.type.unit])).any():  # as before zones were agreed on
        local, shift = utc, np.zeros_like(shift)
    minutes, inverse = np.unique(shift // (60 * _SECOND[column.type.unit]), return_inverse=True)
    offsets = pa.array([_offset(int(one)) for one in minutes], _TEXT).take(pa.array(inverse))
    return pc.binary_join_element_wise(_iso(local), offsets, pa.scalar("", _TEXT))


def _offset(minutes: int) -> str:
    hours, rest = divmod(abs(minutes), 60)
    return f"{'-' if minutes < 0 else '+'}{hours:02d}:{rest:02d}"


def _iso(column: pa.Array) -> pa.Array:
    text = pc.replace_substring(column.cast(_TEXT), " ", "T", max_replacements=1)
    return pc.replace_substring_regex(text, r"(\.\d*[1-9])0+$|\.0+$", r"\1")
