"""Make rows of a store from images: compute them with a network, or look them up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from whiten.datasets.collection import Item
from whiten.embedding.repeats import Repeats
from whiten.errors import ImageError, StoreError
from whiten.media.reading import Skipped, Unread, read_bytes, skipped_for, stamp_of
from whiten.models.opening import for_many
from whiten.models.stored_model import StoredModel
from whiten.models.teacher import Teacher
from whiten.store.shards import Row, Seen
from whiten.store.upkeep import Usable
from whiten.utils.hashing import content_hash
from whiten.utils.names import display_path
from whiten.views.plan import ViewPlan, agree
from whiten.views.rendering import render_bytes

BATCH = 16  # larger batches do not fit into the CPU's caches; a GPU gets eight times as many

Pixels = npt.NDArray[np.uint8]

Render = Callable[[bytes, Item], Pixels]
"""Converts a file's content to the (h, w, 3) RGB image that the model gets."""


@dataclass(frozen=True)
class Task:
    """An image and its requested views.

    Attributes:
        ends_shard: whether it is the last one of its shard.
        may_repeat: whether another image may have its content.
    """

    item: Item
    views: tuple[int, ...]
    ends_shard: bool = False
    may_repeat: bool = False


@dataclass(frozen=True)
class Read:
    """A task whose image was read.

    Attributes:
        task: the image and its views.
        seen: path, stamp and content hash of its file.
        pixels: (views, h, w, 3) uint8; None if not needed, or if the image is unusable.
        skipped: why it is unusable; None if it is not.
    """

    task: Task
    seen: Seen
    pixels: Pixels | None = None
    skipped: Skipped | None = None


class RowMaker(Protocol):
    """Makes the rows of a store from batches of images.

    Attributes:
        batch_size: views per batch.
    """

    batch_size: int

    def prepare(self, task: Task, data: bytes) -> Pixels | None:
        """Render what `rows` needs from the content of an image file; runs in threads."""
        ...

    def rows(self, batch: Sequence[Read], skipped: list[Skipped]) -> list[Row]:
        """Return the rows of the batch in its order; unusable images are added to `skipped`."""
        ...

    def usable(self, views: Sequence[int]) -> Usable | None:
        """Return a test whether skipped images are usable by now; None if only files matter."""
        ...


class Computed:
    """Computes rows with a network.

    Attributes:
        teacher: the network.
        plan: plan of the views.
        bf16: whether it computes in bfloat16.
        repeats: embeddings of contents that may come again.
    """

    def __init__(
        self, teacher: Teacher, plan: ViewPlan, render: Render | None, *, bf16: bool
    ) -> None:
        self.teacher = teacher
        self.plan = plan
        self._render = render
        self.bf16 = bf16
        self.repeats = Repeats(teacher.dim)
        self.batch_size = BATCH if teacher.device_type == "cpu" else 8 * BATCH
        if render is not None:
            self.batch_size = 1  # sizes may differ

    def expect(self, images: int) -> None:
        """Choose the runtime for this number of images.

        The graph of a model computes in float32, and takes images of one size.
        """
        if self.bf16 or self._render is not None:
            self.teacher = self.teacher.in_torch()
        else:
            self.teacher = for_many(self.teacher, images)

    def prepare(self, task: Task, data: bytes) -> Pixels:
        if self._render is not None:
            return self._render(data, task.item)[None]
        preprocess = self.teacher.preprocess
        return np.stack(
            [render_bytes(data, self.plan, task.item.id, v, preprocess) for v in task.views]
        )

    def rows(self, batch: Sequence[Read], skipped: list[Skipped]) -> list[Row]:
        pixels: list[Pixels] = []
        first: dict[str, int] = {}  # of each content in this batch that may come again
        places: list[int | None] = []  # per row, among the pixels; None for earlier contents
        asked = [(read, number) for read in batch for number in range(len(read.task.views))]
        for read, number in asked:
            assert read.pixels is not None
            place: int | None = len(pixels)
            if self.is_shared(read.task, number):
                digest = read.seen.content_hash
                place = None if digest in self.repeats else first.setdefault(digest, len(pixels))
            places.append(place)
            if place == len(pixels):
                pixels.append(read.pixels[number])
        unusable: dict[int, str] = {}
        if pixels:
            embedded, unusable = self.teacher.embed_usable(np.stack(pixels), bf16=self.bf16)
        for digest, place in first.items():
            if place not in unusable:
                self.repeats.add(digest, embedded[place])
        lost = {
            read.task.item.id: Skipped(read.task.item.id, unusable[place])
            for (read, _), place in zip(asked, places, strict=True)
            if place in unusable
        }
        skipped.extend(lost.values())
        return [
            row_of(
                read,
                read.task.views[number],
                self.repeats[read.seen.content_hash] if place is None else embedded[place],
            )
            for (read, number), place in zip(asked, places, strict=True)
            if read.task.item.id not in lost
        ]

    def is_shared(self, task: Task, number: int) -> bool:
        """Return whether images of equal content have this view in common."""
        is_whole = self._render is None and not self.plan.is_random(task.views[number])
        return is_whole and task.may_repeat

    def usable(self, _views: Sequence[int]) -> None:
        return None


class LookedUp:
    """Looks up rows in a `StoredModel`.

    Args:
        plan_of_views: fingerprint of the plan of the requested views; "" for whole images only.

    Raises:
        StoreError: the model holds views of another plan.
    """

    batch_size = BATCH

    def __init__(self, model: StoredModel, plan: ViewPlan, plan_of_views: str) -> None:
        if not agree(model.plan, plan_of_views):
            raise StoreError(
                f"{model.uri} holds views of another view plan, {model.plan[:8]}, not "
                f"{plan.fingerprint()[:8]} (seed {plan.seed}): use the seed that it was made with, "
                "or whole images only"
            )
        self._model = model

    def prepare(self, _task: Task, _data: bytes) -> None:
        return None

    def rows(self, batch: Sequence[Read], skipped: list[Skipped]) -> list[Row]:
        rows: list[Row] = []
        for read in batch:
            task = read.task
            found = [self._model.find(read.seen.content_hash, v, task.item.id) for v in task.views]
            views = list(zip(task.views, found, strict=True))
            missing = [view for view, vector in views if vector is None]
            if missing:
                reason = f"view {missing[0]} is not in {self._model.uri}"
                skipped.append(Skipped(task.item.id, reason))
                continue
            rows.extend(row_of(read, view, vector) for view, vector in views if vector is not None)
        return rows

    def usable(self, views: Sequence[int]) -> Usable:
        find = self._model.find
        return lambda name, digest: all(find(digest, v, name) is not None for v in views)


def read_task(task: Task, maker: RowMaker) -> Read:
    """Read an image file and prepare it for the maker."""
    item = task.item
    # Stamped before reading: if the file changes meanwhile, the next run sees another stamp.
    seen = Seen(display_path(item.path), stamp_of(item.path))
    try:
        data = read_bytes(item.path)
        seen = seen._replace(content_hash=content_hash(data))
        return Read(task, seen, maker.prepare(task, data))
    except (ImageError, MemoryError) as error:
        skipped = skipped_for(item.id, error)
        # Without a stamp the next run tries again.
        return Read(task, Seen() if isinstance(skipped, Unread) else seen, skipped=skipped)


def row_of(read: Read, view: int, embedding: npt.NDArray[np.float32]) -> Row:
    """Return one row of an image that was read."""
    item = read.task.item
    return Row(
        id=item.id,
        path=read.seen.path,
        group=item.group,
        view=view,
        content_hash=read.seen.content_hash,
        embedding=embedding,
        frame_ms=item.frame_ms,
    )
