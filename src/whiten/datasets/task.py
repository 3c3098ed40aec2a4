"""Queries, a gallery and the truth: what a benchmark of images is, and how folders make one.

In plain folders what shares a group is right. Images in a subfolder `junk` of a group
(`eiffel/junk/…`) are neither right nor wrong for the queries of that group, wrong for all others,
and do not search themselves.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from whiten.datasets.collection import Item
from whiten.errors import ConfigError
from whiten.utils.arrays import Indices

_JUNK = "/junk"


@dataclass(frozen=True)
class Task:
    """Queries, a gallery, and the truth.

    Attributes:
        queries: the images that search.
        gallery: the images that are searched.
        positives: per query the gallery indices that are right.
        junk: per query the gallery indices that count as absent: the query itself, and images that
            are neither right nor wrong.
        without_positives: queries that were left out, for nothing in the gallery is right.
    """

    queries: list[Item]
    gallery: Sequence[Item]
    positives: list[Indices]
    junk: list[Indices]
    without_positives: int = 0


def folder_task(gallery: Sequence[Item], queries: Sequence[Item] | None = None) -> Task:
    """Every query searches the gallery; items of its group are the positives.

    Args:
        gallery: grouped items.
        queries: grouped items; by default each gallery item searches all the others.

    Raises:
        ConfigError: fewer than two groups, or no query has a positive.
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
            f"the gallery has {len(members)} group{'' if len(members) == 1 else 's'}: evaluation "
            "needs a folder for each of at least 2 groups, or a table with columns path,group"
        )
    itself = queries is None
    searchers = [
        (index, item)
        for index, item in enumerate(gallery if queries is None else queries)
        if item.group is not None and not item.group.endswith(_JUNK)
    ]
    kept, positives, ignored = [], [], []
    for index, item in searchers:
        assert item.group is not None
        right = [i for i in members.get(item.group, []) if not (itself and i == index)]
        if not right:
            continue
        kept.append(item)
        positives.append(np.asarray(right, np.int64))
        absent = junk.get(item.group, []) + ([index] if itself else [])
        ignored.append(np.asarray(absent, np.int64))
    if not kept:
        raise ConfigError(
            "no query has another image of its group in the gallery: put two images or more into "
            "a group"
        )
    return Task(kept, gallery, positives, ignored, len(searchers) - len(kept))
