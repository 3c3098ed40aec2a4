"""Similarities of sets of vectors, such as videos given by their frames.

The five similarities of the SVD benchmark's published evaluation (Jiang et al., ICCV 2019, and Ma
et al., AAAI 2024). All are computed by matrix products without padding: for `sme` the mean over all
pairs is the product of the two means; for `cf` and `smx` one product of all frames is reduced block
by block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from whiten.errors import ConfigError, nearest
from whiten.utils.arrays import Vectors, as_numpy, mended_norms

SET_SIMILARITIES = {
    "cf": "chamfer: mean over the query's frames of the best of the candidate's",
    "sme": "mean of all pairs of frames",
    "smx": "best of all pairs of frames",
    "fme": "cosine of the mean frames",
    "fmx": "cosine of the frames pooled by maximum",
}

Counts = npt.NDArray[np.int64]

# Frames per block: enough for full BLAS speed, few enough for a product of 25 MB.
_QUERY_FRAMES = 4096
_FRAMES = 1536


def set_similarity(
    query_frames: npt.NDArray[Any],
    query_lengths: Sequence[int] | npt.NDArray[Any],
    candidate_frames: npt.NDArray[Any],
    candidate_lengths: Sequence[int] | npt.NDArray[Any],
    kind: str = "cf",
) -> Vectors:
    """Compute the similarity of each query to each candidate, both sets of vectors.

    Frames are L2-normalised first; for `fme` and `fmx` they are pooled as they are, and the pooled
    vectors are normalised. Working memory does not grow with the number of videos: about 30 MB at
    512 dimensions.

    Args:
        query_frames: (sum of query_lengths, d), videos concatenated.
        query_lengths: (Q,) frames per query, at least 1.
        candidate_frames: (sum of candidate_lengths, d), likewise; may be a memory map.
        candidate_lengths: (C,) frames per candidate, at least 1.
        kind: `cf` chamfer, the mean over the query's frames of the best candidate frame, which is
            not symmetric; `sme` the mean and `smx` the maximum over all pairs of frames; `fme` and
            `fmx` the cosine of mean-pooled and of max-pooled frames.

    Returns:
        (Q, C) float32.

    Raises:
        ConfigError: the kind is unknown, a video has no frames, or shapes do not match.
    """
    if kind not in SET_SIMILARITIES:
        raise ConfigError(
            f"unknown set similarity {kind!r}{nearest(kind, SET_SIMILARITIES)}: choose one of "
            f"{', '.join(SET_SIMILARITIES)}"
        )
    queries = _Sets(query_frames, query_lengths, "query")
    candidates = _Sets(candidate_frames, candidate_lengths, "candidate")
    if queries.dim != candidates.dim:
        raise ConfigError(
            f"query frames have {queries.dim} dimensions and candidate frames {candidates.dim}: "
            "embed both with the same model"
        )
    if kind in ("cf", "smx"):
        return _best_frames(queries, candidates, kind)
    return _product(queries.pooled(kind), candidates.pooled(kind).T)


class _Sets:
    """Sets of vectors, concatenated."""

    def __init__(
        self,
        frames: npt.NDArray[Any],
        lengths: Sequence[int] | npt.NDArray[Any],
        what: str,
    ) -> None:
        self.frames = frames if isinstance(frames, np.memmap) else as_numpy(frames)
        self.lengths: Counts = np.asarray(lengths, np.int64)
        if self.frames.ndim != 2 or self.lengths.ndim != 1:
            raise ConfigError(
                f"{what} frames of shape {self.frames.shape} and lengths of shape "
                f"{self.lengths.shape}: pass (frames, d) and (videos,)"
            )
        if len(self.lengths) and self.lengths.min() < 1:
            empty = int(self.lengths.argmin())
            raise ConfigError(
                f"{what} {empty} has {self.lengths[empty]} frames: leave videos without frames out"
            )
        if self.lengths.sum() != len(self.frames):
            raise ConfigError(
                f"{what} lengths sum to {self.lengths.sum()}, but there are {len(self.frames)} "
                "frames: pass the frames of all videos, one after the other"
            )
        self.ends: Counts = np.cumsum(self.lengths)
        self.dim = int(self.frames.shape[1])

    def __len__(self) -> int:
        return len(self.lengths)

    def blocks(self, most: int) -> Iterator[tuple[slice, slice]]:
        """Yield (sets, their frames) with at most `most` frames in total, but at least one set."""
        first = 0
        while first < len(self):
            start = int(self.ends[first] - self.lengths[first])
            stop = max(first + 1, int(self.ends.searchsorted(start + most, "right")))
            yield slice(first, stop), slice(start, int(self.ends[stop - 1]))
            first = stop

    def normalized(self, rows: slice, room: Vectors | None = None) -> Vectors:
        """Return L2-normalised frames, written into `room` if given."""
        frames = self.frames[rows]
        return _normalized(frames, None if room is None else room[: len(frames)])

    def pooled(self, kind: str) -> Vectors:
        """Return (sets, d): mean of the normalised frames, or normalised mean or maximum."""
        out = np.empty((len(self), self.dim), np.float32)
        for sets, rows in self.blocks(_FRAMES):
            frames = self.normalized(rows) if kind == "sme" else self.frames[rows]
            starts = self.ends[sets] - self.lengths[sets] - rows.start
            reduce = np.maximum if kind == "fmx" else np.add
            out[sets] = reduce.reduceat(frames, starts, axis=0, dtype=np.float32)
        if kind != "sme":
            return _normalized(out)
        out /= self.lengths[:, None]
        return out


def _best_frames(queries: _Sets, candidates: _Sets, kind: str) -> Vectors:
    """Compute `cf` and `smx`: each query frame's best frame per candidate, then reduced.

    Candidate frames are the rows of the products, so that the maximum over a candidate's frames
    runs along contiguous rows.
    """
    out = np.empty((len(queries), len(candidates)), np.float32)
    room = np.empty(
        _most_rows(queries, _QUERY_FRAMES) * _most_rows(candidates, _FRAMES), np.float32
    )
    # Reused: fresh memory would have to be mapped for every block.
    unit = np.empty((_most_rows(candidates, _FRAMES), candidates.dim), np.float32)
    for asked, own in queries.blocks(_QUERY_FRAMES):
        frames = np.asarray(queries.frames[own], np.float32)
        # The best candidate frame does not depend on the length of the query's.
        scale = 1 / _lengths(frames)
        starts = queries.ends[asked] - queries.lengths[asked] - own.start
        for some, rows in candidates.blocks(_FRAMES):
            shape = (rows.stop - rows.start, len(frames))
            product = room[: shape[0] * shape[1]].reshape(shape)
            _product(candidates.normalized(rows, unit), frames.T, out=product)
            best = np.empty((some.stop - some.start, len(frames)), np.float32)
            first = 0
            for row, length in enumerate(candidates.lengths[some].tolist()):
                np.max(product[first : first + length], axis=0, out=best[row])
                first += length
            best *= scale
            if kind == "smx":
                out[asked, some] = np.maximum.reduceat(best, starts, axis=1).T
            else:
                sums = np.add.reduceat(best, starts, axis=1)
                out[asked, some] = (sums / queries.lengths[asked]).T
    return out


def _product(a: Vectors, b: Vectors, out: Vectors | None = None) -> Vectors:
    # BLAS kernels also compute on memory next to a small matrix and discard it: a floating-point
    # warning from there says nothing about the product.
    with np.errstate(invalid="ignore"):
        product: Vectors = np.matmul(a, b, out=out)
    return product


def _most_rows(sets: _Sets, most: int) -> int:
    return max((rows.stop - rows.start for _, rows in sets.blocks(most)), default=0)


def _normalized(rows: npt.NDArray[Any], out: Vectors | None = None) -> Vectors:
    values = rows.astype(np.float32, copy=False)
    return np.divide(values, _lengths(values)[:, None], out=out)


def _lengths(rows: Vectors) -> Vectors:
    """Return (n,) Euclidean lengths, slightly above 0 for zero rows."""
    lengths: Vectors = mended_norms(np.sqrt(np.einsum("ij,ij->i", rows, rows)), rows)
    return np.maximum(lengths, np.finfo(np.float32).tiny)
