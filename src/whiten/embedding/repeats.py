"""Embed equal contents once: keep the embeddings of those that may come again."""

from __future__ import annotations

import contextlib
import tempfile
import weakref
from collections.abc import Iterable
from typing import IO

import numpy as np
import numpy.typing as npt

from whiten.utils.arrays import Vectors


class Repeats:
    """Embeddings by content hash, in a temporary file without a name."""

    def __init__(self, dim: int) -> None:
        self._file = tempfile.TemporaryFile(prefix="whiten-")  # noqa: SIM115 - closed with this
        weakref.finalize(self, _close, self._file)
        self._dim = dim
        self._slots: dict[str, int] = {}

    def __contains__(self, digest: str) -> bool:
        return digest in self._slots

    def add(self, digest: str, embedding: Vectors) -> None:
        """Keep the (dim,) float32 embedding of a content, unless it is kept already."""
        if digest in self._slots:
            return
        slot = len(self._slots)
        self._file.seek(4 * self._dim * slot)
        self._file.write(np.ascontiguousarray(embedding, np.float32).tobytes())
        self._slots[digest] = slot

    def __getitem__(self, digest: str) -> Vectors:
        """Return the (dim,) float32 embedding of a content; raises KeyError if it is not kept."""
        self._file.seek(4 * self._dim * self._slots[digest])
        return np.frombuffer(self._file.read(4 * self._dim), np.float32)


def _close(file: IO[bytes]) -> None:
    """Close a file whose content nobody needs; on a full disk its last part cannot be written."""
    with contextlib.suppress(OSError):
        file.close()


def may_repeat(sizes: Iterable[int | None]) -> npt.NDArray[np.bool_]:
    """Return which files, (n,), may have the content of another: those of equal size.

    Args:
        sizes: bytes per file; None if unknown.
    """
    known = np.fromiter((-1 if size is None else size for size in sizes), np.int64)
    _, numbers, counts = np.unique(known, return_inverse=True, return_counts=True)
    shared: npt.NDArray[np.bool_] = (counts[numbers] > 1) | (known < 0)
    return shared
