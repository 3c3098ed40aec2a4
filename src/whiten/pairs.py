"""Which two items meet in a batch: pairs from groups, or two views of one image.

An epoch's batches are a pure function of (seed, epoch), which is what makes a resumed run the same
as an uninterrupted one. No group, and no file content, occurs twice in a batch: its second pair
would be a false negative.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from whiten.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Pair:
    """Two sides of a positive: item indices and view numbers."""

    x: int
    x_view: int
    y: int
    y_view: int


@dataclass(frozen=True)
class PairPlan:
    """What pairs are drawn from.

    Attributes:
        classes: for each usable class (group, or image where there are no groups) its item indices.
        from_views: the pair is two views of one image.
        views: how many views every item has.
        batch_size: pairs a batch; never more than there are classes.
        seed: of all draws.
    """

    classes: list[list[int]]
    from_views: bool
    views: int
    batch_size: int
    seed: int

    def epoch(self, number: int) -> list[list[Pair]]:
        """The batches of one epoch, each image used about once; short batches are dropped."""
        rng = np.random.Generator(np.random.Philox(key=[self.seed, number]))
        queues = [self._class_pairs(members, rng) for members in self.classes]
        # Always taking the classes with most pairs left keeps batches full the longest; the
        # random part of the key breaks ties.
        heap = [(-len(queue), float(rng.random()), i) for i, queue in enumerate(queues) if queue]
        heapq.heapify(heap)
        batches = []
        while len(heap) >= self.batch_size:
            taken = [heapq.heappop(heap) for _ in range(self.batch_size)]
            batches.append([queues[i].pop() for _, _, i in taken])
            for left, _, i in taken:
                if left < -1:
                    heapq.heappush(heap, (left + 1, float(rng.random()), i))
        order = rng.permutation(len(batches))
        return [batches[i] for i in order]

    def _class_pairs(self, members: list[int], rng: np.random.Generator) -> list[Pair]:
        shuffled = [members[i] for i in rng.permutation(len(members))]
        if self.from_views:
            item = shuffled[0]  # further members are copies of the same content
            x_view, y_view = rng.permutation(self.views)[:2]
            return [Pair(item, int(x_view), item, int(y_view))]
        pairs = []
        for i in range(0, len(shuffled) - 1, 2):
            x_view, y_view = rng.integers(0, self.views, 2)
            pairs.append(Pair(shuffled[i], int(x_view), shuffled[i + 1], int(y_view)))
        return pairs


def resolve_source(groups: Sequence[str | None], wanted: str) -> str:
    """`groups` or `views`: where pairs come from, for a wanted source that may be `auto`.

    Raises:
        ConfigError: groups are wanted, or there is one, and they offer no negatives.
    """
    sizes = Counter(group for group in groups if group is not None)
    usable = sum(size > 1 for size in sizes.values())
    if wanted == "views" or (wanted == "auto" and (not sizes or usable == 0)):
        return "views"
    if usable < 2:
        raise ConfigError(
            f"found {usable} group{'' if usable == 1 else 's'} with two images or more: "
            "negatives need at least 2 groups (a folder each); --pairs views ignores groups"
        )
    return "groups"


def plan_pairs(
    groups: Sequence[str | None],
    contents: Sequence[str],
    *,
    source: str = "auto",
    views: int = 1,
    batch_size: int = 128,
    processes: int = 1,
    seed: int = 0,
) -> PairPlan:
    """Decide where pairs come from.

    Args:
        groups: per item its group or None.
        contents: per item its content hash; copies never meet as a negative pair.
        source: `groups`, `views`, or `auto` (groups where there are any).
        views: views that every item has; `views` pairs need two.
        batch_size: wanted pairs a batch; lowered to the number of classes.
        processes: the batch is divided among them evenly.
        seed: of all draws.

    Raises:
        ConfigError: nothing to pair, fewer than two groups, or too few views.
    """
    source = resolve_source(groups, source)
    classes: dict[str, list[int]] = defaultdict(list)
    if source == "groups":
        for item, group in enumerate(groups):
            if group is not None:
                classes[group].append(item)
        classes = {name: members for name, members in classes.items() if len(members) > 1}
    else:
        if views < 2:
            raise ConfigError("pairs of two views need --views 2 or more")
        for item, content in enumerate(contents):
            classes[content].append(item)
    size = min(batch_size, len(classes)) // processes * processes
    if size < 2:
        raise ConfigError(
            f"{len(classes)} different image{'' if len(classes) == 1 else 's'} or groups are too "
            f"few for {processes} process{'' if processes == 1 else 'es'}: give at least 2 for each"
        )
    return PairPlan(list(classes.values()), source == "views", views, size, seed)
