"""Which items meet in a batch: images of a group, two views of one image, or both.

A *class* is what counts as the same thing: a group, or an image that has no group. Pairs are drawn
within classes. With `frames` a group is a video: an epoch takes one frame of each, in two views. An
epoch's batches are a pure function of (seed, epoch), which is what makes a resumed run the same as
an uninterrupted one.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from whiten.errors import ConfigError
from whiten.utils.names import Names, name_codes

Ints = npt.NDArray[Any]

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


class Epoch(Sequence[list[Pair]]):
    """The batches of one epoch; the pairs of one exist once it is looked at."""

    def __init__(self, batches: Ints) -> None:
        self._batches = batches  # (batches, pairs, fields of a pair)

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, number: int) -> list[Pair]:  # type: ignore[override]
        return [Pair(*row) for row in self._batches[number].tolist()]


@dataclass(frozen=True, eq=False)
class PairPlan:
    """What pairs are drawn from.

    Attributes:
        members: item indices of all classes, those of a class together: of `grouped` ones first,
            then of single images.
        bounds: (classes + 1,) where each class begins in `members`, and the end.
        grouped: how many of the classes are groups, whose pairs are two different images; pairs
            of the others are two views of one image.
        views: how many views every item has.
        batch_size: pairs in a batch.
        pairs_per_class: pairs that one class may give to a batch. With 1, no two pairs of a batch
            are the same thing.
        pairs_per_epoch: pairs that one group may give to an epoch; 0 is all that it has.
        seed: of all draws.
        opposite_views: the two views of an image are an even and an odd one.
    """

    members: Ints
    bounds: Ints
    grouped: int
    views: int
    batch_size: int
    pairs_per_class: int
    pairs_per_epoch: int
    seed: int
    opposite_views: bool = False

    @property
    def classes(self) -> int:
        """How many there are."""
        return len(self.bounds) - 1

    @property
    def source(self) -> str:
        """`groups`, `views` or `mixed`."""
        if self.grouped == 0:
            return "views"
        return "groups" if self.grouped == self.classes else "mixed"

    @cached_property
    def batches_per_epoch(self) -> int:
        return len(self.epoch(0))

    def epoch(self, number: int) -> Epoch:
        """The batches of one epoch; short batches are dropped.

        Each image is used about once, or each group for `pairs_per_epoch` pairs. In a mixed plan
        that holds for the images without a group, and groups return as often as their half of
        the batch needs them.
        """
        rng = np.random.Generator(np.random.Philox(key=[self.seed, number]))
        if self.source == "mixed":
            batches = self._mixed(rng)
        elif self.source == "groups":
            batches = self._batches(self._pairs_of_groups(rng), self.batch_size, rng)
        else:
            batches = self._batches(self._pairs_of_views(rng), self.batch_size, rng)
        return Epoch(rng.permutation(batches))

    def _mixed(self, rng: np.random.Generator) -> Ints:
        size = self._labelled_size()
        single = self._batches(self._pairs_of_views(rng), self.batch_size - size, rng)
        labelled: list[Ints] = []
        while sum(map(len, labelled)) < len(single):
            labelled.append(self._batches(self._pairs_of_groups(rng), size, rng))
        return np.concatenate([np.concatenate(labelled)[: len(single)], single], axis=1)

    def _labelled_size(self) -> int:
        available = _available(self.bounds[: self.grouped + 1], self.pairs_per_epoch)
        singles = self.classes - self.grouped
        pairs = int(available.sum())
        share = max(LABELLED_SHARE, pairs / (pairs + singles))
        at_once = int(np.minimum(available, self.pairs_per_class).sum())
        size = min(round(share * self.batch_size), at_once)
        return max(size, self.batch_size - singles)

    def _pairs_of_groups(self, rng: np.random.Generator) -> Ints:
        """(pairs, 5) of different images, those of a class together; an odd image rests."""
        bounds = self.bounds[: self.grouped + 1]
        shuffled, place = self._shuffled(0, self.grouped, rng)
        sizes = np.repeat(np.diff(bounds), np.diff(bounds))
        is_used = place + 1 < sizes
        if self.pairs_per_epoch:
            is_used &= place < 2 * self.pairs_per_epoch
        x = np.flatnonzero(is_used & (place % 2 == 0))
        views = rng.integers(0, self.views, (len(x), 2), np.int32)
        label = np.searchsorted(bounds, x, side="right") - 1
        return np.stack([shuffled[x], views[:, 0], shuffled[x + 1], views[:, 1], label], axis=1)

    def _pairs_of_views(self, rng: np.random.Generator) -> Ints:
        """(pairs, 5) of two views of one image, one of each class; the others rest."""
        shuffled, place = self._shuffled(self.grouped, self.classes, rng)
        x = shuffled[place == 0]
        one = rng.integers(0, self.views, len(x), np.int32)
        if self.opposite_views:
            away = 1 + 2 * rng.integers(0, self.views // 2, len(x), np.int32)
        else:
            away = rng.integers(1, self.views, len(x), np.int32)
        other = (one + away) % self.views
        label = np.arange(self.grouped, self.classes, dtype=np.int32)
        return np.stack([x, one, x, other, label], axis=1)

    def _shuffled(self, first: int, last: int, rng: np.random.Generator) -> tuple[Ints, Ints]:
        """Members of some classes, each class in random order, and their places in it."""
        bounds = self.bounds[first : last + 1]
        sizes = np.diff(bounds)
        start = np.repeat(bounds[:-1], sizes)
        order = np.lexsort((rng.random(len(start), np.float32), start))
        place = np.arange(bounds[0], bounds[-1], dtype=np.int32) - start
        return self.members[bounds[0] : bounds[-1]][order], place

    def _batches(self, pairs: Ints, size: int, rng: np.random.Generator) -> Ints:
        """(batches, size, 5): always the classes with most pairs left, which fills most batches."""
        starts = np.flatnonzero(np.diff(pairs[:, 4], prepend=-1))
        left = np.diff(starts, append=len(pairs))
        # Classes by the number of pairs that they have left, in random order.
        order = rng.permutation(len(left)).astype(np.int32)
        waiting = [
            array("i", order[left[order] == n].tobytes()) for n in range(left.max(initial=0) + 1)
        ]
        draw = random.Random(int(rng.integers(2**62)))
        rows = array("i")
        top = len(waiting) - 1
        while True:
            while top and not waiting[top]:
                top -= 1
            room, taken = size, []
            for level in range(top, 0, -1):
                while room and waiting[level]:
                    number = waiting[level].pop()
                    count = min(self.pairs_per_class, level, room)
                    end = int(starts[number]) + level
                    rows.extend(range(end - count, end))
                    taken.append((level - count, number))
                    room -= count
            if room:
                del rows[len(rows) - (size - room) :]
                return pairs[np.frombuffer(rows, np.int32).reshape(-1, size)]
            for level, number in taken:
                own = waiting[level]
                own.append(number)
                place = draw.randrange(len(own))
                own[-1], own[place] = own[place], own[-1]


def resolve_source(groups: Names, wanted: str) -> str:
    """`groups`, `views`, `frames` or `mixed`: where pairs come from, if asked for `auto` too.

    `auto` takes groups where there are any, and mixes in the images without one (or alone in
    theirs) where those are more than a tenth.

    Raises:
        ConfigError: groups are wanted, or there is one, and they offer no negatives.
    """
    codes = name_codes(groups)
    sizes = np.bincount(codes + 1)[1:]
    usable = int((sizes > 1).sum())
    if wanted == "frames":
        return "frames"
    if wanted == "views" or (wanted == "auto" and usable == 0):
        return "views"
    single = len(codes) - int(sizes[sizes > 1].sum())
    if wanted == "mixed" or (wanted == "auto" and single > MIXED_FROM * len(codes)):
        return "mixed" if usable and single else "groups" if usable > 1 else "views"
    if usable < 2:
        raise ConfigError(
            f"found {usable} group{'' if usable == 1 else 's'} with two images or more: "
            "negatives need at least 2 groups (a folder each); --pairs views ignores groups"
        )
    return "groups"


def plan_pairs(
    groups: Names,
    contents: Names,
    *,
    source: str = "auto",
    views: int = 1,
    batch_size: int = 128,
    pairs_per_class: int = 1,
    pairs_per_epoch: int = 0,
    processes: int = 1,
    seed: int = 0,
    opposite_views: bool = False,
) -> PairPlan:
    """Decide where pairs come from.

    Args:
        groups: per item its group or None.
        contents: per item its content hash; copies never meet as a negative pair.
        source: `groups`, `views`, `frames`, `mixed`, or `auto`; see `resolve_source`.
        views: views that every item has; pairs of views need two.
        batch_size: wanted pairs a batch; lowered to what the classes can give.
        pairs_per_class: most pairs of one class in a batch.
        pairs_per_epoch: most pairs of one group in an epoch; 0 is all that it has.
        processes: the batch is divided among them evenly.
        seed: of all draws.
        opposite_views: the two views of an image are an even and an odd one.

    Raises:
        ConfigError: nothing to pair, fewer than two classes, or too few views.
    """
    source = resolve_source(groups, source)
    if source != "groups" and views < 2:
        raise ConfigError("pairs of two views need --views 2 or more")
    if source != "groups" and opposite_views and views % 2:
        raise ConfigError(
            f"pairs of an even and an odd view need an even number of --views, not {views}"
        )
    codes = name_codes(groups)
    in_group = (codes >= 0) & (np.bincount(codes + 1)[codes + 1] > 1)
    in_group &= source in ("groups", "mixed")
    members, bounds = _by_class(np.flatnonzero(in_group), codes)
    grouped = len(bounds) - 1
    if source != "groups":
        content = name_codes(contents)
        if source == "frames":  # a group counts as one thing; without one, an image does
            content = np.where(codes >= 0, codes, content + codes.max() + 1)
        is_known = np.zeros(content.max() + 1, bool)
        is_known[content[in_group]] = True
        more, ends = _by_class(np.flatnonzero(~is_known[content]), content)
        members = np.concatenate([members, more])
        bounds = np.concatenate([bounds, bounds[-1] + ends[1:]])
    classes = len(bounds) - 1
    available = _available(bounds[: grouped + 1], pairs_per_epoch)
    supply = int(np.minimum(available, pairs_per_class).sum())
    supply += classes - grouped
    size = min(batch_size, supply) // processes * processes
    if size < 2 or classes < 2:
        raise ConfigError(
            f"{classes} different image{'' if classes == 1 else 's'} or groups are too "
            f"few for {processes} process{'' if processes == 1 else 'es'}: give at least 2 for each"
        )
    return PairPlan(
        members,
        bounds,
        grouped,
        views,
        size,
        pairs_per_class,
        pairs_per_epoch,
        seed,
        opposite_views=opposite_views,
    )


def _available(bounds: Ints, pairs_per_epoch: int) -> Ints:
    """How many pairs each group gives to an epoch."""
    pairs = np.diff(bounds) // 2
    return np.minimum(pairs, pairs_per_epoch) if pairs_per_epoch else pairs


def _by_class(items: Ints, codes: Ints) -> tuple[Ints, Ints]:
    """Items, those of a code together, and where each code begins, and the end."""
    order = np.argsort(codes[items], kind="stable")
    members = items[order].astype(np.int32)
    starts = np.flatnonzero(np.diff(codes[members], prepend=-1))
    return members, np.append(starts, len(members)).astype(np.int32)
