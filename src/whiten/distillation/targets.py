"""Turn cached teacher embeddings into training targets: whiten once, then read rows at random.

Targets are memory-mapped `.npy` files, so memory does not grow with the number of images, and all
processes of a distributed run read the same files.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from whiten.store.store import Store
from whiten.utils.arrays import Vectors, normalize_rows
from whiten.utils.files import renaming
from whiten.utils.memory import forget
from whiten.utils.names import NameIndex
from whiten.whitening.whitener import Whitener

_BLOCK = 8192


def write_targets(
    store: Store,
    images: NameIndex,
    views: Sequence[int],
    whitener: Whitener | None,
    path: Path,
    weight: float = 1.0,
) -> None:
    """Write (images, views, dim) float32 targets: whitened if requested, L2-normalised.

    Args:
        views: numbers of the views, one after the other.
        weight: weight of the teacher in fusions; the targets are multiplied by its square root.
    """
    dim = store.dim if whitener is None else whitener.projection_.shape[0]
    with _creating(path, (len(images), len(views), dim)) as out:
        for names, numbers, vectors in store.blocks():
            rows, view = images.rows(names), np.array(numbers) - views[0]
            keep = (rows >= 0) & (view >= 0) & (view < len(views))
            if not keep.any():
                continue
            block = vectors[keep]
            if whitener is not None:
                block = whitener.transform(block)
            out[rows[keep], view[keep]] = math.sqrt(weight) * normalize_rows(block)
            forget(out)


class Own(NamedTuple):
    """The student's own features among its teachers.

    Attributes:
        features: (n, views, f), cached.
        mapped: a map of (n, f) features to a length of about 1.
        share: share among the teachers, in [0, 1].
        start: a map of features to the joined space, the teachers first: what the student can know
            of them before it is trained.
    """

    features: Vectors
    mapped: Callable[[Vectors], npt.NDArray[Any]]
    share: float
    start: Callable[[Vectors], npt.NDArray[Any]]


def write_fused_targets(
    paths: Sequence[Path], dim: int, path: Path, own: Own | None = None
) -> Whitener:
    """Concatenate all teachers' targets and rotate them to `dim` dimensions by PCA.

    Args:
        paths: targets of the teachers, by `write_targets`; their weights have a mean of 1.
        path: gets the fused targets, (images, views, dim).
        own: the student's own features. With them the axes are those of its start, which wastes
            none on what it cannot know, and go through the origin: what all images have in common
            is part of what it knew.

    Returns:
        The rotation: with it, the student can query a gallery of the teachers' embeddings.
    """
    sources = [open_targets(source) for source in paths]
    items, views = sources[0].shape[:2]
    scale = 1.0 if own is None else math.sqrt((1 - own.share) / len(sources))

    def blocks() -> Iterator[tuple[slice, Vectors]]:
        for start in range(0, items, _BLOCK):
            part = slice(start, start + _BLOCK)
            joined = np.concatenate([source[part] for source in sources], axis=2)
            joined = (scale * joined.reshape(-1, joined.shape[2])).astype(np.float32)
            for source in sources:
                forget(source[part])
            if own is not None:
                features = own.features[part].reshape(-1, own.features.shape[2])
                mine = math.sqrt(own.share) * own.mapped(features)
                joined = np.hstack([joined, mine.astype(np.float32)])
                forget(own.features[part])
            yield part, joined

    def samples() -> Iterator[Vectors]:
        if own is None:
            yield from (block for _, block in blocks())
            return
        for start in range(0, items, _BLOCK):
            part = own.features[start : start + _BLOCK]
            output = own.start(part.reshape(-1, part.shape[2])).astype(np.float32)
            forget(part)
            yield output
            yield -output  # the mean is then 0

    width = next(blocks())[1].shape[1]
    rank = items - 1 if own is None else items * views
    rotation = Whitener(min(dim, width, rank), shrinkage=float("inf")).fit(samples())
    with _creating(path, (items, views, dim)) as out:
        for part, block in blocks():
            fused = normalize_rows(rotation.transform(block))
            out[part, :, : fused.shape[1]] = fused.reshape(-1, views, fused.shape[1])
            forget(out[part])
    return rotation


def open_targets(path: Path) -> npt.NDArray[np.float32]:
    """Memory-map the targets of `write_targets`: (items, views, dim)."""
    targets: npt.NDArray[np.float32] = np.load(path, mmap_mode="r")
    return targets


@contextmanager
def _creating(path: Path, shape: tuple[int, ...]) -> Iterator[npt.NDArray[np.float32]]:
    """Yield a zeroed `.npy` memory map that is renamed into place once complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with renaming(path) as partial:
        array = np.lib.format.open_memmap(partial, mode="w+", dtype=np.float32, shape=shape)
        if hasattr(os, "posix_fallocate"):
            # Writing to a hole of a mapped file would kill the process on a full disk.
            with partial.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, partial.stat().st_size)
        yield array
        array.flush()
