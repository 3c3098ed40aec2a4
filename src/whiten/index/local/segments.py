"""A segment of an index: rows and vectors that were added together, never changed after that.

A folder with `vectors.f32` (rows of little-endian float32) and `rows.arrows` (an Arrow stream).
Both grow batch by batch, the vectors first, so that of a segment whose writing was killed the
whole batches can still be read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa

from whiten.errors import StoreError
from whiten.index.rows import Block, Facts, as_of
from whiten.utils.arrays import Vectors

VECTORS = "vectors.f32"
ROWS = "rows.arrows"
_KEY = b"whiten"


class Segment:
    """An open segment, read from mapped files.

    Attributes:
        rows: (n,) with the columns of its time.
        vectors: (n, dim) float32.
    """

    def __init__(self, folder: Path, rows: pa.Table, vectors: Vectors) -> None:
        self.folder = folder
        self.rows = rows
        self.vectors = vectors

    def __len__(self) -> int:
        return len(self.rows)

    @classmethod
    def open(cls, folder: Path, facts: Facts, count: int) -> Segment:
        """Open a complete segment.

        Raises:
            StoreError: it is damaged.
        """
        problem = f"{folder} is damaged (%s): delete the index and index again"
        try:
            table = pa.ipc.open_stream(pa.memory_map(str(folder / ROWS))).read_all()
            shape = ((folder / VECTORS).stat().st_size // (4 * facts.dim), facts.dim)
            if not len(table) == shape[0] == count:
                raise StoreError(problem % "its parts do not fit")
            vectors = np.memmap(folder / VECTORS, "<f4", "r", shape=shape)
            return cls(folder, as_of(table, facts), vectors)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise StoreError(problem % error) from error

    @classmethod
    def salvage(cls, folder: Path, facts: Facts) -> Block | None:
        """The whole batches of a segment that was being written; None of another model."""
        batches = []
        try:
            with pa.OSFile(str(folder / ROWS)) as file:
                reader = pa.ipc.open_stream(file)
                if json.loads(reader.schema.metadata[_KEY]) != [facts.model, facts.dim]:
                    return None
                for batch in reader:
                    batches.append(batch)
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
            pass  # here it was killed
        if not batches:
            return None
        rows = as_of(pa.Table.from_batches(batches), facts)
        shape = (len(rows), facts.dim)
        path = folder / VECTORS
        if not len(rows) or not path.is_file() or path.stat().st_size < 4 * len(rows) * facts.dim:
            return None
        return Block(rows, np.memmap(path, "<f4", "r", shape=shape))


class SegmentWriter:
    """Writes a segment; a context.

    What an exception or a kill ends leaves a folder that `Segment.salvage` reads.
    """

    def __init__(self, folder: Path, facts: Facts) -> None:
        self.folder = folder
        self.ids: list[str] = []
        self._facts = facts

    def __enter__(self) -> SegmentWriter:
        self.folder.mkdir()
        made = json.dumps([self._facts.model, self._facts.dim]).encode()
        self._schema = self._facts.schema().with_metadata({_KEY: made})
        self._vectors = (self.folder / VECTORS).open("wb")
        self._file = (self.folder / ROWS).open("wb")
        self._rows = pa.ipc.new_stream(self._file, self._schema)
        return self

    def append(self, block: Block) -> None:
        """Write one batch; it is on its way to the disk when this returns."""
        vectors = np.ascontiguousarray(block.vectors, "<f4")
        self._vectors.write(vectors.tobytes())
        self._vectors.flush()
        for batch in block.rows.cast(self._schema).combine_chunks().to_batches():
            self._rows.write_batch(batch)
        self._file.flush()
        self.ids += block.rows["id"].to_pylist()

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
                os.fsync(file.fileno())
            file.close()
