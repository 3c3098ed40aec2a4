"""Embed images into a store. Decoding, augmentation and the forward pass overlap."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from whiten._version import __version__
from whiten.datasets.collection import Item, Items
from whiten.embedding.begun import Begun
from whiten.embedding.parts import make_parts
from whiten.embedding.repeats import Repeats, may_repeat
from whiten.embedding.row_makers import Computed, LookedUp, Render, RowMaker, Task
from whiten.errors import ConfigError, NoImagesError
from whiten.media.reading import Skipped, stamp_of
from whiten.models.stored_model import Model, StoredModel
from whiten.models.teacher import Teacher
from whiten.models.uri import lasting
from whiten.store.shards import Origin
from whiten.store.store import Store, stored_origin
from whiten.store.upkeep import bring_up_to_date, refuse_other_images
from whiten.utils.devices import computes_faster_in_bf16
from whiten.utils.names import name_codes, repeated
from whiten.views.plan import ViewPlan

if TYPE_CHECKING:
    from whiten.embedding.cluster import Cluster

SHARD_ROWS = 1024
_AT_ONCE = 8192  # images looked up at once

Progress = Callable[[int, int], None]
"""Called with (rows done, rows planned)."""


@dataclass(frozen=True)
class Summary:
    """Summary of a store and a collection.

    Attributes:
        embeddings: number of embeddings in the store, of all views and images.
        dim: embedding dimension.
        skipped: images of the collection that could not be embedded, with the reason.
        duplicates: groups of image ids with equal content.
        others: images of the store that are not in the collection, or not any more.
    """

    embeddings: int
    dim: int
    skipped: list[Skipped]
    duplicates: list[list[str]]
    others: int


def embed(
    items: Sequence[Item],
    teacher: Model,
    folder: str | os.PathLike[str],
    *,
    views: Sequence[int] = (0,),
    plan: ViewPlan | None = None,
    precision: str | None = None,
    dtype: str = "float32",
    workers: int | None = None,
    progress: Progress | None = None,
    render: Render | None = None,
    replace_others: bool = True,
    cluster: Cluster | None = None,
) -> Store:
    """Embed missing images and return the store.

    May be interrupted at any time and called again: it resumes, and the store's bytes equal those
    of an uninterrupted run. Images that changed since they were stored are embedded again; damaged
    ones are retried once their files have changed, those that could not be read at every call.
    Whole images of equal content are embedded once.

    Args:
        items: the images, with unique ids.
        teacher: the model.
        folder: the store, existing or new.
        views: views to embed per image; 0 is the whole image.
        plan: plan of the random views.
        precision: `32`, or `bf16` for devices that support it. By default that of an existing
            store, else 32; `auto` likewise, else bf16 if faster.
        dtype: `float32`, or `float16` for half the disk space.
        workers: number of decoding threads; by default one per core.
        progress: called after each batch.
        render: renders whole images in another way than the size of `teacher.preprocess`, one per
            batch, as sizes may differ; the teacher's `readout` must describe it.
        replace_others: whether an image replaces a stored one of the same id from another place, as
            in a cache; otherwise it is refused.
        cluster: computes the embeddings; this process writes them. Its nodes must reach the images
            by the same paths. `workers` is then the number of cores per replica of the model.

    Raises:
        NoImagesError: no image could be read.
        ClusterError: the cluster cannot go on; what it has embedded is kept.
        StoreError: the folder holds something else or embeddings of another model; or the teacher
            holds views of another plan; or images of another collection have these ids.
    """
    plan = plan or ViewPlan()
    if not items:
        raise NoImagesError("there are no images to embed: name a folder with images")
    plan_of_views = plan.fingerprint() if any(map(plan.is_random, views)) else ""
    if dtype not in ("float32", "float16"):
        raise ConfigError(f"dtype must be float32 or float16, not {dtype!r}")
    if precision is None or precision == "auto":
        precision = _default_precision(teacher, folder, wants_fast=precision == "auto")
    maker: RowMaker
    if isinstance(teacher, StoredModel):
        maker = LookedUp(teacher, plan, plan_of_views)
    else:
        maker = Computed(teacher, plan, render, bf16=precision == "bf16")
    origin = Origin(
        uri=lasting(teacher.uri),  # the store may be used from another folder
        fingerprint=_fingerprint(teacher, stored_origin(folder)),
        dim=teacher.dim,
        plan=plan_of_views,
        plan_seed=plan.seed,
        precision=precision,
        dtype=dtype,
        version=__version__,
    )
    store = Store.create_or_resume(folder, origin)
    items = Items.of(items)
    if not replace_others:
        refuse_other_images(store, items)
    bring_up_to_date(store, items, maker.usable(views))
    missing = ~store.has(items.by_id, views)
    missing[items.by_id.rows([skip.id for skip in store.skipped_of(items.by_id)])] = False
    planned = int(missing.sum())
    expected = missing.size  # not what is left: a resumed store has the same bytes
    done = 0

    def told(views: int) -> None:
        nonlocal done
        done += views
        if progress is not None:
            progress(done, planned)

    repeating = np.zeros(len(items), bool)
    if isinstance(maker, Computed) and render is None:
        repeating = _find_repeating(store, items, missing, maker.repeats)
    tasks = _cut(_tasks(items, missing, views, repeating))
    begun = Begun(store)
    if cluster is not None and isinstance(maker, Computed) and render is None and planned:
        parts = cluster.make_parts(tasks, maker, expected, workers, told)
    elif isinstance(maker, Computed) and planned:
        maker.expect(expected)
        started, tasks = begun.resume(tasks, maker, told)
        parts = make_parts(tasks, maker, workers, told, started, begun.save)
    else:
        parts = make_parts(tasks, maker, workers, told)
    for part in parts:
        store.append(part.rows, part.skipped, part.seen)
    begun.clear()
    if not any((items.by_id.rows(shard.ids) >= 0).any() for shard in store.shards):
        first = store.skipped_of(items.by_id)[0]
        raise NoImagesError(
            f"none of {len(items)} images could be embedded, first {first.id!r}: {first.reason}; "
            "name a folder with readable images"
        )
    return store


def summarize(store: Store, items: Sequence[Item]) -> Summary:
    """Summarise a store for the collection that it was made from."""
    items = Items.of(items)
    content = name_codes(store.content_hashes(items.by_id))
    is_copied = repeated(content)
    copies: dict[int, list[str]] = {}
    for item, number in zip(items.take(is_copied), content[is_copied].tolist(), strict=True):
        copies.setdefault(number, []).append(item.id)
    others = {
        name
        for shard in store.shards
        for name, row in zip(shard.ids, items.by_id.rows(shard.ids).tolist(), strict=True)
        if row < 0
    }
    return Summary(
        embeddings=len(store),
        dim=store.dim,
        skipped=store.skipped_of(items.by_id),
        duplicates=[sorted(names) for names in copies.values()],
        others=len(others),
    )


def _tasks(
    items: Items,
    missing: npt.NDArray[np.bool_],
    views: Sequence[int],
    repeating: npt.NDArray[np.bool_],
) -> Iterator[Task]:
    """Yield the images with missing views in `missing`, (images, views), and these views."""
    rows = np.flatnonzero(missing.any(axis=1))
    for start in range(0, len(rows), _AT_ONCE):
        part = rows[start : start + _AT_ONCE]
        columns = (items.take(part), missing[part], repeating[part].tolist())
        for item, wanted, is_repeating in zip(*columns, strict=True):
            some = tuple(view for view, is_one in zip(views, wanted, strict=True) if is_one)
            yield Task(item, some, may_repeat=is_repeating)


def _find_repeating(
    store: Store, items: Items, missing: npt.NDArray[np.bool_], repeats: Repeats
) -> npt.NDArray[np.bool_]:
    """Return which images may have the content of another, (n,), by the size of their file.

    Args:
        missing: (n, views), the views that will be embedded; images without any are left out.
        repeats: gets the stored embeddings of contents that may come again.
    """
    rows = np.flatnonzero(missing.any(axis=1))
    stamps = [stamp_of(item.path) for item in items.take(rows)]
    sizes = [None if stamp is None else stamp.size for stamp in stamps]
    wanted, stored = set(sizes), set()
    for shard in store.shards if len(rows) else ():
        seen = store.seen(shard)
        near = {n for n, s in seen.items() if s.stamp is not None and s.stamp.size in wanted}
        if not near:
            continue
        for name, view, vector in zip(shard.ids, shard.views, store.vectors(shard), strict=True):
            if view == 0 and name in near:
                repeats.add(seen[name].content_hash, vector)
                stored.add(seen[name].stamp.size)  # type: ignore[union-attr]
    found = np.zeros(len(items), bool)
    found[rows] = may_repeat(sizes) | np.array([size in stored for size in sizes], bool)
    return found


def _cut(missing: Iterator[Task]) -> Iterator[Task]:
    """Cut the tasks into shards.

    Skipped images count towards a shard's size, so that a resumed run cuts where an uninterrupted
    one does.
    """
    waiting: Task | None = None
    size = 0
    for task in missing:
        if waiting is not None:
            is_full = size + len(task.views) > SHARD_ROWS
            yield replace(waiting, ends_shard=is_full)
            size = 0 if is_full else size
        waiting = task
        size += len(task.views)
    if waiting is not None:
        yield replace(waiting, ends_shard=True)


def _fingerprint(model: Model, stored: Origin | None) -> str:
    """Return the model's fingerprint; a store of an earlier version keeps the one it has."""
    if stored is not None and model.made(stored.uri, stored.fingerprint):
        return stored.fingerprint
    return model.fingerprint()


def _default_precision(model: Model, folder: str | os.PathLike[str], *, wants_fast: bool) -> str:
    if (stored := stored_origin(folder)) is not None:
        return stored.precision
    if not wants_fast or not isinstance(model, Teacher) or model.module is None:
        return "32"
    return "bf16" if computes_faster_in_bf16(model.module, model.device_type) else "32"


def store_folder(
    root: Path,
    teacher: Model,
    *,
    precision: str = "32",
    seed: int = 0,
    augment: str | None = None,
) -> Path:
    """Return a teacher's folder in the cache: a readable name, and a hash for uniqueness.

    Other precisions, view plans or seeds have their own folders, so that runs with different
    options can share a cache. The folder of an earlier version is used if this model made it.
    """
    suffixes = [precision] if precision != "32" else []
    suffixes += [augment] if augment not in (None, "light") else []
    suffixes += [f"seed{seed}"] if seed else []
    folder, earlier = (
        root / "-".join([f"{teacher.name}-{print_[:8]}".replace("/", "-"), *suffixes])
        for print_ in (teacher.fingerprint(), teacher.earlier_fingerprint())
    )
    if earlier != folder and not folder.exists() and (stored := stored_origin(earlier)) is not None:
        return earlier if teacher.made(stored.uri, stored.fingerprint) else folder
    return folder
