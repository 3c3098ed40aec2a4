"""Make the shards of a store from tasks: read images in threads, embed them in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from whiten.embedding.row_makers import Read, RowMaker, Task, read_task
from whiten.media.reading import Skipped
from whiten.store.shards import Row, Seen
from whiten.utils.threads import ordered_map


@dataclass
class Part:
    """Content of one shard, see `Store.append`."""

    rows: list[Row] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    seen: dict[str, Seen] = field(default_factory=dict)


def make_parts(
    tasks: Iterable[Task],
    maker: RowMaker,
    workers: int | None,
    told: Callable[[int], None],
    begun: Part | None = None,
    save: Callable[[Part], None] | None = None,
) -> Iterator[Part]:
    """Yield a part at each task that ends a shard; reading goes on beyond it meanwhile.

    A batch never crosses the end of a shard, so that a shard's bytes depend on its tasks alone,
    and on the contents that the maker has embedded before.

    Args:
        told: called with the number of views of each task that was read.
        begun: the part that the tasks continue; by default they begin one.
        save: called with an unfinished part at the end of each batch.
    """
    part = begun or Part()
    waiting: list[Read] = []

    def flush() -> None:
        part.rows.extend(maker.rows(waiting, part.skipped))
        waiting.clear()

    results = ordered_map(
        lambda task: read_task(task, maker),
        tasks,
        workers=workers,
        ahead=4 * maker.batch_size,
    )
    for result in results:
        task = result.task
        part.seen[task.item.id] = result.seen
        if result.skipped is not None:
            part.skipped.append(result.skipped)
        else:
            waiting.append(result)
        if task.ends_shard or sum(len(r.task.views) for r in waiting) >= maker.batch_size:
            flush()
        if task.ends_shard:
            yield part
            part = Part()
        elif save is not None and not waiting:
            save(part)
        told(len(task.views))
