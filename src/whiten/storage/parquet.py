"""Images inside a Parquet table: a column of bytes, or of `{bytes, path}` as Hugging Face writes.

Rows are read by row groups, of which the most recent ones are kept.
"""

from __future__ import annotations

import bisect
import threading
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from whiten.errors import ImageError
from whiten.storage.blobs import Blob, BlobFile
from whiten.storage.caching import Cache

_KEPT = 512 << 20  # bytes of row groups
_groups: Cache[pa.Array] = Cache(_KEPT, lambda column: int(column.nbytes))


class ParquetImages:
    """An open Parquet table.

    Attributes:
        blob: its bytes.
        schema: Arrow schema of the columns.
    """

    def __init__(self, blob: Blob) -> None:
        self.blob = blob
        source: Any = pa.PythonFile(BlobFile(blob), "r")
        self._file = pq.ParquetFile(source, pre_buffer=True)
        self._lock = threading.Lock()
        self.schema: pa.Schema = self._file.schema_arrow
        metadata = self._file.metadata
        self._ends: list[int] = []  # rows up to the end of each row group
        for number in range(metadata.num_row_groups):
            before = self._ends[-1] if self._ends else 0
            self._ends.append(before + metadata.row_group(number).num_rows)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def columns(self, names: list[str]) -> pa.Table:
        """Read columns whole."""
        with self._lock:
            return self._file.read(columns=names)

    def content(self, column: str, row: int) -> bytes:
        """Return the encoded image of a row.

        Raises:
            ImageError: there is no such row, or it holds no image.
        """
        if not 0 <= row < len(self):
            raise ImageError(f"the table has {len(self):,} rows, and no row {row}")
        number = bisect.bisect_right(self._ends, row)
        group = _groups.get(
            (self.blob.place, self.blob.stamp, column, number), lambda: self._read(column, number)
        )
        value = group[row - (self._ends[number - 1] if number else 0)].as_py()
        if value is None:
            raise ImageError("the row holds no image")
        return bytes(value)

    def _read(self, column: str, number: int) -> pa.Array:
        with self._lock:
            table = self._file.read_row_group(number, columns=[column])
        found = table.column(0)
        if pa.types.is_struct(found.type):
            found = pa.chunked_array([_bytes_of(part) for part in found.chunks])
        return found.cast(pa.large_binary()).combine_chunks()


def _bytes_of(column: pa.StructArray) -> pa.Array:
    """Return the bytes of `{bytes, path}`, null where the struct is."""
    return pc.if_else(column.is_valid(), column.field("bytes"), None)


def is_encoded(kind: pa.DataType) -> bool:
    """Return whether a column of this type can hold encoded images of `{bytes, path}`."""
    return pa.types.is_struct(kind) and any(
        field.name == "bytes" and is_bytes(field.type) for field in kind
    )


def is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))
