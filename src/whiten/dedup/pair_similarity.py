"""Similarity of two items of a collection: vectors by cosine, sets of vectors by chamfer.

Both are computed block by block, so that the matrix of all pairs is never in memory, and both can
compute a single pair in float64, so that comparisons with a threshold do not depend on the blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from whiten.errors import ConfigError
from whiten.retrieval.sets import set_similarity
from whiten.utils.arrays import Vectors, has_direction
from whiten.utils.memory import forget

Rows = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]

BLOCK_ROWS = 2048  # a product of two blocks takes 16 MB
_BLOCK_FRAMES = 2048  # total over the videos of a block
_EXACT_BYTES = 8 << 20  # of rows compared in float64 at once
_EPSILON = 2.0**-24  # relative rounding error of float32


class PairSimilarity(Protocol):
    """A symmetric similarity of `len` items, from -1 to 1.

    Attributes:
        blocks: consecutive slices of items to compare at once.
        rounding: maximum difference between a block's float32 values and `exact`.
    """

    blocks: list[slice]
    rounding: float

    def __len__(self) -> int: ...
    def part(self, count: int) -> PairSimilarity:
        """Return the similarity of only the first `count` items."""

    def load(self, rows: slice | Rows) -> Any:
        """Load items for `product`."""

    def product(self, one: Any, other: Any) -> Vectors:
        """Return (a, b) similarities of loaded items; the next product may overwrite them."""

    def exact(self, one: Rows, other: Rows) -> Doubles:
        """Return (p,) float64 similarities of the pairs (one[i], other[i])."""


class VectorSimilarity:
    """Cosine similarity of the rows of (n, d) vectors.

    Args:
        vectors: (n, d) of any float type, may be a memory map; rows need not be normalised.
        block_rows: rows per block.

    Raises:
        ConfigError: the shape is wrong, or a row is zero, NaN or infinite.
    """

    def __init__(self, vectors: npt.NDArray[Any], block_rows: int = BLOCK_ROWS) -> None:
        if vectors.ndim != 2:
            raise ConfigError(f"vectors of shape {vectors.shape}: pass (n, d), a row for each item")
        self.vectors = vectors
        self.blocks = [
            slice(start, min(start + block_rows, len(vectors)))
            for start in range(0, len(vectors), block_rows)
        ]
        # Worst-case error of summation in any order for unit vectors (Higham 2002, 3.1).
        self.rounding = (vectors.shape[1] + 4) * _EPSILON
        self._room = np.empty(0, np.float32)  # reused for every product
        for block in self.blocks:
            norms = _norms(self._read(block))
            if not (np.isfinite(norms) & (norms > 0)).all():
                bad = block.start + int((~(np.isfinite(norms) & (norms > 0))).argmax())
                raise ConfigError(
                    f"vector {bad} is zero or holds NaN or infinity: embed that item again or "
                    "leave it out"
                )

    def __len__(self) -> int:
        return len(self.vectors)

    def part(self, count: int) -> VectorSimilarity:
        return VectorSimilarity(self.vectors[:count])

    def load(self, rows: slice | Rows) -> Vectors:
        part = self._read(rows)
        # The squares of huge or tiny entries do not fit into float32.
        norms = _norms(part).astype(np.float32)[:, None]
        unit: Vectors = np.divide(part, norms, dtype=np.float32)
        return unit

    def product(self, one: Vectors, other: Vectors) -> Vectors:
        if self._room.size < len(one) * len(other):
            self._room = np.empty(len(one) * len(other), np.float32)
        out = self._room[: len(one) * len(other)].reshape(len(one), len(other))
        with np.errstate(invalid="ignore"):  # see `set_similarity`
            product: Vectors = np.matmul(one, other.T, out=out)
        return product

    def exact(self, one: Rows, other: Rows) -> Doubles:
        out = np.empty(len(one))
        step = max(1, _EXACT_BYTES // (8 * max(1, self.vectors.shape[1])))
        for start in range(0, len(one), step):
            part = slice(start, start + step)
            a, b = (np.asarray(self.vectors[rows[part]], np.float64) for rows in (one, other))
            out[part] = np.einsum("ij,ij->i", a, b) / (_norms(a) * _norms(b))
        return out

    def _read(self, rows: slice | Rows) -> npt.NDArray[Any]:
        part = self.vectors[rows]
        if isinstance(rows, slice):
            copy = part.astype(np.float32)
            forget(part)
            return copy
        return part.astype(np.float32, copy=False)


class SetSimilarity:
    """Symmetric chamfer similarity of sets of vectors, such as the frames of videos.

    The mean of both directions: for each frame of one set the best frame of the other, averaged,
    and vice versa.

    Args:
        frames: (sum of lengths, d), sets concatenated; may be a memory map.
        lengths: (n,) vectors per set, at least 1.

    Raises:
        ConfigError: a set is empty, or lengths do not match.
    """

    def __init__(
        self, frames: npt.NDArray[Any], lengths: Sequence[int] | Rows, most: int = _BLOCK_FRAMES
    ) -> None:
        self.frames = frames
        self.lengths = np.asarray(lengths, np.int64)
        self.ends = np.cumsum(self.lengths)
        if len(self.lengths) and (self.lengths.min() < 1 or self.ends[-1] != len(frames)):
            raise ConfigError(
                f"{len(frames)} frames do not make sets of {self.lengths.tolist()[:5]}…: every "
                "set has at least one, and lengths sum to the frames"
            )
        self.rounding = (frames.shape[1] + 8) * _EPSILON
        self.blocks: list[slice] = []
        first = 0
        while first < len(self.lengths):
            start = self.ends[first] - self.lengths[first]
            stop = max(first + 1, int(self.ends.searchsorted(start + most, "right")))
            self.blocks.append(slice(first, stop))
            first = stop

    def __len__(self) -> int:
        return len(self.lengths)

    def part(self, count: int) -> SetSimilarity:
        lengths = self.lengths[:count]
        return SetSimilarity(self.frames[: lengths.sum()], lengths)

    def load(self, rows: slice | Rows) -> tuple[Vectors, Rows]:
        wanted = np.arange(len(self))[rows]
        if not len(wanted):
            return np.zeros((0, self.frames.shape[1]), np.float32), wanted
        starts, lengths = self.ends[wanted] - self.lengths[wanted], self.lengths[wanted]
        if isinstance(rows, slice):
            part = self.frames[starts[0] : starts[-1] + lengths[-1]]
            frames = part.astype(np.float32)
            forget(part)
            return frames, lengths
        parts = [self.frames[s : s + n] for s, n in zip(starts, lengths, strict=True)]
        return np.concatenate(parts).astype(np.float32, copy=False), lengths

    def product(self, one: tuple[Vectors, Rows], other: tuple[Vectors, Rows]) -> Vectors:
        there = set_similarity(*one, *other)
        back = there if one is other else set_similarity(*other, *one)
        both: Vectors = (there + back.T) * np.float32(0.5)
        return both

    def exact(self, one: Rows, other: Rows) -> Doubles:
        out = np.empty(len(one))
        for place, pair in enumerate(zip(one.tolist(), other.tolist(), strict=True)):
            a, b = (
                np.asarray(self.frames[self.ends[i] - self.lengths[i] : self.ends[i]], np.float64)
                for i in pair
            )
            product = (a / _norms(a)[:, None]) @ (b / _norms(b)[:, None]).T
            out[place] = (product.max(axis=1).mean() + product.max(axis=0).mean()) / 2
        return out


def usable_rows(vectors: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Return which rows, (n,), have a cosine to others, see `has_direction`; read by blocks."""
    usable = np.ones(len(vectors), bool)
    for start in range(0, len(vectors), BLOCK_ROWS):
        block = vectors[start : start + BLOCK_ROWS]
        usable[start : start + BLOCK_ROWS] = has_direction(block)
        forget(block)
    return usable


def _norms(rows: npt.NDArray[Any]) -> Doubles:
    norms: Doubles = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))
    return norms
