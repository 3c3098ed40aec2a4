"""Draw the positive pairs of a batch: images of a group, two views of an image, or both.

A *class* is a group, or an image without a group. Pairs are drawn within classes. With `frames` a
group is a video: an epoch takes one frame per video, in two views. An epoch's batches are a pure
function of (seed, epoch), so that a resumed run equals an uninterrupted one.
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

from whiten.errors import ConfigError, counted
from whiten.utils.names import Names, name_codes, repeated

Ints = npt.NDArray[Any]

# Ungrouped images are worth embedding a second view if they are more than a few strays.
MIXED_FROM = 0.1
# In a mixed batch: labels are few but reliable, so they get at least half of it.
LABELLED_SHARE = 0.5
# Few images are shown in more views, and in smaller batches, so that an epoch has enough steps.
_ENOUGH_SIDES, _MOST_VIEWS = 4096, 8
_ENOUGH_STEPS, _LEAST_PAIRS, MOST_PAIRS = 16, 16, 128


@dataclass(frozen=True, slots=True)
class Pair:
    """Two sides of a positive, as item indices and view numbers, and the index of its class."""

    x: int
    x_view: int
    y: int
    y_view: int
    label: int


class Epoch(Sequence[list[Pair]]):
    """The batches of one epoch; the pairs of a batch are created on access."""

    def __init__(self, batches: Ints) -> None:
        self._batches = batches  # (batches, pairs, fields of a pair)

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, number: int) -> list[Pair]:  # type: ignore[override]
        return [Pair(*row) for row in self._batches[number].tolist()]


@dataclass(frozen=True, eq=False)
class PairPlan:
    """The classes that pairs are drawn from, and the limits of a batch.

    Attributes:
        members: item indices ordered by class: `grouped` classes first, then single images.
        bounds: (classes + 1,) start of each class in `members`, and the end.
        grouped: number of classes that are groups, whose pairs are two different images; pairs of
            the other classes are two views of one image.
        views: views per item.
        batch_size: pairs per batch.
        pairs_per_class: maximum pairs per class in a batch. With 1, all pairs of a batch have
            different classes.
        pairs_per_epoch: maximum pairs per group in an epoch; 0 is no limit.
        seed: seed of all draws.
        opposite_views: pair an even with an odd view of an image.
        rounds: pairs of views that an epoch takes of each image.
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
    rounds: int = 1

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.bounds) - 1

    @property
    def source(self) -> str:
        """Source of the pairs: `groups`, `views` or `mixed`."""
        if self.grouped == 0:
            return "views"
        return "groups" if self.grouped == self.classes else "mixed"

    @cached_property
    def batches_per_epoch(self) -> int:
        return len(self.epoch(0))

    def epoch(self, number: int) -> Epoch:
        """Return the batches of one epoch; incomplete batches are dropped.

        Each image is used about once, or each group for `pairs_per_epoch` pairs; without groups, in
        `rounds` pairs of its views. In a mixed plan
        this holds for ungrouped images, and groups repeat as often as their half of the batch
        needs.
        """
        rng = np.random.Generator(np.random.Philox(key=[self.seed, number]))
        if self.source == "mixed":
            batches = self._mixed(rng)
        elif self.source == "groups":
            batches = self._batches(self._pairs_of_groups(rng), self.batch_size, rng)
        else:
            rounds = [
                self._batches(self._pairs_of_views(rng), self.batch_size, rng)
                for _ in range(self.rounds)
            ]
            batches = np.concatenate(rounds)
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
        size = min(round(share * self.batch_size), at_once, self.batch_size - 1)
        return max(size, self.batch_size - singles)

    def _pairs_of_groups(self, rng: np.random.Generator) -> Ints:
        """Draw (pairs, 5) of different images, ordered by class; an odd image is left out."""
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
        """Draw (pairs, 5) of two views of one image, one image per class."""
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
        """Return members of some classes in random order per class, and their position in it."""
        bounds = self.bounds[first : last + 1]
        sizes = np.diff(bounds)
        start = np.repeat(bounds[:-1], sizes)
        order = np.lexsort((rng.random(len(start), np.float32), start))
        place = np.arange(bounds[0], bounds[-1], dtype=np.int32) - start
        return self.members[bounds[0] : bounds[-1]][order], place

    def _batches(self, pairs: Ints, size: int, rng: np.random.Generator) -> Ints:
        """Return (batches, size, 5), each from the classes with most pairs left, to fill most."""
        starts = np.flatnonzero(np.diff(pairs[:, 4], prepend=-1))
        left = np.diff(starts, append=len(pairs))
        # Classes by number of remaining pairs, in random order among equals.
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
    """Resolve `auto` to the source of pairs: `groups`, `views`, `frames` or `mixed`.

    `auto` takes groups if there are any, and mixes in ungrouped images (or those alone in their
    group) if they are more than a tenth.

    Raises:
        ConfigError: groups are requested but missing, or a single group offers no negatives.
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
            f"found {counted(usable, 'group')} with two images or more: "
            "negatives need at least 2 groups (a folder each); --pairs views ignores groups"
        )
    return "groups"


def plan_pairs(
    groups: Names,
    contents: Names,
    *,
    source: str = "auto",
    views: int = 1,
    batch_size: int | None = None,
    pairs_per_class: int = 1,
    pairs_per_epoch: int = 0,
    processes: int = 1,
    seed: int = 0,
    opposite_views: bool = False,
    rounds: int = 1,
) -> PairPlan:
    """Choose the source of pairs and the size of a batch.

    Args:
        groups: group of each item, or None.
        contents: content hash of each item; copies never form a negative pair.
        source: `groups`, `views`, `frames`, `mixed`, or `auto`; see `resolve_source`.
        views: views per item; pairs of views need two.
        batch_size: requested pairs per batch, lowered to what the classes can provide; by default
            128, and fewer if an epoch would have less than 16 batches, but at least 16.
        pairs_per_class: maximum pairs per class in a batch.
        pairs_per_epoch: maximum pairs per group in an epoch; 0 is no limit.
        processes: number of processes that share a batch equally.
        seed: seed of all draws.
        opposite_views: pair an even with an odd view of an image.
        rounds: pairs of views that an epoch takes of each image, if all pairs are of views.

    Raises:
        ConfigError: there is nothing to pair, fewer than two classes, or too few views.
    """
    source = resolve_source(groups, source)
    if source != "groups" and views < 2:
        raise ConfigError("pairs of two views need --views 2 or more")
    if source != "groups" and opposite_views and views % 2:
        raise ConfigError(
            f"pairs of an even and an odd view need an even number of --views, not {views}"
        )
    codes = name_codes(groups)
    in_group = repeated(codes) & (source in ("groups", "mixed"))
    members, bounds = _by_class(np.flatnonzero(in_group), codes)
    grouped = len(bounds) - 1
    if source != "groups":
        content = name_codes(contents)
        if source == "frames":  # a group is one class, as is an image without a group
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
    rounds = rounds if source in ("views", "frames") else 1
    pairs = int(available.sum()) + (classes - grouped) * rounds
    wanted = batch_size or min(MOST_PAIRS, max(_LEAST_PAIRS, pairs // _ENOUGH_STEPS))
    size = min(wanted, supply) // processes * processes
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
        rounds=rounds,
    )


def enough_views(images: int, source: str, *, published: bool = False) -> int:
    """Return the number of views for a run that names none: more if the images are few.

    Args:
        published: no more than the paper's recipe needs.
    """
    least = 1 if source == "groups" else 2
    if published:
        return least
    return max(least, min(_MOST_VIEWS, _ENOUGH_SIDES // images // 2 * 2))


def _available(bounds: Ints, pairs_per_epoch: int) -> Ints:
    """Return the number of pairs that each group provides in an epoch."""
    pairs = np.diff(bounds) // 2
    return np.minimum(pairs, pairs_per_epoch) if pairs_per_epoch else pairs


def _by_class(items: Ints, codes: Ints) -> tuple[Ints, Ints]:
    """Return the items ordered by code, and the start of each code, with the end."""
    order = np.argsort(codes[items], kind="stable")
    members = items[order].astype(np.int32)
    starts = np.flatnonzero(np.diff(codes[members], prepend=-1))
    return members, np.append(starts, len(members)).astype(np.int32)
