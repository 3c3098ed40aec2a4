"""Update a store before it is extended: files may have changed, moved or come back.

A file with unchanged stamp and path is not read. Otherwise its content decides: for equal content,
the new stamp and path are recorded, so that it is not read again next time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import numpy as np

from whiten.datasets.collection import Item, Items
from whiten.errors import ImageError, StoreError, UnreadableError, counted
from whiten.media import colour
from whiten.media.decoding import has_foreign_colours
from whiten.media.reading import is_there_now, read_bytes, stamp_of
from whiten.store.shards import Seen, Shard
from whiten.store.store import Store
from whiten.utils.hashing import content_hash
from whiten.utils.names import display_path, real_path
from whiten.utils.threads import ordered_map

_log = logging.getLogger(__name__)

Usable = Callable[[str, str], bool]
"""Called with id and content hash; returns whether a skipped image can be used now."""


def bring_up_to_date(store: Store, items: Items, usable: Usable | None = None) -> None:
    """Drop embeddings of files with new content, and forget reasons that no longer hold.

    Rows of versions that ignored colour profiles are dropped if their file has one that counts.

    Embeddings stay of files that are missing or cannot be read this time.

    Args:
        store: rewritten shard by shard, each atomically.
        items: the requested images; others are left alone.
        usable: for models that hold embeddings and may hold more than last time.
    """
    recoloured = 0
    for shard in list(store.shards):
        seen = store.seen(shard)
        found: dict[str, Seen] = {}
        changed: set[str] = set()
        wanted = _wanted(items, shard.ids)
        for item in wanted:
            now = _look_again(item, seen[item.id])
            if now.content_hash != seen[item.id].content_hash:
                changed.add(item.id)
            elif now != seen[item.id]:
                found[item.id] = now
        skipped = _wanted(items, [skip.id for skip in shard.skipped])
        forgotten = {item.id for item in skipped if _may_work(item, seen.get(item.id), usable)}
        colours = shard.colours
        if colours < colour.VERSION:
            foreign = _of_foreign_colours(wanted) - changed
            recoloured += len(foreign)
            changed |= foreign
            if len(wanted) == len(set(shard.ids)):
                colours = colour.VERSION
        if changed or forgotten:
            store.amend(shard, drop=changed, forget=forgotten, found=found, colours=colours)
        elif found or colours != shard.colours:
            _note(store, shard, found, colours)
    if recoloured:
        _log.warning(
            "%s: %s have a colour profile, which was ignored when they were embedded: they are "
            "embedded again",
            store.folder,
            counted(recoloured, "image"),
        )


def refuse_other_images(store: Store, items: Items) -> None:
    """Refuse images of another collection whose ids are those of stored ones.

    A collection that moved keeps its content, except for some images that were edited.

    Raises:
        StoreError: an image would replace another one, whose file is still there, or most images
            of a collection that is gone.
    """
    met, others, first, is_there = 0, 0, "", False
    for shard in store.shards:
        seen = store.seen(shard)
        for item in _wanted(items, shard.ids):
            before = seen[item.id]
            now = _look_again(item, before)
            if now.path == before.path or not before.path:
                continue
            met += 1
            if now.content_hash == before.content_hash:
                continue
            others += 1
            first = first or f"{item.id!r} for {before.path}, not {now.path}"
            is_there = is_there or is_there_now(real_path(before.path))
    if others and (is_there or 2 * others >= met):
        raise StoreError(
            f"{store.folder} has {others} of these ids for other images, first {first}, which "
            "would be lost: name another --out, or embed one folder that holds both collections"
        )


def _wanted(items: Items, names: Sequence[str]) -> Items:
    rows = np.unique(items.by_id.rows(names))
    return items.take(rows[rows >= 0])


def _look_again(item: Item, before: Seen) -> Seen:
    """Return the state of a file now; the earlier one if it is gone or cannot be read this time.

    A file without content, such as an empty one, has no hash.
    """
    stamp, place = stamp_of(item.path), display_path(item.path)
    if stamp is None or (stamp, place) == (before.stamp, before.path):
        return before
    try:
        return Seen(place, stamp, content_hash(read_bytes(item.path)))
    except UnreadableError:
        return before
    except ImageError:
        return Seen(place, stamp)


def _may_work(item: Item, before: Seen | None, usable: Usable | None) -> bool:
    before = before or Seen()
    if stamp_of(item.path) != before.stamp:
        return True
    return usable is not None and before.content_hash != "" and usable(item.id, before.content_hash)


def _of_foreign_colours(items: Items) -> set[str]:
    """Return the ids of the images whose files say that their colours are not sRGB."""
    is_foreign = ordered_map(lambda item: has_foreign_colours(item.path), items)
    return {item.id for item, one in zip(items, is_foreign, strict=True) if one}


def _note(store: Store, shard: Shard, found: dict[str, Seen], colours: int) -> None:
    """Record the state that saves reading the files again, if the store is writable."""
    try:
        store.amend(shard, found=found, colours=colours)
    except StoreError:
        return
