"""Which items meet in a batch: images of a group, two views of one image, or both.

A *class* is what counts as the same thing: a group, or an image that has no group. Pairs are drawn
within classes. An epoch's batches are a pure function of (seed, epoch), which is what makes a
resumed run the same as an uninterrupted one.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from whiten.errors import ConfigError

# Ungrouped images are worth their second view's embedding once they are more than a few strays.
MIXED_FROM = 0.1
# In a mixed batch: labels are few but sure, so they get at least half of it.
LABELLED_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class Pair:
    """Two sides of a positive: item indices and view numbers, and the number of its class."""

    x: int
    x_view: int
    y: int
    y_view: int
    label: int


@dataclass(frozen=True)
class PairPlan:
    """What pairs are drawn from.

    Attributes:
        classes: item indices of each class: of `grouped` ones first, then of single images.
        grouped: how many of the classes are groups, whose pairs are two different images; pairs
            of the others are two views of one image.
        views: how many views every item has.
        batch_size: pairs in a batch.
        pairs_per_class: pairs that one class may give to a batch. With 1, no two pairs of a batch
            are the same thing.
        seed: of all draws.
    """

    classes: list[list[int]]
    grouped: int
    views: int
    batch_size: int
    pairs_per_class: int
    seed: int

    @property
    def source(self) -> str:
        """`groups`, `views` or `mixed`."""
        if self.grouped == 0:
            return "views"
        return "groups" if self.grouped == len(self.classes) else "mixed"

    @cached_property
    def batches_per_epoch(self) -> int:
        return len(self.epoch(0))

    def epoch(self, number: int) -> list[list[Pair]]:
        """The batches of one epoch; short batches are dropped.

        Each image is used about once; in a mixed plan that holds for the images without a group,
        and groups return as often as their half of the batch needs them.
        """
        rng = np.random.Generator(np.random.Philox(key=[self.seed, number]))
        if self.source == "mixed":
            batches = self._mixed(rng)
        else:
            batches = self._batches(range(len(self.classes)), self.batch_size, rng)
        order = rng.permutation(len(batches))
        return [batches[i] for i in order]

    def _mixed(self, rng: np.random.Generator) -> list[list[Pair]]:
        size = self._labelled_size()
        labels = range(len(self.classes))
        single = self._batches(labels[self.grouped :], self.batch_size - size, rng)
        batches: list[list[Pair]] = []
        while len(batches) < len(single):
            for part in self._batches(labels[: self.grouped], size, rng):
                if len(batches) < len(single):
                    batches.append(part + single[len(batches)])
        return batches

    def _labelled_size(self) -> int:
        available = [len(members) // 2 for members in self.classes[: self.grouped]]
        singles = len(self.classes) - self.grouped
        share = max(LABELLED_SHARE, sum(available) / (sum(available) + singles))
        at_once = sum(min(self.pairs_per_class, pairs) for pairs in available)
        return max(min(round(share * self.batch_size), at_once), self.batch_size - singles)

    def _batches(
        self, labels: Sequence[int], size: int, rng: np.random.Generator
    ) -> list[list[Pair]]:
        queues = {label: self._class_pairs(label, rng) for label in labels}
        # Always taking the classes with most pairs left keeps batches full the longest; the
        # random part of the key breaks ties.
        heap = [(-len(queue), float(rng.random()), i) for i, queue in queues.items() if queue]
        heapq.heapify(heap)
        batches: list[list[Pair]] = []
        while True:
            batch: list[Pair] = []
            taken = []
            while heap and len(batch) < size:
                left, _, label = heapq.heappop(heap)
                count = min(self.pairs_per_class, -left, size - len(batch))
                batch += [queues[label].pop() for _ in range(count)]
                taken.append(label)
            if len(batch) < size:
                return batches
            batches.append(batch)
            for label in taken:
                if queues[label]:
                    heapq.heappush(heap, (-len(queues[label]), float(rng.random()), label))

    def _class_pairs(self, label: int, rng: np.random.Generator) -> list[Pair]:
        members = self.classes[label]
        shuffled = [members[i] for i in rng.permutation(len(members))]
        if label >= self.grouped:
            item = shuffled[0]  # further members are copies of the same content
            x_view, y_view = rng.permutation(self.views)[:2]
            return [Pair(item, int(x_view), item, int(y_view), label)]
        pairs = []
        for i in range(0, len(shuffled) - 1, 2):
            x_view, y_view = rng.integers(0, self.views, 2)
            pairs.append(Pair(shuffled[i], int(x_view), shuffled[i + 1], int(y_view), label))
        return pairs


def resolve_source(groups: Sequence[str | None], wanted: str) -> str:
    """`groups`, `views` or `mixed`: where pairs come from, for a wanted source that may be `auto`.

    `auto` takes groups where there are any, and mixes in the images without one (or alone in
    theirs) where those are more than a tenth.

    Raises:
        ConfigError: groups are wanted, or there is one, and they offer no negatives.
    """
    sizes = Counter(group for group in groups if group is not None)
    usable = sum(size > 1 for size in sizes.values())
    if wanted == "views" or (wanted == "auto" and usable == 0):
        return "views"
    single = sum(group is None or sizes[group] == 1 for group in groups)
    if wanted == "mixed" or (wanted == "auto" and single > MIXED_FROM * len(groups)):
        return "mixed" if usable and single else "groups" if usable > 1 else "views"
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
    pairs_per_class: int = 1,
    processes: int = 1,
    seed: int = 0,
) -> PairPlan:
    """Decide where pairs come from.

    Args:
        groups: per item its group or None.
        contents: per item its content hash; copies never meet as a negative pair.
        source: `groups`, `views`, `mixed`, or `auto`; see `resolve_source`.
        views: views that every item has; pairs of views need two.
        batch_size: wanted pairs a batch; lowered to what the classes can give.
        pairs_per_class: most pairs of one class in a batch.
        processes: the batch is divided among them evenly.
        seed: of all draws.

    Raises:
        ConfigError: nothing to pair, fewer than two classes, or too few views.
    """
    source = resolve_source(groups, source)
    if source != "groups" and views < 2:
        raise ConfigError("pairs of two views need --views 2 or more")
    grouped: dict[str, list[int]] = defaultdict(list)
    if source != "views":
        for item, group in enumerate(groups):
            if group is not None:
                grouped[group].append(item)
    classes = [members for members in grouped.values() if len(members) > 1]
    count = len(classes)
    if source != "groups":
        in_group = {item for members in classes for item in members}
        known = {contents[item] for item in in_group}
        single: dict[str, list[int]] = defaultdict(list)
        for item, content in enumerate(contents):
            if content not in known:
                single[content].append(item)
        classes += single.values()
    supply = sum(min(pairs_per_class, len(members) // 2) for members in classes[:count])
    supply += len(classes) - count
    size = min(batch_size, supply) // processes * processes
    if size < 2 or len(classes) < 2:
        raise ConfigError(
            f"{len(classes)} different image{'' if len(classes) == 1 else 's'} or groups are too "
            f"few for {processes} process{'' if processes == 1 else 'es'}: give at least 2 for each"
        )
    return PairPlan(classes, count, views, size, pairs_per_class, seed)
