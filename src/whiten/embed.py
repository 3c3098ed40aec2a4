"""Teacher or student × items -> store. Decoding, augmenting and the forward pass overlap."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from whiten import __version__
from whiten.errors import ConfigError, ImageError, NoImagesError, StoreError
from whiten.media import Item, Skipped, content_hash, display_path, ordered_map, read_bytes
from whiten.spec import ViewPlan
from whiten.store import Origin, Row, Store, stored_precision
from whiten.teachers.base import Teacher
from whiten.views import render_bytes

SHARD_ROWS = 1024  # at most this much work is lost by a kill
BATCH = 16  # larger batches leave the CPU's caches; a GPU gets more, see `_batch_size`

Progress = Callable[[int, int], None]
"""Called with (rows done, rows planned)."""


@dataclass(frozen=True)
class Task:
    """One image and the views of it that are wanted; `shard` counts planned shards."""

    item: Item
    views: tuple[int, ...]
    shard: int


@dataclass(frozen=True)
class Rendered:
    """A decoded image: its content's hash and (views, h, w, 3) uint8 pixels.

    Teachers that hold embeddings get no pixels.
    """

    content_hash: str
    pixels: npt.NDArray[np.uint8] | None


def embed(
    items: Sequence[Item],
    teacher: Teacher,
    folder: str | os.PathLike[str],
    *,
    views: Sequence[int] = (0,),
    plan: ViewPlan | None = None,
    precision: str | None = None,
    dtype: str = "float32",
    workers: int = 2,
    progress: Progress | None = None,
) -> Store:
    """Embed what is missing and return the store.

    May be interrupted at any time and called again: it goes on, and the store's bytes equal
    those of an uninterrupted run. Images that changed since they were stored are embedded anew.

    Args:
        items: the images, with unique ids.
        teacher: a teacher or student.
        folder: the store, existing or new.
        views: which views of every image; 0 is the whole image.
        plan: how random views are drawn.
        precision: `32`, or `bf16` for devices that compute in it; by default what an existing
            store was computed in, else 32.
        dtype: `float32`, or `float16` for half the disk space.
        workers: threads that decode.
        progress: told after every batch.

    Raises:
        NoImagesError: not one image could be read.
        StoreError: the folder holds something else, or another model's embeddings; or the teacher
            holds views of another plan.
    """
    plan = plan or ViewPlan()
    if not items:
        raise NoImagesError("there are no images to embed: name a folder with images")
    if max(views) > 0 and teacher.plan not in ("", plan.fingerprint()):
        raise StoreError(
            f"{teacher.uri} holds views of another view plan, {teacher.plan[:8]}, not "
            f"{plan.fingerprint()[:8]} (seed {plan.seed}): use the seed that it was made with, or "
            "whole images only"
        )
    if dtype not in ("float32", "float16"):
        raise ConfigError(f"dtype must be float32 or float16, not {dtype!r}")
    origin = Origin(
        uri=teacher.uri,
        fingerprint=teacher.fingerprint(),
        dim=teacher.dim,
        plan=plan.fingerprint() if max(views) > 0 else "",
        plan_seed=plan.seed,
        precision=precision or stored_precision(folder) or "32",
        dtype=dtype,
        version=__version__,
    )
    store = Store.create_or_resume(folder, origin)
    _drop_outdated(store, items)
    tasks = list(_missing(store, items, views))
    planned = sum(len(task.views) for task in tasks)
    done = 0

    def render(task: Task) -> Rendered | Skipped:
        try:
            data = read_bytes(task.item.path)
            digest = content_hash(data)
            if teacher.lookup is not None:
                return Rendered(digest, None)
            stack = [
                render_bytes(data, plan, task.item.id, view, teacher.preprocess)
                for view in task.views
            ]
            return Rendered(digest, np.stack(stack))
        except ImageError as error:
            return Skipped(task.item.id, str(error))

    batch_size = _batch_size(teacher)
    rows: list[Row] = []
    skipped: list[Skipped] = []
    waiting: list[tuple[Task, Rendered]] = []

    def flush() -> None:
        rows.extend(_embed_batch(teacher, waiting, skipped, bf16=origin.precision == "bf16"))
        waiting.clear()

    results = ordered_map(render, tasks, workers=workers, ahead=4 * batch_size)
    for position, (task, result) in enumerate(zip(tasks, results, strict=True)):
        if isinstance(result, Skipped):
            skipped.append(result)
        else:
            waiting.append((task, result))
        ends_shard = position + 1 == len(tasks) or tasks[position + 1].shard != task.shard
        if ends_shard or sum(len(t.views) for t, _ in waiting) >= batch_size:
            flush()
        if ends_shard:
            store.append(rows, skipped)
            rows, skipped = [], []
        done += len(task.views)
        if progress is not None:
            progress(done, planned)
    wanted = {item.id for item in items}
    if not any(name in wanted for shard in store.shards for name in shard.ids):
        first = next(skip for skip in store.skipped if skip.id in wanted)
        raise NoImagesError(
            f"none of {len(items)} images could be read, first {first.id!r}: {first.reason}; "
            "name a folder with readable images"
        )
    return store


def _missing(store: Store, items: Sequence[Item], views: Sequence[int]) -> Iterator[Task]:
    """What is neither stored nor skipped, cut into shards.

    Skipped images count towards a shard's size: a resumed run then cuts where an uninterrupted one
    does.
    """
    have = {pair for s in store.shards for pair in zip(s.ids, s.views, strict=True)}
    unusable = {skip.id for skip in store.skipped}
    shard, size = 0, 0
    for item in items:
        wanted = tuple(view for view in views if (item.id, view) not in have)
        if not wanted or item.id in unusable:
            continue
        if size + len(wanted) > SHARD_ROWS and size:
            shard, size = shard + 1, 0
        size += len(wanted)
        yield Task(item, wanted, shard)


def _drop_outdated(store: Store, items: Sequence[Item]) -> None:
    """Drop shards that hold an image whose content has changed since, or another of its name.

    Only files that are newer than their shard, or lie elsewhere than they did, are read again.
    """
    places = {item.id: item.path for item in items}
    hashes: dict[str, str] = {}
    for shard in list(store.shards):
        written = shard.path.stat().st_mtime
        known = store.paths(shard)
        suspects = [
            name
            for name in known
            if name in places
            and (known[name] != display_path(places[name]) or _modified(places[name]) > written)
        ]
        unread = [s.id for s in shard.skipped if s.id in places]
        if suspects and not hashes:
            hashes = store.content_hashes()
        if any(_touched(places[name]) > written for name in unread) or any(
            _is_other(places[name], hashes[name]) for name in suspects
        ):
            store.drop_shard(shard)


def _is_other(path: str, known_hash: str) -> bool:
    try:
        return content_hash(read_bytes(path)) != known_hash
    except ImageError:
        return False  # gone: what was stored of it stays true


def _modified(path: str) -> float:
    try:
        return os.stat(path).st_mtime
    except OSError:
        return 0.0


def _touched(path: str) -> float:
    """When a file last came, went or changed, or its permissions did.

    Unlike the time of its content, this tells when a file is put back from a backup.
    """
    try:
        status = os.stat(path)
    except OSError:
        return 0.0
    return max(status.st_mtime, status.st_ctime)


def _embed_batch(
    teacher: Teacher,
    batch: Sequence[tuple[Task, Rendered]],
    skipped: list[Skipped],
    *,
    bf16: bool,
) -> list[Row]:
    if not batch:
        return []
    if teacher.lookup is not None:
        return _look_up(teacher, batch, skipped)
    pixels = np.concatenate([r.pixels for _, r in batch if r.pixels is not None])
    embeddings = iter(teacher.embed(pixels, bf16=bf16).numpy())
    return [
        _row(task.item, view, result.content_hash, next(embeddings))
        for task, result in batch
        for view in task.views
    ]


def _look_up(
    teacher: Teacher, batch: Sequence[tuple[Task, Rendered]], skipped: list[Skipped]
) -> list[Row]:
    assert teacher.lookup is not None
    rows: list[Row] = []
    for task, result in batch:
        found = [
            (view, teacher.lookup(result.content_hash, view, task.item.id)) for view in task.views
        ]
        missing = [view for view, vector in found if vector is None]
        if missing:
            skipped.append(Skipped(task.item.id, f"view {missing[0]} is not in {teacher.uri}"))
            continue
        rows.extend(
            _row(task.item, view, result.content_hash, vector)
            for view, vector in found
            if vector is not None
        )
    return rows


def _row(item: Item, view: int, digest: str, embedding: npt.NDArray[np.float32]) -> Row:
    return Row(
        id=item.id,
        path=display_path(item.path),
        group=item.group,
        view=view,
        content_hash=digest,
        embedding=embedding,
    )


def _batch_size(teacher: Teacher) -> int:
    return BATCH if teacher.device.type == "cpu" else 8 * BATCH


def store_folder(root: Path, teacher: Teacher, *, precision: str = "32", seed: int = 0) -> Path:
    """Where a cache keeps the embeddings of a teacher: a name for people, a hash for safety.

    What differs in precision or in the seed of its views lies apart, so that runs with different
    options can share a cache.
    """
    name = f"{teacher.name}-{teacher.fingerprint()[:8]}".replace("/", "-")
    suffixes = [precision] if precision != "32" else []
    suffixes += [f"seed{seed}"] if seed else []
    return root / "-".join([name, *suffixes])
