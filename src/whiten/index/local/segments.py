"""A segment of an index: rows and vectors that were added together, immutable after that.

A folder with `vectors.f32` (rows of little-endian float32) and `rows.arrows` (an Arrow stream).
Both grow batch by batch, vectors first, so that the complete batches of a killed write can still
be read. If an index stores codes, they are computed from the finished vectors, which are removed
once a manifest names the segment.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa

from whiten.errors import StoreError
from whiten.index.local.codes import Found
from whiten.index.local.storage.coded import (
    Coding,
    map_codes,
    scan_codes,
    stored,
    unit,
    write_codes,
)
from whiten.index.local.storage.reranked import Reranked
from whiten.index.rows import Block, Facts, as_of
from whiten.retrieval.exact import Mask, Nearest, Rows, scan
from whiten.utils.arrays import Array, Vectors
from whiten.utils.files import flush, written_out
from whiten.utils.memory import gather_rows

VECTORS = "vectors.f32"
ROWS = "rows.arrows"
_KEY = b"whiten"
_BATCH = 65536  # rows of a finished segment's batches
_MOST_BATCHES = 64  # of another size


class Segment:
    """An open segment, read from mapped files.

    Attributes:
        rows: (n,) with the columns at the time of writing.
        vectors: (n, dim) float32 as stored: storing these again changes nothing.
        unit: (n, dim) float32, the same L2-normalised, for scores.
    """

    def __init__(
        self,
        folder: Path,
        rows: pa.Table,
        vectors: Vectors | None,
        coding: Coding | None,
        codes: Array | None,
    ) -> None:
        self.folder = folder
        self.rows = rows
        self._coded = None if coding is None or codes is None else (coding.codec, codes)
        if vectors is not None:
            self.vectors = self.unit = vectors
        else:
            assert self._coded is not None
            self.vectors, self.unit = stored(*self._coded), unit(*self._coded)
        self._reranked = Reranked(*self._coded) if self._coded and vectors is not None else None

    def __len__(self) -> int:
        return len(self.rows)

    def search(self, queries: Vectors, k: int, allowed: Mask | None) -> Found | None:
        """Search codes and rescore the candidates by their vectors; None if `scan` does it."""
        if self._reranked is None:
            return None
        return self._reranked.search(queries, k, self.gather, allowed)

    def scan(self, queries: Vectors, nearest: Nearest, allowed: Mask | None, first: int) -> None:
        """Pass all or the allowed rows to `nearest`; see `whiten.retrieval.exact.scan`."""
        if self._coded is None:
            scan(queries, self.vectors, nearest, allowed, first)
        else:
            scan_codes(*self._coded, queries, nearest, allowed, first)

    def gather(self, rows: Rows) -> Vectors:
        """Return vectors by row: (r, dim) float32, L2-normalised."""
        return gather_rows(self.unit, rows)

    @classmethod
    def open(
        cls,
        folder: Path,
        facts: Facts,
        count: int,
        coding: Coding | None,
        lost: Sequence[str] = (),
    ) -> Segment:
        """Open a complete segment.

        Args:
            coding: storage of the vectors; None for float32.
            lost: columns whose values no longer count.

        Raises:
            StoreError: the segment is damaged.
        """
        problem = f"{folder} is damaged (%s): delete the index and index again"
        try:
            table = pa.ipc.open_stream(pa.memory_map(os.fsencode(folder / ROWS))).read_all()
            if len(table) != count:
                raise StoreError(problem % "its parts do not fit")
            table = table.select([name for name in table.schema.names if name not in lost])
            vectors = codes = None
            if coding is None or coding.keeps_vectors:
                shape = ((folder / VECTORS).stat().st_size // (4 * facts.dim), facts.dim)
                if shape[0] != count:
                    raise StoreError(problem % "its parts do not fit")
                vectors = np.memmap(folder / VECTORS, "<f4", "r", shape=shape)
            if coding is not None:
                codes = map_codes(folder / coding.file, coding.codec, count)
            return cls(folder, as_of(table, facts), vectors, coding, codes)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise StoreError(problem % error) from error

    @classmethod
    def salvage(cls, folder: Path, facts: Facts) -> Block | None:
        """Read the complete batches of an unfinished segment; None if it is of another model."""
        batches = []
        try:
            with pa.OSFile(os.fsencode(folder / ROWS)) as file:
                reader = pa.ipc.open_stream(file)
                if json.loads(reader.schema.metadata[_KEY]) != [facts.model, facts.dim]:
                    return None
                for batch in reader:
                    batches.append(batch)
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
            pass  # the writer was killed here
        if not batches:
            return None
        rows = as_of(pa.Table.from_batches(batches), facts)
        shape = (len(rows), facts.dim)
        path = folder / VECTORS
        if not len(rows) or not path.is_file() or path.stat().st_size < 4 * len(rows) * facts.dim:
            return None
        return Block(rows, np.memmap(path, "<f4", "r", shape=shape))


class SegmentWriter:
    """Writes a segment, as a context manager.

    An exception or a kill leaves a folder that `Segment.salvage` can read.

    Args:
        coding: storage of the vectors; None for float32.

    Attributes:
        count: number of rows so far.
    """

    def __init__(self, folder: Path, facts: Facts, coding: Coding | None) -> None:
        self.folder = folder
        self.count = 0
        self._ids: list[pa.ChunkedArray] = []  # a tenth of the memory of Python's texts
        self._facts = facts
        self._coding = coding

    def __enter__(self) -> SegmentWriter:
        self.folder.mkdir()
        made = json.dumps([self._facts.model, self._facts.dim]).encode()
        self._schema = self._facts.schema().with_metadata({_KEY: made})
        self._vectors = (self.folder / VECTORS).open("wb")
        self._file = (self.folder / ROWS).open("wb")
        self._rows = pa.ipc.new_stream(self._file, self._schema)
        return self

    def append(self, block: Block) -> None:
        """Write one batch and flush it to the operating system."""
        vectors = np.ascontiguousarray(block.vectors, "<f4")
        self._vectors.write(vectors.tobytes())
        self._vectors.flush()
        for batch in block.rows.cast(self._schema).combine_chunks().to_batches():
            self._rows.write_batch(batch)
        self._file.flush()
        self._ids.append(block.rows["id"])
        self.count += len(block.rows)

    def ids(self) -> list[str]:
        return [name for column in self._ids for name in column.to_pylist()]

    def write(self, blocks: Iterable[Block]) -> None:
        for block in blocks:
            if len(block.rows):
                self.append(block)

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        self._rows.close()
        for file in (self._vectors, self._file):
            file.flush()
            if kind is None:
                flush(file.fileno())
            file.close()
        if kind is None and len(self._ids) > _MOST_BATCHES:
            _join_batches(self.folder / ROWS, self._schema)
        if kind is None and self._coding is not None and self.count:
            shape = (self.count, self._facts.dim)
            vectors = np.memmap(self.folder / VECTORS, "<f4", "r", shape=shape)
            write_codes(self.folder / self._coding.file, self._coding.codec, vectors)


def _join_batches(path: Path, schema: pa.Schema) -> None:
    """Write the rows again in larger batches: opening ten million then takes a tenth of the time.

    A kill leaves the one file or the other.
    """
    rows = pa.ipc.open_stream(pa.memory_map(os.fsencode(path))).read_all()
    joined = path.with_name(f"{path.name}.partial")
    with written_out(joined) as file, pa.ipc.new_stream(file, schema) as stream:
        for start in range(0, len(rows), _BATCH):
            stream.write_table(rows.slice(start, _BATCH).combine_chunks())
    os.replace(joined, path)
