"""Embeddings on disk: a folder of Parquet shards that is appended to, resumed and streamed.

A shard is written under a temporary name and renamed, so a kill leaves complete shards or none. Its
metadata record the model, weights, preprocessing and view plan; other embeddings are refused with
the difference named. Images that could not be embedded are recorded in the shard of their
neighbours, so that a resumed run continues exactly where an uninterrupted one would be.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from whiten.datasets.collection import Items
from whiten.errors import LockedError, StoreError
from whiten.media import colour
from whiten.media.reading import Skipped
from whiten.store.places import is_place, prepare, remove_shard, shard_paths
from whiten.store.shards import (
    Origin,
    Row,
    Seen,
    Shard,
    read_columns,
    read_seen,
    read_shard,
    rewrite_shard,
    write_shard,
)
from whiten.utils.arrays import Vectors
from whiten.utils.names import NameIndex
from whiten.utils.urls import as_path
from whiten.views.plan import agree

_log = logging.getLogger(__name__)


class Store:
    """A folder of shards, open for reading and appending."""

    def __init__(self, folder: Path, origin: Origin, shards: list[Shard]) -> None:
        self.folder = folder
        self.origin = origin
        self.shards = shards

    # --- opening ------------------------------------------------------------------------

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Store:
        """Open an existing store.

        Raises:
            StoreError: there is no store, a file is foreign, a shard is damaged, or shards are of
                different models.
        """
        root = as_path(folder)
        if not is_place(root):
            raise StoreError(f"{root} is not a store: make one with `whiten embed … --out {root}`")
        paths = shard_paths(root)
        if not paths:
            raise StoreError(f"{root} holds no embeddings yet: run `whiten embed … --out {root}`")
        opened = [read_shard(path) for path in paths]
        origin = next((o for o, _ in opened if o.plan), opened[0][0])
        for other, shard in opened:
            _refuse_other(origin, other, shard.path)
        return cls(root, origin, [shard for _, shard in opened])

    @classmethod
    def create_or_resume(cls, folder: str | os.PathLike[str], origin: Origin) -> Store:
        """Open a store for appending embeddings of `origin`, or create one.

        Raises:
            StoreError: the folder holds something else, or embeddings of another origin.
        """
        root = as_path(folder)
        prepare(root)
        if not shard_paths(root):
            return cls(root, origin, [])
        store = cls.open(root)
        _refuse_other(store.origin, origin, root)
        store.origin = origin
        return store

    # --- writing ------------------------------------------------------------------------

    def append(
        self,
        rows: Sequence[Row],
        skipped: Sequence[Skipped] = (),
        seen: Mapping[str, Seen] | None = None,
    ) -> None:
        """Write one shard atomically.

        Args:
            rows: embeddings to write.
            skipped: images that could not be embedded.
            seen: state of the images' files, by id; for images with rows only the stamp is used.
        """
        number = 1 + max((_shard_number(s.path) for s in self.shards), default=-1)
        path = self.folder / f"part-{number:06d}.parquet"
        try:
            self.shards.append(write_shard(path, self.origin, rows, skipped, seen or {}))
        except FileExistsError:
            raise LockedError(
                f"another process writes to {self.folder}: one at a time can; what it wrote is "
                "kept, run again once it is done"
            ) from None

    def amend(
        self,
        shard: Shard,
        *,
        drop: Collection[str] = (),
        forget: Collection[str] = (),
        found: Mapping[str, Seen] | None = None,
        colours: int | None = None,
    ) -> None:
        """Rewrite a shard that is out of date; its other vectors keep their bytes.

        Args:
            drop: ids whose files now hold another image.
            forget: ids that are no longer skipped.
            found: the new state, by id, of unchanged images that were moved or touched.
            colours: the version of colours of the rows that are left; unchanged by default.
        """
        place = self.shards.index(shard)
        if set(shard.ids) <= set(drop) and {skip.id for skip in shard.skipped} <= set(forget):
            remove_shard(shard.path)
            del self.shards[place]
            return
        self.shards[place] = rewrite_shard(
            shard,
            drop=drop,
            forget=forget,
            found=found or {},
            colours=shard.colours if colours is None else colours,
        )

    def say_colours(self) -> None:
        """Log what to do if its images may have colours that were ignored."""
        if any(shard.colours < colour.VERSION for shard in self.shards):
            _log.warning(
                "%s was made when colour profiles were ignored: run `whiten embed` again on its "
                "images, which embeds those with a profile other than sRGB again",
                self.folder,
            )

    # --- reading ------------------------------------------------------------------------

    def __len__(self) -> int:
        return sum(len(shard) for shard in self.shards)

    @property
    def dim(self) -> int:
        return self.origin.dim

    @property
    def skipped(self) -> list[Skipped]:
        return [skip for shard in self.shards for skip in shard.skipped]

    def blocks(self, view: int | None = None) -> Iterator[tuple[list[str], list[int], Vectors]]:
        """Yield `(ids, views, embeddings (n, dim) float32)`, one shard in memory at a time."""
        for shard in self.shards:
            ids, views = shard.ids, shard.views
            if view is not None and view not in views:
                continue
            vectors = self.vectors(shard)
            if view is not None:
                keep = [i for i, v in enumerate(views) if v == view]
                ids, views, vectors = [ids[i] for i in keep], [view] * len(keep), vectors[keep]
            yield ids, views, vectors

    def gather(self, ids: Sequence[str], view: int = 0) -> Vectors:
        """Return embeddings of one view in the order of `ids`: (len(ids), dim) float32.

        Raises:
            StoreError: an id is not in the store.
        """
        index = NameIndex(pa.array(list(dict.fromkeys(ids)), pa.large_string()))
        out = np.empty((len(index), self.dim), np.float32)
        is_there = np.zeros(len(index), bool)
        for names, _, vectors in self.blocks(view):
            rows = index.rows(names)
            here = rows >= 0
            out[rows[here]], is_there[rows[here]] = vectors[here], True
        if not is_there.all():
            first = index.names[int(is_there.argmin())].as_py()
            raise StoreError(
                f"{self.folder} lacks {int((~is_there).sum())} of {len(index)} images "
                f"(view {view}), first {first!r}: embed them with `whiten embed`"
            )
        return out if len(index) == len(ids) else out[index.rows(ids)]

    def seen(self, shard: Shard) -> dict[str, Seen]:
        """Return the state of each image's file in a shard, by id; skipped images have no path."""
        return read_seen(shard)

    def content_hashes(self, images: NameIndex) -> pa.Array:
        """Return the content hash of each image; null for those that are missing."""
        sources, parts, count = np.full(len(images), -1, np.int64), [], 0
        for shard in self.shards:
            rows = images.rows(shard.ids)
            here = np.flatnonzero(rows >= 0)
            sources[rows[here]] = count + np.arange(len(here))
            column = read_columns(shard.path, ["content_hash"])["content_hash"]
            parts.append(column.combine_chunks().take(pa.array(here)))
            count += len(here)
        order = pa.array(sources, mask=sources < 0)
        return pa.concat_arrays(parts).take(order)

    def has(self, images: NameIndex, views: Sequence[int]) -> npt.NDArray[np.bool_]:
        """Return a mask, (images, views), of the stored embeddings."""
        found = np.zeros((len(images), len(views)), bool)
        for shard in self.shards:
            rows = images.rows(shard.ids)
            numbers = shard.numbers.to_numpy()
            for column, view in enumerate(views):
                found[rows[(numbers == view) & (rows >= 0)], column] = True
        return found

    def skipped_of(self, images: NameIndex) -> list[Skipped]:
        """Return the given images that could not be embedded, with the reason."""
        skipped = self.skipped
        rows = images.rows([skip.id for skip in skipped])
        return [skip for skip, row in zip(skipped, rows, strict=True) if row >= 0]

    def vectors(self, shard: Shard) -> Vectors:
        """Read all embeddings of a shard: (rows, dim) float32."""
        column = read_columns(shard.path, ["embedding"])["embedding"]
        flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
        vectors: Vectors = flat.reshape(-1, self.dim).astype(np.float32)
        return vectors


def embedded_by_all(
    items: Items, stores: Sequence[Store], views: Sequence[int] = (0,)
) -> tuple[Items, list[Skipped]]:
    """Return the items that every store holds in every view, and the others with the reason."""
    usable = np.ones(len(items), bool)
    skipped: dict[str, Skipped] = {}
    for store in stores:
        usable &= store.has(items.by_id, views).all(axis=1)
        skipped |= {skip.id: skip for skip in store.skipped_of(items.by_id)}
    return items if usable.all() else items.take(usable), list(skipped.values())


def stored_origin(folder: str | os.PathLike[str]) -> Origin | None:
    """Return the origin of a store's first shard; None if there is no store yet."""
    root = as_path(folder)
    paths = shard_paths(root) if is_place(root) else []
    return read_shard(paths[0])[0] if paths else None


def _shard_number(path: Path) -> int:
    return int(path.stem.removeprefix("part-"))


def _refuse_other(stored: Origin, wanted: Origin, place: Path) -> None:
    differences = {
        "fingerprint": "model",
        "plan": "view plan",
        "dtype": "number type",
        "precision": "precision",
    }
    for name, what in differences.items():
        ours, theirs = getattr(stored, name), getattr(wanted, name)
        if not (agree(ours, theirs) if name == "plan" else ours == theirs):
            detail = {
                "fingerprint": f"{stored.uri} ({stored.fingerprint[:8]}), "
                f"not {wanted.uri} ({wanted.fingerprint[:8]})",
                "plan": f"plan {stored.plan[:8]} (seed {stored.plan_seed}), "
                f"not {wanted.plan[:8]} (seed {wanted.plan_seed})",
                "dtype": f"{stored.dtype}, not {wanted.dtype}",
                "precision": f"{stored.precision}, not {wanted.precision}",
            }[name]
            if name == "fingerprint" and stored.uri == wanted.uri:
                detail += " (its weights, source or preprocessing have changed, or an earlier "
                detail += "version did not look at all of them)"
            raise StoreError(
                f"{place} holds embeddings of another {what}, {detail}: "
                "name another folder, or delete this one"
            )
