"""Choose a run's size, views and epochs so that it fits into the time that its user grants.

Resolution comes first: a much larger student in closed form is worth more than any training of a
smaller one. Then come a few epochs, then more views, then more epochs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from whiten.distillation.deadline import RESERVE
from whiten.errors import ConfigError
from whiten.runs.budget import format_time, parse_time
from whiten.runs.spec import EPOCHS, DistillSpec

FEWEST_EPOCHS = 3  # that are worth training for
MUCH_LARGER = 1.5  # in size, which is worth more than training
ENOUGH_EPOCHS = 6  # before more views are worth their time


@dataclass(frozen=True)
class Speeds:
    """Seconds on this machine.

    Attributes:
        teachers: of each teacher per view.
        features: of the student per view, by input side in pixels.
        step: of the student's training per view, by input side.
        start: of everything in closed form (whitening, ridge, writing) per view of each image.
        start_once: of everything in closed form besides.
    """

    teachers: Sequence[float]
    features: Mapping[int, float]
    step: Mapping[int, float]
    start: float = 0.0
    start_once: float = 0.0


@dataclass(frozen=True)
class Work:
    """The work that a run has to do.

    Attributes:
        images: number of images.
        sides: views that train the student in one round of an epoch.
        checked: images and crops that measure it after each epoch.
        crops: crops whose features the start needs.
        missing: for each candidate number of views, in ascending order, the views that each teacher
            still has to embed.
        pair_views: views that training needs, or 1 if its pairs are images of groups.
        shows_rounds: whether an epoch may show images in several pairs of their views.
        is_untrained: whether the run keeps its start in closed form unless told to train.
    """

    images: int
    sides: int
    checked: int
    crops: int
    missing: Mapping[int, Sequence[int]]
    pair_views: int
    shows_rounds: bool
    is_untrained: bool = False


@dataclass(frozen=True)
class _Costs:
    """Seconds of each part of a run, by its size and views."""

    work: Work
    speeds: Speeds

    def closed(self, size: int, views: int) -> float:
        """Seconds of everything before training."""
        counts = zip(self.speeds.teachers, self.work.missing[views], strict=True)
        teachers = sum(speed * count for speed, count in counts)
        own = self.speeds.features[size] * (self.work.images * views + self.work.crops)
        start = self.speeds.start_once + self.speeds.start * self.work.images * views
        return teachers + own + start

    def epoch(self, size: int, rounds: int) -> float:
        checked = self.speeds.features[size] * self.work.checked
        return rounds * self.speeds.step[size] * self.work.sides + checked


def plan(spec: DistillSpec, spent: float, work: Work, speeds: Speeds) -> DistillSpec:
    """Return the options with size, views, rounds and epochs filled in; given ones stay.

    Args:
        spec: with a budget.
        spent: seconds that the run has taken already.
        speeds: has one entry for each candidate size.

    Raises:
        ConfigError: the budget is too short even for the start in closed form.
    """
    assert spec.budget is not None
    granted, costs = parse_time(spec.budget), _Costs(work, speeds)
    left = (1 - RESERVE) * granted - spent
    sizes, views = sorted(speeds.features), sorted(work.missing)
    least = costs.closed(sizes[0], views[0])
    if least > left:
        needed = format_time((least + spent) / (1 - RESERVE))
        raise ConfigError(
            f"--budget {spec.budget} is too short: to embed the images once by all teachers and to "
            f"start the student in closed form takes at least {needed}: use --budget {needed} or "
            "more, or fewer images or faster teachers"
        )
    closed = max(size for size in sizes if costs.closed(size, views[0]) <= left)
    trained = _trained_size(spec, left, costs, sizes, views)
    if trained is None or (spec.epochs is None and closed >= MUCH_LARGER * trained):
        most = max(count for count in views if costs.closed(closed, count) <= left)
        return dataclasses.replace(spec, size=closed, views=most, rounds=1, epochs=0)
    epochs = spec.epochs or ENOUGH_EPOCHS
    fitting = [
        count
        for count in _paired(work, views)
        if costs.closed(trained, count) + epochs * costs.epoch(trained, 1) <= left
    ]
    chosen = max(fitting, default=min(_paired(work, views)))
    left -= costs.closed(trained, chosen)
    rounds = _rounds(spec, work, chosen)
    while spec.rounds is None and rounds > 1 and epochs * costs.epoch(trained, rounds) > left:
        rounds -= 1
    if spec.epochs is None:
        epochs = max(1, min(EPOCHS, int(left / max(costs.epoch(trained, rounds), 1e-9))))
    return dataclasses.replace(spec, size=trained, views=chosen, rounds=rounds, epochs=epochs)


def _trained_size(
    spec: DistillSpec, left: float, costs: _Costs, sizes: Sequence[int], views: Sequence[int]
) -> int | None:
    """The largest size at which some epochs fit; None if the run should not train."""
    paired = _paired(costs.work, views)
    if spec.epochs == 0 or not paired or (spec.epochs is None and costs.work.is_untrained):
        return None
    epochs = spec.epochs or FEWEST_EPOCHS
    fitting = [
        size
        for size in sizes
        if costs.closed(size, paired[0]) + epochs * costs.epoch(size, 1) <= left
    ]
    # As many epochs as were asked for, which the clock may cut short.
    return max(fitting, default=sizes[0] if spec.epochs else None)


def _paired(work: Work, views: Sequence[int]) -> list[int]:
    """The candidate numbers of views that training can draw pairs from."""
    return [count for count in views if count >= work.pair_views]


def _rounds(spec: DistillSpec, work: Work, views: int) -> int:
    if spec.rounds is not None:
        return spec.rounds
    return max(1, views // 2) if work.shows_rounds and spec.views is None else 1


def describe(spec: DistillSpec) -> str:
    """One line on what was chosen."""
    size = "" if spec.size is None else f"{spec.size} px, "
    views = f"{spec.views} view{'s' * (spec.views != 1)} per image"
    if not spec.epochs:
        return f"budget {spec.budget}: {size}{views}, no training beyond the start in closed form"
    rounds = f" of {spec.rounds} pairs of views per image" if (spec.rounds or 1) > 1 else ""
    epochs = f"{spec.epochs} epoch{'s' * (spec.epochs != 1)}"
    return f"budget {spec.budget}: {size}{views}, {epochs}{rounds} at most"
