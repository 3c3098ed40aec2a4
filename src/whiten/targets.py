"""From cached teacher embeddings to training targets: whiten once, then read rows at random.

Everything lives on disk (`.npy` files that are memory-mapped), so memory stays flat however
many images there are, and every process of a distributed run reads the same files.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from whiten.choosing import DIMS, SHRINKAGES, Choice, choose, fit_chosen, sample_rows
from whiten.mapped import forget
from whiten.media import Items, NameIndex
from whiten.spec import fingerprint
from whiten.store import Store, Vectors
from whiten.whitening import SAMPLES_PER_DIM, Whitener, normalize_rows

_BLOCK = 8192


def fit_whiteners(
    stores: Sequence[Store],
    items: Items,
    *,
    dim: int | str,
    shrinkage: float | str,
    by_groups: bool = True,
    second_view: bool = False,
    seed: int = 0,
) -> tuple[list[Whitener], list[Choice | None]]:
    """One whitener a teacher, fitted on the whole images (view 0) of `items`.

    Args:
        stores: of the teachers.
        dim: axes to keep, or `auto`. A number is lowered to what the images support.
        shrinkage: see `Whitener`, or `auto`.
        by_groups: whether to choose by the items' groups, where they have any.
        second_view: whether the stores hold view 1 too.
        seed: of the choice's sample.

    Returns:
        The whiteners, and how each was chosen (None where nothing was left to choose).
    """
    choices: list[Choice | None] = [None] * len(stores)
    if "auto" in (dim, shrinkage):
        groups = items.groups if by_groups else None
        sampled = items.take(sample_rows(len(items), groups, seed))
        sample = sampled.ids.to_pylist()
        whole = [store.gather(sample) for store in stores]
        for number, store in enumerate(stores):
            choices[number] = choose(
                whole[number],
                groups=sampled.groups.to_pylist() if by_groups else None,
                others=[other for k, other in enumerate(whole) if k != number],
                second_views=store.gather(sample, view=1) if second_view else None,
                dims=DIMS if isinstance(dim, str) else [dim],
                shrinkages=SHRINKAGES if isinstance(shrinkage, str) else [shrinkage],
                seed=seed,
            )
    whiteners = []
    for store, choice in zip(stores, choices, strict=True):
        if choice is None:
            assert not isinstance(dim, str) and not isinstance(shrinkage, str)
            whiteners.append(fit_whitener(store, items.by_id, dim=dim, shrinkage=shrinkage))
        else:
            whiteners.append(_describe(fit_chosen(choice, _stream(store, items.by_id)), store))
    return whiteners, choices


def fit_whitener(store: Store, images: NameIndex, *, dim: int, shrinkage: float) -> Whitener:
    """Fit on the whole `images` (view 0), in one pass over the store.

    Args:
        dim: axes to keep; lowered to a quarter of the samples, for weaker axes are mostly noise.
        shrinkage: see `Whitener`.
    """
    dim = min(dim, store.dim, max(1, len(images) // SAMPLES_PER_DIM))
    return _describe(Whitener(dim, shrinkage=shrinkage).fit(_stream(store, images)), store)


def _stream(store: Store, images: NameIndex) -> Iterator[Vectors]:
    for names, _, vectors in store.blocks(view=0):
        keep = images.rows(names) >= 0
        if keep.any():
            yield vectors[keep]


def _describe(whitener: Whitener, store: Store) -> Whitener:
    whitener.metadata = {"model": store.origin.uri, "fingerprint": store.origin.fingerprint}
    return whitener


def write_targets(
    store: Store, images: NameIndex, views: int, whitener: Whitener | None, path: Path
) -> None:
    """Write (images, views, dim) float32 targets: whitened if asked, rows L2-normalised."""
    dim = store.dim if whitener is None else whitener.projection_.shape[0]
    with _Creation(path, (len(images), views, dim)) as out:
        for names, numbers, vectors in store.blocks():
            rows, view = images.rows(names), np.array(numbers)
            keep = (rows >= 0) & (view < views)
            if not keep.any():
                continue
            block = vectors[keep]
            if whitener is not None:
                block = whitener.transform(block)
            out.array[rows[keep], view[keep]] = normalize_rows(block)
            forget(out.array)


def write_fused_targets(
    paths: Sequence[Path], dim: int, path: Path, whitener_path: Path
) -> Whitener:
    """Concatenate all teachers' targets and rotate them to `dim` dimensions by PCA.

    The rotation is returned and saved: with it, the student can search a gallery of the teachers'
    embeddings.
    """
    sources = [open_targets(source) for source in paths]
    items, views = sources[0].shape[:2]
    width = sum(source.shape[2] for source in sources)

    def blocks() -> Iterator[tuple[slice, Vectors]]:
        for start in range(0, items, _BLOCK):
            part = slice(start, start + _BLOCK)
            joined = np.concatenate([source[part] for source in sources], axis=2)
            for source in sources:
                forget(source[part])
            yield part, joined.reshape(-1, width)

    rotation = Whitener(min(dim, width, items - 1), shrinkage=float("inf"))
    rotation.fit(block for _, block in blocks())
    rotation.save(whitener_path)
    with _Creation(path, (items, views, dim)) as out:
        for part, block in blocks():
            fused = normalize_rows(rotation.transform(block))
            out.array[part, :, : fused.shape[1]] = fused.reshape(-1, views, fused.shape[1])
            forget(out.array[part])
    return rotation


def fused_fingerprint(
    models: Sequence[str], whiteners: Sequence[Whitener | None], rotation: Whitener | None = None
) -> str:
    """Identity of fused embeddings: changes when any model, whitening or the rotation changes.

    Args:
        models: fingerprints.
        whiteners: of each model.
        rotation: of the concatenated embeddings.
    """
    facts = [list(models), [None if w is None else w.fingerprint() for w in whiteners]]
    return fingerprint(facts if rotation is None else [*facts, rotation.fingerprint()])


def open_targets(path: Path) -> npt.NDArray[np.float32]:
    """Memory-map targets that `write_targets` wrote: (items, views, dim)."""
    targets: npt.NDArray[np.float32] = np.load(path, mmap_mode="r")
    return targets


class _Creation:
    """A zeroed `.npy` memory map that gets its name once it is complete."""

    def __init__(self, path: Path, shape: Iterable[int]) -> None:
        self.path = path
        self.partial = path.with_name(f".{path.name}.partial")
        path.parent.mkdir(parents=True, exist_ok=True)
        self.array = np.lib.format.open_memmap(
            self.partial, mode="w+", dtype=np.float32, shape=tuple(shape)
        )
        if hasattr(os, "posix_fallocate"):
            # A write into a hole of a mapped file would kill the process when the disk is full.
            try:
                with self.partial.open("r+b") as file:
                    os.posix_fallocate(file.fileno(), 0, self.partial.stat().st_size)
            except OSError:
                self.partial.unlink()
                raise

    def __enter__(self) -> _Creation:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.array.flush()
        del self.array
        if kind is None:
            os.replace(self.partial, self.path)
        else:
            self.partial.unlink(missing_ok=True)
