"""Define a retrieval task: queries, a gallery, and the relevant images.

In plain folders, images of the same group are relevant. Images in a subfolder `junk` of a group
(`eiffel/junk/…`) are ignored for the queries of that group, irrelevant for all others, and are no
queries.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from whiten.datasets.collection import Item
from whiten.errors import ConfigError, counted
from whiten.utils.arrays import Indices

_JUNK = "/junk"


@dataclass(frozen=True)
class Task:
    """Queries, a gallery, and the ground truth.

    Attributes:
        queries: query images.
        gallery: images to search.
        positives: per query, gallery indices of relevant images.
        junk: per query, gallery indices that count as absent: the query itself, and images that are
            neither relevant nor irrelevant.
        without_positives: queries left out because the gallery has no relevant image.
    """

    queries: list[Item]
    gallery: Sequence[Item]
    positives: list[Indices]
    junk: list[Indices]
    without_positives: int = 0


def folder_task(gallery: Sequence[Item], queries: Sequence[Item] | None = None) -> Task:
    """Build the task in which each query searches the gallery for items of its group.

    Args:
        gallery: grouped items.
        queries: grouped items; by default each gallery item queries all the others. A query whose
            own file is in the gallery does not search for that.

    Raises:
        ConfigError: there are fewer than two groups, or no query has a positive.
    """
    members: dict[str, list[int]] = defaultdict(list)
    junk: dict[str, list[int]] = defaultdict(list)
    for index, item in enumerate(gallery):
        if item.group is not None and item.group.endswith(_JUNK):
            junk[item.group.removesuffix(_JUNK)].append(index)
        elif item.group is not None:
            members[item.group].append(index)
    if len(members) < 2:
        raise ConfigError(
            f"the gallery has {counted(len(members), 'group')}: evaluation "
            "needs a folder for each of at least 2 groups, or a table with columns path,group"
        )
    own = own_rows(gallery, queries or ())
    searchers = [
        (index, item)
        for index, item in enumerate(gallery if queries is None else queries)
        # Named as a query, an image without a group is one of which nothing is right.
        if queries is not None or item.group is not None
        if item.group is None or not item.group.endswith(_JUNK)
    ]
    kept, positives, ignored = [], [], []
    for index, item in searchers:
        itself = [index] if queries is None else own[index]
        right = [i for i in members.get(item.group or "", []) if i not in itself]
        if item.group is None or not right:
            continue
        kept.append(item)
        positives.append(np.asarray(right, np.int64))
        absent = junk.get(item.group, []) + itself
        ignored.append(np.asarray(absent, np.int64))
    if not kept:
        groups = {item.group for _, item in searchers if item.group is not None}
        if not groups:
            raise ConfigError(
                "the queries have no groups: put them into a folder for each group, or name a "
                "table with columns path,group"
            )
        if groups.isdisjoint(members):
            raise ConfigError(
                f"no group of the queries, such as {min(groups)!r}, is in the gallery, which has "
                f"{min(members)!r}: give each group one name in both"
            )
        raise ConfigError(
            "no query has another image of its group in the gallery: put two images or more into "
            "a group"
        )
    return Task(kept, gallery, positives, ignored, len(searchers) - len(kept))


def own_rows(gallery: Sequence[Item], queries: Sequence[Item]) -> list[list[int]]:
    """Return the rows of the gallery that hold each query's own file."""
    places = [_place(query) for query in queries]
    rows: dict[str, list[int]] = {place: [] for place in places}
    for index, item in enumerate(gallery if places else ()):
        if (place := _place(item)) in rows:
            rows[place].append(index)
    return [rows[place] for place in places]


def _place(item: Item) -> str:
    return os.path.abspath(item.path)  # noqa: PTH100 - links stay links
